"""Shared fixtures. Real clips are used where they are, and skipped by name where not."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

SHARED_CLIPS = Path(os.environ.get("TAE_SHARED_CLIPS", Path(__file__).parents[2] / "shared" / "clips"))
REAL_WEIGHTS = os.environ.get("TAE_WEIGHTS")


@pytest.fixture(scope="session", autouse=True)
def no_weights() -> Iterator[None]:
    """What this machine has in its cache of weights must change no test but those that ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAE_WEIGHTS", str(Path(os.devnull) / "no-weights"))
        yield


@pytest.fixture
def real_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache that `python -m tae.weights get=all` filled, for tests that are marked `network`."""
    monkeypatch.delenv("TAE_WEIGHTS")
    if REAL_WEIGHTS is not None:
        monkeypatch.setenv("TAE_WEIGHTS", REAL_WEIGHTS)


@pytest.fixture(scope="session")
def shared_clips() -> Path:
    """The folder of real videos (ucf101/, hd/, awkward/); set TAE_SHARED_CLIPS to its path."""
    if not SHARED_CLIPS.is_dir():
        pytest.skip(f"real clips are not there: {SHARED_CLIPS} does not exist (set TAE_SHARED_CLIPS)")
    return SHARED_CLIPS


@pytest.fixture(scope="session")
def bug_inputs() -> Path:
    """The folder of small files that once broke something, beside the real clips."""
    folder = SHARED_CLIPS.parent / "bug_inputs"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist (set TAE_SHARED_CLIPS to the folder beside it)")
    return folder


@pytest.fixture(autouse=True)
def fixed_rng() -> Iterator[None]:
    """Every test starts from the same seed and leaves the global generator as it found it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A GPU test skips without a device, unless TAE_REQUIRE_GPU=1: a GPU job must not pass by skipping."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available() and os.environ.get("TAE_REQUIRE_GPU") != "1":
        pytest.skip("needs a CUDA device")

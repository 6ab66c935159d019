"""Two runs and one folder, in two processes."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tae.runtime import ownership
from tae.runtime.cli import CheckStart
from tae.runtime.errors import UserError
from tae.runtime.ownership import claim, free_folder, owned, release, try_claim


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "PATIENCE", 0.0)
    monkeypatch.setattr(ownership, "_held", {})
    for name in ownership.RANKS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[int]:
    """Another process that owns the folder `run`."""
    child = os.fork()
    if child == 0:  # pragma: no cover
        claim(tmp_path / "run")
        (tmp_path / "claimed").touch()
        while True:
            signal.pause()
    while not (tmp_path / "claimed").exists():
        time.sleep(0.01)
    yield child
    end(child)


def end(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def test_a_folder_in_use_is_refused_until_its_owner_is_killed(tmp_path: Path, other: int) -> None:
    with pytest.raises(UserError, match=rf"run is in use by another run \(process {other} on .*output_dir=PATH"):
        claim(tmp_path / "run")
    with pytest.raises(UserError, match="in use"), owned(tmp_path / "run"):
        pass
    end(other)
    assert try_claim(tmp_path / "run")  # nothing is left of a SIGKILL
    release(tmp_path / "run")


def test_the_further_processes_of_a_run_ask_nobody(tmp_path: Path, other: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with owned(tmp_path / "run"):
        pass


def test_owned_again_in_the_same_process(tmp_path: Path) -> None:
    claim(tmp_path)
    with owned(tmp_path):
        pass
    assert not FileLockOfAnother(tmp_path).acquired()  # the inner block gave nothing back
    release(tmp_path)
    assert FileLockOfAnother(tmp_path).acquired()


class FileLockOfAnother:
    """What another process would find, asked through a second descriptor."""

    def __init__(self, folder: Path) -> None:
        self.lock = ownership.FileLock(folder / ownership.LOCK, timeout=0)

    def acquired(self) -> bool:
        try:
            with self.lock:
                return True
        except ownership.Timeout:
            return False


def start(folder: Path, *overrides: str) -> str:
    """The folder of a run that Hydra would start."""
    hydra = {"run": {"dir": str(folder)}, "overrides": {"task": list(overrides), "hydra": []}}
    config = OmegaConf.create({"hydra": hydra})
    CheckStart().on_run_start(config)
    return config.hydra.run.dir


def test_two_runs_of_one_second_have_a_folder_each(tmp_path: Path, other: int) -> None:
    assert start(tmp_path / "run", "seed=1") == str(tmp_path / "run_2")
    assert free_folder(tmp_path / "new") == tmp_path / "new"


@pytest.mark.parametrize("launcher", [True, False])
def test_a_folder_that_was_named_is_that_or_none(
    launcher: bool, tmp_path: Path, other: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the user, or by a launcher for all processes of a run."""
    if launcher:
        monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit):
        start(tmp_path / "run", *([] if launcher else [f"output_dir={tmp_path / 'run'}"]))
    assert "is in use by another run" in capsys.readouterr().err

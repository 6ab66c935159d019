"""An exported autoencoder run by onnxruntime, behind the interface of `tae.model.codec`.

`python -m tae.export format=onnx` writes a folder with two graphs and `graphs.json`: what they take and give, and in which
tiles a video goes through them.
"""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from tae.model.checks import check_clip, check_latents, kept_extents
from tae.model.posterior import DiagonalGaussian
from tae.model.tiling import Tiling
from tae.runtime.errors import UserError, first_line
from tae.runtime.files import file_sha256, write_text
from tae.runtime.paths import to_path

GRAPHS_FILE = "graphs.json"
GRAPHS_VERSION = 1
WRITE_THEM = "Write them with: python -m tae.export format=onnx ckpt=PATH output=DIR"
# For programs that read nothing but the file; the same in all.
TENSORS = {
    "clip": "(b, 3, t, h, w), RGB, to be clamped and cut to the size that went in where it was decoded",
    "mean, std": "of the posterior, (b, latent_channels, t, h, w divided by their factors and rounded up)",
    "latents": "as mean; as the decoder takes them, not normalised",
}


@dataclass(frozen=True)
class GraphsDescription:
    """The content of `graphs.json`.

    Attributes:
        format: "onnx" or "torch_export".
        opset: of ONNX; None for torch.export.
        files: {"encoder" and "decoder": {"path": beside this file, "sha256"}}.
        checkpoint: {"sha256" of its file, "encoder": that of what latents depend on}.
        tiling: the arguments of `Tiling`.
        latents_mean, latents_std, scaling_factor, shift_factor: as diffusers calls them; None where they are not known.
    """

    format: str
    opset: int | None
    files: Mapping[str, Mapping[str, str]]
    checkpoint: Mapping[str, str | None]
    time_factor: int
    space_factor: int
    latent_channels: int
    tiling: Mapping[str, int | None]
    latents_mean: list[float] | None = None
    latents_std: list[float] | None = None
    scaling_factor: float | None = None
    shift_factor: float | None = None
    dtype: str = "float32"
    value_range: tuple[float, float] = (-1.0, 1.0)

    def write(self, folder: Path) -> None:
        """Write `graphs.json` into a folder."""
        content = {"version": GRAPHS_VERSION, **asdict(self), "tensors": TENSORS}
        write_text(folder / GRAPHS_FILE, json.dumps(content, indent=2, allow_nan=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `graphs.json` of a folder.

        Raises:
            UserError: there is none, or it is something else.
        """
        path = folder / GRAPHS_FILE
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("version") != GRAPHS_VERSION:
                raise ValueError("another version")
            content.pop("tensors")
            description = cls(**content)
            description.check()
            return description
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{folder} has no {GRAPHS_FILE}, so no exported graphs. {WRITE_THEM}") from error
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} does not describe exported graphs ({error!r}). {WRITE_THEM}") from error

    def check(self) -> None:
        """Refuse values of another form than `tae.export` writes.

        Raises:
            KeyError, TypeError, ValueError: one is.
        """
        for name in ("encoder", "decoder"):
            file = self.files[name]
            if set(file) != {"path", "sha256"} or not all(isinstance(value, str) for value in file.values()):
                raise ValueError(f"files.{name}={file}")
        for name in ("time_factor", "space_factor", "latent_channels"):
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise ValueError(f"{name}={size}")
        tiling: dict[str, Any] = {**self.tiling}
        if asdict(Tiling(**tiling)) != tiling:
            raise ValueError(f"tiling={self.tiling}")
        if not isinstance(self.checkpoint, Mapping):
            raise TypeError(f"checkpoint={self.checkpoint}")

    def check_tiling(self, tiling: Tiling) -> None:
        """Refuse other tiles than those of the export.

        Raises:
            UserError: with the settings that differ.
        """
        ours = {name: "null" if size is None else size for name, size in self.tiling.items()}
        theirs = {name: "null" if size is None else size for name, size in asdict(tiling).items()}
        differing = [name for name in theirs if theirs[name] != ours.get(name)]
        if differing:
            given, right = (
                " ".join(f"tiling.{name}={sizes.get(name)}" for name in differing) for sizes in (theirs, ours)
            )
            raise UserError(f"{given} is not what these graphs were exported for: give {right}, or export them again.")


class OnnxCodec:
    """An exported autoencoder on the processor, in float32; see `tae.model.codec.TileableCodec`.

    Args:
        folder: what `python -m tae.export format=onnx` wrote.

    Raises:
        UserError: no such folder, a file that is not the one that was exported, graphs of fixed sizes, or no onnxruntime.
    """

    device = torch.device("cpu")

    def __init__(self, folder: str | Path) -> None:
        folder = to_path(folder)
        self.description = GraphsDescription.read(folder)
        if self.description.format != "onnx":
            raise UserError(f"{folder} holds graphs of format={self.description.format}. {WRITE_THEM}")
        if importlib.util.find_spec("onnxruntime") is None:
            raise UserError("runtime=onnx needs onnxruntime: pip install 'temporal-autoencoder[export]'.")
        self.time_factor = self.description.time_factor
        self.space_factor = self.description.space_factor
        self.latent_channels = self.description.latent_channels
        files = self.description.files
        paths = [checked_file(folder, **files[name]) for name in ("encoder", "decoder")]
        self._encoder, self._decoder = map(OnnxGraph, paths)

    def encode(self, clip: Tensor) -> DiagonalGaussian:
        """The posterior of (b, 3, t, h, w), as `TemporalAutoencoder.encode`."""
        check_clip(clip, smallest=self.space_factor)
        mean, std = self._encoder(clip)
        return DiagonalGaussian(mean, 2 * std.log())

    def decode(self, latents: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """The clip of latents, as `TemporalAutoencoder.decode`."""
        check_latents(latents, self.latent_channels)
        t, h, w = latents.shape[2:]
        held = (t * self.time_factor, h * self.space_factor, w * self.space_factor)
        frames, height, width = kept_extents(held, num_frames, size)
        (clip,) = self._decoder(latents)
        return clip[:, :, :frames, :height, :width]


class OnnxGraph:
    """One graph of an ONNX file as a function of a tensor, with as many threads as PyTorch has.

    Raises:
        UserError: onnxruntime cannot run it, or it takes tensors of one size alone, which tiles are not all of.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no class in common
            raise UserError(
                f"onnxruntime {onnxruntime.__version__} cannot run {path}: {first_line(error).rstrip('.')}."
            ) from error
        (taken,) = self._session.get_inputs()
        self._name = taken.name
        fixed = [f"{axis}={taken.shape[dim]}" for dim, axis in TILED_AXES.items() if isinstance(taken.shape[dim], int)]
        if fixed:
            raise UserError(f"{path} takes {' and '.join(fixed)} alone, and tiles are of several sizes. {WRITE_THEM}")

    def __call__(self, x: Tensor) -> list[Tensor]:
        given = np.ascontiguousarray(x.detach().to("cpu", torch.float32).numpy())
        return [torch.from_numpy(out) for out in self._session.run(None, {self._name: given})]


TILED_AXES = {2: "frames", 3: "height", 4: "width"}


def checked_file(folder: Path, path: str, sha256: str) -> Path:
    """A file of the export.

    Raises:
        UserError: it is not there, or not the one that was written.
    """
    file = folder / Path(path).name  # never outside the folder, whoever wrote the description
    if not file.is_file():
        raise UserError(f"{file} is missing, which {GRAPHS_FILE} names: copy the whole folder of the export.")
    if (found := file_sha256(file)) != sha256:
        raise UserError(
            f"{file} is not the file that was exported: its SHA-256 is {found[:12]}..., {GRAPHS_FILE} states "
            f"{sha256[:12]}... Copy the folder again. {WRITE_THEM}"
        )
    return file

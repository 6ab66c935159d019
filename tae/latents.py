"""Latents on disk, as `python -m tae.encode` writes them, and as a generator reads them.

A folder of latents holds WebDataset shards `shard-000000.tar`, `index.json` (what is in them, and where) and
`latent_stats.json` (how the latents are distributed). A sample is `<key>.safetensors` with the posterior's `mean` and `std`,
both (t', c, h', w'), and `<key>.json` with the metadata of the video. Time comes first in these tensors, so that a file can
grow while a video is read, and a window of latent frames is one stretch of bytes: a crop reads nothing else.

Importing this module needs no more than `import tae` does.
"""

import json
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tae.errors import UserError

INDEX = "index.json"
STATS = "latent_stats.json"
STATS_VERSION = 1
TENSORS = ("mean", "std")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
FORMAT_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}  # of safetensors


def read_window(file: IO[bytes], name: str, start: int, length: int) -> Tensor:
    """`length` latent frames from `start` on of one tensor of an open .safetensors file: (length, c, h', w').

    `file` stands at the beginning of the .safetensors data and is left anywhere.
    """
    begin = file.tell()
    (header_length,) = struct.unpack("<Q", file.read(8))
    entry = json.loads(file.read(header_length))[name]
    dtype = next(dtype for dtype, format_name in FORMAT_NAMES.items() if format_name == entry["dtype"])
    first, end = entry["data_offsets"]
    frame = (end - first) // entry["shape"][0]
    file.seek(begin + 8 + header_length + first + start * frame)
    values = bytearray(file.read(length * frame))
    return torch.frombuffer(values, dtype=dtype).view(length, *entry["shape"][1:])


@dataclass(frozen=True)
class LatentStats:
    """How the latents of a folder are distributed: the content of `latent_stats.json`.

    Everything is about samples of the posteriors, `mean + std * noise`, and exact: the noise's part is known, not drawn.

    mean, std:     of each channel, over all positions of all latent frames
    posterior_std: of each channel, the noise's part of `std` (the root of the mean variance of the posteriors)
    shift, scale:  one number each: `(latents - shift) * scale` has mean 0 and variance 1 over all channels together. What
                   diffusers calls `shift_factor` and `scaling_factor`
    outlier_rate:  share of positions z of the means with ||z - m|| > 3 ||s||, m and s those of its latent frame
    checkpoint:    of the model: {"path", "sha256"}
    """

    num_clips: int
    num_latent_frames: int
    num_positions: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    posterior_std: tuple[float, ...]
    shift: float
    scale: float
    outlier_rate: float
    checkpoint: Mapping[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read `latent_stats.json` of a folder.

        Raises:
            UserError: there is none, or it is something else.
        """
        path = Path(folder).expanduser() / STATS
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("version") != STATS_VERSION:
                raise ValueError("another version")
            stats = cls(**content)
        except FileNotFoundError as error:
            raise UserError(
                f"{path} is not there: give a folder that `python -m tae.encode` has finished (the same command goes on)."
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} cannot be read as statistics of latents ({error!r}): encode again.") from error
        return stats


@dataclass(frozen=True)
class Scaling:
    """Latents to about zero mean and unit variance, and back. `shift` and `scale` broadcast against (c, t', h', w')."""

    shift: Tensor
    scale: Tensor

    @classmethod
    def from_stats(cls, stats: LatentStats, per_channel: bool) -> Self:
        """One shift and scale for all channels, as diffusers' pipelines apply them, or one for each channel."""
        shift = torch.tensor(stats.mean if per_channel else [stats.shift])
        scale = 1 / torch.tensor(stats.std) if per_channel else torch.tensor([stats.scale])
        return cls(shift.view(-1, 1, 1, 1), scale.view(-1, 1, 1, 1))

    def apply(self, latents: Tensor) -> Tensor:
        """What a generator trains on, of (..., c, t', h', w') as the encoder gives them."""
        return (latents - self.shift.to(latents)) * self.scale.to(latents)

    def undo(self, latents: Tensor) -> Tensor:
        """What the decoder takes, of (..., c, t', h', w') as a generator gives them."""
        return latents / self.scale.to(latents) + self.shift.to(latents)


class Place(NamedTuple):
    """Where one clip lies: its shard, the bytes of its two members, and its length in latent frames."""

    key: str
    shard: Path
    latents: int
    metadata: tuple[int, int]
    num_latent_frames: int


class LatentDataset(Dataset):
    """Latents for training a generator: items `{"latents": (c, t', h', w') float32, "key": str, "label": str}`.

    Reads only the bytes of the window it gives, so it may be shuffled freely; a `DataLoader` with workers and Lightning's or
    torch's `DistributedSampler` work as with any dataset. Clips of several sizes cannot stand in one batch: encode with
    `resolution=N`, or use a batch size of 1.

    Args:
        folder: what `python -m tae.encode` wrote.
        num_frames: latent frames of an item, a random window of each clip; None gives whole clips. Shorter clips are left
            out, with a warning.
        sample: draw from the posterior, anew each time (noise of torch's global generator); else give its mode.
        per_channel: scale each channel by its own statistics; else all by one shift and scale, as diffusers does.

    `scaling.undo` turns what a generator made into what `TemporalAutoencoder.decode` takes.

    Raises:
        UserError: the folder is not finished or not one of latents, or no clip is long enough.
    """

    def __init__(
        self, folder: str | Path, num_frames: int | None = None, sample: bool = True, per_channel: bool = False
    ) -> None:
        folder = Path(folder).expanduser()
        self.stats = LatentStats.read(folder)
        self.scaling = Scaling.from_stats(self.stats, per_channel)
        self.num_frames = num_frames
        self.sample = sample
        places = read_places(folder)
        self.places = [place for place in places if num_frames is None or place.num_latent_frames >= num_frames]
        if not self.places:
            longest = max((place.num_latent_frames for place in places), default=0)
            raise UserError(
                f"{folder}: no clip has {num_frames} latent frames, the longest has {longest}. Ask for fewer."
            )
        if short := len(places) - len(self.places):
            warnings.warn(f"{short} of {len(places)} clips have fewer than {num_frames} latent frames.", stacklevel=2)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = self.places[index]
        length = self.num_frames or place.num_latent_frames
        start = int(torch.randint(place.num_latent_frames - length + 1, ()))
        with place.shard.open("rb") as file:
            file.seek(place.metadata[0])
            metadata = json.loads(file.read(place.metadata[1]))
            file.seek(place.latents)
            latents = read_window(file, "mean", start, length).float()
            if self.sample:
                file.seek(place.latents)
                latents += read_window(file, "std", start, length).float() * torch.randn(latents.shape)
        scaled = self.scaling.apply(latents.movedim(1, 0)).contiguous()
        return {"latents": scaled, "key": place.key, "label": str(metadata.get("label", ""))}


def read_places(folder: Path) -> list[Place]:
    """Every clip of a folder of latents, in the order of its index.

    Raises:
        UserError: the index is missing or none of latents, or a shard is missing or of another size.
    """
    try:
        shards: Sequence[Mapping[str, Any]] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["shards"]
        places = [
            Place(key, folder / shard["name"], where["safetensors"][0], tuple(where["json"]), where["latent_shape"][0])
            for shard in shards
            for key, where in shard["places"].items()
        ]
        damaged = [shard["name"] for shard in shards if (folder / shard["name"]).stat().st_size != shard["bytes"]]
    except OSError as error:
        raise UserError(f"{folder} is not complete: {error}. Encode again; the same command goes on.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / INDEX} is no index of latents ({error!r}): give what tae.encode wrote.") from error
    if damaged:
        raise UserError(f"{folder / damaged[0]} has another size than {INDEX} says: copy or encode it again.")
    return places

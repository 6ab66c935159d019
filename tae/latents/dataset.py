"""Latents on disk, as `python -m tae.encode` writes them, and as a generator reads them.

A folder of latents holds WebDataset shards `shard-000000.tar`, `index.json` (what is in them, and where) and
`latent_stats.json` (how the latents are distributed). A sample is `<key>.safetensors` with the posterior's `mean` and `std`,
both (t', c, h', w'), and `<key>.json` with the metadata of the video. Time comes first in these tensors, so that a file can
grow while a video is read, and a window of latent frames is one stretch of bytes: a crop reads nothing else.

Importing this module needs no more than `import tae` does.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from tae.latents.file import LATENTS_INDEX, read_window
from tae.latents.stats import LatentStats, Scaling
from tae.runtime.errors import UserError
from tae.runtime.paths import to_path


class Place(NamedTuple):
    """Where one clip lies: its shard, the bytes of its two members, and its length and size (h', w') in latents."""

    key: str
    shard: Path
    latents: int
    metadata: tuple[int, int]
    num_latent_frames: int
    size: tuple[int, int]


class LatentDataset(Dataset):
    """Latents for training a generator: items `{"latents": (c, t', h', w') float32, "key": str, "label": str}`.

    Reads only the bytes of the window it gives, so it may be shuffled freely; a `DataLoader` with workers and Lightning's or
    torch's `DistributedSampler` work as with any dataset. Clips of several sizes cannot stand in one batch: encode with
    `resolution=N`, or use `tae.latents.SizeBatchSampler`; a warning says so.

    Args:
        folder: what `python -m tae.encode` wrote.
        num_frames: latent frames of an item, a random window of each clip; None gives whole clips. Shorter clips are left
            out, with a warning.
        sample: draw from the posterior, a new sample each time (noise of torch's global generator); else give its mode.
        per_channel: scale each channel by its own statistics; else all by one shift and scale, as diffusers does.

    `scaling.undo` turns what a generator made into what `TemporalAutoencoder.decode` takes.

    Raises:
        UserError: the folder is not finished or not one of latents, or no clip is long enough.
    """

    def __init__(
        self, folder: str | Path, num_frames: int | None = None, sample: bool = True, per_channel: bool = False
    ) -> None:
        folder = to_path(folder)
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
        if len(sizes := set(self.sizes())) > 1:
            warnings.warn(
                f"The {len(self.places)} items of {folder} have {len(sizes)} sizes (t', h', w'), from {min(sizes)} to "
                f"{max(sizes)}, and a batch holds one: use DataLoader(dataset, batch_sampler=SizeBatchSampler(dataset, "
                "BATCH)), or encode with resolution=N, and give num_frames=N where lengths differ.",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self.places)

    def sizes(self) -> list[tuple[int, int, int]]:
        """(t', h', w') of each item."""
        return [(self.num_frames or place.num_latent_frames, *place.size) for place in self.places]

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
        shards: Sequence[Mapping[str, Any]] = json.loads((folder / LATENTS_INDEX).read_text(encoding="utf-8"))["shards"]
        places = [
            Place(
                key,
                folder / shard["name"],
                where["safetensors"][0],
                tuple(where["json"]),
                where["latent_shape"][0],
                tuple(where["latent_shape"][2:]),
            )
            for shard in shards
            for key, where in shard["places"].items()
        ]
        damaged = [shard["name"] for shard in shards if (folder / shard["name"]).stat().st_size != shard["bytes"]]
    except OSError as error:
        raise UserError(f"{folder} is not complete: {error}. Encode again; the same command resumes.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / LATENTS_INDEX} is no index of latents ({error!r}): give what tae.encode wrote."
        ) from error
    if damaged:
        raise UserError(f"{folder / damaged[0]} has another size than {LATENTS_INDEX} says: copy or encode it again.")
    return places

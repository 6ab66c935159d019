"""Latents to disk: a file for each clip, shards of them, and at the end the index and the statistics.

See `tae.latents.dataset` for what the result looks like, and for reading it.
"""

import csv
import json
import os
import shutil
import struct
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import torch
from torch import Tensor

from data.shards.format import INDEX_VERSION
from tae.latents.file import FORMAT_NAMES, LATENTS_INDEX, TENSORS
from tae.latents.moments import Moments
from tae.latents.stats import LatentStats
from tae.runtime.errors import UserError
from tae.runtime.files import file_sha256, remove_leftovers, write_text

FINISHED = ".finished"  # holds an entry for each finished shard
KEPT_IN_MEMORY = 16 * 2**20  # bytes of a tensor that is being written; what is longer waits in a temporary file


def entry_path(output: Path, number: int) -> Path:
    return output / FINISHED / f"{number:06d}.json"


class LatentFile:
    """A .safetensors file of latents whose length is known only at the end.

    The format wants the shapes first, so the values of a long video wait in temporary files, not in memory.
    `tensor.movedim(0, 1)[None]` of what it holds is what `TemporalAutoencoder.decode` takes.

    Format: https://huggingface.co/docs/safetensors: length of the header (8 bytes), header (JSON), values.

    Args:
        name: of the video, for messages.
    """

    def __init__(self, name: str, dtype: torch.dtype = torch.float32) -> None:
        self.name = name
        self.dtype = dtype
        self._length = 0
        self._frame_shape: tuple[int, ...] = ()
        self._files: dict[str, IO[bytes]] = {name: tempfile.SpooledTemporaryFile(KEPT_IN_MEMORY) for name in TENSORS}  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the values, written or not."""
        for file in self._files.values():
            file.close()

    @property
    def shape(self) -> tuple[int, ...]:
        """(t', c, h', w') of what was appended."""
        return (self._length, *self._frame_shape)

    def append(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Add a piece (1, c, t', h', w') and return both as they are written, rounded to this file's type, on the CPU.

        Raises:
            UserError: a value is NaN or infinite, or becomes so by rounding.
        """
        rounded = mean.to("cpu", self.dtype), std.to("cpu", self.dtype)
        if not all(tensor.isfinite().all() for tensor in rounded):
            raise UserError(_not_finite(self.name, computed=bool((mean.isfinite() & std.isfinite()).all())))
        for name, tensor in zip(TENSORS, rounded, strict=True):
            values = tensor[0].movedim(1, 0).contiguous()
            self._files[name].write(values.view(torch.uint8).numpy().tobytes())
        self._length += values.shape[0]
        self._frame_shape = tuple(values.shape[1:])
        return rounded

    def write_to(self, file: IO[bytes], **metadata: object) -> None:
        """Write everything that was appended; the metadata's values become text."""
        size = self._files["mean"].tell()
        header: dict[str, Any] = {"__metadata__": {key: str(value) for key, value in metadata.items()}}
        for i, name in enumerate(TENSORS):
            offsets = [i * size, (i + 1) * size]
            header[name] = {"dtype": FORMAT_NAMES[self.dtype], "shape": self.shape, "data_offsets": offsets}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        file.write(struct.pack("<Q", len(text)) + text)
        for values in self._files.values():
            values.seek(0)
            shutil.copyfileobj(values, file)


def _not_finite(name: str, computed: bool) -> str:
    """What to do about latents that cannot be stored, where they were `computed` well or not."""
    if computed:
        return f"{name}: its latents are beyond the range of dtype=fp16. Give dtype=fp32 and a new output folder."
    return (
        f"{name}: its latents hold NaN or infinite values. Give precision=fp32 and a new output folder; where that is set "
        "already, the checkpoint itself is of no use."
    )


class LatentShard:
    """One shard while it is written: a tar file that gets its name when it is whole, and an entry that says so."""

    def __init__(self, output: Path, number: int, dtype: torch.dtype) -> None:
        self.entry_path = entry_path(output, number)
        self.path = output / f"shard-{number:06d}.tar"
        self.dtype = dtype
        self.moments = Moments()
        self.lengths: dict[str, int] = {}  # pixel frames of each clip
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.rejected: list[tuple[str, str]] = []
        self._partial = output / f".{self.path.name}.partial"
        self._tar = tarfile.open(self._partial, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115
        self._clip: tuple[LatentFile, Moments] | None = None

    def append(self, name: str, mean: Tensor, std: Tensor) -> None:
        """Add a piece (1, c, t', h', w') to the current clip; `name` as in `end_clip`.

        Raises:
            UserError: as `LatentFile.append`: once in the sums, such a value would spoil the statistics of all clips.
        """
        if self._clip is None:
            self._clip = LatentFile(name, self.dtype), Moments()
        file, moments = self._clip
        moments.add(*file.append(mean, std))

    def end_clip(self, key: str, name: str, metadata: Mapping[str, Any] | None = None, fault: str = "") -> None:
        """Write the current clip, or drop what there is of it and remember the fault."""
        clip, self._clip = self._clip, None
        if clip is not None:
            file, moments = clip
            if metadata is not None:
                self._write(key, file, metadata)
                moments.clips = 1
                self.moments += moments
            file.close()
        if fault:
            self.rejected.append((name, fault))

    def finish(self) -> None:
        """Give the shard its name, if there is anything in it, and leave its entry."""
        self._tar.close()
        entry = None
        if self.lengths:
            self._partial.rename(self.path)
            entry = {"name": self.path.name, "samples": len(self.lengths), "bytes": self.path.stat().st_size}
            entry |= {"sha256": file_sha256(self.path), "frames": self.lengths, "places": self._places()}
        else:
            self._partial.unlink()
        content = {"shard": entry, "rejected": self.rejected, "moments": asdict(self.moments)}
        write_text(self.entry_path, json.dumps(content, allow_nan=False) + "\n")

    def abandon(self) -> None:
        """Close everything and leave nothing."""
        if self._clip is not None:
            self._clip[0].close()
        self._tar.close()
        self._partial.unlink()

    def _write(self, key: str, file: LatentFile, metadata: Mapping[str, Any]) -> None:
        with tempfile.SpooledTemporaryFile(KEPT_IN_MEMORY) as latents:
            file.write_to(latents)
            self._add(f"{key}.safetensors", latents)
        text = json.dumps(dict(metadata) | {"latent_shape": file.shape}, sort_keys=True)
        self._add(f"{key}.json", BytesIO(text.encode()))
        self.lengths[key], self.shapes[key] = metadata["num_frames"], file.shape

    def _add(self, name: str, content: IO[bytes]) -> None:
        member = tarfile.TarInfo(name)  # without times and owners: the same latents give the same bytes
        member.size = content.seek(0, os.SEEK_END)
        content.seek(0)
        self._tar.addfile(member, content)

    def _places(self) -> dict[str, dict[str, Any]]:
        """Where each member's content begins in the tar file, and how long it is, for readers that want a part of it."""
        places: dict[str, dict[str, Any]] = {key: {"latent_shape": shape} for key, shape in self.shapes.items()}
        with tarfile.open(self.path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                places[key][extension] = [member.offset_data, member.size]
        return places


def finish(
    output: Path,
    settings: Mapping[str, Any],
    num_shards: int,
    checkpoint: Mapping[str, Any],
    rejected: list[tuple[str, str]],
) -> tuple[LatentStats, list[tuple[str, str]]]:
    """Add up the entries of all shards: index.json, rejected.csv and, last, latent_stats.json.

    Raises:
        UserError: not one video could be encoded, or the statistics are not finite.
    """
    for folder in (output, output / FINISHED):  # by now every process has written what it had to
        remove_leftovers(folder)
    entries = [json.loads(entry_path(output, number).read_text(encoding="utf-8")) for number in range(num_shards)]
    rejected = sorted(rejected + [(name, reason) for entry in entries for name, reason in entry["rejected"]])
    with (output / "rejected.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([("path", "reason"), *rejected])
    shards = [entry["shard"] for entry in entries if entry["shard"] is not None]
    if not shards:
        raise UserError(f"None of the videos could be encoded: see {output / 'rejected.csv'}.")
    index = {"version": INDEX_VERSION, "split": "latents", "recipe": settings, "shards": shards}
    write_text(output / LATENTS_INDEX, json.dumps(index, indent=1, allow_nan=False) + "\n")
    moments = Moments()
    for entry in entries:
        moments += Moments(**entry["moments"])
    stats = moments.stats(checkpoint)
    if not np.isfinite([*stats.mean, *stats.std, stats.scale]).all():
        raise UserError(
            f"The statistics of output={output} are not finite: the latents are all equal, or an earlier version let NaN "
            "pass. Encode into a new folder, with precision=fp32 or another checkpoint."
        )
    stats.write(output)
    return stats, rejected

"""What `tae.encode` reads: the videos or images of a folder, a list or shards, and their frames piece by piece."""

import itertools
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from data.decode import as_path
from data.ingest.sources import find_media, root_of
from data.sampling.transforms import Crop
from data.shards.format import IMAGE_EXTENSIONS, MEDIA_EXTENSIONS, VIDEO_EXTENSIONS, Shard, media_of, read_json
from data.shards.index import find_shards
from data.shards.keys import UniqueKeys
from data.shards.metadata import read_metadata
from data.shards.reader import open_samples
from tae.runtime.errors import UserError
from tae.runtime.paths import to_path
from tae.video.facts import VideoError
from tae.video.image import is_image, open_image, to_pixels
from tae.video.reader import Frame, VideoReader


@dataclass(frozen=True)
class Source:
    """A video or image to encode: a file, or a sample of a shard.

    key:  of its latents, unique
    name: for people, and for `rejected.csv`
    """

    key: str
    name: str
    path: Path | None = None
    label: str = ""
    shard: Shard | None = None
    member: str = ""

    @property
    def content(self) -> str:
        """Tells other content under the same name, without reading it: a file's size, or the hash of the sample's shard."""
        if self.shard is not None:
            return self.shard.sha256 or str(self.shard.bytes)
        return str(self.path.stat().st_size) if self.path is not None else ""


@dataclass(frozen=True)
class Reading:
    """What becomes of a video's frames before they are encoded; see conf/encode.yaml."""

    resolution: int | None
    frame_stride: int
    piece: int  # frames that are handed on at once
    smallest: int  # height and width that the model takes
    interlaced: str = "refuse"


class Piece(NamedTuple):
    """What a decoding process hands on: some frames of the current clip, the end of a clip, or the end of a shard.

    frames: (t, h, w, 3) uint8
    name:   of the clip that the frames are of, for messages
    clip:   {"key", "name", and either "metadata" or "fault"}: the clip has ended, well or not
    """

    shard: int
    frames: Tensor | None = None
    clip: dict[str, Any] | None = None
    name: str = ""


def find_sources(source: str | Sequence[str]) -> tuple[list[Source], list[tuple[str, str]]]:
    """The videos of a folder, a list, a file or shards in a fixed order, and (name, reason) of what is none.

    Images are taken where there is no video.

    Raises:
        UserError: there is neither.
    """
    keys = UniqueKeys()
    rejected: list[tuple[str, str]] = []
    path = to_path(source) if isinstance(source, str) else None
    if path is not None and path.is_file() and path.suffix.lower().lstrip(".") in MEDIA_EXTENSIONS:
        sources = [Source(keys.claim(path.stem), str(path), path, path.parent.name)]
    elif path is not None and ((path.is_file() and path.suffix != ".tar") or _is_folder_of_videos(path)):
        found = find_media(path)
        videos, rejected, root = list(found.videos), list(found.rejected), root_of(path)
        if path.is_file():  # of a list: its own paths may lead anywhere
            rejected = [(str(root / name), reason) for name, reason in rejected]
        names = {video.key: str(root / video.path) if path.is_file() else video.path for video in videos}
        sources = [Source(video.key, names[video.key], root / video.path, video.label) for video in videos]
    elif path is None or path.is_dir() or ".tar" in path.name:
        patterns = list(source) if path is None else str(path / "*.tar") if path.is_dir() else str(source)
        pairs = [(shard, key) for shard in find_shards(patterns, "source") for key in shard.frames]
        sources = [Source(keys.claim(key), f"{shard.url}: {key}", shard=shard, member=key) for shard, key in pairs]
    else:
        sources = []
    if not sources:
        raise UserError(
            f"source={source} does not exist or holds no videos (by extension: {', '.join(sorted(VIDEO_EXTENSIONS))}) or "
            f"images ({', '.join(sorted(IMAGE_EXTENSIONS))}). Give a folder, a text file with a path on each line, a video, "
            "an image, or shards that `python -m data.prepare` wrote or `python -m data.index` has indexed."
        )
    return sources, rejected


def _is_folder_of_videos(path: Path) -> bool:
    return path.is_dir() and not any(path.glob("*.tar"))


class Pieces(IterableDataset):
    """The frames of one process's videos, piece by piece. Workers take whole shards, so a shard is in order."""

    def __init__(self, shards: Mapping[int, Sequence[Source]], reading: Reading) -> None:
        self.shards = shards
        self.reading = reading

    def __iter__(self) -> Iterator[Piece]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for number in sorted(self.shards)[worker::workers]:
            for source, video, metadata, fault in open_sources(self.shards[number]):
                clip = {"key": source.key, "name": source.name}
                try:
                    if fault:
                        raise UserError(fault)
                    facts: dict[str, Any] = {}
                    for frames in read_pieces(video, self.reading, facts):
                        yield Piece(number, frames=frames, name=source.name)
                    yield Piece(number, clip=clip | {"metadata": metadata | facts | {"source": source.name}})
                except Exception as error:  # whatever a broken file provokes in a library must not stop the others
                    yield Piece(number, clip=clip | {"fault": _reason(error)})
            yield Piece(number)


def batched(items: Iterable[Any], count: int) -> Iterator[list[Any]]:
    """Lists of `count` items, the last one shorter (itertools.batched of Python 3.12)."""
    rest = iter(items)
    return iter(lambda: list(itertools.islice(rest, count)), [])


def open_sources(sources: Sequence[Source]) -> Iterator[tuple[Source, Path, dict[str, Any], str]]:
    """For each source a path to its video, for as long as it is the current one, its metadata, or a fault instead."""
    for shard, group in itertools.groupby(sources, key=lambda source: source.shard):
        if shard is None:
            yield from ((source, source.path or Path(), {"label": source.label}, "") for source in group)
        else:
            yield from open_members(shard, {source.member: source for source in group})


def open_members(shard: Shard, waiting: dict[str, Source]) -> Iterator[tuple[Source, Path, dict[str, Any], str]]:
    """`open_sources` for the samples of one shard."""
    fault = "not in the shard, though its index lists it"
    try:
        with open_samples(shard, set(waiting)) as samples:
            for sample in samples:
                if source := waiting.pop(sample["__key__"], None):
                    try:
                        content, metadata = _read_sample(sample, shard)
                    except UserError as error:
                        yield source, Path(), {}, str(error)
                        continue
                    with as_path(content) as path:
                        yield source, Path(path), metadata, ""
                if not waiting:
                    return
    except (OSError, tarfile.TarError, ValueError) as error:
        fault = f"the shard cannot be read: {error}"
    for source in waiting.values():
        yield source, Path(), {}, fault


def _read_sample(sample: Mapping[str, Any], shard: Shard) -> tuple[bytes, dict[str, Any]]:
    """The file of a sample, and what is said of it: in our own shards always, in those of others perhaps."""
    found = media_of(sample)
    if len(found) != 1:
        raise UserError(f"{len(found)} video or image files under one key, one is expected")
    if sample["__key__"] in shard.known:
        return found[0], read_metadata(sample)
    try:
        return found[0], read_json(sample["json"])
    except (KeyError, ValueError) as error:
        raise UserError("its metadata (.json) is missing or cannot be read") from error


def _reason(error: Exception) -> str:
    if isinstance(error, VideoError):
        return error.reason
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def read_pieces(path: Path, reading: Reading, facts: dict[str, Any]) -> Iterator[Tensor]:
    """The frames of a video, (t, h, w, 3) uint8, piece by piece; an image is one frame. Fills `facts` on the way.

    Raises:
        UserError: the file cannot be read, or its frames are too small.
    """
    with path.open("rb") as file:
        pieces = _image_pieces if is_image(file.read(16)) else _video_pieces
    count = 0
    for piece in pieces(path, reading, facts):
        count += len(piece)
        yield piece
    facts |= {"num_frames": count, "height": piece.shape[1], "width": piece.shape[2]}


def _image_pieces(path: Path, reading: Reading, facts: dict[str, Any]) -> Iterator[Tensor]:
    with open_image(path.read_bytes()) as image:
        pixels = to_pixels(image)
    square = _crop_to(reading, *pixels.shape[:2])
    yield torch.from_numpy((square(pixels) if square else pixels)[None])
    facts["fps"] = 0.0


def _video_pieces(path: Path, reading: Reading, facts: dict[str, Any]) -> Iterator[Tensor]:
    with VideoReader(path, reading.interlaced) as reader:
        square = _crop_to(reading, *reader.size)
        frames: Iterator[Frame] = itertools.islice(reader.frames(), 0, None, reading.frame_stride)
        for batch in batched(frames, reading.piece):
            images = [square(frame.rgb) if square else frame.rgb for frame in batch]
            yield torch.from_numpy(np.stack(images))
        if reader.damage:
            raise VideoError(path, reader.damage)
        facts["fps"] = float(reader.rate / reading.frame_stride)


def _crop_to(reading: Reading, height: int, width: int) -> Crop | None:
    if reading.resolution:
        return Crop(height, width, reading.resolution)
    if min(height, width) < reading.smallest:
        raise UserError(f"frames of {height}x{width} are too small; the model needs {reading.smallest} each way.")
    return None

"""From a source file to the clips that are made of it: what it holds, checked, in its own bytes or encoded again."""

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.ingest.check import (
    DecodedFile,
    Facts,
    RefusedError,
    decode_sound,
    examine,
    examine_image,
    facts_about,
)
from data.ingest.frame_folders import FRAMES_EXTENSION, pack_frames
from data.ingest.shots import Encoding, encode_shots, find_shots
from data.ingest.splits import Video
from data.shards.format import IMAGE_EXTENSIONS, MAX_VIDEO_BYTES

CLOCK = 1e-4  # seconds: lists round times to milliseconds or less, and a frame that begins at one belongs to it
SAME_COLOUR = 6.0  # of 255, mean of a picture at some 1,000 points


@dataclass(frozen=True)
class Ways:
    """How files are checked and what is made of them.

    Args:
        encoding: how to encode clips; None keeps the files' own bytes.
        interlaced: what becomes of interlaced video whose bytes are kept: refuse or keep.
        decoder: the reader to prefer, see `data.ingest.check.examine`.
        frame_rate: of folders of pictures that state none, where the source is made of these; else None.
    """

    encoding: Encoding | None = None
    interlaced: str = "refuse"
    decoder: str = "auto"
    frame_rate: float | None = None


@dataclass(frozen=True)
class NewClip:
    """A sample that is ready to be written."""

    key: str
    extension: str
    content: bytes
    metadata: dict[str, Any]


@dataclass(frozen=True)
class LeftOut:
    """A part of an accepted file that cannot be used, and why."""

    name: str
    reason: str


def read_source(path: Path, ways: Ways) -> bytes:
    """The content of a source file, or the video file of a folder of pictures.

    Raises:
        RefusedError: it cannot be read, or is larger than readers of shards take.
    """
    if ways.frame_rate is not None:
        return pack_frames(path, ways.frame_rate)
    try:
        if (size := path.stat().st_size) > MAX_VIDEO_BYTES:  # before it is read into memory
            raise RefusedError(
                f"{size / 2**30:.1f} GiB; readers of shards take videos of up to {MAX_VIDEO_BYTES >> 30} GiB: cut it"
            )
        return path.read_bytes()
    except OSError as error:
        raise RefusedError(f"cannot be read: {error.strerror}") from error


def make_clips(video: Video, content: bytes, ways: Ways) -> Iterator[NewClip | LeftOut]:
    """The clips of a file, one after the other.

    Raises:
        RefusedError, DecodeError: it cannot be used, which may show after the first of them.
    """
    said = dict(video.more or {}) | {"label": video.label, "group": video.group, "source": video.path}
    extension = Path(video.path).suffix.lower().lstrip(".") if ways.frame_rate is None else FRAMES_EXTENSION
    if extension in IMAGE_EXTENSIONS:
        yield NewClip(video.key, extension, content, said | asdict(examine_image(content)))
    elif ways.encoding is None:
        yield NewClip(video.key, extension, content, said | asdict(examine(content, ways.interlaced, ways.decoder)))
    else:
        said["source_sha256"] = hashlib.sha256(content).hexdigest()
        shots, original = find_shots(content, ways.encoding)
        if video.cuts:
            yield from _make_cuts(video, content, original, ways, said)
            return
        for number, (shot, copy, facts) in enumerate(_encoded(content, shots, original, ways)):
            key = f"{video.key}_shot{number:03d}" if ways.encoding.shots else video.key
            yield NewClip(key, "mp4", copy, said | asdict(facts) | {"shot": shot})


def _make_cuts(
    video: Video, content: bytes, original: DecodedFile, ways: Ways, said: dict[str, Any]
) -> Iterator[NewClip | LeftOut]:
    """A clip for each part of a file that holds frames."""
    parts = []
    for ending, cut in zip(endings_of_cuts(len(video.cuts)), video.cuts, strict=True):
        part = find_frames(original.times, cut.start, cut.end)
        if part[0] < part[1]:
            parts.append((part, video.key + ending, cut))
        else:
            length = original.times[-1] + 1 / original.facts.rate
            yield LeftOut(f"{video.path} ({cut})", f"no frame of the file, which has {float(length):.2f} s, is in it")
    encoded = _encoded(content, [part for part, _, _ in parts], original, ways)
    for (_, key, cut), (shot, copy, facts) in zip(parts, encoded, strict=True):
        own = dict(cut.more) | said | ({"label": cut.label} if cut.label else {})
        yield NewClip(key, "mp4", copy, own | asdict(facts) | {"shot": shot, "range": [cut.start, cut.end]})


def endings_of_cuts(count: int) -> list[str]:
    """What the keys of so many parts of a file have behind that of the file; one part has the file's own."""
    return [f"_{number:03d}" for number in range(count)] if count > 1 else [""] * count


def find_frames(times: Sequence[float], start: float | None, end: float | None) -> tuple[int, int]:
    """First and last (excluded) of the frames that are shown from `start` on and before `end`, by their times."""
    first = 0 if start is None else bisect_left(times, start - CLOCK)
    last = len(times) if end is None else bisect_left(times, end - CLOCK)
    return first, last


def _encoded(
    content: bytes, shots: Sequence[tuple[int, int]], original: DecodedFile, ways: Ways
) -> Iterator[tuple[tuple[int, int], bytes, Facts]]:
    """First and last frame (excluded) of each shot, its own file, and what is in that."""
    assert ways.encoding is not None
    for shot, copy in zip(shots, encode_shots(content, shots, ways.encoding), strict=True):
        decoded = decode_sound(copy)
        _compare_colours(original, decoded, *shot)
        yield shot, copy, facts_about(copy, decoded, ways.decoder)


def _compare_colours(original: DecodedFile, copy: DecodedFile, start: int, end: int) -> None:
    """Refuse a copy whose pictures have another mean colour: a wrong matrix or range shows in it, loss does not.

    Raises:
        RefusedError: they have, or frames are missing.
    """
    if len(copy.points) != end - start:
        raise RefusedError(f"encoded again it has {len(copy.points)} frames in place of {end - start}")
    for number, points in enumerate(copy.points, start):
        change = np.abs(points.mean((0, 1)) - original.points[number].mean((0, 1))).max()
        if change > SAME_COLOUR:
            raise RefusedError(f"encoded again, frame {number} changes its mean colour by {change:.0f} of 255")

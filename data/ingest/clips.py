"""From a source file to the clips that are made of it: what it holds, checked, in its own bytes or encoded again."""

import hashlib
from collections.abc import Iterator
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
from data.ingest.shots import Encoding, encode_shots, find_shots
from data.ingest.splits import Video
from data.shards.format import IMAGE_EXTENSIONS, MAX_VIDEO_BYTES

SAME_COLOUR = 6.0  # of 255, mean of a picture at some 1,000 points


@dataclass(frozen=True)
class Ways:
    """How files are checked and what is made of them.

    Args:
        encoding: how to encode clips; None keeps the files' own bytes.
        interlaced: what becomes of interlaced video whose bytes are kept: refuse or keep.
        decoder: the reader to prefer, see `data.ingest.check.examine`.
    """

    encoding: Encoding | None = None
    interlaced: str = "refuse"
    decoder: str = "auto"


@dataclass(frozen=True)
class NewClip:
    """A sample that is ready to be written."""

    key: str
    extension: str
    content: bytes
    metadata: dict[str, Any]


def read_source(path: Path) -> bytes:
    """The content of a source file.

    Raises:
        RefusedError: it cannot be read, or is larger than readers of shards take.
    """
    try:
        if (size := path.stat().st_size) > MAX_VIDEO_BYTES:  # before it is read into memory
            raise RefusedError(
                f"{size / 2**30:.1f} GiB; readers of shards take videos of up to {MAX_VIDEO_BYTES >> 30} GiB: cut it"
            )
        return path.read_bytes()
    except OSError as error:
        raise RefusedError(f"cannot be read: {error.strerror}") from error


def make_clips(video: Video, content: bytes, ways: Ways) -> Iterator[NewClip]:
    """The clips of a file, one after the other.

    Raises:
        RefusedError, DecodeError: it cannot be used, which may show after the first of them.
    """
    named = {"label": video.label, "group": video.group, "source": video.path}
    extension = Path(video.path).suffix.lower().lstrip(".")
    if extension in IMAGE_EXTENSIONS:
        yield NewClip(video.key, extension, content, asdict(examine_image(content)) | named)
    elif ways.encoding is None:
        yield NewClip(video.key, extension, content, asdict(examine(content, ways.interlaced, ways.decoder)) | named)
    else:
        source = {"source_sha256": hashlib.sha256(content).hexdigest()}
        for number, (shot, copy, facts) in enumerate(_encoded(content, ways.encoding, ways.decoder)):
            key = f"{video.key}_shot{number:03d}" if ways.encoding.shots else video.key
            yield NewClip(key, "mp4", copy, asdict(facts) | named | source | {"shot": shot})


def _encoded(content: bytes, encoding: Encoding, decoder: str) -> Iterator[tuple[tuple[int, int], bytes, Facts]]:
    """First and last frame (excluded) of each shot, its own file, and what is in that."""
    shots, original = find_shots(content, encoding)
    for shot, copy in zip(shots, encode_shots(content, shots, encoding), strict=True):
        decoded = decode_sound(copy)
        _compare_colours(original, decoded, *shot)
        yield shot, copy, facts_about(copy, decoded, decoder)


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

"""From a source file to clips that are ready to be written: what one process does with one file.

A file is read once. What is accepted is put aside in a staging folder beside the shards, because its split and its
place in a shard depend on which other files are accepted.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.decode import DecodeError
from data.ingest.check import DecodedFile, Facts, RefusedError, decode_sound, examine, examine_image, facts_about
from data.ingest.shots import Encoding, encode_shots, find_shots
from data.shards.format import IMAGE_EXTENSIONS, MAX_VIDEO_BYTES
from tae.runtime.errors import UserError

SAME_COLOUR = 6.0  # of 255, mean of a picture at some 1,000 points
DRAFT = ".{name}.{pid}.partial"
WHEN_FULL = "Free some space and repeat the command: it resumes where it stopped."


@dataclass(frozen=True)
class StagedClip:
    """A video file in the staging folder and what is in it; `shot` is its first and last frame (excluded) there."""

    key: str
    extension: str
    facts: Facts
    shot: tuple[int, int] | None = None

    @property
    def file_name(self) -> str:
        return f"{self.key}.{self.extension}"


@dataclass(frozen=True)
class Checked:
    """An accepted source file: the hash of its content, and the clips made of it."""

    sha256: str
    clips: tuple[StagedClip, ...]

    @classmethod
    def from_json(cls, text: dict[str, Any]) -> "Checked":
        clips = [
            StagedClip(c["key"], c["extension"], Facts(**c["facts"]), c["shot"] and tuple(c["shot"]))
            for c in text["clips"]
        ]
        return cls(text["sha256"], tuple(clips))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class StagingTask:
    """A source file, the key of its sample, and the folder to put it in."""

    path: Path
    key: str
    folder: Path
    encoding: Encoding | None  # None keeps the file's own bytes
    interlaced: str = "refuse"
    decoder: str = "auto"


def stage_file(task: StagingTask) -> Checked | str:
    """Put a file's content into the staging folder, or say in plain words why it cannot be used.

    Raises:
        UserError: the staging folder cannot be written.
    """
    try:
        if (size := task.path.stat().st_size) > MAX_VIDEO_BYTES:  # before it is read into memory
            return f"{size / 2**30:.1f} GiB; readers of shards take videos of up to {MAX_VIDEO_BYTES >> 30} GiB: cut it"
        video = task.path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    try:
        clips = tuple(_original(task, video) if task.encoding is None else _encoded(task, video, task.encoding))
    except (RefusedError, DecodeError) as reason:
        return str(reason)
    return Checked(hashlib.sha256(video).hexdigest(), clips)


def _original(task: StagingTask, video: bytes) -> Iterator[StagedClip]:
    extension = task.path.suffix.lower().lstrip(".")
    facts = examine_image(video) if extension in IMAGE_EXTENSIONS else examine(video, task.interlaced, task.decoder)
    clip = StagedClip(task.key, extension, facts)
    write_whole(task.folder / clip.file_name, video)
    yield clip


def _encoded(task: StagingTask, video: bytes, encoding: Encoding) -> Iterator[StagedClip]:
    shots, original = find_shots(video, encoding)
    for number, content in enumerate(encode_shots(video, shots, encoding)):
        key = f"{task.key}_shot{number:03d}" if encoding.shots else task.key
        copy = decode_sound(content)
        _compare_colours(original, copy, *shots[number])
        clip = StagedClip(key, "mp4", facts_about(content, copy, task.decoder), shots[number])
        write_whole(task.folder / clip.file_name, content)
        yield clip


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


def write_whole(path: Path, content: bytes) -> None:
    """A file with this content, or none under this name.

    Raises:
        UserError: it cannot be written.
    """
    partial = path.with_name(DRAFT.format(name=path.name, pid=os.getpid()))
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}. {WHEN_FULL}") from error


def remove_staged_drafts(folder: Path) -> None:
    """Delete what killed writers left in a folder and its subfolders. Only for a folder that nobody else writes to."""
    for pattern in (DRAFT.format(name="*", pid="[0-9]*"), ".shard-*.partial"):
        for draft in folder.rglob(pattern):
            draft.unlink(missing_ok=True)

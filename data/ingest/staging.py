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

from data.decode import DecodeError
from data.ingest.check import Facts, RefusedError, examine
from data.ingest.shots import Encoding, encode_shots, find_shots
from tae.runtime.errors import UserError

WHEN_FULL = "Free some space and repeat the command: it goes on where it stopped."


@dataclass(frozen=True)
class Clip:
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
    clips: tuple[Clip, ...]

    @classmethod
    def from_json(cls, text: dict[str, Any]) -> "Checked":
        clips = [
            Clip(c["key"], c["extension"], Facts(**c["facts"]), c["shot"] and tuple(c["shot"])) for c in text["clips"]
        ]
        return cls(text["sha256"], tuple(clips))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Task:
    """A source file, the key of its sample, and the folder to put it in."""

    path: Path
    key: str
    folder: Path
    encoding: Encoding | None  # None keeps the file's own bytes


def stage(task: Task) -> Checked | str:
    """Put a file's content into the staging folder, or say in plain words why it cannot be used.

    Raises:
        UserError: the staging folder cannot be written.
    """
    try:
        video = task.path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    try:
        clips = tuple(_original(task, video) if task.encoding is None else _encoded(task, video, task.encoding))
    except (RefusedError, DecodeError) as reason:
        return str(reason)
    return Checked(hashlib.sha256(video).hexdigest(), clips)


def _original(task: Task, video: bytes) -> Iterator[Clip]:
    clip = Clip(task.key, task.path.suffix.lower().lstrip("."), examine(video))
    write_whole(task.folder / clip.file_name, video)
    yield clip


def _encoded(task: Task, video: bytes, encoding: Encoding) -> Iterator[Clip]:
    shots = find_shots(video, encoding)
    for number, content in enumerate(encode_shots(video, shots, encoding)):
        key = f"{task.key}_shot{number:03d}" if encoding.shots else task.key
        clip = Clip(key, "mp4", examine(content), shots[number])
        write_whole(task.folder / clip.file_name, content)
        yield clip


def write_whole(path: Path, content: bytes) -> None:
    """A file with this content, or none under this name.

    Raises:
        UserError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}. {WHEN_FULL}") from error

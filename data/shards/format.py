"""The format of shards and their index: extensions, bounds, names."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

INDEX = "index.json"
INDEX_VERSION = 1  # lists every sample
TABLE_VERSION = 2  # has the samples in a table beside it
TABLE = "index"  # folder of the table's columns
# Columns of a table that have a meaning, and their types (`data.shards.columns`); others are the user's own.
COLUMN_KINDS = {
    "frames": "uint32", "key": "string", "offset": "int64", "fps": "float64", "width": "uint32", "height": "uint32",
}  # fmt: skip
# Name in version 1 -> in a table.
OPTIONAL_COLUMNS = {
    "offsets": "offset",
    "fps": "fps",
    "width": "width",
    "height": "height",
}
# Closed: nothing else in a shard is ever looked at, and nothing is unpickled.
VIDEO_EXTENSIONS = frozenset(
    ["3gp", "avi", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "webm", "wmv"]
)
IMAGE_EXTENSIONS = frozenset(["jpeg", "jpg", "png", "webp"])
MEDIA_EXTENSIONS = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS
# Bounds, checked before memory is taken: shards and indexes may come from anybody.
MAX_INDEX_BYTES = 1 << 30  # a list of some ten million clips, or a table's of as many shards
MAX_JSON_BYTES = 1 << 20  # a clip's metadata
MAX_VIDEO_BYTES = 4 << 30
MAX_HEADER_BYTES = 1 << 20  # a tar header's long names and attributes
MAX_FRAMES = 10_000_000  # of a clip: 46 hours at 60 frames a second
COLUMN_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")  # becomes a file's name
KEY = re.compile(r"[^./\\\x00-\x1f\x7f]{1,200}")  # keys become parts of file names
SHARD_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,200}")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """One tar file and what its index says: `frames[key]` frames in sample `key`, in the order of the file.

    offsets: where each sample begins, in the same order; empty where the index does not say.
    known:   rate and reader (`data.decode`) of each sample by its key, where the index knows them and the samples' own
             metadata may not, in shards of others; otherwise empty.
    """

    url: str
    frames: Mapping[str, int]
    bytes: int | None = None
    sha256: str = ""
    offsets: tuple[int, ...] = ()
    known: Mapping[str, tuple[float, str]] = field(default_factory=dict)

    def begin_of(self, keys: Collection[str]) -> int:
        """A position in the file before which none of these samples lies."""
        return min((offset for key, offset in zip(self.frames, self.offsets, strict=False) if key in keys), default=0)


def media_of(sample: Mapping[str, Any]) -> list[Any]:
    """What a sample's members hold to train on: its videos, or where it has none (a picture may be a preview) its images."""
    for extensions in (VIDEO_EXTENSIONS, IMAGE_EXTENSIONS):
        if found := [content for extension, content in sample.items() if extension in extensions]:
            return found
    return []


def read_json(text: bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is none, or is nested deeper than Python calls functions (about a thousand levels).
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error

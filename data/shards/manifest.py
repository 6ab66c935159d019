"""Manifests: shards that name their samples' files in place of holding them, so that videos are trained on where they lie.

A line of JSON is a sample: `key`, `path` of the file, and its metadata (`label`, `caption`, ...). Beside an index a manifest
is a shard like any other: it is shuffled, divided among readers and resumed as a tar file is.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from data.shards.format import MAX_JSON_BYTES, MAX_VIDEO_BYTES, MEDIA_EXTENSIONS, read_json
from data.storage.address import is_remote, scheme
from data.storage.fetched import tables_folder
from data.storage.remote import Access, open_file

MANIFEST = ".jsonl"
MANIFESTS = f"files-*{MANIFEST}"
FIRST_FRAME = "first_frame"  # of a sample that is a part of its file
# What a sample may say beside the fields of its list.
MANIFEST_FIELDS = frozenset(["key", "path", "label", "group", "range", FIRST_FRAME])
SCHEMES = ("", "http", "https", "s3")
TOO_LARGE = f"more than {MAX_VIDEO_BYTES >> 30} GiB, which no reader takes: cut it"


def is_manifest(url: str) -> bool:
    return url.endswith(MANIFEST)


def index_folder(source: Path, split: str) -> Path:
    """Where the indexes of a split's files are kept: in the user's cache, beside those of other splits of the source."""
    name = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:16]
    return tables_folder() / f"files-{name}" / split


def manifest_line(key: str, path: str, metadata: Mapping[str, Any]) -> bytes:
    """A sample of a manifest."""
    return json.dumps({"key": key, "path": path} | dict(metadata)).encode() + b"\n"


def read_listed(file: BinaryIO, wanted: set[str] | None, access: Access) -> Iterator[dict[str, Any]]:
    """The wanted samples of a manifest, or all, as `data.shards.reader.open_samples` gives them.

    A file that cannot be read costs its own sample.

    Raises:
        ValueError: the manifest is damaged.
    """
    while True:
        offset = file.tell()
        line = file.readline(MAX_JSON_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_JSON_BYTES:
            raise ValueError(f"a line of more than {MAX_JSON_BYTES} bytes")
        entry = read_json(line)
        key = entry["key"]
        if wanted is not None and key not in wanted:
            continue
        sample = {"__key__": key, "__offset__": offset, "json": line}
        try:
            extension, content = read_media(entry["path"], access)
            sample[extension] = content
        except OSError as error:
            sample["__fault__"] = f"{entry['path']}: {error.strerror or error}"
        yield sample


def read_media(path: str, access: Access) -> tuple[str, bytes]:
    """The extension and the content of a video or image file.

    Raises:
        OSError: it cannot be read, is larger than a video may be, or is none by its extension.
    """
    extension = path.rsplit(".", 1)[-1].lower()
    if extension not in MEDIA_EXTENSIONS:
        raise OSError("not a video or image by its extension")
    if scheme(path) not in SCHEMES:  # a manifest may come from anybody, and a pipe runs a command
        raise OSError(f"only paths, {', '.join(SCHEMES[1:])} addresses are read")
    if not is_remote(path):
        size = Path(path).stat().st_size if Path(path).is_file() else None
        if size is None:
            raise OSError("no such file")
        if size > MAX_VIDEO_BYTES:  # before it is read into memory
            raise OSError(TOO_LARGE)
    with open_file(path, access) as file:
        content = file.read(MAX_VIDEO_BYTES + 1)
    if len(content) > MAX_VIDEO_BYTES:
        raise OSError(TOO_LARGE)
    return extension, content

"""The videos of a source, a folder or a list, and a unique key for each."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePath, PurePosixPath

from data.ingest.lists import Row, read_list
from data.ingest.splits import UCF101_NAME, Video
from data.shards.format import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from data.shards.keys import UniqueKeys
from tae.runtime.errors import UserError
from tae.runtime.paths import list_files, to_path

Rejected = list[tuple[str, str]]  # (path, reason)


def find_videos(
    source: Path, dataset: str, output: Path | None = None, columns: Mapping[str, str] | None = None,
    group_pattern: str | None = None, root: Path | None = None,
) -> tuple[list[Video], Rejected]:  # fmt: skip
    """Every file of a source: candidates by name, and the others with the reason why they are none.

    Args:
        source: a folder, whose files come sorted; a list (`data.ingest.lists`), whose files come in its order; or a video.
        output: what lies in it is no part of the source.
        columns, root: of the list; the folder that its relative paths begin at, None for its own.
        group_pattern: searched in each path; what its first group in brackets matches, or else the whole of it, is the
            video's group. A path in which it is not found makes a group of its own.

    Raises:
        UserError: a list that cannot be read, or a pattern that cannot be used or is found in no path.
    """
    pattern = _compile(group_pattern)
    if not source.is_file():
        files = _found(source, output)
    elif _has_video_extension(source):
        files = iter([(Row(source.name), "")])
    else:
        files = _listed(source, columns, root_of(source, root))
    candidates: list[Video] = []
    rejected: Rejected = []
    keys, matches = UniqueKeys(), 0
    for row, reason in files:
        path = PurePosixPath(row.path)
        if reason := reason or _why_not(path, dataset):
            rejected.append((row.path, reason))
            continue
        key = keys.claim(path.stem)
        name = UCF101_NAME.match(path.stem) if dataset == "ucf101" else None
        match = pattern.search(row.path) if pattern else None
        matches += match is not None
        found = match[1 if match.lastindex else 0] if match else name["group"] if name else ""
        label = row.label or path.parent.name or (name["label"] if name else "")
        candidates.append(Video(row.path, key, label, row.group or found or key, row.split))
    if pattern and candidates and not matches:
        raise UserError(f"group_pattern={group_pattern} is found in no path, such as {candidates[0].path}.")
    return candidates, rejected


def kind_of(dataset: str) -> tuple[str, frozenset[str]]:
    """What a dataset is made of, in words, and the extensions of its files."""
    return ("an image", IMAGE_EXTENSIONS) if dataset == "images" else ("a video", VIDEO_EXTENSIONS)


def root_of(source: Path, root: Path | None = None) -> Path:
    """What the paths of a source's videos are relative to; `root` as in `find_videos`."""
    if source.is_dir():
        return source
    return source.parent if root is None or _has_video_extension(source) else root


def _found(source: Path, output: Path | None) -> Iterator[tuple[Row, str]]:
    return ((Row(entry.path), entry.reason) for entry in list_files(source, output))


def _listed(source: Path, columns: Mapping[str, str] | None, root: Path) -> Iterator[tuple[Row, str]]:
    seen: set[str] = set()
    for number, row in enumerate(read_list(source, columns), 1):
        path = root / to_path(row.path)
        if not row.path:
            yield Row(f"row {number} of {source.name}"), "no path"
        elif row.path in seen:
            yield row, "listed more than once"
        else:
            seen.add(row.path)
            row = replace(row, path=str(to_path(row.path)))
            yield row, "" if path.is_file() else "no such file" if not path.exists() else "not a regular file"


def _compile(pattern: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern) if pattern else None
    except re.error as error:
        raise UserError(f"group_pattern={pattern} is no regular expression: {error}.") from error


def _why_not(path: PurePosixPath, dataset: str) -> str:
    kind, extensions = kind_of(dataset)
    if path.suffix.lower().lstrip(".") not in extensions:
        return f"not {kind} by its extension ({path.suffix or 'none'})"
    if dataset == "ucf101" and not UCF101_NAME.match(path.stem):
        return "not named v_<Class>_gXX_cYY as the clips of UCF-101 are (use dataset=folder for other videos)"
    return ""


def _has_video_extension(path: PurePath) -> bool:
    return path.suffix.lower().lstrip(".") in VIDEO_EXTENSIONS

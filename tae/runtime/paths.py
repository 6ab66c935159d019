"""From text to paths: what `~`, a wildcard, a hidden file or a linked folder means, alike in every command."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

WILDCARDS = "*?["


class Entry(NamedTuple):
    """What a folder holds: a path below it, and why it is no ordinary visible file (empty if it is one)."""

    path: str
    reason: str


def to_path(text: str | os.PathLike[str]) -> Path:
    """A path that a user gave, with `~` and `~NAME` as the home folder they mean."""
    return Path(text).expanduser()


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden: `.Trash-1000`, `.ipynb_checkpoints`, macOS's `._clip.mp4`."""
    return name.startswith(".")


def list_files(folder: Path, output: Path | None = None) -> list[Entry]:
    """Everything below a folder that is no folder, sorted by path.

    Linked folders are followed. Each real folder is read once, under its own path where that lies in `folder`: a link to a
    folder that was read already, as in a loop, is an entry by itself, and so is a folder that cannot be read.

    Args:
        output: a folder that is no part of this one, though it may lie in it.
    """
    read: dict[tuple[int, int], str | None] = {}  # (device, inode) of each folder -> its path; None for the output
    if output is not None and output.is_dir():
        read[_identity(output)] = None
    found, waiting = _read_folder(folder, "", read)
    while waiting:
        links: list[str] = []
        for link in sorted(waiting):
            before = read.get(identity := _identity(folder / link), "")
            if identity not in read:
                entries, more = _read_folder(folder, link, read)
                found += entries
                links += more
            elif before is not None:
                found.append(Entry(link, f"a link to a folder that is read already ({before or '.'})"))
        waiting = links
    return sorted(found, key=lambda entry: entry.path.replace("/", "\0"))  # by folders: no name has this character


def glob_files(pattern: str) -> list[str]:
    """The sorted paths that match; a path that exists, or has no wildcard, stands for itself.

    Leading folders that exist are taken as they are written, so that a folder named `set[1]` is found.
    """
    path = to_path(pattern)
    if path.exists() or not has_wildcard(str(path)):
        return [str(path)]
    literal = next(parent for parent in path.parents if parent.exists() or not has_wildcard(str(parent)))
    return sorted(str(match) for match in literal.glob(str(path.relative_to(literal))))


def has_wildcard(text: str) -> bool:
    return any(character in text for character in WILDCARDS)


def _read_folder(folder: Path, below: str, read: dict[tuple[int, int], str | None]) -> tuple[list[Entry], list[str]]:
    """What lies in `folder`/`below` and its real subfolders, and the linked subfolders, which are not entered."""
    found: list[Entry] = []
    links: list[str] = []
    waiting = [below]
    while waiting:
        place = waiting.pop()
        if (identity := _identity(folder / place)) in read:
            continue
        read[identity] = place
        try:
            entries = list(os.scandir(folder / place))
        except OSError as error:
            found.append(Entry(place or ".", f"a folder that cannot be read: {error.strerror}"))
            continue
        hidden = any(map(is_hidden, place.split("/")))
        for entry in entries:
            path = f"{place}/{entry.name}" if place else entry.name
            if not _is(entry.is_dir):
                found.append(Entry(path, _why_not(entry, hidden)))
            elif entry.is_symlink():
                links.append(path)
            else:
                waiting.append(path)
    return found, links


def _why_not(entry: os.DirEntry[str], in_hidden_folder: bool) -> str:
    if is_hidden(entry.name):
        return "hidden file"
    if in_hidden_folder:
        return "in a hidden folder"
    return "" if _is(entry.is_file) else "not a regular file (a broken link?)"


def _is(kind: Callable[[], bool]) -> bool:
    """False too where the system cannot tell, as of a link to itself."""
    try:
        return kind()
    except OSError:
        return False


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino

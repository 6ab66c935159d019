"""From text to paths: what `~`, a wildcard, a hidden file or a linked folder means, alike in every command."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tae.runtime.scratch import ScratchDict, ScratchList, sort_on_disk

WILDCARDS = "*?["


class Entry(NamedTuple):
    """What a folder holds: a path below it, and why it is no ordinary visible file (empty if it is one)."""

    path: str
    reason: str


def to_path(text: str | os.PathLike[str]) -> Path:
    """A path that a user gave, with `~` and `~NAME` as the home folder they mean, where there is such a user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden: `.Trash-1000`, `.ipynb_checkpoints`, macOS's `._clip.mp4`."""
    return name.startswith(".")


def list_files(folder: Path, output: Path | None = None) -> Iterator[Entry]:
    """Everything below a folder that is no folder, sorted by path, in constant memory however much it is.

    Linked folders are followed. Each real folder is read once, under its own path where that lies in `folder`: a link to a
    folder that was read already, as in a loop, is an entry by itself, and so is a folder that cannot be read.

    Args:
        output: a folder that is no part of this one, though it may lie in it.
    """
    # By folders: no name has this character.
    return sort_on_disk(_walk(folder, output), key=lambda entry: entry.path.replace("/", "\0"))


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


def _walk(folder: Path, output: Path | None) -> Iterator[Entry]:
    """Everything below a folder that is no folder, in any order; arguments as in `list_files`."""
    read: ScratchDict[str] = ScratchDict()  # the identity of each folder -> its path
    excluded = _identity(output) if output is not None and output.is_dir() else ""
    read.add(excluded, "")
    links: list[str] = []
    yield from _read_folder(folder, "", read, links)
    while links:
        waiting, links = sorted(links), []
        for link in waiting:
            identity = _identity(folder / link)
            before = read.get(identity)
            if before is None:
                yield from _read_folder(folder, link, read, links)
            elif identity != excluded:
                yield Entry(link, f"a link to a folder that is read already ({before or '.'})")


def _read_folder(folder: Path, below: str, read: ScratchDict[str], links: list[str]) -> Iterator[Entry]:
    """What lies in `folder`/`below` and its real subfolders; linked subfolders are not entered, but added to `links`."""
    waiting, number = ScratchList([below]), 0
    while number < len(waiting):
        place, number = waiting[number], number + 1
        if not read.add(_identity(path := folder / place), place):
            continue
        hidden = any(map(is_hidden, place.split("/")))
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    below = f"{place}/{entry.name}" if place else entry.name
                    if not _is(entry.is_dir):
                        yield Entry(below, _why_not(entry, hidden))
                    else:
                        (links if entry.is_symlink() else waiting).append(below)
        except OSError as error:
            yield Entry(place or ".", f"a folder that cannot be read: {error.strerror}")


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


def _identity(path: Path) -> str:
    status = path.stat()
    return f"{status.st_dev} {status.st_ino}"

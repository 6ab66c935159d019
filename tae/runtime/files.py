"""Files that appear under their name whole or not at all, whatever ends the process that writes them."""

import contextlib
import errno
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tae.runtime.errors import UserError

PARTIAL = ".{name}.{pid}.tmp"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota used up, file size limit


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes otherwise.

    The content is on the disk before the name points to it: after a power cut the name means the old file or the new one,
    never a part of it. What a killed process leaves behind is for `remove_leftovers`.

    Raises:
        UserError: no space left; `path` is as it was.
    """
    partial = path.with_name(PARTIAL.format(name=path.name, pid=os.getpid()))
    try:
        yield partial
        flush(partial)
        partial.replace(path)
        with contextlib.suppress(OSError):  # some network file systems cannot flush a folder
            flush(path.parent)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        old = "The file of this name is still the one before it." if path.exists() else "No file of this name is left."
        free = shutil.disk_usage(path.parent).free
        raise UserError(
            f"{path} cannot be written: {os.strerror(error.errno).lower()} ({free / 1e6:,.1f} MB free). {old} Make room "
            "there; a training resumes with resume=auto."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def check_writable(folder: Path, option: str) -> None:
    """Refuse a folder before any work that would end there, and leave no trace; `option` is what it was given as.

    Raises:
        UserError: no files can be made in it, or it cannot be made itself.
    """
    place = folder
    try:
        place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        reason = "it is a file" if place == folder and folder.is_file() else f"{place}: {error.strerror}"
        raise UserError(
            f"{option}={folder} cannot be written ({reason}). Choose another with {option}=PATH."
        ) from error


def check_empty(output: Path) -> None:
    """Refuse a folder that holds something, which a command would write over or mix with its own."""
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"output={output} is not empty. Remove what is in it or choose another folder.")


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Hash of a file, for reports that name what they used."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def apply_umask(path: Path) -> None:
    """Give a file the rights of a new one; safetensors makes its file for its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of killed writers. Only for a folder that nobody else is writing to."""
    for file in folder.glob(PARTIAL.format(name="*", pid="[0-9]*")):
        file.unlink(missing_ok=True)


def remove_drafts(path: Path) -> None:
    """Delete what killed writers of this one file left beside it. Only where nobody else is writing it."""
    for file in path.parent.glob(PARTIAL.format(name=glob.escape(path.name), pid="[0-9]*")):
        file.unlink(missing_ok=True)

"""UCF-101 from its official address: fetched with resume, checked, unpacked into one folder and nowhere else."""

import shutil
import time
from pathlib import Path, PurePosixPath
from typing import Any

import aiohttp
import fsspec

from tae.runtime.errors import UserError
from tae.runtime.progress import BYTES, progress_bar

VIDEOS, LISTS = "UCF-101", "ucfTrainTestlist"  # the folders in the two archives
DOWNLOAD_BLOCK = 4_000_000  # bytes of a request: so much at most is fetched again after a fault
ATTEMPTS, STALL, PAUSE = 6, 60.0, 1.0  # see `fetch`
AGAIN = "Remove it and repeat the command to fetch it again."
SUFFIXES = {".avi", ".txt"}  # of what is unpacked


def download_ucf101(folder: Path, videos: str, lists: str) -> tuple[Path, Path]:
    """Make `folder`/UCF-101 and `folder`/ucfTrainTestlist from two archives; what is there is left as it is.

    Args:
        videos, lists: addresses of the archives, of any kind that libarchive reads.

    Returns:
        The folders of the videos and of the official split lists.

    Raises:
        UserError: an address does not answer, an archive is damaged or is not what it should be, or the disk is full.
    """
    for address, name in ((lists, LISTS), (videos, VIDEOS)):
        if (folder / name).is_dir():
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            archive = folder / PurePosixPath(address).name
            fetch(address, archive)
            unpack(archive, folder, name)
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error}. Repeat the command to resume.") from error
    return folder / VIDEOS, folder / LISTS


def fetch(address: str, path: Path, attempts: int = ATTEMPTS, stall: float = STALL, pause: float = PAUSE) -> None:
    """Download a file; `path` appears when all of it is there, until then `path`.partial grows.

    Args:
        attempts: how often in a row it may fail without a byte won.
        stall: seconds without a byte that count as a failure.
        pause: seconds before the next attempt, doubled for each further one.

    Raises:
        UserError: after `attempts` failures in a row.
    """
    partial = path.with_name(f"{path.name}.partial")
    failures = 0
    while not path.exists():
        before = partial.stat().st_size if partial.exists() else 0
        try:
            _fetch_rest(address, partial, stall)
            partial.rename(path)
        except (aiohttp.ClientError, TimeoutError, FileNotFoundError, ValueError) as error:
            progressed = partial.exists() and partial.stat().st_size > before
            failures = 1 if progressed else failures + 1
            if failures >= attempts:
                raise UserError(
                    f"{address} cannot be fetched: {error or type(error).__name__}. Repeat the command to resume with "
                    f"what is there, set another address (mirror), or put the file there yourself: {path}."
                ) from error
            time.sleep(pause * 2 ** (failures - 1))


def _fetch_rest(address: str, partial: Path, stall: float) -> None:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=stall, sock_read=stall)
    web = fsspec.filesystem("http", client_kwargs={"timeout": timeout}, skip_instance_cache=True)
    with web.open(address, "rb", block_size=DOWNLOAD_BLOCK, cache_type="none") as remote, partial.open("ab") as file:
        if remote.size is None:
            raise ValueError("the server does not tell the size")
        try:
            remote.seek(min(file.tell(), remote.size))
        except ValueError:  # a server without range requests: from the start
            file.truncate(0)
        with progress_bar(BYTES) as progress:
            bar = progress.add_task(f"fetching {partial.stem}", total=remote.size, completed=file.tell())
            while block := remote.read(DOWNLOAD_BLOCK):
                file.write(block)
                file.flush()
                progress.update(bar, completed=file.tell())
        if file.tell() != remote.size:
            file.truncate(0 if file.tell() > remote.size else None)
            raise ValueError(f"{file.tell()} bytes came, the server says {remote.size}")


def unpack(archive: Path, folder: Path, name: str) -> None:
    """Unpack the folder `name` of an archive into `folder`; it appears there when it is whole.

    Only plain files with a name below `name` are written. libarchive checks the sums of a .zip; of a .rar it does not
    in every version, so that damage which leaves all sizes as they are shows when the videos are checked.

    Raises:
        UserError: the archive is damaged, has no such folder, or a member that would be written elsewhere.
    """
    libarchive = _libarchive()
    draft = folder / f".{name}.partial"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        with libarchive.file_reader(str(archive)) as members:
            for member in members:
                path = _inside(member, name, archive)
                if path is not None:
                    (draft / path).parent.mkdir(parents=True, exist_ok=True)
                    with (draft / path).open("wb") as file:
                        file.writelines(member.get_blocks())
                        if file.tell() != member.size:
                            raise UserError(f"{archive} is damaged: {member.pathname} is cut off. {AGAIN}")
    except libarchive.ArchiveError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise UserError(
            f"{archive} is damaged: {error}. Remove it and repeat the command to fetch it again."
        ) from error
    if not draft.is_dir():
        raise UserError(f"{archive} holds no folder {name}: it is not the archive of UCF-101.")
    draft.rename(folder / name)


def _inside(member: Any, name: str, archive: Path) -> Path | None:
    """Where below the folder `name` to write a member; None for what is not wanted: folders and other kinds of file."""
    path = PurePosixPath(member.pathname.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in member.pathname or member.issym or member.islnk:
        raise UserError(f"{archive} is refused: its member {member.pathname!r} is a link or points out of its folder.")
    if not member.isreg or path.suffix.lower() not in SUFFIXES or path.parts[0] != name:
        return None
    return Path(*path.parts[1:])


def _libarchive() -> Any:
    try:
        import libarchive
    except (ImportError, OSError, AttributeError, TypeError) as error:
        raise UserError(
            "download=true unpacks .rar with libarchive: pip install libarchive-c, and the system's library "
            "(apt-get install libarchive13, brew install libarchive)."
        ) from error
    return libarchive

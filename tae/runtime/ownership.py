"""One owner for an output folder: two runs that write to one folder would leave one mixture of both, and end well.

The lock is the system's (flock), which a process loses when it ends, however it ends: nothing has to be cleaned up after
a SIGKILL or a lost machine. On a file system without it filelock falls back to a file that is there or not.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tae.runtime.errors import UserError
from tae.runtime.files import write_text

LOCK, OWNER = ".owner.lock", ".owner.json"
RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")  # as launchers and Lightning number processes
PATIENCE = 10.0  # seconds for the run before to end: a requeued one may start while it still writes its last words

_held: dict[Path, FileLock] = {}


def is_first_process() -> bool:
    """Whether this process is the one of its run that owns the folder."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Own a folder for as long as the block lasts; nothing happens where this process owns it already.

    Raises:
        UserError: another run owns it.
    """
    if not is_first_process() or folder.resolve() in _held:
        yield
        return
    claim(folder)
    try:
        yield
    finally:
        release(folder)


def claim(folder: Path) -> None:
    """Own a folder until this process ends.

    Raises:
        UserError: another run owns it.
    """
    if not try_claim(folder, PATIENCE):
        raise UserError(
            f"output_dir={folder} is in use by another run{_about_owner(folder)}. Wait for its end or stop it, or choose "
            "another folder with output_dir=PATH."
        )


def try_claim(folder: Path, patience: float = 0.0) -> bool:
    """Own a folder until this process ends, unless another run owns it; `patience` is in seconds."""
    place = folder.resolve()
    if place in _held:
        return True
    place.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        return False
    _held[place] = lock
    owner = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    write_text(place / OWNER, json.dumps(owner) + "\n")
    return True


def release(folder: Path) -> None:
    """Let others own the folder."""
    _held.pop(folder.resolve()).release()


def free_folder(folder: Path) -> Path:
    """The folder itself or, where other runs own it, the first free one of `folder_2`, `folder_3`, ...; owned."""
    number = 1
    place = folder
    while not try_claim(place):
        number += 1
        place = folder.with_name(f"{folder.name}_{number}")
    return place


def _about_owner(folder: Path) -> str:
    with suppress(OSError, ValueError, KeyError):
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return f" (process {owner['process']} on {owner['host']}, since {owner['since']})"
    return ""

"""Files of the index that must be on a local disk: fetched once for each machine, whichever process comes first."""

import hashlib
import os
from pathlib import Path

from filelock import FileLock

from data.storage.cache import COPY_BLOCK, DamagedError
from data.storage.remote import Access, open_file
from tae.runtime.files import replacing
from tae.runtime.paths import to_path


def tables_folder() -> Path:
    """`tae/index` in $XDG_CACHE_HOME or ~/.cache."""
    return to_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tae" / "index"


def fetch_table(address: str, access: Access, size: int, sha256: str) -> Path:
    """The path of a copy with this content, named by its hash; it is downloaded and checked if there is none.

    Raises:
        DamagedError: the original has another content.
        OSError: it cannot be read, or the copy not be written.
    """
    folder = tables_folder()
    path = folder / sha256
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{sha256}.lock"):
        if not path.exists():
            digest = hashlib.sha256()
            with open_file(address, access, size) as original, replacing(path) as partial, partial.open("wb") as copy:
                while block := original.read(COPY_BLOCK):
                    copy.write(block)
                    digest.update(block)
                if digest.hexdigest() != sha256:
                    raise DamagedError(f"{address} is not the file that its index describes, by its hash")
    return path

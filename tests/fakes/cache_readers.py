"""One of several processes that read random shards through a small cache, and may be killed at it.

python cache_readers.py FOLDER SEED    prints what went wrong
"""

import hashlib
import os
import random
import signal
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))
from data.storage.cache import ShardCache

SIZE, SHARDS, ROOM = 10_000, 12, 4


def main(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    cache = ShardCache(folder / "cache", ROOM * SIZE)
    for turn in range(150):
        original = folder / str(rng.randrange(SHARDS))
        content = original.read_bytes()
        file = cache.open(hashlib.sha256(content).hexdigest(), SIZE, lambda: original.open("rb"))  # noqa: B023
        if file is not None:
            if seed and turn == 40 * seed:
                os.kill(os.getpid(), signal.SIGKILL)  # with the lock held
            if file.read() != content:
                print("other bytes than asked for")
            file.close()
        if bytes_in(cache) > ROOM * SIZE:
            print("too full")


def bytes_in(cache: ShardCache) -> int:
    """Of files, each counted once though its name may change meanwhile, at a moment when nobody makes room."""
    sizes = {}
    with cache._lock():
        for entry in os.scandir(cache.folder):
            with suppress(FileNotFoundError):
                sizes[entry.inode()] = entry.stat().st_size
    return sum(sizes.values())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""Kill a preparation at every single write, resume it, kill it again; for a process without threads, which may be forked.

    python -m tests.fakes.killed_writers SOURCE FOLDER STEP

Checking is replaced by a trivial one, and there are no workers: what is looked at is the order of writes. Prints how
many writes a whole preparation takes; each STEP-th of them was the last of a killed process, and the outputs are
FOLDER/NUMBER and, of one that nobody kills, FOLDER/undisturbed.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.ingest import bucket, pipeline
from data.ingest.check import RefusedError
from data.ingest.clips import NewClip
from data.ingest.pipeline import prepare
from data.ingest.splits import Video
from data.processes.pool import Engine
from data.shards.writer import ShardFile

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")
FACTS = {"num_frames": 9, "fps": 25.0, "width": 4, "height": 2}


def check_nothing(video: Video, content: bytes, *_: Any) -> Iterator[NewClip]:
    yield NewClip(video.key, "mp4", content, FACTS | {"label": video.label})
    if content.startswith(b"bad"):
        raise RefusedError("bad")


def one_after_the_other(function: Any, tasks: Any, *_: Any) -> Iterator[Any]:
    return ((task, function(task)) for task in tasks)


def prepare_to(source: Path, output: Path) -> None:
    pipeline.run_isolated, bucket.make_clips = one_after_the_other, check_nothing  # type: ignore[assignment]
    prepare(
        "folder", source, output, split=None, splits_dir=None, test=0.3, val=0.0, seed=0, timeout=60, shard_mb=0.012,  # type: ignore[arg-type]
        encoding=None, engine=Engine(workers=1),
    )  # fmt: skip


class Killer:
    """Ends the process before its `last` change of a folder; counts them."""

    def __init__(self, folder: Path, last: int) -> None:
        self.folder, self.last, self.count = str(folder), last, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(arguments[0]).startswith(self.folder):
            self.step()

    def step(self) -> None:
        self.count += 1
        if self.count == self.last:
            os._exit(9)


def in_child(source: Path, output: Path, last: int) -> tuple[int, int]:
    """Exit code and number of writes of a preparation that is killed before its `last` one."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        killer = Killer(output, last)
        sys.addaudithook(killer)
        append = ShardFile.append

        def counted(shard: ShardFile, data: bytes) -> None:
            killer.step()
            append(shard, data)
            shard._file.flush()  # as if a buffer had been full: part of a sample is there

        ShardFile.append = counted  # type: ignore[method-assign]
        prepare_to(source, output)
        os.write(write, str(killer.count).encode())
        os._exit(0)
    os.close(write)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with os.fdopen(read) as pipe:
        return code, int(pipe.read() or 0)


def main() -> None:
    source, folder = map(Path, sys.argv[1:3])
    writes = in_child(source, folder / "undisturbed", 0)[1]
    resumed = 0
    for last in range(1, writes + 1, int(sys.argv[3])):
        code, patience = 9, last
        while code == 9:  # at the same write again, or where that comes ever again, a little later
            code, _ = in_child(source, folder / str(last), patience)
            patience, resumed = patience + 5, resumed + 1
        assert code == 0, code
    print(json.dumps({"writes": writes, "processes": resumed}))


if __name__ == "__main__":
    main()

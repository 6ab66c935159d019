"""One bucket of a preparation: its source files are checked and written into one shard, by one process.

A bucket's folder holds, by its name, the list of its files (`.files`), a log with a line for each one (`.jsonl`), the shard
that grows (`.partial`), and when all files are done the shard (`.tar`) and what is in it (`.json`). Whoever goes on with a
bucket keeps the samples that the log vouches for and checks the other files.
"""

import hashlib
import io
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock

from data.decode import DecodeError
from data.ingest.check import RefusedError
from data.ingest.clips import LeftOut, NewClip, Ways, make_clips, read_source
from data.ingest.splits import Cut, Video
from data.processes.pool import limit_time
from data.shards.format import MAX_JSON_BYTES
from data.shards.writer import INDEX_COLUMNS, ShardFile
from tae.runtime.errors import UserError, first_line
from tae.runtime.files import flush, remove_drafts, replacing, write_text

WHEN_FULL = "Free some space and repeat the command: it resumes where it stopped."
SampleRow = dict[str, Any]


@dataclass(frozen=True)
class BucketTask:
    """A bucket to fill.

    Args:
        folder, name: of its files.
        source: what the videos' paths are relative to.
        files: how many; which ones is in a file of the folder.
        ways: how they are checked and what is made of them.
        timeout: seconds for one file.
        order: seed of the order of the clips, where a file gives several; None keeps the order of the files.
        columns: of the index, taken from the samples' metadata.
        failure: what happened to the process that was at the bucket before, "" if nothing.
    """

    folder: Path
    name: str
    source: Path
    files: int
    ways: Ways
    timeout: float
    order: str | None = None
    columns: tuple[str, ...] = ()
    failure: str = ""

    def path(self, suffix: str) -> Path:
        return self.folder / f"{self.name}{suffix}"

    def write_videos(self, videos: Iterable[tuple[int, Video]]) -> None:
        """Note the files in the order of the shard, each with its place in the source."""
        with replacing(self.path(".files")) as partial, partial.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps((place, *video)) + "\n" for place, video in videos)

    def read_videos(self) -> Iterator[tuple[int, Video]]:
        """What `write_videos` wrote."""
        with self.path(".files").open(encoding="utf-8") as lines:
            for place, *fields, cuts in map(json.loads, lines):
                yield place, Video._make([*fields, tuple(Cut(*cut) for cut in cuts)])


@dataclass(frozen=True)
class Removal:
    """A filled bucket from which files are to be left out, by their places in the source."""

    folder: Path
    name: str
    files: np.ndarray


@dataclass
class Progress:
    """What a log vouches for: its lines, and the samples at the beginning of the shard."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    begun: int | None = None  # the file that was being checked
    size: int = 0
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)


def fill_bucket(task: BucketTask) -> None:
    """Check the files of a bucket that are not done and write what is good, to the end of its shard.

    Raises:
        UserError: the folder cannot be written, or the process before ended at none of the files.
    """
    try:
        # A cluster may give a task to a second worker while the first, which it has lost, is still at it.
        with FileLock(task.path(".lock")):
            if not task.path(".tar").exists():
                _fill(task)
    except OSError as error:
        raise UserError(f"{task.path('.tar')} cannot be written: {error}. {WHEN_FULL}") from error


def _fill(task: BucketTask) -> None:
    remove_drafts(task.path(".json"))
    remove_drafts(task.path(".jsonl"))
    done = recover(task.path(".jsonl"), task.path(".partial"))
    write_text(task.path(".jsonl"), "".join(json.dumps(line) + "\n" for line in done.lines))
    shard = ShardFile(task.path(".partial"), done.size, done.digest)
    try:
        with task.path(".jsonl").open("a", encoding="utf-8") as log:

            def note(line: Mapping[str, Any]) -> None:
                shard.flush()
                log.write(json.dumps(line) + "\n")
                log.flush()
                done.lines.append(dict(line))

            if task.failure:
                if done.begun is None:
                    raise UserError(f"Preparing {task.name} {task.failure}, and no file of it can be the reason.")
                note({"file": done.begun, "refused": f"its check {task.failure}"})
            known = {line["file"] for line in done.lines}
            for number, video in task.read_videos():
                if number not in known:
                    log.write(json.dumps({"begun": number}) + "\n")
                    log.flush()
                    with limit_time(task.timeout):
                        note({"file": number} | _add_file(task, video, shard))
        _finish(task, shard, done.lines)
    finally:
        shard.close()


def recover(log: Path, shard: Path) -> Progress:
    """What is done: the lines of a log up to the first one that the shard does not bear out.

    After SIGKILL all of them are; after a power cut the log may know more than the disk holds of the shard.
    """
    done = Progress()
    with shard.open("rb") if shard.exists() else io.BytesIO() as file:
        for line in read_log(log):
            if "begun" in line:
                done.begun = line["begun"]
                continue
            if "state" in line:
                digest = done.digest.copy()
                if not _hash(file, line["end"] - done.size, digest) or digest.hexdigest() != line["state"]:
                    done.begun = None
                    break
                done.size, done.digest = line["end"], digest
            done.lines.append(line)
            done.begun = None
    return done


def read_log(log: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log, where there is one; the last one may be cut off."""
    if not log.exists():
        return
    for text in log.read_bytes().splitlines(keepends=True):
        if not text.endswith(b"\n"):
            return
        try:
            yield json.loads(text)
        except ValueError:  # zeros, after a power cut
            return


def _hash(file: BinaryIO, size: int, digest: "hashlib._Hash") -> bool:
    """Add bytes of a file to a hash; False where there are not so many."""
    while size > 0:
        block = file.read(min(size, 1 << 20))
        if not block:
            return False
        digest.update(block)
        size -= len(block)
    return True


def _add_file(task: BucketTask, video: Video, shard: ShardFile) -> dict[str, Any]:
    """Append the clips of a file to the shard, all of them or none; what the log says of it.

    Raises:
        OSError: the shard cannot be written.
    """
    size, digest = shard.size, shard.digest.copy()
    try:
        content = read_source(task.source / video.path, task.ways)
        rows: list[SampleRow] = []
        left_out: list[tuple[str, str]] = []
        for clip in make_clips(video, content, task.ways):
            if isinstance(clip, LeftOut):
                left_out.append((clip.name, clip.reason))
            else:
                rows.append(_add_clip(clip, shard, task.columns))
    except (RefusedError, DecodeError) as error:
        reason = str(error)
    except (UserError, WriteError):
        raise
    except Exception as error:  # whatever a broken file provokes in a library must not stop the others
        reason = f"its check failed: {type(error).__name__}: {first_line(error)}"
    else:
        sha256 = hashlib.sha256(content).hexdigest()
        line = {"sha256": sha256, "rows": rows, "end": shard.size, "state": shard.digest.hexdigest()}
        return line | ({"left_out": left_out} if left_out else {})
    shard.cut(size, digest)
    return {"refused": reason}


class WriteError(OSError):
    """A shard cannot be written, which is no fault of the file that is being checked."""


def _add_clip(clip: NewClip, shard: ShardFile, columns: Iterable[str]) -> SampleRow:
    """Append a sample; what the index says of it."""
    if (size := len(json.dumps(clip.metadata))) > MAX_JSON_BYTES:
        raise RefusedError(f"has {size} bytes of metadata; readers of shards take {MAX_JSON_BYTES}")
    begin = shard.size
    try:
        shard.add(clip.key, clip.extension, clip.content, clip.metadata)
    except OSError as error:
        raise WriteError(*error.args) from error
    row = {column: clip.metadata[name] for column, name in INDEX_COLUMNS.items()}
    row |= {name: clip.metadata.get(name) for name in columns}
    return row | {"key": clip.key, "begin": begin, "end": shard.size}


def _finish(task: BucketTask, shard: ShardFile, lines: list[dict[str, Any]]) -> None:
    """Give the shard its name, with what is in it beside it."""
    lines = sorted(lines, key=lambda line: line["file"])
    files = [
        [line["file"], line.get("sha256", ""), line.get("refused", ""), line.get("left_out", [])] for line in lines
    ]
    rows = [row | {"file": line["file"]} for line in lines for row in line.get("rows", ())]
    rows.sort(key=lambda row: row["begin"])
    if task.order is None:
        shard.finish()
        facts = {"bytes": shard.size, "sha256": shard.digest.hexdigest(), "files": files, "rows": rows}
        write_text(task.path(".json"), json.dumps(facts))
        task.path(".partial").rename(task.path(".tar"))
    else:
        shard.flush()
        random.Random(task.order).shuffle(rows)
        _copy(task.path(".partial"), rows, task.folder, task.name, files)
        task.path(".partial").unlink()
    flush(task.folder)


def remove_files(task: Removal) -> None:
    """Write a filled bucket once more, as `NAME.unique`, without some of its files.

    Raises:
        UserError: the folder cannot be written.
    """
    name = f"{task.name}.unique"
    if (task.folder / f"{name}.tar").exists():
        return
    entry = json.loads((task.folder / f"{task.name}.json").read_text(encoding="utf-8"))
    left_out = set(task.files.tolist())
    rows = [row for row in entry["rows"] if row["file"] not in left_out]
    try:
        _copy(task.folder / f"{task.name}.tar", rows, task.folder, name, entry["files"])
    except OSError as error:
        raise UserError(f"{task.folder / name} cannot be written: {error}. {WHEN_FULL}") from error


def _copy(source: Path, rows: Iterable[SampleRow], folder: Path, name: str, files: Any) -> None:
    """Write a shard of samples that lie in another one, in this order."""
    copied: list[SampleRow] = []
    shard = ShardFile(folder / f".{name}.copy")
    with source.open("rb") as file:
        for row in rows:
            begin = shard.size
            file.seek(row["begin"])
            for block in _blocks(file, row["end"] - row["begin"]):
                shard.append(block)
            copied.append(row | {"begin": begin, "end": shard.size})
    shard.finish()
    facts = {"bytes": shard.size, "sha256": shard.digest.hexdigest(), "files": files, "rows": copied}
    write_text(folder / f"{name}.json", json.dumps(facts))
    shard.path.rename(folder / f"{name}.tar")


def _blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0:
        block = file.read(min(size, 1 << 20))
        if not block:
            raise OSError(f"{file.name} is shorter than its log says")
        yield block
        size -= len(block)

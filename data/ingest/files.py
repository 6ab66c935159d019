"""An index of files where they lie: a list or a folder of videos or images becomes manifests that training reads."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from filelock import FileLock

from data.decode import DecodeError
from data.ingest.bucket import read_log
from data.ingest.indexing import ROW_KINDS, probe_video
from data.ingest.rejected import REJECTED, write_rejected
from data.ingest.sources import Choice, find_media, root_of
from data.ingest.splits import Video
from data.processes.pool import Engine, Failure, run_isolated
from data.shards.columns import column_value
from data.shards.format import INDEX, TABLE_VERSION
from data.shards.index_writer import write_table
from data.shards.manifest import FIRST_FRAME, MANIFEST, manifest_line, read_media
from data.storage.remote import Access
from tae.runtime.errors import UserError
from tae.runtime.files import write_text
from tae.runtime.progress import progress_bar
from tae.video.facts import VideoError

FILES_IN_A_MANIFEST = 1_000
PROBED = "probed-2.jsonl"  # what `probe_video` found so far, a file on each line; the number is that of its rules
REASONS_SHOWN = 3
FILE_COLUMNS = frozenset(ROW_KINDS)  # of the index, which samples do not say themselves


@dataclass(frozen=True)
class ProbeTask:
    """A file to look at; its size and time tell a later run whether it is still the same."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class ListedSample:
    """A line of a manifest, and what the index says of it: frames, rate, size, reader."""

    key: str
    path: str
    metadata: Mapping[str, Any]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class IndexedFiles:
    """What is known of a source's files.

    folder:   of the manifests and their index
    samples:  clips that can be used
    rejected: the other files, by reason
    report:   the list of those
    """

    folder: Path
    samples: int
    rejected: Counter[str]
    report: Path

    def __str__(self) -> str:
        """How many can be used, and why the others cannot."""
        used = f"{self.samples} clip{'' if self.samples == 1 else 's'} can be used"
        if not self.rejected:
            return f"{used}."
        reasons = [f"{count} x {reason}" for reason, count in self.rejected.most_common(REASONS_SHOWN)]
        more = ["..."] if len(self.rejected) > REASONS_SHOWN else []
        return (
            f"{used}, {self.rejected.total()} entries cannot: {'; '.join(reasons + more)}. Each of them: {self.report}"
        )


def index_files(
    source: Path, folder: Path, split: str | None, timeout: float, engine: Engine, choice: Choice | None = None
) -> IndexedFiles:
    """Look at each file once, and write manifests and their index, with `rejected.csv` for what cannot be used.

    The manifests lie in a folder in `folder` that is named after what they and the index say, and are never changed: a
    training that reads them goes on with them when the source has changed and another one has been started.

    May be stopped at any moment and called again: a file that was looked at, for this folder or another one beside it, and
    has not changed, is not read again.

    Args:
        source: a folder, or a list (`data.ingest.lists`), whose order is kept. Its parts of files are clips of their own.
        split: of a list that names splits, the one to take; None takes all files.
        timeout: seconds for one file.
        choice: how the source is read.

    Raises:
        UserError: no file can be used.
    """
    choice = choice or Choice()
    found = find_media(source, folder, choice, endings_of_parts)
    videos = list(found.videos)
    if split is not None and any(video.split for video in videos):
        videos = [video for video in videos if video.split == split]
    if not videos:
        raise UserError(f"{source} names no video or image{f' for the split {split}' if split else ''}.")
    base = root_of(source, choice.root).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / "lock"):  # of several processes the first one works, the others find its work
        tasks = [task_of(base / video.path) for video in videos]
        probed = probe_files([task for task in tasks if task is not None], folder.parent / PROBED, timeout, engine)
        rejected = list(found.rejected)
        samples: list[ListedSample] = []
        for video, task in zip(videos, tasks, strict=True):
            if task is None:
                rejected.append((video.path, "vanished"))
                continue
            facts = probed[task]
            if "reason" in facts:
                rejected.append((video.path, facts["reason"]))
                continue
            for sample in samples_of(video, task.path, facts):
                if sample.facts["frames"] < 1:
                    rejected.append((video.path, f"nothing of it is in {sample.metadata['range']}"))
                else:
                    samples.append(sample)
        report = folder / REJECTED
        write_rejected(report, sorted(rejected))
        if not samples:
            raise UserError(f"None of the {len(videos)} files of {source} is usable: see {report}.")
        header = {"split": split or "all", "recipe": {"dataset": "files", "source": str(source.resolve())}}
        manifests = folder / content_name(samples, header, found.kinds)
        if not (manifests / INDEX).exists():  # which is written last
            manifests.mkdir(exist_ok=True)
            write_manifests(manifests, samples, header, found.kinds)
    return IndexedFiles(manifests, len(samples), Counter(reason for _, reason in rejected), report)


def content_name(samples: Iterable[ListedSample], header: Mapping[str, Any], further: Mapping[str, str]) -> str:
    """A word for all that manifests and their index say; arguments as in `write_manifests`."""
    digest = hashlib.sha256(json.dumps([TABLE_VERSION, FILES_IN_A_MANIFEST, header, ROW_KINDS, further]).encode())
    for sample in samples:
        digest.update(json.dumps(vars(sample)).encode())
    return digest.hexdigest()[:16]


def samples_of(video: Video, path: str, facts: Mapping[str, Any]) -> Iterator[ListedSample]:
    """A file as one sample, or each of its parts as one; the times of a part are those of its mean rate."""
    common = {"label": video.label, "group": video.group} | dict(video.more or {})
    if not video.cuts:
        yield ListedSample(video.key, path, common, facts)
    for ending, cut in zip(endings_of_parts(len(video.cuts)), video.cuts, strict=True):
        first = round((cut.start or 0.0) * facts["fps"])
        end = facts["frames"] if cut.end is None else min(round(cut.end * facts["fps"]), facts["frames"])
        own = {"label": cut.label or video.label, "range": str(cut), FIRST_FRAME: first} | dict(cut.more)
        yield ListedSample(video.key + ending, path, common | own, {**facts, "frames": end - first})


def endings_of_parts(count: int) -> list[str]:
    """What the keys of so many parts of a file have behind that of the file."""
    return [f"_part{number:03d}" for number in range(count)]


def task_of(path: Path) -> ProbeTask | None:
    """None where the file is gone by now."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return ProbeTask(str(path), stat.st_size, stat.st_mtime_ns)


def probe_files(
    tasks: Sequence[ProbeTask], journal: Path, timeout: float, engine: Engine
) -> dict[ProbeTask, dict[str, Any]]:
    """What each file is, or under "reason" why it cannot be used; those in the journal are done."""
    done = list(read_log(journal))
    found = {ProbeTask(line["path"], line["size"], line["mtime_ns"]): line["found"] for line in done}
    waiting = [task for task in tasks if task not in found]
    if not waiting:
        return found
    write_text(journal, "".join(json.dumps(line) + "\n" for line in done))  # without a last line that was cut off
    with journal.open("a", encoding="utf-8") as file, progress_bar("files") as progress:
        bar = progress.add_task("looking at files", total=len(tasks), completed=len(tasks) - len(waiting))
        for task, result in run_isolated(probe_file, waiting, timeout, engine):
            found[task] = {"reason": result.reason} if isinstance(result, Failure) else result
            file.write(json.dumps(vars(task) | {"found": found[task]}) + "\n")
            file.flush()
            progress.advance(bar)
    return found


def probe_file(task: ProbeTask) -> dict[str, Any]:
    """Frames, rate, size and reader of a file, or the reason why it cannot be used."""
    try:
        _, content = read_media(task.path, Access())
        return probe_video(content)
    except VideoError as error:
        return {"reason": error.reason}
    except DecodeError as error:
        return {"reason": str(error)}
    except OSError as error:
        return {"reason": error.strerror or str(error)}


def write_manifests(
    folder: Path, samples: Sequence[ListedSample], header: Mapping[str, Any], further: Mapping[str, str]
) -> None:
    """Write the manifests of the samples, in their order, and last the index.

    Args:
        header: split and recipe of the index.
        further: types of those fields of the metadata that become columns.
    """
    kinds = ROW_KINDS | dict(further)
    shards: list[dict[str, Any]] = []
    rows: list[dict[str, list[Any]]] = []
    for start in range(0, len(samples), FILES_IN_A_MANIFEST):
        block = samples[start : start + FILES_IN_A_MANIFEST]
        lines = [manifest_line(sample.key, sample.path, sample.metadata) for sample in block]
        content, name = b"".join(lines), f"files-{len(shards):06d}{MANIFEST}"
        write_text(folder / name, content.decode())
        sha256 = hashlib.sha256(content).hexdigest()
        shards.append({"name": name, "samples": len(block), "bytes": len(content), "sha256": sha256})
        columns: dict[str, list[Any]] = {"key": [sample.key for sample in block]}
        columns["offset"] = list(accumulate(map(len, lines[:-1]), initial=0))
        for column, kind in kinds.items():
            if column in further:
                columns[column] = [column_value(sample.metadata.get(column), kind) for sample in block]
            elif column not in columns:
                columns[column] = [sample.facts[column] for sample in block]
        rows.append(columns)
    write_table(folder, header, shards, kinds, rows)

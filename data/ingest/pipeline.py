"""Videos and images to shards: check every file, split, write, report.

python -m data.prepare dataset=ucf101|mixkit|folder|frames|images source=DIR output=DIR
"""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.decode import VIDEO_READERS
from data.ingest.bucket import WHEN_FULL, BucketTask, Removal, fill_bucket, remove_files
from data.ingest.clips import Ways, endings_of_cuts
from data.ingest.journal import Journal
from data.ingest.merging import (
    DUPLICATE,
    Bucket,
    find_copies,
    find_refused,
    write_split,
)
from data.ingest.plan import BucketPlan, make_plan
from data.ingest.rejected import REJECTED, Rejected, read_rejected, write_rejected
from data.ingest.shots import Encoding
from data.ingest.sources import FRAMES, Choice, find_videos, kind_of, root_of
from data.ingest.splits import Video, assign_splits
from data.processes.pool import Engine, Failure, run_isolated
from tae.runtime.errors import UserError
from tae.runtime.progress import progress_bar
from tae.runtime.scratch import sort_on_disk
from tae.video.facts import INTERLACED

DATASETS = ("ucf101", "mixkit", "folder", "images", FRAMES)
KEPT_AS_IT_IS = ("refuse", "keep")  # what may be done with interlaced video whose bytes are kept


@dataclass(frozen=True)
class Preparation:
    """What became of a source folder.

    output:   folder of the shards
    accepted: split -> clips
    """

    output: Path
    accepted: dict[str, int]

    @property
    def rejected(self) -> Iterator[tuple[str, str]]:
        """The files that were refused: path relative to the source, reason."""
        return read_rejected(self.output / REJECTED)


def prepare(
    dataset: str,
    source: Path,
    output: Path,
    split: str | None,
    splits_dir: Path | None,
    test: float,
    val: float,
    seed: int,
    timeout: float,
    shard_mb: float,
    encoding: Encoding | None,
    engine: Engine,
    interlaced: str = "refuse",
    decoder: str = "auto",
    shuffle: bool = True,
    choice: Choice | None = None,
    frame_rate: float = 24.0,
) -> Preparation:
    """Turn a folder or a list of videos into shards under `output`; every file is in a shard or in `output/rejected.csv`.

    May be stopped at any moment and called again with the same arguments: it resumes where it was. The shards are the
    same bytes for any engine and any number of interruptions.

    Args:
        dataset: `ucf101` (class folders, names v_<Class>_gXX_cYY), `mixkit` or `folder` (any videos), `images`, or `frames`
            (folders of numbered pictures).
        source: a folder, or a list (`data.ingest.lists`).
        split: `group`, `random`, `official1|2|3`, `list`, `none` (all train) or `test` (all test); None is `list` where
            the source names splits, else `group` where groups are known (ucf101, a list with groups, `group_pattern`),
            else `random`.
        splits_dir: the folder of ucfTrainTestlist, for the official splits.
        test, val: shares of clips for these splits.
        timeout: seconds after which the check of one file is given up.
        shard_mb: size of a shard in megabytes.
        encoding: how to re-encode clips, and whether to cut shots; None keeps the files' own bytes.
        engine: who checks the files.
        interlaced: what becomes of interlaced video: `refuse`, `keep`, or with an encoding `deinterlace`.
        decoder: the reader to prefer for files that it is right for, see `data.ingest.check.examine`.
        shuffle: write the clips of each split in a random order (of `seed`), so that clips which stand together in the
            source do not stand together in training.
        frame_rate: of folders of pictures that state none.
        choice: how the source is read: columns of a list, captions, groups.

    Raises:
        UserError: the source holds no usable video, the output holds something else, is in use or cannot be written,
            or an option is unknown.
    """
    check_request(dataset, source, output, encoding, interlaced, decoder)
    if (shard_bytes := int(shard_mb * 1_000_000)) < 1:
        raise UserError(f"shard_mb={shard_mb} is less than a byte. It is in megabytes: 256 is usual.")
    choice = choice or Choice()
    found = find_videos(source, dataset, output, choice, endings_of_cuts if encoding else None)
    candidates, rejected = found.videos, found.rejected
    check_found(dataset, source, encoding, candidates, rejected)
    split = split or default_split(candidates)
    recipe: dict[str, Any] = {"dataset": dataset, "split": split, "test": test, "val": val, "seed": seed}
    recipe |= {"shuffle": shuffle} | ({"group_pattern": choice.group_pattern} if choice.group_pattern else {})
    if encoding:
        recipe["encoding"] = asdict(encoding)
    # By the files' names and not by what becomes of them, so that each can be written as soon as it is checked. Exact
    # shares of the names, and not a hash of each: the bundled model's published test clips are chosen in this way.
    splits, unlisted = assign_splits(candidates, split, test, val, seed, splits_dir)
    ways = Ways(encoding, interlaced, decoder, frame_rate if dataset == FRAMES else None)
    recipe |= {"frame_rate": frame_rate} if dataset == FRAMES else {}
    settings = recipe | {"interlaced": interlaced, "decoder": decoder, "source": str(source.resolve())}
    try:
        with Journal(output, settings | {"timeout": timeout, "shard_mb": shard_mb}) as journal:
            folder = root_of(source, choice.root)
            found_states = (_state_of(folder / video.path) for video in candidates)
            states = np.fromiter(found_states, np.dtype((np.int64, 2)), len(candidates))
            plan = make_plan(candidates, splits, states, seed, shuffle, shard_bytes)
            journal.settle(plan.digest)
            order = str(seed) if shuffle and encoding and encoding.shots else None
            work = Work(journal.buckets, folder, candidates, plan, ways, timeout, order, found.kinds)
            rejected.extend(unlisted)
            return _write(journal, output, work, engine, recipe, rejected)
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error}. {WHEN_FULL}") from error


def check_request(
    dataset: str, source: Path, output: Path, encoding: Encoding | None, interlaced: str, decoder: str
) -> None:
    """Refuse what cannot be prepared so, before the source is listed; arguments and errors as in `prepare`."""
    if dataset not in DATASETS:
        raise UserError(f"dataset={dataset} is unknown. Choose one of: {', '.join(DATASETS)}.")
    if not source.exists():
        raise UserError(f"source={source} does not exist. Give the folder that holds the videos, or a list of them.")
    if source.resolve().is_relative_to(output.resolve()):
        raise UserError(f"output={output} holds source={source}. Choose a folder of its own for the shards.")
    if encoding and dataset == "images":
        raise UserError("reencode=true is for videos; dataset=images keeps the files as they are.")
    if interlaced not in (INTERLACED if encoding else KEPT_AS_IT_IS):
        raise UserError(
            f"interlaced={interlaced} is not allowed: refuse or keep, and with reencode=true also deinterlace."
        )
    if decoder not in ("auto", *VIDEO_READERS):
        raise UserError(f"decoder={decoder} is unknown. Choose one of: auto, {', '.join(VIDEO_READERS)}.")


def check_found(
    dataset: str, source: Path, encoding: Encoding | None, candidates: Sequence[Video], rejected: Rejected
) -> None:
    """Refuse a source that holds nothing, or a list that says where to cut beside `shots`."""
    if not candidates:
        what = {"images": "images", FRAMES: "folders of numbered pictures"}.get(dataset, "videos")
        extensions = kind_of(dataset)[1]
        example = f" For example, {rejected[0][0]}: {rejected[0][1]}." if rejected else ""
        raise UserError(f"source={source} holds no {what} (by extension: {', '.join(sorted(extensions))}).{example}")
    if encoding and encoding.shots and any(video.cuts for video in candidates):
        raise UserError("shots=true and the list's start and end both say where to cut: give one of them.")


@dataclass(frozen=True)
class Work:
    """What is to be written, and how; the arguments are those of `BucketTask` for all buckets.

    Args:
        kinds: types of the index's columns beyond the usual ones.
    """

    folder: Path
    source: Path
    videos: Sequence[Video]
    plan: BucketPlan
    ways: Ways
    timeout: float
    order: str | None
    kinds: Mapping[str, str]

    def buckets(self, split: str) -> list[Bucket]:
        """The buckets of a split."""
        return [Bucket(self.folder, name) for name in self.plan.names(split)]

    @property
    def all_buckets(self) -> list[Bucket]:
        """The buckets of all splits."""
        return [bucket for split in self.plan.buckets for bucket in self.buckets(split)]

    def count_done(self) -> int:
        """The files of the buckets that are filled, and those that belong to no split."""
        return len(self.videos) - sum(len(places) for _, places in self._unfilled())

    def tasks(self) -> Iterator[BucketTask]:
        """The buckets that are not filled, with the lists of their files."""
        for bucket, places in self._unfilled():
            task = BucketTask(
                folder=self.folder,
                name=bucket.name,
                source=self.source,
                files=len(places),
                ways=self.ways,
                timeout=self.timeout,
                order=None if self.order is None else f"{self.order} {bucket.name}",
                columns=tuple(self.kinds),
            )
            task.write_videos((place, self.videos[place]) for place in places.tolist())
            yield task

    def _unfilled(self) -> Iterator[tuple[Bucket, np.ndarray]]:
        for split, cuts in self.plan.buckets.items():
            for bucket, places in zip(self.buckets(split), cuts, strict=True):
                if not (self.folder / f"{bucket.name}.tar").exists():
                    yield bucket, places


def _write(
    journal: Journal, output: Path, work: Work, engine: Engine, recipe: Mapping[str, Any], rejected: Rejected
) -> Preparation:
    """Everything from the first unread file to the result; what was done before is not done again.

    Raises:
        UserError: no file is usable.
    """
    if (accepted := journal.read_result()) is not None:
        journal.forget()  # what is left of it where a process was killed at that
        return Preparation(output, accepted)
    if not journal.is_published:
        fill_buckets(work, engine)
        copies = leave_out_copies(work, engine)
        rejected.extend(find_refused(work.all_buckets, work.videos))
        rejected.extend(copies)
        write_rejected(output / REJECTED, sort_on_disk(rejected, key="\0".join))
        if not any(bucket.read()["rows"] for bucket in work.all_buckets):
            journal.forget()
            raise UserError(f"None of the {len(work.videos)} files is usable: see {output / REJECTED}.")
        journal.publish()
    accepted = {
        split: write_split(output / split, recipe, work.buckets(split), work.kinds) for split in work.plan.buckets
    }
    journal.end(accepted)
    return Preparation(output, accepted)


def fill_buckets(work: Work, engine: Engine) -> None:
    """Check and write all files that are not yet; one at which its process ends is refused, and its bucket resumed.

    Raises:
        UserError: a bucket cannot be written.
    """
    with progress_bar("files") as progress:
        bar = progress.add_task("checking and writing", total=len(work.videos), completed=work.count_done())
        tasks = list(work.tasks())  # here, as what takes them one by one does so in other threads
        while True:
            failed = []
            for task, result in run_isolated(fill_bucket, tasks, None, engine):
                if isinstance(result, Failure):
                    reason = f"took more than {work.timeout:g} s" if result.timed_out else result.reason
                    failed.append(replace(task, failure=reason))
                else:
                    progress.advance(bar, task.files)
            if not failed:
                return
            tasks = failed


def leave_out_copies(work: Work, engine: Engine) -> Iterator[tuple[str, str]]:
    """Write buckets again that hold files whose content is in an earlier file of the source; these files."""
    buckets = work.all_buckets
    copies = find_copies(buckets)
    removals = [
        Removal(work.folder, buckets[of_bucket[0, 0]].name, of_bucket[:, 1])
        for of_bucket in np.split(copies, np.flatnonzero(np.diff(copies[:, 0])) + 1)
        if len(of_bucket)
    ]
    for task, result in run_isolated(remove_files, removals, None, engine):
        if isinstance(result, Failure):
            raise UserError(f"{task.folder / task.name} cannot be written again: it {result.reason}.")
    pairs = (pair.tolist() for pair in copies[:, 1:])
    return ((work.videos[copy].path, f"{DUPLICATE} {work.videos[first].path}") for copy, first in pairs)


def _state_of(path: Path) -> tuple[int, int]:
    """Size and time of change of a file or a folder of pictures; zeros where it has vanished, which reading shows."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    if stat.S_ISDIR(status.st_mode):
        sizes = [entry.stat().st_size for entry in os.scandir(path) if entry.is_file()]
        return sum(sizes), status.st_mtime_ns
    return status.st_size, status.st_mtime_ns


def default_split(videos: Sequence[Video]) -> str:
    """How to split where nothing is said: by what the source says of its videos."""
    if any(video.split for video in videos):
        return "list"
    return "group" if any(video.group != video.key for video in videos) else "random"

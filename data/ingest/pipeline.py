"""Videos to shards: check every file, split, write, report.

python -m data.prepare dataset=ucf101|mixkit|folder source=DIR output=DIR
"""

import csv
import io
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.decode import VIDEO_READERS
from data.ingest.journal import Journal, Origin
from data.ingest.shots import Encoding
from data.ingest.sources import find_videos, root_of
from data.ingest.splits import Video, assign_splits
from data.ingest.staging import WHEN_FULL, Checked, StagedClip, StagingTask, stage_file, write_whole
from data.processes.pool import Engine, Failure, run_isolated
from data.shards.format import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from data.shards.writer import ShardWriter
from tae.runtime.errors import UserError
from tae.runtime.progress import progress_bar
from tae.video.facts import INTERLACED

DATASETS = ("ucf101", "mixkit", "folder", "images")
KEPT_AS_IT_IS = ("refuse", "keep")  # what may be done with interlaced video whose bytes are kept
DUPLICATE = "same content as"


@dataclass(frozen=True)
class Preparation:
    """What became of a source folder."""

    accepted: dict[str, int]  # split -> clips
    rejected: list[tuple[str, str]]  # path relative to the source, reason


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
    shard_mb: int,
    encoding: Encoding | None,
    engine: Engine,
    interlaced: str = "refuse",
    decoder: str = "auto",
    shuffle: bool = True,
    columns: Mapping[str, str] | None = None,
    group_pattern: str | None = None,
    root: Path | None = None,
) -> Preparation:
    """Turn a folder or a list of videos into shards under `output`; every file is in a shard or in `output/rejected.csv`.

    May be stopped at any moment and called again with the same arguments: it resumes where it was. The shards are the
    same bytes for any engine and any number of interruptions.

    Args:
        dataset: `ucf101` (class folders, names v_<Class>_gXX_cYY), `mixkit` or `folder` (any videos), or `images`.
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
        columns, group_pattern, root: as `data.ingest.sources.find_videos` takes them.

    Raises:
        UserError: the source holds no usable video, the output holds something else, is in use or cannot be written,
            or an option is unknown.
    """
    if dataset not in DATASETS:
        raise UserError(f"dataset={dataset} is unknown. Choose one of: {', '.join(DATASETS)}.")
    if not source.exists():
        raise UserError(f"source={source} does not exist. Give the folder that holds the videos, or a list of them.")
    if source.resolve().is_relative_to(output.resolve()):
        raise UserError(f"output={output} holds source={source}. Choose a folder of its own for the shards.")
    candidates, rejected = find_videos(source, dataset, output, columns, group_pattern, root)
    if not candidates:
        what, extensions = ("images", IMAGE_EXTENSIONS) if dataset == "images" else ("videos", VIDEO_EXTENSIONS)
        example = f" For example, {rejected[0][0]}: {rejected[0][1]}." if rejected else ""
        raise UserError(f"source={source} holds no {what} (by extension: {', '.join(sorted(extensions))}).{example}")
    if encoding and dataset == "images":
        raise UserError("reencode=true is for videos; dataset=images keeps the files as they are.")
    if interlaced not in (INTERLACED if encoding else KEPT_AS_IT_IS):
        raise UserError(
            f"interlaced={interlaced} is not allowed: refuse or keep, and with reencode=true also deinterlace."
        )
    if decoder not in ("auto", *VIDEO_READERS):
        raise UserError(f"decoder={decoder} is unknown. Choose one of: auto, {', '.join(VIDEO_READERS)}.")
    split = split or default_split(candidates)
    recipe: dict[str, Any] = {"dataset": dataset, "split": split, "test": test, "val": val, "seed": seed}
    recipe |= {"shuffle": shuffle} | ({"group_pattern": group_pattern} if group_pattern else {})
    assign_splits(candidates, split, test, val, seed, splits_dir)  # a wrong option shows before the long part
    if encoding:
        recipe["encoding"] = asdict(encoding)
    ways = {"interlaced": interlaced, "decoder": decoder}
    settings = recipe | ways | {"source": str(source.resolve()), "timeout": timeout, "shard_mb": shard_mb}
    try:
        with Journal(output, settings) as journal:
            videos, refused = keep_good(
                candidates, check_files(root_of(source, root), candidates, journal, encoding, timeout, engine, ways)
            )
            splits, unlisted = assign_splits(list(videos), split, test, val, seed, splits_dir)
            rejected = sorted(rejected + refused + unlisted)
            _write_rejected(output / "rejected.csv", rejected)
            if not any(splits.values()):
                raise UserError(
                    f"None of the {len(candidates)} videos in {source} is usable: see {output / 'rejected.csv'}."
                )
            journal.fix({name: [(v.key, videos[v].sha256) for v in members] for name, members in splits.items()})
            for name, members in splits.items():
                clips = [(video, clip) for video in members for clip in videos[video].clips]
                if shuffle:
                    random.Random(f"{seed} {name}").shuffle(clips)
                _write_split(journal, output / name, recipe, clips, videos, shard_mb)
            journal.discard_all()
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error}. {WHEN_FULL}") from error
    return Preparation({name: sum(len(videos[v].clips) for v in members) for name, members in splits.items()}, rejected)


def default_split(videos: Sequence[Video]) -> str:
    """How to split where nothing is said: by what the source says of its videos."""
    if any(video.split for video in videos):
        return "list"
    return "group" if any(video.group != video.key for video in videos) else "random"


def check_files(
    source: Path,
    videos: Sequence[Video],
    journal: Journal,
    encoding: Encoding | None,
    timeout: float,
    engine: Engine,
    ways: dict[str, str],
) -> Iterator[Checked | str]:
    """For each video its clips in the staging folder, or the reason to refuse it; those in the journal are done."""
    origins = {video.key: origin for video in videos if (origin := Origin.of(source, video.path))}
    waiting = [video for video in videos if video.key in origins and origins[video.key] not in journal.results]
    tasks = (StagingTask(source / video.path, video.key, journal.clips, encoding, **ways) for video in waiting)
    with progress_bar("files") as progress:
        bar = progress.add_task("checking", total=len(videos), completed=len(videos) - len(waiting))
        for task, result in run_isolated(stage_file, tasks, timeout, engine) if waiting else ():
            outcome = f"its check {result.reason}" if isinstance(result, Failure) else result
            journal.add(origins[task.key], outcome)
            progress.advance(bar)
    for video in videos:
        yield journal.results[origins[video.key]] if video.key in origins else "vanished from the source"


def keep_good(
    videos: Sequence[Video], results: Iterable[Checked | str]
) -> tuple[dict[Video, Checked], list[tuple[str, str]]]:
    """The usable videos with their clips, and the refused ones; of files with the same content the first is kept."""
    good: dict[Video, Checked] = {}
    refused: list[tuple[str, str]] = []
    first: dict[str, str] = {}
    for video, result in zip(videos, results, strict=True):
        if isinstance(result, str):
            refused.append((video.path, result))
        elif result.sha256 in first:
            refused.append((video.path, f"{DUPLICATE} {first[result.sha256]}"))
        else:
            first[result.sha256] = video.path
            good[video] = result
    return good, refused


def _write_split(
    journal: Journal, folder: Path, recipe: dict[str, Any], clips: Sequence[tuple[Video, StagedClip]],
    videos: dict[Video, Checked], shard_mb: int,
) -> None:  # fmt: skip
    """The clips of a split from the staging folder to shards; they are removed there when their shard is finished."""
    written: list[StagedClip] = []
    with (
        ShardWriter(folder, folder.name, recipe, shard_mb * 1_000_000, resume=True) as writer,
        progress_bar("clips") as progress,
    ):
        for video, clip in progress.track(clips, description=f"writing {folder.name}"):
            if writer.holds(clip.key):
                continue
            metadata = asdict(clip.facts) | {"label": video.label, "group": video.group, "source": video.path}
            if clip.shot:
                metadata |= {"shot": clip.shot, "source_sha256": videos[video].sha256}
            writer.write(clip.key, clip.extension, journal.read(clip), metadata)
            written.append(clip)
            if writer.holds(clip.key):
                journal.discard(written)
                written = []


def _write_rejected(path: Path, rejected: list[tuple[str, str]]) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["path", "reason"])
    writer.writerows(rejected)
    write_whole(path, file.getvalue().encode(errors="surrogateescape"))

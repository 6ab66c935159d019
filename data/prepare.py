"""Videos to shards: check every file, split, write, report.

python -m data.prepare dataset=ucf101|mixkit|folder source=DIR output=DIR
"""

import csv
import io
import os
import re
import signal
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from data.download import download_ucf101
from data.journal import Journal, Origin
from data.pool import Crew, Failure, run_isolated
from data.shards import VIDEO_EXTENSIONS
from data.shots import Encoding
from data.splits import UCF101_NAME, Video, assign_splits
from data.staging import WHEN_FULL, Checked, Clip, Task, stage, write_whole
from data.writer import ShardWriter
from tae.cli import hydra_main
from tae.errors import UserError

DATASETS = ("ucf101", "mixkit", "folder")
KEY_LENGTH = 80  # a ustar member's name holds 100 characters
DUPLICATE = "same content as"
REASONS_SHOWN = 12


@dataclass(frozen=True)
class Outcome:
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
    crew: Crew,
) -> Outcome:
    """Turn a folder of videos into shards under `output`; every file is in a shard or in `output/rejected.csv`.

    May be stopped at any moment and called again with the same arguments: it goes on where it was. The shards are the
    same bytes for any crew and any number of interruptions.

    Args:
        dataset: `ucf101` (class folders, names v_<Class>_gXX_cYY), `mixkit` or `folder` (any videos).
        split: `group`, `random`, `official1|2|3` or `none`; None is `group` for ucf101 and `random` for the others.
        splits_dir: the folder of ucfTrainTestlist, for the official splits.
        test, val: shares of clips for these splits.
        timeout: seconds after which the check of one file is given up.
        shard_mb: size of a shard in megabytes.
        encoding: how to encode clips anew, and whether to cut shots; None keeps the files' own bytes.
        crew: who checks the files.

    Raises:
        UserError: the source holds no usable video, the output holds something else, is in use or cannot be written,
            or an option is unknown.
    """
    if dataset not in DATASETS:
        raise UserError(f"dataset={dataset} is unknown. Choose one of: {', '.join(DATASETS)}.")
    if not source.is_dir():
        raise UserError(f"source={source} is not a folder. Give the folder that holds the videos.")
    if source.resolve().is_relative_to(output.resolve()):
        raise UserError(f"output={output} holds source={source}. Choose a folder of its own for the shards.")
    split = split or ("group" if dataset == "ucf101" else "random")
    candidates, rejected = find_videos(source, dataset, output)
    if not candidates:
        raise UserError(f"source={source} holds no videos (by extension: {', '.join(sorted(VIDEO_EXTENSIONS))}).")
    recipe: dict[str, Any] = {"dataset": dataset, "split": split, "test": test, "val": val, "seed": seed}
    assign_splits(candidates, split, test, val, seed, splits_dir)  # a wrong option shows before the long part
    if encoding:
        recipe["encoding"] = asdict(encoding)
    settings = recipe | {"source": str(source.resolve()), "timeout": timeout, "shard_mb": shard_mb}
    try:
        with Journal(output, settings) as journal:
            videos, refused = keep_good(candidates, check_files(source, candidates, journal, encoding, timeout, crew))
            splits, unlisted = assign_splits(list(videos), split, test, val, seed, splits_dir)
            rejected = sorted(rejected + refused + unlisted)
            _write_rejected(output / "rejected.csv", rejected)
            if not any(splits.values()):
                raise UserError(
                    f"None of the {len(candidates)} videos in {source} is usable: see {output / 'rejected.csv'}."
                )
            journal.fix({name: [(v.key, videos[v].sha256) for v in members] for name, members in splits.items()})
            for name, members in splits.items():
                _write_split(journal, output / name, recipe, members, videos, shard_mb)
            journal.discard_all()
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error}. {WHEN_FULL}") from error
    return Outcome({name: sum(len(videos[v].clips) for v in members) for name, members in splits.items()}, rejected)


def find_videos(source: Path, dataset: str, output: Path | None = None) -> tuple[list[Video], list[tuple[str, str]]]:
    """Every file below `source`, sorted: candidates by name, and the others with the reason why they are none.

    What lies in `output` is no part of the source.
    """
    candidates: list[Video] = []
    rejected: list[tuple[str, str]] = []
    taken: set[str] = set()
    ours = source / os.path.relpath(output.resolve(), source.resolve()) if output else None
    for path in sorted(path for path in source.rglob("*") if not path.is_dir() and ours not in path.parents):
        relative = path.relative_to(source).as_posix()
        if reason := _why_not(path, dataset):
            rejected.append((relative, reason))
            continue
        key = unique_key(path.stem, taken)
        taken.add(key)
        name = UCF101_NAME.match(path.stem) if dataset == "ucf101" else None
        label = path.parent.name if path.parent != source else (name["label"] if name else "")
        candidates.append(Video(relative, key, label, name["group"] if name else key))
    return candidates, rejected


def _why_not(path: Path, dataset: str) -> str:
    if path.name.startswith("."):
        return "hidden file"
    if not path.is_file():
        return "not a regular file (a broken link?)"
    if path.suffix.lower().lstrip(".") not in VIDEO_EXTENSIONS:
        return f"not a video by its extension ({path.suffix or 'none'})"
    if dataset == "ucf101" and not UCF101_NAME.match(path.stem):
        return "not named v_<Class>_gXX_cYY as the clips of UCF-101 are (use dataset=folder for other videos)"
    return ""


def unique_key(stem: str, taken: set[str]) -> str:
    """A sample's key from a file name: letters, digits, `_` and `-` only, and not in `taken`."""
    ascii_name = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    base = re.sub(r"[^A-Za-z0-9_-]+", "_", ascii_name).strip("_")[:KEY_LENGTH] or "video"
    key, number = base, 1
    while key in taken:
        number += 1
        key = f"{base}-{number}"
    return key


def check_files(
    source: Path, videos: Sequence[Video], journal: Journal, encoding: Encoding | None, timeout: float, crew: Crew
) -> Iterator[Checked | str]:
    """For each video its clips in the staging folder, or the reason to refuse it; those in the journal are done."""
    origins = {video.key: origin for video in videos if (origin := Origin.of(source, video.path))}
    waiting = [video for video in videos if video.key in origins and origins[video.key] not in journal.results]
    tasks = (Task(source / video.path, video.key, journal.clips, encoding) for video in waiting)
    with _progress() as progress:
        bar = progress.add_task("checking", total=len(videos), completed=len(videos) - len(waiting))
        for task, result in run_isolated(stage, tasks, timeout, crew) if waiting else ():
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
    journal: Journal, folder: Path, recipe: dict[str, Any], members: Sequence[Video], videos: dict[Video, Checked],
    shard_mb: int,
) -> None:  # fmt: skip
    """The clips of a split from the staging folder to shards; they are removed there when their shard is finished."""
    clips = [(video, clip) for video in members for clip in videos[video].clips]
    written: list[Clip] = []
    with ShardWriter(folder, folder.name, recipe, shard_mb * 1_000_000, resume=True) as writer, _progress() as progress:
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


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(file=sys.stderr))


def report(outcome: Outcome, output: Path) -> None:
    """Print what was accepted and, by reason, what was not."""
    table = Table("result", "files", title=f"shards in {output}")
    for name, clips in outcome.accepted.items():
        table.add_row(f"accepted: {name}", str(clips))
    reasons = Counter(
        f"{DUPLICATE} another file" if reason.startswith(DUPLICATE) else reason for _, reason in outcome.rejected
    )
    for reason, files in reasons.most_common(REASONS_SHOWN):
        table.add_row(f"rejected: {reason}", str(files))
    if others := len(outcome.rejected) - sum(files for _, files in reasons.most_common(REASONS_SHOWN)):
        table.add_row("rejected: other reasons", str(others))
    if outcome.rejected:
        table.caption = f"each file and its reason: {output / 'rejected.csv'}"
    Console().print(table)


@hydra_main("prepare")
def main(cfg: DictConfig) -> None:
    """The command: `prepare` with the config's values, then the table."""
    if cfg.source is None:
        raise UserError("source is not set. Give the folder that holds the videos: source=DIR.")
    source, output = Path(cfg.source), Path(cfg.output)
    splits_dir = Path(cfg.splits_dir) if cfg.splits_dir else None
    if cfg.download and cfg.dataset != "ucf101":
        raise UserError(f"download=true serves dataset=ucf101 alone, not dataset={cfg.dataset}.")
    if cfg.shots and not cfg.reencode:
        raise UserError(
            "shots=true needs reencode=true: without encoding anew a file can only be cut at its keyframes."
        )
    encoding = Encoding(cfg.shots, cfg.shot_threshold, cfg.min_shot, cfg.short_side, cfg.gop, cfg.crf)
    crew = Crew(cfg.engine, cfg.workers, cfg.scheduler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the workers too, as Ctrl-C does
    try:
        if cfg.download:
            source, lists = download_ucf101(source, cfg.download_from.videos, cfg.download_from.lists)
            splits_dir = splits_dir or lists
        outcome = prepare(
            dataset=cfg.dataset,
            source=source,
            output=output,
            split=cfg.split,
            splits_dir=splits_dir,
            test=cfg.test,
            val=cfg.val,
            seed=cfg.seed,
            timeout=cfg.timeout,
            shard_mb=cfg.shard_mb,
            encoding=encoding if cfg.reencode else None,
            crew=crew,
        )
    except KeyboardInterrupt as interrupt:
        raise UserError("Stopped. What is done is kept: repeat the command to go on.") from interrupt
    report(outcome, output)


if __name__ == "__main__":
    main()

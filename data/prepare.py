"""Videos to shards: check every file, split, write, report.

python -m data.prepare dataset=ucf101|mixkit|folder source=DIR output=DIR
"""

import csv
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import TimeoutError as CheckTimeout
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pebble import ProcessExpired, ProcessPool
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from data.check import Facts, check
from data.loader import START_METHOD
from data.shards import VIDEO_EXTENSIONS, ShardWriter
from data.splits import UCF101_NAME, Video, assign_splits
from tae.cli import hydra_main
from tae.errors import UserError

DATASETS = ("ucf101", "mixkit", "folder")
KEY_LENGTH = 80  # a ustar member's name holds 100 characters


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
    workers: int,
    timeout: float,
    shard_mb: int,
) -> Outcome:
    """Turn a folder of videos into shards under `output`; every file is in a shard or in `output/rejected.csv`.

    Args:
        dataset: `ucf101` (class folders, names v_<Class>_gXX_cYY), `mixkit` or `folder` (any videos).
        split: `group`, `random`, `official1|2|3` or `none`; None is `group` for ucf101 and `random` for the others.
        splits_dir: the folder of ucfTrainTestlist, for the official splits.
        test, val: shares of clips for these splits.
        workers: processes that check files.
        timeout: seconds after which the check of one file is given up.
        shard_mb: size of a shard in megabytes.

    Raises:
        UserError: the source holds no usable video, the output is not empty or cannot be written, or an option is
            unknown.
    """
    if dataset not in DATASETS:
        raise UserError(f"dataset={dataset} is unknown. Choose one of: {', '.join(DATASETS)}.")
    if not source.is_dir():
        raise UserError(f"source={source} is not a folder. Give the folder that holds the videos.")
    split = split or ("group" if dataset == "ucf101" else "random")
    _make_empty(output)
    candidates, rejected = find_videos(source, dataset)
    if not candidates:
        raise UserError(f"source={source} holds no videos (by extension: {', '.join(sorted(VIDEO_EXTENSIONS))}).")
    recipe = {"dataset": dataset, "split": split, "test": test, "val": val, "seed": seed}
    assign_splits(candidates, split, test, val, seed, splits_dir)  # a wrong option shows before the long part
    facts = check_files([source / video.path for video in candidates], workers, timeout)
    videos, refused = keep_good(candidates, facts)
    splits, unlisted = assign_splits(list(videos), split, test, val, seed, splits_dir)
    rejected = sorted(rejected + refused + unlisted)
    try:
        _write_rejected(output / "rejected.csv", rejected)
        if not any(splits.values()):
            raise UserError(
                f"None of the {len(candidates)} videos in {source} is usable: see {output / 'rejected.csv'}."
            )
        for name, members in splits.items():
            _write_split(source, output / name, recipe | {"name": name}, members, videos, shard_mb)
    except OSError as error:
        raise UserError(
            f"output={output} cannot be written: {error}. Free some space or choose another folder."
        ) from error
    return Outcome({name: len(members) for name, members in splits.items()}, rejected)


def find_videos(source: Path, dataset: str) -> tuple[list[Video], list[tuple[str, str]]]:
    """Every file below `source`, sorted: candidates by name, and the others with the reason why they are none."""
    candidates: list[Video] = []
    rejected: list[tuple[str, str]] = []
    taken: set[str] = set()
    for path in sorted(path for path in source.rglob("*") if not path.is_dir()):
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


def check_files(paths: list[Path], workers: int, timeout: float) -> Iterator[Facts | str]:
    """For each path what is in the file, or the reason to refuse it. A crash or a hang costs that file alone."""
    with ProcessPool(max_workers=workers, context=get_context(START_METHOD)) as pool, _progress() as progress:
        results = pool.map(check, paths, timeout=timeout).result()
        for path in progress.track(paths, description="checking"):
            try:
                yield next(results)
            except CheckTimeout:
                yield f"its check took more than {timeout:g} s"
            except ProcessExpired as error:
                yield f"decoding ended the process (exit code {error.exitcode})"
            except Exception as error:  # whatever a broken file provokes in a library must not stop the others
                yield f"cannot be checked: {path.name}: {type(error).__name__}: {error}"


def keep_good(videos: list[Video], results: Iterable[Facts | str]) -> tuple[dict[Video, Facts], list[tuple[str, str]]]:
    """The usable videos with their facts, and the refused ones; of files with the same content the first is kept."""
    good: dict[Video, Facts] = {}
    refused: list[tuple[str, str]] = []
    first: dict[str, str] = {}
    for video, result in zip(videos, results, strict=True):
        if isinstance(result, str):
            refused.append((video.path, result))
        elif result.sha256 in first:
            refused.append((video.path, f"same content as {first[result.sha256]}"))
        else:
            first[result.sha256] = video.path
            good[video] = result
    return good, refused


def _make_empty(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        occupied = any(output.iterdir())
    except OSError as error:
        raise UserError(f"output={output} cannot be made: {error}. Choose another folder.") from error
    if occupied:
        raise UserError(f"output={output} is not empty. Remove what is in it or choose another folder.")


def _write_split(
    source: Path, folder: Path, recipe: dict[str, Any], members: list[Video], facts: dict[Video, Facts], shard_mb: int
) -> None:
    name = recipe.pop("name")
    with ShardWriter(folder, name, recipe, shard_mb * 1_000_000) as writer, _progress() as progress:
        for video in progress.track(members, description=f"writing {name}"):
            path = source / video.path
            metadata = asdict(facts[video]) | {"label": video.label, "group": video.group, "source": video.path}
            writer.write(video.key, path.suffix.lower().lstrip("."), path.read_bytes(), metadata)


def _write_rejected(path: Path, rejected: list[tuple[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows(rejected)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(file=sys.stderr))


def report(outcome: Outcome, output: Path) -> None:
    """Print what was accepted and, by reason, what was not."""
    table = Table("result", "files", title=f"shards in {output}")
    for name, clips in outcome.accepted.items():
        table.add_row(f"accepted: {name}", str(clips))
    reasons = Counter(reason for _, reason in outcome.rejected)
    for reason, files in reasons.most_common(12):
        table.add_row(f"rejected: {reason}", str(files))
    if others := len(outcome.rejected) - sum(files for _, files in reasons.most_common(12)):
        table.add_row(f"rejected: other reasons, see {output / 'rejected.csv'}", str(others))
    Console().print(table)


@hydra_main("prepare")
def main(cfg: DictConfig) -> None:
    """The command: `prepare` with the config's values, then the table."""
    if cfg.source is None:
        raise UserError("source is not set. Give the folder that holds the videos: source=DIR.")
    output = Path(cfg.output)
    outcome = prepare(
        dataset=cfg.dataset,
        source=Path(cfg.source),
        output=output,
        split=cfg.split,
        splits_dir=Path(cfg.splits_dir) if cfg.splits_dir else None,
        test=cfg.test,
        val=cfg.val,
        seed=cfg.seed,
        workers=cfg.workers,
        timeout=cfg.timeout,
        shard_mb=cfg.shard_mb,
    )
    report(outcome, output)


if __name__ == "__main__":
    main()

"""An index for shards that others wrote: WebDataset tar files of `<key>.mp4` beside `<key>.txt` and `<key>.json`.

Nothing in the shards is changed. A key is a member's whole name without its last extension: it may have dots and slashes.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from data.decode import IMAGE_READER, DecodeError, as_path, open_video
from data.ingest.rejected import REJECTED, write_rejected
from data.processes.pool import Engine, Failure, run_isolated
from data.shards.columns import STRING, column_value, is_number
from data.shards.format import COLUMN_KINDS, COLUMN_NAME, INDEX, Shard, media_of, read_json
from data.shards.index_writer import write_table
from data.shards.metadata import CAPTION, read_metadata, with_caption
from data.shards.reader import open_samples
from data.storage.address import file_name, is_remote
from data.storage.remote import READ_BLOCK, Access, open_file
from tae.runtime.errors import UserError
from tae.runtime.files import write_text
from tae.runtime.progress import progress_bar
from tae.video.facts import VideoError
from tae.video.image import is_image
from tae.video.seeking import PacketReader

WORK = ".indexing"  # folder of what is done, until the index is written
ROW_KINDS = COLUMN_KINDS | {"reader": STRING}
RECIPE = {"dataset": "shards of others"}  # in the header of the indexes that are written here
SHARDS_NAMED = 5  # of those that cannot be read


@dataclass(frozen=True)
class IndexTask:
    """A shard to look through, and where to write what is in it."""

    url: str
    result: Path
    columns: tuple[str, ...]
    access: Access


@dataclass(frozen=True)
class Indexed:
    """What an index was made of."""

    shards: int
    samples: int
    rejected: Counter[str]  # by reason


def index_shards(
    urls: Sequence[str], folder: Path, elsewhere: bool, columns: Sequence[str], access: Access, timeout: float,
    engine: Engine,
) -> Indexed:  # fmt: skip
    """Write the index of shards, and `rejected.csv` (shard, key, reason) beside it.

    May be stopped at any moment and called again with the same arguments: shards that were looked through are not read
    again, as long as their size is the same.

    Args:
        urls: of the shards, in the order of the index.
        folder: of the index.
        elsewhere: the shards are not in this folder: the index has their addresses.
        columns: of the samples' metadata that the table is to have too; `caption` may be in a `.txt`.
        timeout: seconds for one shard.

    Raises:
        UserError: shards cannot be read (said when all others are done), no sample is usable, the folder cannot be written,
            or has an index that would be lost.
    """
    refuse_replacing(urls, folder, elsewhere)
    if wrong := [name for name in columns if not COLUMN_NAME.fullmatch(name) or name in ROW_KINDS]:
        raise UserError(
            f"columns={wrong[0]} is not allowed: small letters, digits and _, and none of {', '.join(ROW_KINDS)}."
        )
    work = folder / WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
        with FileLock(work / "lock", blocking=False):
            settings = json.dumps({"columns": list(columns)})
            if (work / "settings").exists() and (work / "settings").read_text() != settings:
                for result in work.glob("*.json"):
                    result.unlink()
            write_text(work / "settings", settings)
            tasks = [
                IndexTask(url, work / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.json", tuple(columns), access)
                for url in urls
            ]
            look_through(tasks, timeout, engine)
            found = merge(tasks, folder, elsewhere, columns)
            shutil.rmtree(work)
    except Timeout as error:
        raise UserError(f"{folder} is being indexed by another process. Wait for it.") from error
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}. Give another one: output=DIR.") from error
    return found


def refuse_replacing(urls: Sequence[str], folder: Path, elsewhere: bool) -> None:
    """Keep the index of a folder that says more than one of these shards would.

    Raises:
        UserError: preparation wrote it, or it lists further shards.
    """
    if not (folder / INDEX).exists():
        return
    try:
        index = read_json((folder / INDEX).read_bytes())
        own, listed = index["recipe"] == RECIPE, [entry.get("url", entry["name"]) for entry in index["shards"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        own, listed = False, []
    if not own:
        raise UserError(
            f"{folder / INDEX} was not written by data.index (shards that data.prepare wrote need no other index). To keep "
            "it, give another folder: output=DIR."
        )
    given = set(urls) if elsewhere else set(map(file_name, urls))
    there = [name for name in listed if is_remote(name) or (folder / name).exists()]
    if missing := [name for name in there if name not in given]:
        raise UserError(
            f"{folder / INDEX} lists {missing[0]} too ({len(missing)} shards are not among those given), and would be "
            "replaced. Name all shards, or give another folder: output=DIR."
        )


def look_through(tasks: Sequence[IndexTask], timeout: float, engine: Engine) -> None:
    """Have every shard looked through that was not yet, or is of another size by now.

    Raises:
        UserError: some cannot be read; all others are done.
    """
    waiting = [task for task in tasks if not _is_done(task)]
    unreadable: list[str] = []
    with progress_bar("shards") as progress:
        bar = progress.add_task("indexing", total=len(tasks), completed=len(tasks) - len(waiting))
        for task, result in run_isolated(index_shard, waiting, timeout, engine) if waiting else ():
            if reason := f"looking through it {result.reason}" if isinstance(result, Failure) else result:
                unreadable.append(f"{task.url} ({reason})")
            progress.advance(bar)
    if unreadable:
        named = sorted(unreadable)[:SHARDS_NAMED] + ["..."] * (len(unreadable) > SHARDS_NAMED)
        raise UserError(
            f"{len(unreadable)} of {len(tasks)} shards cannot be read: {', '.join(named)}. Fetch them again, or leave them "
            "out of shards=... The others are done and will not be read again."
        )


def _is_done(task: IndexTask) -> bool:
    if not task.result.exists():
        return False
    size = json.loads(task.result.read_text())["bytes"]
    return is_remote(task.url) or Path(task.url).stat().st_size == size


def index_shard(task: IndexTask) -> str:
    """Look through one shard: a row for each usable sample, and for the others the reason why they are not.

    Returns:
        Why it cannot be read; empty where it can.
    """
    rows: list[dict[str, Any]] = []
    rejected: list[tuple[str, str]] = []
    seen: set[str] = set()
    try:
        size, sha256 = _measure(task)
        with open_samples(Shard(task.url, {}, size), None, task.access) as samples:
            for sample in samples:
                key = sample["__key__"]
                row = "its key was there before" if key in seen else _row_of(sample, task.columns)
                seen.add(key)
                if isinstance(row, str):
                    rejected.append((key, row))
                else:
                    rows.append({"key": key, "offset": sample["__offset__"]} | row)
    except Exception as error:  # whatever a damaged file provokes in tarfile
        return str(error) or type(error).__name__
    write_text(task.result, json.dumps({"bytes": size, "sha256": sha256, "rows": rows, "rejected": rejected}))
    return ""


def _measure(task: IndexTask) -> tuple[int, str]:
    """Size and hash of a shard."""
    digest, size = hashlib.sha256(), 0
    with open_file(task.url, task.access) as file:
        while block := file.read(READ_BLOCK):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _row_of(sample: dict[str, Any], columns: Sequence[str]) -> dict[str, Any] | str:
    """What the table says of a sample, or why it cannot be used."""
    if fault := sample.get("__fault__"):
        return fault
    if not _is_unicode(sample["__key__"]):
        return "its name is not UTF-8"
    videos = media_of(sample)
    if len(videos) != 1:
        return f"{len(videos)} video or image files under one key, one is expected"
    try:
        facts = probe_video(videos[0])
    except (VideoError, DecodeError) as error:
        return error.reason if isinstance(error, VideoError) else str(error)
    metadata = with_caption(read_metadata(sample), sample)
    return facts | {name: metadata.get(name) for name in columns}


def _is_unicode(name: str) -> bool:
    """Whether a name can be written to the index; tarfile has a stand-in for each byte that it cannot read."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def probe_video(video: bytes) -> dict[str, Any]:
    """Frames, rate and size of a video or image file, and the reader that finds its frames; decodes one frame of a video.

    The reader of videos is PyAV, which is right for all: where frames have no times it counts them from the start. decord is
    faster there and right in most files; in which ones, only decoding the whole file tells (`data.ingest.check`).

    Raises:
        VideoError, DecodeError: it cannot be used.
    """
    if is_image(video):
        with open_video(video, IMAGE_READER) as file:
            height, width = file.size
        return {"frames": 1, "fps": 0.0, "width": width, "height": height, "reader": IMAGE_READER}
    with as_path(video) as path:
        packets = PacketReader(path)
        try:
            frames, rate, (height, width) = len(packets), float(packets.facts.rate), packets.facts.size
        finally:
            packets.close()
    if not 0 < rate < 1000:
        raise DecodeError(f"states an impossible frame rate ({rate:g})")
    if frames < 1:
        raise DecodeError("no frame decodes")
    return {"frames": frames, "fps": rate, "width": width, "height": height, "reader": "pyav"}


def merge(tasks: Sequence[IndexTask], folder: Path, elsewhere: bool, columns: Sequence[str]) -> Indexed:
    """Write the index from what was found in each shard."""
    kinds = ROW_KINDS | {name: _kind(name, tasks) for name in columns}
    reasons: Counter[str] = Counter()
    samples = 0
    for _, found in _results(tasks):
        reasons.update(reason for _, reason in found["rejected"])
        samples += len(found["rows"])
    refused = ((task.url, *row) for task, found in _results(tasks) for row in found["rejected"])
    write_rejected(folder / REJECTED, refused, ("shard", "key", "reason"))
    if not samples:
        example = f": {reasons.most_common(1)[0][0]}" if reasons else ", as they hold none"
        raise UserError(f"No sample of the shards is usable{example}. See {folder / REJECTED}.")
    shards = (
        {"name": file_name(task.url), "samples": len(found["rows"]), "bytes": found["bytes"], "sha256": found["sha256"]}
        | ({"url": task.url} if elsewhere else {})
        for task, found in _results(tasks)
    )
    rows = (
        {name: [column_value(row[name], kind) for row in found["rows"]] for name, kind in kinds.items()}
        for _, found in _results(tasks)
    )
    write_table(folder, {"split": "not stated", "recipe": RECIPE}, shards, kinds, rows)
    return Indexed(len(tasks), samples, reasons)


def _results(tasks: Iterable[IndexTask]) -> Iterator[tuple[IndexTask, dict[str, Any]]]:
    """One after the other, so that memory does not grow with the number of shards."""
    return ((task, json.loads(task.result.read_text())) for task in tasks)


def _kind(name: str, tasks: Sequence[IndexTask]) -> str:
    """Numbers where all values that are there are numbers.

    Raises:
        UserError: none is there.
    """
    present = False
    for _, found in _results(tasks):
        for row in found["rows"]:
            value = row[name]
            present |= value is not None
            if value is not None and not is_number(value):
                return STRING
    if not present:
        raise UserError(f"columns: no sample has {name!r} in its metadata (.json, or .txt for {CAPTION}).")
    return "float64"


def folders_of(urls: Sequence[str]) -> dict[Path, list[str]]:
    """Local shards by their folders, where their indexes belong.

    Raises:
        UserError: a shard is elsewhere.
    """
    folders: dict[Path, list[str]] = {}
    for url in urls:
        if is_remote(url):
            raise UserError(
                f"{url} is not on this machine, and its index cannot be written beside it. Give output=DIR."
            )
        folders.setdefault(Path(url).parent, []).append(url)
    return folders

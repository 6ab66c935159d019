"""Are shards what their index says, and can their videos be read?

python -m data.verify shards=DIR
"""

import hashlib
import json
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.ingest.check import check_content
from data.processes.pool import Engine, Failure, run_isolated
from data.shards.format import INDEX, MEDIA_EXTENSIONS, Shard, media_of
from data.shards.index import find_shards, read_index
from data.shards.metadata import read_metadata
from data.shards.reader import open_samples
from data.shards.table import ShardIndex
from data.storage.remote import Access
from tae.runtime.errors import UserError
from tae.runtime.files import file_sha256
from tae.runtime.paths import is_hidden
from tae.runtime.progress import progress_bar

METADATA_BYTES = 1_000_000  # of a sample's json: a few hundred are usual
# Of the fields that `data.prepare` writes those that are read, or that tell where a clip is from.
SAMPLE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "num_frames": int,
    "fps": (int, float),
    "width": int,
    "height": int,
    "sha256": str,
}

LENGTH_FIELDS = ("num_frames", "fps")


@dataclass(frozen=True)
class ShardTask:
    """A shard, its entry in the index, and whether to decode its videos; `foreign` shards were written by others."""

    path: Path
    entry: Mapping[str, Any]
    decode: bool
    foreign: bool = False


def find_folders(shards: Path) -> list[Path]:
    """The folders with an index in and directly below a folder, such as train/ and test/.

    Raises:
        UserError: there is none.
    """
    found = [folder for folder in (shards, *_subfolders(shards)) if (folder / INDEX).is_file()]
    if not found:
        raise UserError(
            f"shards={shards} has no {INDEX}, and no folder in it has one. Give the output folder of "
            "`python -m data.prepare`, or one of the splits in it."
        )
    return found


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not is_hidden(path.name)]


def shards_of(folder: Path) -> Sequence[Shard]:
    """The shards of a folder by its index, in its order.

    Raises:
        UserError: there is no index, or it is none of these shards.
    """
    names = [str(folder / name) for name in _index_of(folder).names]
    return find_shards(names, "shards") if names else []


def _index_of(folder: Path) -> ShardIndex:
    return read_index(str(folder / INDEX), "shards", Access())


def verify(folder: Path, decode: bool, timeout: float, engine: Engine) -> Iterator[str]:
    """What is wrong with a folder of shards, in plain words; nothing if nothing is.

    Args:
        decode: check every video as `data.prepare` does, which takes as long as it did there.
        timeout: seconds for one shard.
    """
    try:
        index = _index_of(folder)
        shards_of(folder)
    except UserError as error:
        yield f"{folder / INDEX}: {error}"
        return
    names = index.names[:]
    listed = set(names)
    yield from (f"{path}: is not in the index" for path in sorted(folder.glob("*.tar")) if path.name not in listed)
    for key in _repeated(key for place in range(len(names)) for key in index.column("key", index.rows(place))):
        yield f"{folder / INDEX}: the key {key} occurs more than once"
    foreign = "reader" in index.columns
    tasks = (ShardTask(folder / name, index.entry(place), decode, foreign) for place, name in enumerate(names))
    with progress_bar("shards") as progress:
        results = run_isolated(check_shard, tasks, timeout, engine)
        for task, result in progress.track(results, total=len(names), description=f"verifying {folder}"):
            problems = [result.reason] if isinstance(result, Failure) else result
            yield from (f"{task.path}: {problem}" for problem in problems)


def check_shard(task: ShardTask) -> list[str]:
    """What is wrong with one shard."""
    problems = [] if file_sha256(task.path) == task.entry.get("sha256") else ["its sha256 is not the one in the index"]
    try:
        problems += _check_videos(task) if task.foreign else _check_members(task)
        problems += _check_offsets(task)
    except (tarfile.TarError, OSError, EOFError) as error:
        problems.append(f"cannot be read as a tar file: {error}")
    return problems


def _check_videos(task: ShardTask) -> Iterator[str]:
    """Whether a shard of others holds the videos that its index lists; what else is in it is nobody's promise."""
    missing = dict(task.entry["frames"])
    with open_samples(Shard(str(task.path), {}), None) as samples:
        for sample in samples:
            key = sample["__key__"]
            if missing.pop(key, None) is not None and task.decode:
                facts = [check_content(content, interlaced="keep") for content in media_of(sample)]
                yield from (f"{key}: {fault}" for fault in facts if isinstance(fault, str))
    yield from (f"{key}: is in the index, but not in the shard" for key in missing)


def _check_members(task: ShardTask) -> Iterator[str]:
    missing = _rows(task.entry)
    halves: dict[str, dict[str, bytes]] = {}  # a video and its metadata follow one another, in either order
    for name, content in read_members(task.path):
        key, _, extension = name.partition(".")
        kind = "video" if extension in MEDIA_EXTENSIONS else extension
        sample = halves.setdefault(key, {})
        if key not in missing or kind not in ("video", "json") or kind in sample:
            yield f"{name}: does not belong there (not in the index, or no video, image or json)"
            continue
        sample[kind] = content
        if len(sample) == 2:
            problems = _check_sample(sample["video"], sample["json"], missing.pop(key), task.decode)
            yield from (f"{key}: {problem}" for problem in problems)
            halves[key].clear()
    yield from (f"{key}: is in the index, but not whole in the shard" for key in missing)


def _check_offsets(task: ShardTask) -> Iterator[str]:
    """Whether samples begin where the index says."""
    if "offsets" in task.entry:
        begins: dict[str, int] = {}
        with tarfile.open(task.path, "r:") as shard:
            for member in shard:
                begins.setdefault(member.name.rpartition(".")[0], member.offset)
        for key, offset in zip(task.entry["frames"], task.entry["offsets"], strict=True):
            if begins.get(key, offset) != offset:
                yield f"{key}: begins at byte {begins[key]}, by the index at {offset}"


def _rows(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What an index says of each sample of a shard, by the names in its metadata."""
    columns = {"num_frames": entry["frames"].values()}
    columns |= {name: entry[name] for name in ("fps", "width", "height") if name in entry}
    rows = zip(*columns.values(), strict=True)
    return {key: dict(zip(columns, row, strict=True)) for key, row in zip(entry["frames"], rows, strict=True)}


def _check_sample(video: bytes, text: bytes, row: Mapping[str, Any], decode: bool) -> Iterator[str]:
    try:
        metadata = json.loads(text)
        wrong = [name for name, kind in SAMPLE_FIELDS.items() if not isinstance(metadata.get(name), kind)]
    except (ValueError, AttributeError, RecursionError) as error:
        yield f"its metadata is no JSON object ({error})"
        return
    if wrong:
        yield f"its metadata lacks {', '.join(wrong)}"
    elif metadata["sha256"] != hashlib.sha256(video).hexdigest():
        yield "the sha256 of its video is not the one in its metadata"
    elif metadata["num_frames"] != (num_frames := row["num_frames"]):
        yield f"{metadata['num_frames']} frames by its metadata, {num_frames} by the index"
    elif other := [name for name, value in row.items() if metadata[name] != value]:
        yield f"its {other[0]} is {metadata[other[0]]} by its metadata, {row[other[0]]} by the index"
    elif decode:
        facts = check_content(video, interlaced="keep")  # whether that may be was decided at preparation
        if isinstance(facts, str):
            yield facts
        elif facts.num_frames != num_frames:
            yield f"{facts.num_frames} frames decode, the index says {num_frames}"


def read_members(path: Path, wanted: Collection[str] = MEDIA_EXTENSIONS) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each file in a shard; only those with a `wanted` extension and the metadata are read."""
    with tarfile.open(path, "r:") as shard:
        for member in shard:
            extension = member.name.rpartition(".")[2].lower()
            if not member.isfile() or (extension == "json" and member.size > METADATA_BYTES):
                yield f"{member.name} (no file, or metadata of more than {METADATA_BYTES} bytes)", b""
            elif extension == "json" or extension in wanted:
                file = shard.extractfile(member)
                assert file is not None
                yield member.name, file.read()
            else:
                yield member.name, b""


def read_sample_metadata(shards: Iterable[Shard]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, metadata) of each sample that the index lists; what it knows itself of shards of others is among them.

    Raises:
        UserError: a shard cannot be read, or does not say how long a sample is.
    """
    for shard in shards:
        with named_damage(shard):
            texts = {
                name.rpartition(".")[0]: content
                for name, content in read_members(Path(shard.url), wanted=())
                if name.endswith(".json")
            }
        for key, frames in shard.frames.items():
            metadata = read_metadata({"json": texts.get(key, b"{}")})
            if key in shard.known:
                metadata |= {"num_frames": frames, "fps": shard.known[key][0]}
            if lacking := [name for name in LENGTH_FIELDS if not isinstance(metadata.get(name), SAMPLE_FIELDS[name])]:
                raise _damaged(shard, f"says no {lacking[0]} of {key}")
            yield key, metadata


@contextmanager
def named_damage(shard: Shard) -> Iterator[None]:
    """Turn what a damaged shard provokes in a library into one sentence.

    Raises:
        UserError: something does.
    """
    try:
        yield
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise _damaged(shard, f"cannot be read as a tar file: {error or type(error).__name__}") from error


def _damaged(shard: Shard, fault: str) -> UserError:
    folder = Path(shard.url).parent
    return UserError(f"{shard.url} {fault}. All that is damaged is named by: python -m data.verify shards={folder}")


def _repeated(keys: Iterator[str]) -> list[str]:
    seen: set[str] = set()
    return [key for key in keys if key in seen or seen.add(key)]  # type: ignore[func-returns-value]

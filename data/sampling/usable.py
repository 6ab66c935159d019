"""The clips that a stream can use, found in the shards' indexes; no shard is opened."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightning.pytorch.utilities import rank_zero_info

from data.sampling.fitting import FitsAny, FitsBest, FitsIn
from data.sampling.mixture import Stream
from data.sampling.table import ClipTable
from data.sampling.types import Window
from data.sampling.windows import window_span
from data.shards.columns import Strings
from data.shards.index import find_shards
from data.shards.table import Rule, Selection, ShardList, select
from data.storage.address import is_remote
from data.storage.cache import ShardCache
from data.storage.remote import Access
from tae.runtime.errors import UserError


def find_clips(stream: Stream, name: str, access: Access) -> ClipTable:
    """The usable clips of a stream, numbered; says once how many are not.

    Args:
        name: of the split or of the source in messages.

    Raises:
        UserError: shards are missing or do not fit their index, a column is missing, or no clip can be used.
    """
    if stream.shards is None:
        raise UserError(f"{stream.option} is not set: give a pattern of shards to read.")
    shards = find_shards(stream.shards, stream.option, access, stream.index)
    if not shards.samples().sum():
        what = f"its {len(shards)} shards hold no clip" if len(shards) else "it names no shard"
        raise UserError(f"{stream.option}={stream.shards}: {what}. Give others, or leave it out (null).")
    if access.cache is not None:
        _check_cache(shards, access.cache)
    rules = _rules_of(stream)
    _check_columns(shards, stream, rules)
    span = shortest_span(stream.window)
    selection = Selection(1 if rules or stream.short_clip == "repeat_last" else span, stream.bounds, rules)
    try:
        found = select(shards, selection)
        in_all = int(shards.samples().sum()) - found.outside
        _judge(_Found(stream, name, shards, in_all, int(found.counts.sum()), found.longest), found.outside)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{stream.option}: {error}. Prepare the folder again.") from error
    return ClipTable(shards, found.counts, selection)


def shortest_span(window: Window) -> int:
    """Frames of the shortest file that a window fits in, by its strides."""
    return min(window_span(window.num_frames, stride) for stride in window.strides)


def _rules_of(stream: Stream) -> tuple[Rule, ...]:
    filled = stream.short_clip == "repeat_last"
    if stream.buckets:
        return (FitsBest(stream.buckets, stream.bucket, filled),)
    return (FitsIn(stream.window, filled),) if stream.window.needs_rate else ()


@dataclass(frozen=True)
class _Found:
    """What a stream has found: how many clips there are within the bounds of `filter`, and how many it uses."""

    stream: Stream
    name: str
    shards: ShardList
    in_all: int
    used: int
    longest: int

    def count(self, *rules: Rule, shortest: int = 1) -> int:
        """How many clips within the bounds follow some rules."""
        return int(select(self.shards, Selection(shortest, self.stream.bounds, rules)).counts.sum())

    def say(self, count: int, what: str) -> None:
        """Say of how many clips something is true, if it is of any."""
        if count:
            rank_zero_info(f"{self.name}: {count} of {self.in_all} clips {what}.")

    @property
    def filled(self) -> bool:
        return self.stream.short_clip == "repeat_last"

    @property
    def fate(self) -> str:
        """Of clips that are too short."""
        return "filled up with their last frame" if self.filled else "left out"


def _judge(found: _Found, outside: int) -> None:
    """Say how many clips are not used, and why.

    Raises:
        UserError: none is.
    """
    stream = found.stream
    if outside:
        rank_zero_info(f"{found.name}: {stream.key}.filter leaves out {outside} of {found.in_all + outside} clips.")
        if not found.in_all:
            raise UserError(f"{stream.option}: {stream.key}.filter leaves out all {outside} clips. Allow more.")
    if stream.buckets:
        _judge_bucket(found)
    elif stream.window.needs_rate:
        _judge_rates(found)
    else:
        _judge_lengths(found)


def _judge_lengths(found: _Found) -> None:
    stream, window = found.stream, found.stream.window
    span = shortest_span(window)
    if not found.used:
        stride = window.frame_stride if isinstance(window.frame_stride, int) else list(window.frame_stride)
        raise UserError(
            f"{stream.option}: no clip is long enough. A window spans {span} frames ({stream.key}.num_frames="
            f"{window.num_frames}, {stream.key}.frame_stride={stride}), the longest of {found.in_all} clips has "
            f"{found.longest}. Lower one of the two, or set {stream.key}.short_clip=repeat_last."
        )
    enough = found.count(shortest=span) if found.filled else found.used
    found.say(found.in_all - enough, f"have fewer than {span} frames and are {found.fate}")


def _judge_rates(found: _Found) -> None:
    stream, window = found.stream, found.stream.window
    rates = f"{stream.key}.fps={', '.join(f'{rate:g}' for rate in window.fps)}"
    fast = found.count(FitsIn(window, filled=True))
    if not fast:
        raise UserError(f"{stream.option}: all of {found.in_all} clips are slower than {rates}. Ask for less.")
    if not found.used:
        raise UserError(
            f"{stream.option}: no clip is long enough for {stream.key}.num_frames={window.num_frames} at {rates}. Lower the "
            f"first, raise the second, or set {stream.key}.short_clip=repeat_last."
        )
    found.say(found.in_all - fast, f"are slower than {rates} and are left out")
    found.say(fast - found.count(FitsIn(window)), f"are too short at {rates} and are {found.fate}")


def _judge_bucket(found: _Found) -> None:
    stream = found.stream
    if not found.used:
        bucket = f"{stream.key}.buckets.{stream.name.rpartition('/')[2]}"
        raise UserError(
            f"{bucket}: none of {found.in_all} clips fits best into {stream.shape_in_words}. Leave it out ({bucket}=null), "
            "or give it another shape."
        )
    found.say(found.used, f"fit best into {stream.shape_in_words}")
    if stream.bucket == 0:
        fitting = found.count(FitsAny(stream.buckets, found.filled))
        found.say(found.in_all - fitting, "are too short or too slow for all buckets and are left out")


def _check_columns(shards: ShardList, stream: Stream, rules: Sequence[Rule]) -> None:
    """Refuse a filter or a rule by a column that an index does not have, or that holds text."""
    for index in shards.indexes:
        numbers = [name for name, column in index.columns.items() if not isinstance(column, Strings)]
        if missing := [name for name in stream.bounds if name not in numbers]:
            raise UserError(
                f"{stream.key}.filter.{missing[0]}: {index.url} has no such column of numbers; it has {', '.join(numbers)}. "
                "`python -m data.index columns=[...]` makes columns of the metadata of shards of others."
            )
        for rule in rules:
            if missing := [name for name in rule.columns if name not in numbers]:
                setting = "buckets" if stream.buckets and missing[0] != "fps" else "fps"
                raise UserError(
                    f"{stream.key}.{setting} needs the {missing[0]} of each clip, which {index.url} does not list: "
                    "`python -m data.index shards=PATTERN output=FOLDER` writes an index that does, for data.index=FOLDER."
                )


def _check_cache(shards: ShardList, cache: ShardCache) -> None:
    """Make the cache's folder, if there is anything to keep in it."""
    remote = [number for number, url in enumerate(shards.urls[:]) if is_remote(url)]
    if not remote:
        return
    size, largest = max((int(shards.sizes()[number]), number) for number in remote)
    if size > cache.max_bytes:
        raise UserError(
            f"data.cache_gb={cache.max_bytes / 1e9:g} is less than one shard: {shards.urls[largest]} has {size} bytes. "
            "Allow more, or set data.cache_dir=null."
        )
    try:
        cache.prepare()
    except OSError as error:
        raise UserError(f"data.cache_dir={cache.folder} cannot be used: {error}. Choose another folder.") from error

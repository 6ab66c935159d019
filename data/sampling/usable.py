"""The clips that a stream can use, found in the shards' indexes; no shard is opened."""

from dataclasses import replace

from lightning.pytorch.utilities import rank_zero_info

from data.sampling.mixture import Stream
from data.sampling.table import ClipTable
from data.sampling.windows import window_span
from data.shards.columns import Strings
from data.shards.index import find_shards
from data.shards.table import Selection, ShardList, select
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
    option, window = stream.option, stream.window
    if stream.shards is None:
        raise UserError(f"{option} is not set: give a pattern of shards to read.")
    shards = find_shards(stream.shards, option, access, stream.index)
    if access.cache is not None:
        _check_cache(shards, access.cache)
    _check_columns(shards, stream)
    span = window_span(window.num_frames, window.frame_stride)
    selection = Selection(1 if stream.short_clip == "repeat_last" else span, stream.bounds)
    try:
        found = select(shards, selection)
        enough = found if selection.shortest == span else select(shards, replace(selection, shortest=span))
    except ValueError as error:
        raise UserError(f"{option}: {error}. Prepare the folder again.") from error
    in_all = int(shards.samples().sum()) - found.outside
    short = in_all - int(enough.counts.sum())
    if found.outside:
        rank_zero_info(f"{name}: {stream.key}.filter leaves out {found.outside} of {in_all + found.outside} clips.")
        if not in_all:
            raise UserError(f"{option}: {stream.key}.filter leaves out all {found.outside} clips. Allow more.")
    if not found.counts.any():
        raise UserError(
            f"{option}: no clip is long enough. A window spans {span} frames ({stream.key}.num_frames={window.num_frames}, "
            f"{stream.key}.frame_stride={window.frame_stride}), the longest of {in_all} clips has {found.longest}. Lower "
            f"one of the two, or set {stream.key}.short_clip=repeat_last."
        )
    if short:
        fate = "left out" if stream.short_clip == "skip" else "filled up with their last frame"
        rank_zero_info(f"{name}: {short} of {in_all} clips have fewer than {span} frames and are {fate}.")
    return ClipTable(shards, found.counts, selection)


def _check_columns(shards: ShardList, stream: Stream) -> None:
    """Refuse a filter by a column that an index does not have, or that holds text."""
    for index in shards.indexes:
        numbers = [name for name, column in index.columns.items() if not isinstance(column, Strings)]
        if missing := [name for name in stream.bounds if name not in numbers]:
            raise UserError(
                f"{stream.key}.filter.{missing[0]}: {index.url} has no such column of numbers; it has {', '.join(numbers)}. "
                "`python -m data.index columns=[...]` makes columns of the metadata of shards of others."
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

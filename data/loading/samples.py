"""From planned clips to the bytes of their samples, with what is wrong with each."""

import hashlib
import math
from collections import defaultdict, deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from data.decode import IMAGE_READER
from data.sampling.types import Clip
from data.shards.format import MAX_FRAMES, media_of, read_json
from data.shards.manifest import FIRST_FRAME, is_manifest
from data.shards.metadata import read_metadata, with_caption
from data.shards.reader import open_samples
from data.storage.address import is_remote
from data.storage.remote import Access


@dataclass(frozen=True)
class Sample:
    """What a shard holds for a clip: the bytes of the video or image file and how to read them, or why there are none."""

    clip: Clip
    video: bytes = b""
    fps: float = 0.0
    seekable: bool = True
    reader: str = ""  # the one that preparation found right, if the shard says so
    fault: str = ""
    label: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    first_frame: int | None = (
        None  # where the clip is only a part of the file, which has as many frames as its index says
    )


def read_samples(clips: Iterable[Clip], access: Access | None = None) -> Generator[Sample, None, None]:
    """One sample for each clip, in their order. Clips of one shard that stand together are read in one pass."""
    one_pass: dict[str, Clip] = {}
    for clip in clips:
        if one_pass and (clip.key in one_pass or clip.shard.url != next(iter(one_pass.values())).shard.url):
            yield from _read_shard(one_pass, access or Access())
            one_pass = {}
        one_pass[clip.key] = clip
    if one_pass:
        yield from _read_shard(one_pass, access or Access())


def read_in_turns(plan: Iterable[tuple[int, Clip]], access: Access | None = None) -> Iterator[Sample]:
    """As `read_samples`, where clips of several lanes alternate: each lane in a pass of its own.

    Args:
        plan: (lane, clip), of which so much is looked at as the shards that are being read hold.
    """
    rest = iter(plan)
    waiting: dict[int, deque[Clip]] = defaultdict(deque)
    order: deque[int] = deque()  # lanes of the clips that were looked at and are still to be given
    readers: dict[int, Generator[Sample, None, None]] = {}

    def look() -> bool:
        """Look at one clip more; False at the end."""
        found = next(rest, None)
        if found is not None:
            order.append(found[0])
            waiting[found[0]].append(found[1])
        return found is not None

    def clips_of(lane: int) -> Iterator[Clip]:
        while waiting[lane] or look():
            if waiting[lane]:
                yield waiting[lane].popleft()

    try:
        while order or look():
            lane = order.popleft()
            if lane not in readers:
                readers[lane] = read_samples(clips_of(lane), access)
            yield next(readers[lane])
    finally:
        for reader in readers.values():
            reader.close()  # and with it its shard


def read_ahead(samples: Iterator[Sample]) -> Iterator[Sample]:
    """The same samples, the next of which a thread reads while the current one is decoded, outside Python's lock."""
    thread = ThreadPoolExecutor(1, "read ahead")
    try:
        upcoming = thread.submit(next, samples, None)
        while sample := upcoming.result():
            upcoming = thread.submit(next, samples, None)
            yield sample
    finally:
        # Not waited for: Python's collection may close an abandoned generator in any thread, even in one that is just
        # being started and holds the lock that waiting for another thread needs.
        thread.shutdown(wait=False)


def _read_shard(wanted: dict[str, Clip], access: Access) -> Iterator[Sample]:
    """Samples of one shard by key, in the order wanted; whatever the shard fails to give is yielded with the fault.

    The order must not depend on faults: a position counts samples.
    """
    waiting = dict(wanted)
    shard = next(iter(waiting.values())).shard
    fault = "not in the shard, though its index lists it"
    try:
        with open_samples(shard, set(waiting), access) as samples:
            for sample in samples:
                if sample["__key__"] not in waiting:
                    continue
                while (clip := waiting.pop(next(iter(waiting)))).key != sample["__key__"]:
                    yield Sample(clip, fault="not in the shard, or not in the place where its index lists it")
                yield _parse(clip, sample, is_remote(shard.url) and access.cache is None)
                if not waiting:
                    return
    except Exception as error:  # whatever a damaged shard provokes in a library must cost that shard alone
        fault = f"the shard cannot be read: {error or type(error).__name__}"
    for clip in waiting.values():
        yield Sample(clip, fault=fault)


def _parse(clip: Clip, sample: dict[str, Any], verify: bool) -> Sample:
    """Check a sample; with `verify` also its bytes, by the hash in its metadata (a shard in the cache was checked whole)."""
    if fault := sample.get("__fault__"):
        return Sample(clip, fault=fault)
    videos = media_of(sample)
    if len(videos) != 1:
        return Sample(clip, fault=f"{len(videos)} video or image files under one key, one is expected")
    known = clip.shard.known.get(clip.key)
    try:
        if known is None:
            metadata = read_json(sample["json"])
            fps, expected = float(metadata["fps"]), metadata.get("sha256")
            # Our own words, which older shards do not have.
            seekable, reader = bool(metadata.get("seekable", True)), str(metadata.get("reader", ""))
        else:  # of shards of others, whose metadata may say anything
            metadata, (fps, reader), expected, seekable = read_metadata(sample), known, None, True
        label = "" if metadata.get("label") is None else str(metadata["label"])
        first_frame = metadata.get(FIRST_FRAME) if is_manifest(clip.shard.url) else None
        if first_frame is not None and not 0 <= int(first_frame) <= MAX_FRAMES:
            raise ValueError(f"{FIRST_FRAME} {first_frame}")
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        return Sample(clip, fault=f"its metadata cannot be read: {error!r}")
    if not (math.isfinite(fps) and (fps > 0 or (fps == 0 and reader == IMAGE_READER))):
        return Sample(clip, fault=f"its metadata states {fps} frames a second")
    if verify and expected is not None and hashlib.sha256(videos[0]).hexdigest() != expected:
        return Sample(clip, fault="its bytes did not arrive as they were written (by their hash)")
    said = with_caption(metadata, sample)
    return Sample(clip, videos[0], fps, seekable, reader, label=label, metadata=said, first_frame=first_frame)

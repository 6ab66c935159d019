"""Several streams of batches in one training: what each one is, which one a batch is of, how workers are divided."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from data.sampling.transforms import Augmentation, Interpolation
from data.sampling.types import Window
from data.sampling.windows import ShortClip
from tae.runtime.annotations import AboveZero, ArgumentsOf, AtLeastOne, Pixels
from tae.runtime.errors import UserError
from tae.runtime.paths import to_path
from tae.runtime.schema import check_arguments

Bounds = Sequence[float | None]  # lowest and highest value of a column
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
LATENT_FRAME = 8  # frames, which networks decode as a whole: an image costs as much as 8 frames of video
DRAWS = int.from_bytes(b"mixture", "big")  # keeps these draws apart from all others of the same seed


@dataclass(frozen=True)
class SourceSettings:
    """The settings of one of several sources of training clips; what is None is as in `ClipDataModule`.

    Args:
        shards: patterns of its shards; None takes those of `shards.train`.
        files: in place of shards a folder or a list of files, as `files.train`.
        weight: its share of the batches, by that of all sources.
        others: as in `data.datamodule.ClipDataModule`.

    Raises:
        UserError: a value is out of its range.
    """

    shards: str | Sequence[str] | None = None
    files: str | None = None
    weight: AboveZero = 1.0
    num_frames: AtLeastOne | None = None
    frame_stride: AtLeastOne | Sequence[AtLeastOne] | None = None
    fps: AboveZero | Sequence[AboveZero] | None = None
    resolution: Pixels | None = None
    batch_size: AtLeastOne | None = None
    short_clip: ShortClip | None = None
    shuffle_buffer: AtLeastOne | None = None
    interleave: AtLeastOne | None = None
    augmentation: Annotated[Mapping[str, Any] | None, ArgumentsOf(Augmentation)] = None
    interpolation: Interpolation | None = None
    index: str | None = None
    filter: Mapping[str, Bounds] | None = None
    buckets: (
        Mapping[str, Annotated[Mapping[str, Any] | None, ArgumentsOf("data.sampling.mixture.BucketSettings")]] | None
    ) = None

    def __post_init__(self) -> None:
        check_arguments(SourceSettings, vars(self))


@dataclass(frozen=True)
class BucketSettings:
    """One of several shapes that a source's clips are taken in, each clip in the one that fits it best.

    Args:
        num_frames, height, width, batch_size: of its batches; None is as outside of the buckets.
        weight: its share of the batches of its source, by that of all buckets; None in all of them makes batches as many as
            their clips fill, so that all clips are taken equally often.

    Raises:
        UserError: a value is out of its range.
    """

    num_frames: AtLeastOne | None = None
    height: Pixels | None = None
    width: Pixels | None = None
    batch_size: AtLeastOne | None = None
    weight: AboveZero | None = None

    def __post_init__(self) -> None:
        check_arguments(BucketSettings, vars(self))


@dataclass(frozen=True)
class Stream:
    """Batches of one shape: of which clips, and how they are drawn.

    Args:
        name: of the source, of the bucket, or of both (`SOURCE/BUCKET`); "" where there is one stream alone.
        key: of its settings in the config, for messages.
        option: the key of its shards or files.
        shards: patterns; None where there are files, until these have manifests.
        weight: its source's share of the batches, by that of all sources.
        share: its share of its source's batches, by that of all buckets; None where it follows from the clips.
        buckets: the windows of all buckets of its source, none where there are none.
        bucket: the place of its window among them.
        files: that are trained on where they lie; None where there are shards.
        others: as in `data.datamodule.ClipDataModule`.
    """

    name: str
    key: str
    option: str
    shards: str | Sequence[str] | None
    window: Window
    batch_size: int
    short_clip: ShortClip
    shuffle_buffer: int
    interleave: int
    index: str | None
    bounds: Mapping[str, tuple[float | None, float | None]]
    weight: float = 1.0
    share: float | None = 1.0
    buckets: tuple[Window, ...] = ()
    bucket: int = 0
    files: Path | None = None

    @property
    def is_set(self) -> bool:
        """Whether shards or files are given."""
        return self.shards is not None or self.files is not None

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Of a batch: (b, t, h, w, 3)."""
        return self.window.shape(self.batch_size)

    @property
    def shape_in_words(self) -> str:
        clips, frames, height, width, _ = self.shape
        return f"{clips} x {width}x{height}x{frames}"


def plain_stream(num_frames: int, resolution: int, batch_size: int) -> Stream:
    """A stream of which the shape of its batches is all that matters."""
    return Stream(
        name="",
        key="data",
        option="data.shards.train",
        shards=None,
        window=Window(num_frames, 1, resolution),
        batch_size=batch_size,
        short_clip="skip",
        shuffle_buffer=1,
        interleave=1,
        index=None,
        bounds={},
    )


def make_streams(
    base: Stream,
    sources: Mapping[str, Mapping[str, Any] | None] | None,
    buckets: Mapping[str, Mapping[str, Any] | None] | None = None,
) -> tuple[Stream, ...]:
    """The streams of a training: each bucket of each source.

    Args:
        base: from the settings outside of both, which is the only stream where there are none.
        sources: settings of each by its name, as `SourceSettings` takes them; None leaves one out.
        buckets: settings of each by its name, as `BucketSettings` takes them, for all sources that have none of their own.

    Raises:
        UserError: there is none, or a setting is unknown or out of its range.
    """
    if sources is None:
        return _buckets_of(base, buckets)
    streams: list[Stream] = []
    for name, given in without_none("sources", sources).items():
        source, own = _source_of(base, name, given)
        streams += _buckets_of(source, buckets if own is None else own)
    return tuple(streams)


def without_none(key: str, settings: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Mapping[str, Any]]:
    """Named settings without those that are left out.

    Raises:
        UserError: nothing is left, or a name cannot be one.
    """
    kept = {name: given for name, given in settings.items() if given is not None}
    if not kept:
        raise UserError(f"{key}={dict(settings)} names none: give {{NAME: {{SETTING: VALUE}}}}, or {key}=null.")
    if wrong := [name for name in kept if not NAME.fullmatch(name)]:
        raise UserError(
            f"{key}.{wrong[0]}: a name is of letters, digits, - and _, since figures and files are named after it."
        )
    return kept


def _source_of(base: Stream, name: str, given: Mapping[str, Any]) -> tuple[Stream, Mapping[str, Any] | None]:
    """A source, and its own buckets."""
    source = checked_settings(SourceSettings, f"sources.{name}", given)
    own = {key: value for key, value in vars(source).items() if value is not None}
    buckets = own.pop("buckets", None)
    pace = paces_of(own.pop("frame_stride", None), own.pop("fps", None), base.window, f"sources.{name}.")
    if "augmentation" in own:
        own["augmentation"] = Augmentation(**own["augmentation"])
    window = {key: own.pop(key) for key in ("num_frames", "resolution", "augmentation", "interpolation") if key in own}
    if "filter" in own:
        own["bounds"] = check_bounds(own.pop("filter"), f"sources.{name}.filter")
    key, option = f"data.sources.{name}", base.option
    if "files" in own:
        if "shards" in own:
            raise UserError(f"sources.{name}.shards and sources.{name}.files both say what it reads: give one of them.")
        if "index" in own:
            raise UserError(f"sources.{name}.index is one of shards; files have their own: leave it out beside files.")
        option, own["files"], own["shards"] = f"{key}.files", to_path(own["files"]), None
    elif "shards" in own:
        option, own["files"] = f"{key}.shards", None
    return replace(
        base, name=name, key=key, option=option, window=replace(base.window, **window, **pace), **own
    ), buckets


def paces_of(frame_stride: Any, fps: Any, base: Window, prefix: str = "") -> dict[str, Any]:
    """The arguments `frame_stride` and `fps` of a window; one that is given makes the other's of `base` void.

    Raises:
        UserError: both are given, or a list is empty.
    """
    for name, given in {"frame_stride": frame_stride, "fps": fps}.items():
        if isinstance(given, Sequence) and not given:
            raise UserError(f"{prefix}{name}=[] names none: give a number or a list of numbers.")
    if fps is not None:
        if frame_stride not in (None, 1):
            raise UserError(
                f"{prefix}frame_stride={frame_stride} and {prefix}fps={fps} ask for two rates: leave the first at 1."
            )
        return {"frame_stride": 1, "fps": tuple(map(float, fps)) if isinstance(fps, Sequence) else (float(fps),)}
    if frame_stride is None:
        return {"frame_stride": base.frame_stride, "fps": base.fps}
    return {"frame_stride": tuple(frame_stride) if isinstance(frame_stride, Sequence) else frame_stride, "fps": ()}


def _buckets_of(source: Stream, buckets: Mapping[str, Mapping[str, Any] | None] | None) -> tuple[Stream, ...]:
    if buckets is None:
        return (source,)
    key = f"{source.key.removeprefix('data').removeprefix('.')}.buckets".removeprefix(".")
    kept = without_none(key, buckets)
    found = {name: checked_settings(BucketSettings, f"{key}.{name}", given) for name, given in kept.items()}
    weights = [bucket.weight for bucket in found.values()]
    if None in weights and len(set(weights)) > 1:
        raise UserError(f"{key}: give each bucket a weight, or none of them.")
    windows = tuple(_window_of(source.window, bucket) for bucket in found.values())
    for name, window in zip(found, windows, strict=True):
        if "diagonal" in window.augmentation.flips and window.size[0] != window.size[1]:
            raise UserError(
                f"{key}.{name} is {window.size[0]} high and {window.size[1]} wide, and augmentation.flips=[diagonal] needs "
                "squares: leave one of the two out."
            )
    return tuple(
        replace(
            source,
            name="/".join(filter(None, (source.name, name))),
            window=window,
            batch_size=bucket.batch_size or source.batch_size,
            share=bucket.weight,
            buckets=windows,
            bucket=place,
        )
        for place, ((name, bucket), window) in enumerate(zip(found.items(), windows, strict=True))
    )


def _window_of(window: Window, bucket: BucketSettings) -> Window:
    height, width = bucket.height or window.size[0], bucket.width or window.size[1]
    size = height if height == width else (height, width)
    return replace(window, num_frames=bucket.num_frames or window.num_frames, resolution=size)


def weigh(streams: Sequence[Stream], clips: Sequence[int]) -> list[float]:
    """Each stream's share of the batches, by that of all.

    Args:
        clips: how many each has.
    """
    shares = [
        count / stream.batch_size if stream.share is None else stream.share
        for stream, count in zip(streams, clips, strict=True)
    ]
    totals: Counter[str] = Counter()
    for stream, share in zip(streams, shares, strict=True):
        totals[stream.key] += share  # type: ignore[assignment]
    return [stream.weight * share / totals[stream.key] for stream, share in zip(streams, shares, strict=True)]


def checked_settings(kind: Any, key: str, given: Any) -> Any:
    """Settings from what a config has under a key.

    Raises:
        UserError: it is no mapping, a setting is unknown, or a value is out of its range.
    """
    known = kind.__dataclass_fields__
    if not isinstance(given, Mapping):
        raise UserError(f"{key}={given} is not allowed: give a mapping of settings ({', '.join(known)}).")
    if unknown := set(given) - set(known):
        raise UserError(f"{key}.{min(unknown)} is unknown. Known are: {', '.join(known)}.")
    try:
        return kind(**given)
    except UserError as error:
        raise UserError("\n".join(f"{key}.{line}" for line in str(error).splitlines())) from error


def check_bounds(bounds: Mapping[str, Bounds], key: str = "filter") -> dict[str, tuple[float | None, float | None]]:
    """The lowest and the highest value of each column.

    Raises:
        UserError: they are not two, or the first is above the second.
    """
    checked: dict[str, tuple[float | None, float | None]] = {}
    for name, pair in bounds.items():
        low, high = pair if len(pair) == 2 else (1.0, 0.0)
        if low is not None and high is not None and not low <= high:
            raise UserError(f"{key}.{name}={list(pair)}: give the lowest and the highest value, null for no bound.")
        checked[name] = (low, high)
    return checked


def largest_first(shapes: Sequence[Sequence[int]]) -> list[int]:
    """The places of shapes (b, t, h, w, ...), those that probably need the most memory first."""

    def frames(place: int) -> tuple[int, ...]:
        clips, length, height, width = shapes[place][:4]
        return -clips * -(-length // LATENT_FRAME) * height * width, -math.prod(shapes[place]), place

    return sorted(range(len(shapes)), key=frames)


def draw_stream(weights: Sequence[float], seed: int, batch: int) -> int:
    """Which stream the n-th batch of a training is of: a pure function, the same in all processes."""
    drawn = np.random.default_rng((seed, batch, DRAWS)).random()
    shares = np.cumsum(weights)
    return min(int(np.searchsorted(shares, drawn * shares[-1], side="right")), len(weights) - 1)


def divide_workers(total: int, streams: Sequence[Stream], weights: Sequence[float]) -> list[int]:
    """Decoding processes for each stream, by its share of the frames to be decoded, and at least one.

    Args:
        total: of all; 0 for none at all. Where there are more streams, each has one.
        streams: none where a split is not set.
        weights: of the streams.
    """
    if not total or not streams:
        return [0] * len(streams)
    frames = [stream.batch_size * stream.window.num_frames for stream in streams]
    work, given = np.multiply(weights, frames), np.ones(len(streams), int)
    for _ in range(total - len(streams)):
        given[np.argmax(work / given)] += 1  # to where the most frames wait for one process
    return given.tolist()

"""Several streams of batches in one training: what each one is, which one a batch is of, how workers are divided."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np

from data.sampling.transforms import Augmentation, Interpolation
from data.sampling.types import Window
from data.sampling.windows import ShortClip
from tae.runtime.annotations import AboveZero, ArgumentsOf, AtLeastOne, Pixels
from tae.runtime.errors import UserError
from tae.runtime.schema import check_arguments

Bounds = Sequence[float | None]  # lowest and highest value of a column
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
LATENT_FRAME = 8  # frames, which networks decode as a whole: an image costs as much as 8 frames of video
DRAWS = int.from_bytes(b"mixture", "big")  # keeps these draws apart from all others of the same seed


@dataclass(frozen=True)
class Source:
    """The settings of one of several sources of training clips; what is None is as in `ClipDataModule`.

    Args:
        shards: patterns of its shards; None takes those of `shards.train`.
        weight: its share of the batches, by that of all sources.
        others: as in `data.datamodule.ClipDataModule`.

    Raises:
        UserError: a value is out of its range.
    """

    shards: str | Sequence[str] | None = None
    weight: AboveZero = 1.0
    num_frames: AtLeastOne | None = None
    frame_stride: AtLeastOne | None = None
    resolution: Pixels | None = None
    batch_size: AtLeastOne | None = None
    short_clip: ShortClip | None = None
    shuffle_buffer: AtLeastOne | None = None
    interleave: AtLeastOne | None = None
    augmentation: Annotated[Mapping[str, Any] | None, ArgumentsOf(Augmentation)] = None
    interpolation: Interpolation | None = None
    index: str | None = None
    filter: Mapping[str, Bounds] | None = None

    def __post_init__(self) -> None:
        check_arguments(Source, vars(self))


@dataclass(frozen=True)
class Stream:
    """Batches of one shape: of which clips, and how they are drawn.

    Args:
        name: of the source; "" where there is one stream alone.
        option: the key of its shards in the config, for messages.
        shards: patterns.
        weight: its share of the batches, by that of all streams.
        others: as in `data.datamodule.ClipDataModule`.
    """

    name: str
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

    @property
    def key(self) -> str:
        """Of its settings in the config."""
        return f"data.sources.{self.name}" if self.name else "data"

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Of a batch: (b, t, h, w, 3)."""
        return self.window.shape(self.batch_size)


def plain_stream(num_frames: int, resolution: int, batch_size: int) -> Stream:
    """A stream of which the shape of its batches is all that matters."""
    return Stream(
        name="",
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


def make_streams(base: Stream, sources: Mapping[str, Mapping[str, Any] | None] | None) -> tuple[Stream, ...]:
    """The streams of a training.

    Args:
        base: from the settings outside of `sources`, which is the only stream where there are none.
        sources: settings of each by its name, as `Source` takes them; None leaves one out.

    Raises:
        UserError: there is none, or a setting is unknown or out of its range.
    """
    if sources is None:
        return (base,)
    streams = tuple(_stream_of(base, name, given) for name, given in sources.items() if given is not None)
    if not streams:
        raise UserError(
            f"sources={dict(sources)} names no source: give {{NAME: {{shards: PATTERN, weight: NUMBER}}}}, or null to "
            "train on shards.train."
        )
    return streams


def _stream_of(base: Stream, name: str, given: Mapping[str, Any]) -> Stream:
    if not NAME.fullmatch(name):
        raise UserError(
            f"sources.{name}: a name is of letters, digits, - and _, since figures and files are named after it."
        )
    source = settings_of(Source, f"sources.{name}", given)
    own = {key: value for key, value in vars(source).items() if value is not None}
    if "augmentation" in own:
        own["augmentation"] = Augmentation(**own["augmentation"])
    window = {key: own.pop(key) for key in ("num_frames", "frame_stride", "resolution", "augmentation", "interpolation")
              if key in own}  # fmt: skip
    if "filter" in own:
        own["bounds"] = check_bounds(own.pop("filter"), f"sources.{name}.filter")
    option = f"data.sources.{name}.shards" if "shards" in own else base.option
    return replace(base, name=name, option=option, window=replace(base.window, **window), **own)


def settings_of(kind: Any, key: str, given: Any) -> Any:
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


def divide_workers(total: int, streams: Sequence[Stream]) -> list[int]:
    """Decoding processes for each stream, by its share of the frames to be decoded, and at least one.

    Args:
        total: of all; 0 for none at all. Where there are more streams, each has one.
    """
    if not total:
        return [0] * len(streams)
    work = np.array([stream.weight * stream.batch_size * stream.window.num_frames for stream in streams])
    given = np.ones(len(streams), int)
    for _ in range(total - len(streams)):
        given[np.argmax(work / given)] += 1  # to where the most frames wait for one process
    return given.tolist()

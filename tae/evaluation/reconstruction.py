"""Videos of any length and size through the autoencoder and back, piece by piece.

python -m tae.reconstruct ckpt=PATH source=VIDEO_OR_FOLDER output=DIR
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from rich.table import Column, Table
from torch import Tensor

from data.sampling.transforms import resize_short_side, scaled_size
from data.shards.format import VIDEO_EXTENSIONS
from tae.latents.writer import LatentFile
from tae.metrics.frame import psnr, ssim
from tae.model.codec import TileableCodec
from tae.model.frame_conversion import clip_to_frames, frames_to_clip
from tae.model.posterior import DiagonalGaussian
from tae.model.streaming import decode_stream, encode_stream
from tae.model.tiling import Tiling
from tae.runtime.errors import UserError
from tae.runtime.files import remove_drafts, replacing
from tae.runtime.paths import list_files
from tae.video.reader import Frame, VideoReader
from tae.video.sound import CONTAINERS, Sound, plan_sound
from tae.video.writer import VideoWriter

PIECE = 8  # pixel frames that are handed to the model at once; it cuts its own tiles
DIFFERENCE_GAIN = 4


@dataclass(frozen=True)
class VideoOutcome:
    """What became of one video. Quality is the mean over its frames, None where only latents were written."""

    source: Path
    output: Path
    num_frames: int
    size: tuple[int, int]
    psnr: float | None = None
    ssim: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Excerpt:
    """What is taken of a video.

    Args:
        start: its first frame, counted from 0.
        num_frames: how many frames; None for all that follow.
        resolution: pixels that the short side is scaled to, bicubic and antialiased; None for the video's own size.

    Raises:
        UserError: an argument is out of its range.
    """

    start: int = 0
    num_frames: int | None = None
    resolution: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("start", 0), ("num_frames", 1), ("resolution", 8)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise UserError(f"{name}={value} is not allowed: give a whole number of at least {least}.")

    @property
    def is_whole(self) -> bool:
        """Whether every frame is taken, so that the sound fits."""
        return self.start == 0 and self.num_frames is None

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the frames of a video of this size."""
        return size if self.resolution is None else scaled_size(*size, self.resolution)

    def total(self, stated: int | None) -> int | None:
        """How many frames there will be, as far as the header tells."""
        left = None if stated is None else max(stated - self.start, 0)
        return left if self.num_frames is None else min(self.num_frames, left or self.num_frames)

    def frames(self, reader: VideoReader) -> Iterator[Frame]:
        """The frames; an excerpt that begins later is shown from 0 on.

        Raises:
            UserError: the video ends before the first of them.
        """
        stop = None if self.num_frames is None else self.start + self.num_frames
        origin = None
        for frame in itertools.islice(reader.frames(), self.start, stop):
            if origin is None:
                origin = frame.pts if self.start else 0
            rgb = frame.rgb if self.resolution is None else resize_short_side(frame.rgb, self.resolution)
            yield Frame(rgb, frame.pts - origin)
        if origin is None:
            raise UserError(f"{reader.path} has no frame {self.start}: it ends before start={self.start}.")


WHOLE = Excerpt()


def plan_outputs(source: Path, output: Path) -> dict[Path, Path]:
    """{video: where its result goes, without an ending}; folders keep their structure.

    Raises:
        UserError: there is no video, or the results would lie among the videos.
    """
    if source.is_file():
        videos, root = [source], source.parent
    else:
        files = [source / entry.path for entry in list_files(source) if not entry.reason] if source.is_dir() else []
        videos = [path for path in files if path.suffix.lower().lstrip(".") in VIDEO_EXTENSIONS]
        root = source
        if output.resolve().is_relative_to(source.resolve()):
            raise UserError(f"output={output} lies inside source={source}. Choose a folder outside.")
    if not videos:
        raise UserError(
            f"source={source} holds no videos. Give a file, or a folder with files of these endings: "
            f"{', '.join(sorted(VIDEO_EXTENSIONS))}."
        )
    stems = [video.relative_to(root).with_suffix("") for video in videos]
    # Two videos that differ in their ending alone keep it.
    counts = Counter(stems)
    names = [video.relative_to(root) if counts[stem] > 1 else stem for video, stem in zip(videos, stems, strict=True)]
    targets = {video: output / name for video, name in zip(videos, names, strict=True)}
    if source.is_file() and targets[source].parent.resolve() == source.parent.resolve():
        raise UserError(f"output={output} is the folder of source={source} itself. Choose another folder.")
    return targets


def reconstruct(
    model: TileableCodec,
    source: Path,
    stem: Path,
    tiling: Tiling,
    progress: Progress,
    task: Any,
    side_by_side: bool,
    difference: bool,
    interlaced: str = "refuse",
    excerpt: Excerpt = WHOLE,
) -> VideoOutcome:
    """Write the reconstruction of a video, and measure it before it is compressed into a file."""
    quality = {"psnr": 0.0, "ssim": 0.0}
    count = 0
    with ExitStack() as stack:
        reader = stack.enter_context(VideoReader(source, interlaced))
        size = excerpt.size(reader.size)
        check_size(reader.path, size, model.space_factor)
        progress.update(task, total=excerpt.total(reader.stated_frames))
        found = plan_sound(source)
        sound = found if excerpt.is_whole else Sound()
        target = stem.with_name(stem.name + CONTAINERS[sound.container])
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_drafts(target)
        path = stack.enter_context(replacing(target))
        width = size[1] * (1 + side_by_side + difference)
        writer = stack.enter_context(VideoWriter(path, reader, (size[0], width), sound))
        # `tee` keeps the frames that went into the model and have not come out yet: a tile or two.
        originals, inputs = itertools.tee(excerpt.frames(reader))
        latents = (posterior.mode() for posterior in encode_frames(model, inputs, tiling))
        decoded = decode_stream(model, latents, size=size, tiling=tiling)
        for original, rgb in zip(originals, each_frame(decoded), strict=False):  # the last tile has surplus frames
            pair = torch.from_numpy(original.rgb)[None], torch.from_numpy(rgb)[None]
            quality["psnr"] += psnr(*pair).item()
            quality["ssim"] += ssim(*pair).item()
            count += 1
            writer.write(Frame(panels(original.rgb, rgb, side_by_side, difference), original.pts))
            progress.update(task, completed=count)
    progress.update(task, total=count)
    notes = [reader.damage] * bool(reader.damage)
    notes += ["odd size: the last row or column is repeated in the file"] * any(n % 2 for n in (size[0], width))
    notes += sound.notes
    notes += ["without its sound, of which an excerpt has no part"] * (found != sound)
    means = {name: total / count for name, total in quality.items()}
    return VideoOutcome(source, target, count, size, **means, notes=tuple(notes))


def write_latents(
    model: TileableCodec,
    source: Path,
    stem: Path,
    tiling: Tiling,
    progress: Progress,
    task: Any,
    interlaced: str = "refuse",
    excerpt: Excerpt = WHOLE,
) -> VideoOutcome:
    """Write mean and deviation of the posterior of a video."""
    with VideoReader(source, interlaced) as reader:
        size = excerpt.size(reader.size)
        check_size(reader.path, size, model.space_factor)
        progress.update(task, total=excerpt.total(reader.stated_frames))
        counted = Counted(excerpt.frames(reader))
        target = stem.with_name(stem.name + ".safetensors")
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_drafts(target)
        with LatentFile(str(source)) as latents:
            for posterior in encode_frames(model, counted, tiling):
                latents.append(posterior.mean, torch.exp(0.5 * posterior.logvar))
                progress.update(task, completed=counted.count)
            height, width = size
            facts = {"num_frames": counted.count, "fps": float(reader.rate), "height": height, "width": width}
            with replacing(target) as path, path.open("wb") as file:
                latents.write_to(file, **facts)
    progress.update(task, total=counted.count)
    notes = (reader.damage,) * bool(reader.damage)
    return VideoOutcome(source, target, counted.count, size, notes=notes)


def check_size(path: Path, size: tuple[int, int], smallest: int) -> None:
    """Refuse frames that the model cannot take."""
    if min(size) < smallest:
        height, width = size
        raise UserError(f"{path}: frames of {height}x{width} are too small; the model needs {smallest}x{smallest}.")


def encode_frames(model: TileableCodec, frames: Iterable[Frame], tiling: Tiling) -> Iterator[DiagonalGaussian]:
    """The posteriors of a stream of frames, tile by tile."""
    frames = iter(frames)
    pieces = iter(partial(take, frames, PIECE), [])
    clips = (frames_to_clip(torch.from_numpy(np.stack(piece))[None].to(model.device)) for piece in pieces)
    return encode_stream(model, clips, tiling)


def take(frames: Iterator[Frame], count: int) -> list[np.ndarray]:
    """The next frames, fewer at the end."""
    return [frame.rgb for frame in itertools.islice(frames, count)]


def each_frame(clips: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """Clips (1, 3, t, h, w) as single frames (h, w, 3) uint8."""
    for clip in clips:
        for i in range(clip.shape[2]):  # one at a time: a whole tile in float32 once more would show at 4K
            yield clip_to_frames(clip[:, :, i : i + 1])[0, 0].contiguous().cpu().numpy()
        del clip  # or it would lie there while the next one is decoded


def panels(original: np.ndarray, reconstruction: np.ndarray, side_by_side: bool, difference: bool) -> np.ndarray:
    """[original] reconstruction [amplified difference], from left to right."""
    shown = [original, reconstruction] if side_by_side else [reconstruction]
    if difference:
        absolute = np.abs(original.astype(np.int16) - reconstruction)
        shown.append(np.minimum(absolute * DIFFERENCE_GAIN, 255).astype(np.uint8))
    return np.concatenate(shown, axis=1) if len(shown) > 1 else reconstruction


class Counted:
    """An iterable that knows how many of its items were taken."""

    def __init__(self, items: Iterable[Frame]) -> None:
        self._items = items
        self.count = 0

    def __iter__(self) -> Iterator[Frame]:
        for item in self._items:
            self.count += 1
            yield item


def outcomes_table(outcomes: Iterable[VideoOutcome]) -> Table:
    """One row for each video."""
    headers = ("video", "frames", "size", "PSNR (dB)", "SSIM", "written to")
    columns = [Column(header, overflow="fold") for header in headers]
    table = Table(*columns, title="mean over frames, before compression into a file")
    for outcome in outcomes:
        psnr_text, ssim_text = ("-" if value is None else f"{value:.4g}" for value in (outcome.psnr, outcome.ssim))
        written = "\n".join([str(outcome.output), *outcome.notes])
        size = f"{outcome.size[1]}x{outcome.size[0]}"
        table.add_row(outcome.source.name, str(outcome.num_frames), size, psnr_text, ssim_text, written)
    return table

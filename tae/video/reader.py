"""Video files as streams, front to back, holding no more than a few frames whatever the length."""

import mmap
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Self

import av
import av.filter
import numpy as np
from av.container import InputContainer

from tae.runtime.errors import UserError
from tae.video.facts import (
    INTERLACED,
    TOLERATED_LOSS,
    VideoError,
    VideoFacts,
    facts_of,
    find_damage,
    find_stream,
    stated_frames,
    to_rgb,
)

NO_TIMES = {"avi"}  # containers without times of display: libav makes them up from the order of decoding


@dataclass(frozen=True)
class Frame:
    """One frame as it is displayed.

    rgb: (h, w, 3) uint8
    pts: when it is shown, in units of the reader's time base; never below 0
    """

    rgb: np.ndarray
    pts: int


class VideoReader:
    """The video that players show of a file, from its first to its last frame; see `tae.video.facts`.

    Damage that costs a frame or two is passed over.

    damage:    after the last frame, why the file is damaged beyond use, or ""
    keyframes: the frames that a decoder may start at, as far as they have been read

    Args:
        interlaced: what to do with interlaced video: "refuse", "deinterlace" (one frame for each) or "keep".
        threads: of the decoder, as PyAV names them; "NONE" where processes use every core already.

    Raises:
        VideoError: the file cannot be opened, holds no video, does not decode, is interlaced and that is refused, or
            its pictures change their size.
    """

    def __init__(self, path: Path | str, interlaced: str = "refuse", threads: str = "AUTO") -> None:
        if interlaced not in INTERLACED:
            raise UserError(f"interlaced={interlaced} is unknown. Choose one of: {', '.join(INTERLACED)}.")
        self.path = Path(path)
        self._interlaced = interlaced
        self._decoded = self._combed = 0
        self.damage = ""
        self.keyframes: set[int] = set()
        with plain_errors(path), ExitStack() as stack:
            self._container = stack.enter_context(open_container(path))
            self._stream = find_stream(self._container, path)
            self._stream.thread_type = threads
            self._frames: Iterator[av.VideoFrame] = self._decode()
            first = next(self._frames, None)
            if first is None:
                raise VideoError(path, self.damage)
            self.facts: VideoFacts = facts_of(self._stream, first, path)
            self._check(first)
            self._frames = chain([first], self._checked(self._frames))
            if interlaced == "deinterlace":
                self._frames = deinterlaced(self._frames, self._stream)
            self._close = stack.pop_all().close
        self.size = self.facts.size
        self.rate = self.facts.rate
        self.time_base: Fraction = self._stream.time_base or 1 / self.rate
        self.start = Fraction(self._container.start_time or 0, av.time_base)  # seconds; of what `frames` calls 0
        self.has_times = self._container.format.name not in NO_TIMES and first.pts is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    @property
    def stated_frames(self) -> int | None:
        """How many frames the header promises, or what follows from the duration. Good for a progress bar, no more."""
        if stated := stated_frames(self._container, self._stream):
            return stated
        duration = self._container.duration
        return round(duration / av.time_base * self.rate) if duration else None

    def frames(self) -> Iterator[Frame]:
        """Every frame, in the order of display; once only."""
        step = 1 / (self.rate * self.time_base)
        start = round(self.start / self.time_base)
        last = -1
        with plain_errors(self.path):
            for number, frame in enumerate(self._frames):
                # Some files repeat a time, or go back; a written file needs each later than the last.
                usual = last + max(round(step), 1) if last >= 0 else 0
                pts = frame.pts - start if self.has_times and frame.pts is not None else round(number * step)
                last = pts if pts > last else usual
                yield Frame(to_rgb(frame, self.facts), last)

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Every frame that decodes; at the end, `damage` counts what does not."""
        starts: set[int] = set()  # times of the packets that a decoder may start at
        failed, corrupt, error = 0, 0, ""
        for packet in self._container.demux(self._stream):
            if packet.is_keyframe and packet.pts is not None:
                starts.add(packet.pts)
            try:
                frames = packet.decode()
            except av.FFmpegError as fault:
                failed, error = failed + 1, fault.strerror or str(fault)
                continue
            for frame in frames:
                if frame.key_frame or frame.pts in starts:
                    self.keyframes.add(self._decoded)
                self._decoded += 1
                corrupt += frame.is_corrupt
                yield frame
        stated = stated_frames(self._container, self._stream)
        self.damage = find_damage(self._decoded, stated, failed, corrupt, error)

    def _checked(self, frames: Iterable[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        for frame in frames:
            self._check(frame)
            yield frame

    def _check(self, frame: av.VideoFrame) -> None:
        """Refuse a frame that is unlike the first, and interlaced video."""
        height, width = self.facts.coded_size
        if (frame.height, frame.width) != (height, width):
            sizes = f"{width}x{height}, {frame.width}x{frame.height}"
            raise VideoError(self.path, f"the picture size changes within the video ({sizes})")
        self._combed += frame.interlaced_frame
        if self._interlaced == "refuse" and self._combed > TOLERATED_LOSS * self._decoded:
            raise VideoError(
                self.path,
                "interlaced: every frame holds two moments, which show as combs. interlaced=deinterlace makes frames of "
                "one moment, interlaced=keep takes them as they are",
            )


def deinterlaced(frames: Iterable[av.VideoFrame], stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """One progressive frame for each interlaced one, by FFmpeg's bwdif; progressive ones pass."""
    graph = av.filter.Graph()
    source = graph.add_buffer(template=stream)
    bwdif = graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
    graph.link_nodes(source, bwdif, graph.add("buffersink")).configure()
    for frame in chain(frames, [None]):
        graph.vpush(frame)
        for result in _pull(graph):
            if result.pts is not None and result.time_base and stream.time_base:
                result.pts = round(result.pts * result.time_base / stream.time_base)  # bwdif counts fields
            yield result


def _pull(graph: av.filter.Graph) -> Iterator[av.VideoFrame]:
    while True:
        try:
            frame = graph.vpull()
        except (BlockingIOError, EOFError):
            return
        yield frame


def open_container(path: Path | str) -> InputContainer:
    """Open a file for reading.

    Raises:
        VideoError: it is no video file.
    """
    try:
        return av.open(str(path), metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(path, why_no_video(path) or f"not a video file that can be opened: {reason}") from error


def why_no_video(path: Path | str) -> str:
    """What a file that cannot be opened as a video is, where its bytes tell; else ""."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(64)
            if not start:
                return "empty file (0 bytes)"
            if start.startswith(b"version https://git-lfs"):
                return "a git-lfs pointer, not the video itself (git lfs pull fetches it)"
            if start[4:8] == b"ftyp":
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    if content.find(b"moov") < 0:
                        return "truncated: the file ends before its header (moov)"
    except (OSError, ValueError):  # what opening it has said is all there is to say
        pass
    return ""


@contextmanager
def plain_errors(path: Path | str) -> Iterator[None]:
    """Turn what FFmpeg raises into a user's error that names the file."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(path, f"cannot be read as a video: {reason}") from error

"""Is a file fit for training? Decodes it whole, in order, and compares with what the training-time reader gives."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from data.decode import IMAGE_READER, DecodeError, as_path, open_video
from tae.video.facts import VideoError, VideoFacts
from tae.video.image import is_image, open_image, to_pixels
from tae.video.reader import VideoReader

GRID = 32  # pixels along each side at which two decoders' frames are compared
# Mean differences of 8-bit values. Two libav versions differ by up to 0.5 on most files and by 2.5 on small 10-bit ones
# (rounding in the colour conversion), where a reader counts wrong a frame equals another one exactly, and what decodes
# to garbage after a seek is off by more than 50.
SAME_FRAME = 0.5
SAME_CONTENT = 8.0
WINDOW_LENGTH = 8
# Readers that count from a keyframe go wrong where a window starts at one or just before it, in some files at some of
# them. Those that are looked at are spread over the file.
KEYFRAMES = 8
BEFORE_KEYFRAME = 2
Watch = Callable[[np.ndarray], None]
SINGLE_PICTURES = {"mjpeg", "png", "bmp", "webp", "jpeg2000"}


class RefusedError(Exception):
    """The file is not accepted; the message is the reason."""


@dataclass(frozen=True)
class Facts:
    """What is in an accepted file, as training reads it.

    fps, duration: 0 for an image
    width, height: as displayed: turned as the file asks, with square pixels
    seekable: False: frames must be read from the start, see `data.decode.VideoFile.each_frame`
    reader:   which reader of `data.decode` is right for the file
    matrix:   by which its colours become RGB, by FFmpeg's name; "rgb" or "gray" where it needs none
    full_range: 0 to 255 for black to white; otherwise 16 to 235
    matrix_stated: the file itself says so; otherwise it follows from the height
    pixel_aspect: width to height of a coded pixel, which has been applied
    interlaced: its frames hold two moments each, and `interlaced=keep` took them as they are
    """

    num_frames: int
    fps: float
    width: int
    height: int
    duration: float
    codec: str
    sha256: str
    seekable: bool
    reader: str = "decord"  # these have defaults for journals that are older than they are
    matrix: str = ""
    full_range: bool = False
    matrix_stated: bool = True
    pixel_aspect: str = "1:1"
    interlaced: bool = False


@dataclass
class DecodedFile:
    """A whole video, decoded in order by `tae.video`: the reference."""

    facts: VideoFacts
    has_times: bool
    keyframes: Collection[int]
    points: list[np.ndarray] = field(default_factory=list)  # of each frame, see `_points`
    times: list[float] = field(default_factory=list)  # seconds at which each frame is shown


def check_content(content: bytes, interlaced: str = "refuse") -> Facts | str:
    """Facts about a video or image file, by what its bytes are, or the reason in plain words why it cannot be used."""
    try:
        return examine_image(content) if is_image(content) else examine(content, interlaced)
    except (RefusedError, DecodeError) as reason:
        return str(reason)


def examine_image(content: bytes) -> Facts:
    """Facts about a picture that decodes.

    Raises:
        RefusedError: it does not, or is none.
    """
    try:
        with open_image(content) as image:
            height, width = to_pixels(image).shape[:2]
            codec = "jpeg" if image.format == "MPO" else (image.format or "").lower()
    except VideoError as error:
        raise RefusedError(error.reason) from error
    return Facts(
        num_frames=1,
        fps=0.0,
        width=width,
        height=height,
        duration=0.0,
        codec=codec,
        sha256=hashlib.sha256(content).hexdigest(),
        seekable=True,
        reader=IMAGE_READER,
        matrix="rgb",
        full_range=True,
    )


def check_video(video: bytes, interlaced: str = "refuse", decoder: str = "auto") -> Facts | str:
    """Facts about the content of a video file, or the reason in plain words why it cannot be used."""
    try:
        return examine(video, interlaced, decoder)
    except (RefusedError, DecodeError) as reason:
        return str(reason)


def examine(video: bytes, interlaced: str = "refuse", decoder: str = "auto") -> Facts:
    """As `check_video`, but raises RefusedError or DecodeError with the reason.

    Args:
        interlaced: "refuse" or "keep" interlaced video.
        decoder: the reader to prefer where it is right; "auto" takes PyAV where frames have times, decord elsewhere.
    """
    return facts_about(video, decode_sound(video, interlaced=interlaced), decoder)


def decode_sound(video: bytes, watch: Watch | None = None, interlaced: str = "refuse") -> DecodedFile:
    """The whole file, decoded in order; `watch` is shown every image as it is displayed, RGB.

    Raises:
        RefusedError: it does not decode, or is damaged.
    """
    try:
        with as_path(video) as path, VideoReader(path, interlaced, threads="NONE") as reader:
            found = DecodedFile(reader.facts, reader.has_times, reader.keyframes)
            for frame in reader.frames():
                found.points.append(_points(frame.rgb))
                found.times.append(float(frame.pts * reader.time_base))
                if watch:
                    watch(frame.rgb)
            if reader.damage:
                raise RefusedError(reader.damage)
    except VideoError as error:
        raise RefusedError(error.reason) from error
    if len(found.points) == 1 and found.facts.codec in SINGLE_PICTURES:
        raise RefusedError(f"a single picture ({found.facts.codec})")
    return found


def _points(image: np.ndarray) -> np.ndarray:
    """About GRID x GRID pixels of an image: cheap to keep for every frame, and no filter hides a difference."""
    rows, columns = (max(side // GRID, 1) for side in image.shape[:2])
    return image[::rows, ::columns].astype(np.int16)


def facts_about(video: bytes, reference: DecodedFile, decoder: str = "auto") -> Facts:
    """Facts with the first reader that gives the reference's frames in windows read as training does.

    Raises:
        RefusedError: none does.
    """
    faults = []
    for reader, seek in _ways(reference, decoder):
        fault = _fault_of(video, reference, reader, seek)
        if not fault:
            return _facts(video, reference, reader, seek)
        faults.append(f"{reader}{'' if seek else ' from the start'}: {fault}")
    raise RefusedError(f"no reader gives the right frames ({'; '.join(faults)})")


def _ways(reference: DecodedFile, decoder: str) -> list[tuple[str, bool]]:
    """(reader, seek) in the order of preference. What other readers cannot be told, such as colours, leaves PyAV alone."""
    preferred = decoder if decoder != "auto" else ("pyav" if reference.has_times else "decord")
    ways = [("pyav", True), ("pyav", False)] if reference.has_times else [("pyav", False)]
    return [(preferred, True), *ways] if preferred != "pyav" and reference.facts.plain else ways


def _facts(video: bytes, reference: DecodedFile, reader: str, seek: bool) -> Facts:
    with open_video(video, reader) as file:
        num_frames, fps = min(len(file), len(reference.points)), file.fps
    if not 0 < fps < 1000:
        raise RefusedError(f"states an impossible frame rate ({fps:g})")
    known = reference.facts
    height, width = known.size
    return Facts(
        num_frames=num_frames,
        fps=fps,
        width=width,
        height=height,
        duration=num_frames / fps,
        codec=known.codec,
        sha256=hashlib.sha256(video).hexdigest(),
        seekable=seek,
        reader=reader,
        matrix=known.colours.name,
        full_range=known.colours.full_range,
        matrix_stated=known.colours.stated,
        pixel_aspect=f"{known.pixel_aspect.numerator}:{known.pixel_aspect.denominator}",
        interlaced=known.interlaced,
    )


def _fault_of(video: bytes, reference: DecodedFile, reader: str, seek: bool) -> str:
    """What is wrong with the frames that a reader gives; empty if nothing is."""
    try:
        with open_video(video, reader) as file:
            num_frames = min(len(file), len(reference.points))
        windows = [range(start, min(start + WINDOW_LENGTH, num_frames)) for start in _starts(reference, num_frames)]
        # Without seeking every frame is read from the start: one pass is enough.
        requests: list[Sequence[int]] = [*windows] if seek else [sorted({i for window in windows for i in window})]
        exact = reader == "pyav"  # made the reference too
        for indices in requests:
            with open_video(video, reader) as file:  # as training does, for each
                for place, image in file.each_frame(indices, seek):
                    if fault := _compare_frame(indices[place], image, reference, exact):
                        return fault
    except DecodeError as error:
        return str(error)
    return ""


def _starts(reference: DecodedFile, num_frames: int) -> list[int]:
    """Where windows are looked at: at the start, at the end, and at and before keyframes."""
    last = max(num_frames - WINDOW_LENGTH, 0)
    keys = [key for key in sorted(reference.keyframes) if 0 < key < num_frames]
    spread = (
        {keys[round(place)] for place in np.linspace(0, len(keys) - 1, min(KEYFRAMES, len(keys)))} if keys else set()
    )
    around = {max(key - before, 0) for key in spread for before in range(BEFORE_KEYFRAME + 1)}
    return sorted({0, last} | around)


def _compare_frame(index: int, image: np.ndarray, reference: DecodedFile, exact: bool) -> str:
    """A frame must be its own or, by decord after a seek, its neighbour's (XviD with B-frames, frequent in UCF-101)."""
    points = _points(image)
    if points.shape != reference.points[index].shape:
        return f"read by index it has another picture size ({image.shape[1]}x{image.shape[0]})"
    if exact:
        return (
            ""
            if np.array_equal(points, reference.points[index])
            else f"frame {index} is not frame {index} of the video"
        )
    distances = [float(np.abs(points - other).mean()) for other in reference.points]
    own = min(distances[max(index - 1, 0) : index + 2])
    if own <= SAME_CONTENT and own <= min(distances) + SAME_FRAME:
        return ""
    return f"frame {index} is not frame {index} of the video"

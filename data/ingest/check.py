"""Is a file fit for training? Decodes it whole, in order, and compares with what the training-time reader gives."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from itertools import chain

import av
import av.error
import numpy as np

from data.decode import DecodeError, open_video

# A frame or two may be missing at a file's end (UCF-101 has "372 frames" of which 371 decode); more is damage.
TOLERATED_LOSS = 0.02
GRID = 32  # pixels along each side at which two decoders' frames are compared
# Mean differences of 8-bit values. Two libav versions differ by up to 0.5 on most files and by 2.5 on small 10-bit ones
# (rounding in the colour conversion), where a reader counts wrong a frame equals another one exactly, and what decodes
# to garbage after a seek is off by more than 50.
SAME_FRAME = 0.5
SAME_CONTENT = 8.0
WINDOW_STARTS = (0.0, 1 / 3, 2 / 3, 1.0)
WINDOW_LENGTH = 8
Watch = Callable[[np.ndarray], None]
SINGLE_PICTURES = {"mjpeg", "png", "bmp", "webp", "jpeg2000"}


class RefusedError(Exception):
    """The file is not accepted; the message is the reason."""


@dataclass(frozen=True)
class Facts:
    """What is in an accepted file, as the training-time reader gives it (size as displayed, rotation applied)."""

    num_frames: int
    fps: float
    width: int
    height: int
    duration: float
    codec: str
    sha256: str
    seekable: bool  # False: frames must be read from the start, see `VideoFile.frames`


@dataclass
class Decoded:
    """A whole video stream, decoded in order by PyAV: the reference."""

    codec: str
    stated_frames: int  # by the header; 0 where it says nothing
    points: list[np.ndarray]  # of each frame, see `_points`
    sizes: set[tuple[int, int]]
    hidden: int = 0  # packets that an edit list tells players not to show
    damaged: int = 0  # frames that libav marks as corrupt
    error: str = ""


def check(video: bytes) -> Facts | str:
    """Facts about the content of a video file, or the reason in plain words why it cannot be used."""
    try:
        return examine(video)
    except (RefusedError, DecodeError) as reason:
        return str(reason)


def examine(video: bytes) -> Facts:
    """As `check`, but raises RefusedError or DecodeError with the reason."""
    return _compare(video, decode_sound(video))


def decode_sound(video: bytes, watch: Watch | None = None) -> Decoded:
    """The whole file, decoded in order; `watch` is shown every image as it is displayed, RGB.

    Raises:
        RefusedError: it does not decode, or is damaged.
    """
    _refuse_by_content(video)
    reference = _decode_in_order(video, watch)
    _refuse_damage(reference)
    return reference


def _refuse_by_content(video: bytes) -> None:
    if not video:
        raise RefusedError("empty file (0 bytes)")
    if video.startswith(b"version https://git-lfs"):
        raise RefusedError("a git-lfs pointer, not the video itself (git lfs pull fetches it)")


def _decode_in_order(video: bytes, watch: Watch | None) -> Decoded:
    try:
        container = av.open(BytesIO(video), mode="r")
    except av.error.FFmpegError as error:
        if video[4:8] == b"ftyp" and b"moov" not in video:
            raise RefusedError("truncated: the file ends before its header (moov)") from error
        raise RefusedError(f"not a video file that can be opened: {error.strerror}") from error
    with container:
        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream):
            raise RefusedError("no video stream in the file")
        stream.thread_type = "NONE"  # processes already use every core
        found = Decoded(stream.codec_context.codec.canonical_name, stream.frames, [], set())
        for packet in container.demux(stream):
            found.hidden += packet.is_discard
            try:
                for frame in packet.decode():
                    _add_frame(found, frame, watch)
            except av.error.FFmpegError as error:
                found.error = error.strerror or str(error)
        return found


def _add_frame(found: Decoded, frame: av.VideoFrame, watch: Watch | None) -> None:
    found.damaged += frame.is_corrupt
    found.sizes.add((frame.width, frame.height))
    if len(found.sizes) == 1:
        image = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
        found.points.append(_points(image))
        if watch:
            watch(image)


def _points(image: np.ndarray) -> np.ndarray:
    """About GRID x GRID pixels of an image: cheap to keep for every frame, and no filter hides a difference."""
    rows, columns = (max(side // GRID, 1) for side in image.shape[:2])
    return image[::rows, ::columns].astype(np.int16)


def _refuse_damage(found: Decoded) -> None:
    decoded = len(found.points)
    if len(found.sizes) > 1:
        sizes = ", ".join(f"{width}x{height}" for width, height in sorted(found.sizes))
        raise RefusedError(f"the picture size changes within the video ({sizes})")
    if not decoded:
        raise RefusedError(f"no frame decodes ({found.error or 'the stream is empty'})")
    if found.damaged > TOLERATED_LOSS * decoded:
        raise RefusedError(f"damaged: {found.damaged} of {decoded} decoded frames are corrupt")
    lost = found.stated_frames - found.hidden - decoded
    if lost > max(1, TOLERATED_LOSS * found.stated_frames):
        raise RefusedError(f"truncated or damaged: {decoded} of {found.stated_frames} frames decode")


def _compare(video: bytes, reference: Decoded) -> Facts:
    """Read windows as training does; where they are not the reference's frames, try once more without seeking."""
    try:
        with open_video(video) as file:
            num_frames = min(len(file), len(reference.points))
            height, width = file.frames([0]).shape[1:3]
            fps = file.fps
        starts = [round(share * max(num_frames - WINDOW_LENGTH, 0)) for share in WINDOW_STARTS]
        windows = [list(range(start, min(start + WINDOW_LENGTH, num_frames))) for start in starts]
        fault = _compare_windows(video, windows, reference, seek=True)
        if fault and _compare_windows(video, [list(chain(*windows))], reference, seek=False):
            raise RefusedError(fault)
    except DecodeError as error:
        if len(reference.points) == 1 and reference.codec in SINGLE_PICTURES:
            raise RefusedError(f"a single picture ({reference.codec}) that the video reader cannot open") from error
        raise RefusedError(f"the video reader (decord) fails: {error}") from error
    if not 0 < fps < 1000:
        raise RefusedError(f"states an impossible frame rate ({fps:g})")
    digest = hashlib.sha256(video).hexdigest()
    return Facts(num_frames, fps, width, height, num_frames / fps, reference.codec, digest, seekable=not fault)


def _compare_windows(video: bytes, windows: list[list[int]], reference: Decoded, seek: bool) -> str:
    """What is wrong with the frames of these windows, each read from a newly opened file; empty if nothing is."""
    for window in windows:
        with open_video(video) as file:
            images = file.frames(window, seek)
        for index, image in zip(window, images, strict=True):
            if fault := _compare_frame(index, image, reference):
                return fault
    return ""


def _compare_frame(index: int, image: np.ndarray, reference: Decoded) -> str:
    """A frame must be its own or, after a seek, its neighbour's (XviD files with B-frames, frequent in UCF-101)."""
    points = _points(image)
    if points.shape != reference.points[index].shape:
        return f"read by index it has another picture size ({image.shape[1]}x{image.shape[0]})"
    distances = [float(np.abs(points - other).mean()) for other in reference.points]
    own = min(distances[max(index - 1, 0) : index + 2])
    if own <= SAME_CONTENT and own <= min(distances) + SAME_FRAME:
        return ""
    hidden = f" (an edit list hides {reference.hidden} frames)" if reference.hidden else ""
    return f"read by index, frame {index} is not frame {index} of the video{hidden}"

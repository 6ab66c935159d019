"""The frames of a video file at given indices, from memory, by one of three readers; an image is a video of one frame.

A reader finds a frame by jumping to a keyframe, and where it lands differs: which one is right for a file is found out
at preparation (`data.ingest.check`) and recorded in the sample's metadata. PyAV (`tae.video.seeking`) is right wherever the
file has times of display; decord counts from a keyframe, which is right in most files; torchcodec is optional.
"""

import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import groupby
from pathlib import Path

import numpy as np
from torch.utils.dlpack import from_dlpack

from tae.runtime.errors import first_line
from tae.video.facts import HD_HEIGHT, MAX_ASPECT, MAX_PIXELS, VideoError
from tae.video.image import image_size, is_image, open_image, to_pixels
from tae.video.seeking import PacketReader

DECORD_ORIGIN = r"^\[[\d:]+\] \S+:\d+: (\[\S+\] )?"  # "[time] source.cc:line: [path] " before a message


class DecodeError(Exception):
    """The video cannot be decoded; the message is the reason in plain words."""


@contextmanager
def as_path(video: bytes) -> Iterator[str]:
    """Give bytes a path for as long as the context lasts.

    decord ends the process with SIGSEGV on a truncated .avi that it reads through a file object; by path it never
    did. `memfd_create` (Linux) makes a path without touching a disk; elsewhere it is a temporary file.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("clip")
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(video)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile(suffix=".video") as file:
            file.write(video)
            file.flush()
            yield file.name


class VideoFile(ABC):
    """An open video: `len()` frames, `fps`, `size` (height, width as displayed) and frames by index. Use `open_video`."""

    fps: float
    size: tuple[int, int]

    @abstractmethod
    def __len__(self) -> int: ...

    def times(self) -> np.ndarray | None:
        """When each frame is displayed, ascending seconds; None where the file does not say, or the reader does not."""
        return None

    def close(self) -> None:
        """Free what the reader holds."""
        return

    @abstractmethod
    def _decode(self, index: int, seek: bool) -> np.ndarray:
        """One frame, uint8 RGB (h, w, 3); those of one call to `each_frame` are asked for in ascending order."""

    def frames(self, indices: Sequence[int], seek: bool = True) -> np.ndarray:
        """Decode uint8 RGB (len(indices), h, w, 3); an index may occur twice. Arguments and errors as in `each_frame`."""
        images = np.empty((len(indices), *self.size, 3), np.uint8)
        for place, image in self.each_frame(indices, seek):
            images[place] = image
        return images

    def each_frame(self, indices: Sequence[int], seek: bool = True) -> Iterator[tuple[int, np.ndarray]]:
        """Decode frame by frame, in the order of the video: (place in `indices`, uint8 RGB (h, w, 3)).

        decord's own `get_batch` reads in the same way, into new memory for all of them, whose pages cost more than copying
        a small frame.

        Args:
            seek: jump to the nearest keyframe. In some files the reader then counts from a wrong keyframe, or nothing
                decodes after one; without seeking every frame up to the last one wanted is decoded.

        Raises:
            DecodeError: an index is outside the video or a frame does not decode.
        """
        first, last = min(indices), max(indices)
        if last >= len(self):
            raise DecodeError(f"has {len(self)} frames, frame {last} was asked for")
        order = sorted(range(len(indices)), key=indices.__getitem__)
        for index, places in groupby(order, key=indices.__getitem__):
            try:
                image = self._decode(int(index), seek)
            except VideoError as error:
                raise DecodeError(f"frames {first} to {last} do not decode: {error.reason}") from error
            except Exception as error:
                raise DecodeError(f"frames {first} to {last} do not decode: {_plain(error)}") from error
            if image.shape != (*self.size, 3):
                size = f"{image.shape[1]}x{image.shape[0]}, the file states {self.size[1]}x{self.size[0]}"
                raise DecodeError(f"frames {first} to {last} do not decode: frame {index} is {size}")
            for place in places:
                yield place, image


class DecordFile(VideoFile):
    """By decord, which applies the rotation that the container asks for, and takes BT.601 where no matrix is stated."""

    def __init__(self, path: str) -> None:
        import decord  # here, because it loads its own libav: only processes that decode pay for it

        decord.logging.set_level(decord.logging.QUIET)
        try:
            self._reader = decord.VideoReader(path, num_threads=1)  # parallel over clips, not inside one
            self.fps = float(self._reader.get_avg_fps())
            height, width = self._reader.get_batch([]).shape[1:3]  # what the file claims; decodes nothing
        except Exception as error:
            raise DecodeError(f"cannot be opened: {_plain(error)}") from error
        if height * width > MAX_PIXELS or max(height, width) > MAX_ASPECT * min(height, width):
            raise DecodeError(f"claims pictures of {width}x{height} pixels, which is beyond all use")
        self.size = (int(height), int(width))
        self._position = 0  # index of the frame that comes next

    def __len__(self) -> int:
        return len(self._reader)

    def times(self) -> np.ndarray | None:
        times = self._reader.get_frame_timestamp(range(len(self)))[:, 0].astype(float)
        return times if (np.diff(times) > 0).all() else None

    def _decode(self, index: int, seek: bool) -> np.ndarray:
        if seek and index != self._position:
            self._reader.seek_accurate(index)  # not `skip_frames`, which goes to the wrong place in some files
        else:
            if index < self._position:
                self._position = 0
                self._reader.seek_accurate(0)
            for _ in range(index - self._position):
                self._reader.next()
        self._position = index + 1
        image = from_dlpack(self._reader.next().to_dlpack()).numpy()  # as it lies in memory; `asnumpy` would copy it
        return _without_padding(image, *self.size)


class PyAVFile(VideoFile):
    """By PyAV: what players show (`tae.video.facts`), and frames found by their times."""

    def __init__(self, path: str) -> None:
        try:
            self._reader = PacketReader(path)
        except VideoError as error:
            raise DecodeError(f"cannot be opened: {error.reason}") from error
        self.fps, self.size = float(self._reader.facts.rate), self._reader.facts.size

    def __len__(self) -> int:
        return len(self._reader)

    def times(self) -> np.ndarray | None:
        return self._reader.times

    def close(self) -> None:
        self._reader.close()

    def _decode(self, index: int, seek: bool) -> np.ndarray:
        return self._reader.frame(index, seek)


class TorchCodecFile(VideoFile):
    """By torchcodec, in the mode that reads the whole file's times; an optional package that needs FFmpeg's libraries."""

    def __init__(self, path: str) -> None:
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, RuntimeError, OSError) as error:
            raise DecodeError(f"decoder=torchcodec cannot be loaded: {_plain(error)}") from error
        try:
            self._decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
            self.fps = float(self._decoder.metadata.average_fps)
            self.size = tuple(self._decoder[0].shape[:2])
        except Exception as error:
            raise DecodeError(f"cannot be opened: {_plain(error)}") from error

    def __len__(self) -> int:
        return len(self._decoder)

    def _decode(self, index: int, seek: bool) -> np.ndarray:
        return self._decoder[index].numpy()


class ImageFile(VideoFile):
    """A JPEG, PNG or WebP picture (`tae.video.image`): one frame, at no rate (`fps` is 0)."""

    fps = 0.0

    def __init__(self, path: str) -> None:
        self._content = Path(path).read_bytes()
        try:
            with open_image(self._content) as image:
                self.size = image_size(image)
        except VideoError as error:
            raise DecodeError(f"cannot be opened: {error.reason}") from error

    def __len__(self) -> int:
        return 1

    def _decode(self, index: int, seek: bool) -> np.ndarray:
        with open_image(self._content) as image:
            return to_pixels(image)


IMAGE_READER = "pillow"
VIDEO_READERS: dict[str, Callable[[str], VideoFile]] = {
    "decord": DecordFile,
    "pyav": PyAVFile,
    "torchcodec": TorchCodecFile,
}
READERS = VIDEO_READERS | {IMAGE_READER: ImageFile}


def choose_reader(decoder: str, recorded: str) -> str:
    """The reader for a file, "" for `open_video`'s own choice.

    Args:
        decoder: "auto"; "pyav", which is right for every video; or another reader, for the files of which preparation
            recorded nothing else.
        recorded: the reader that preparation found right, "" where it recorded none.

    Raises:
        DecodeError: the shard names a reader that there is none of.
    """
    if recorded not in ("", *READERS):
        raise DecodeError(f"its metadata ask for the unknown reader {recorded}")
    if decoder == "auto" or recorded == IMAGE_READER:
        return recorded
    return decoder if decoder == "pyav" else recorded or decoder


@contextmanager
def open_video(video: bytes, reader: str = "") -> Iterator[VideoFile]:
    """Open the bytes of a video or image file; raises DecodeError where the reader cannot.

    Args:
        reader: "decord", "pyav", "torchcodec", or "pillow" for images; without it what the bytes ask for: of videos
            decord, but PyAV where the picture is so high that players take BT.709 for files that do not state a matrix,
            which decord does not know.
    """
    with as_path(video) as path:
        file = READERS[reader or (IMAGE_READER if is_image(video) else "decord")](path)
        if not reader and isinstance(file, DecordFile) and max(file.size) >= HD_HEIGHT:
            file = PyAVFile(path)
        with closing(file):
            yield file


def read_frames(video: bytes, indices: Sequence[int], seek: bool = True, reader: str = "") -> np.ndarray:
    """Decode some frames of a video file held in memory; arguments as in `VideoFile.each_frame` and `open_video`.

    Shapes:
        returns: (len(indices), h, w, 3) uint8 RGB, in the order of `indices`

    Raises:
        DecodeError: the bytes are no video, or one of the frames does not decode.
    """
    with open_video(video, reader) as file:
        return file.frames(indices, seek)


def _without_padding(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """RGB (height, width, 3) of what decord gives for one frame.

    libav pads rows to the processor's vector width, and decord takes the bytes of a row divided by the width for the
    number of channels: on one processor a picture 48 pixels wide comes with four "channels", on another one 144 wide.
    The bytes are those of the padded rows.

    """
    if image.shape[:2] != (height, width) or image.shape[2] == 3:
        return image
    return image.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)


def _plain(error: Exception) -> str:
    """What decord's own message says, without its stack trace and source positions."""
    return re.sub(DECORD_ORIGIN, "", first_line(error).split("Check failed: ")[-1].strip())[:200]

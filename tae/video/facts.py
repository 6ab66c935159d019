"""What one video file holds: which stream, which way up, its colours, the shape of a pixel, and what counts as damage.

Everything that reads a video asks here, so that preparation, training, evaluation, encoding and reconstruction see the
same pictures. What a decoder gives is turned into what a player shows by `to_rgb`.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from tae.runtime.errors import UserError

MAX_PIXELS = 8192 * 8192  # of a frame: 200 MB; 8K has half as many
MAX_ASPECT = 32  # long side to short side: scaling the short one up must not make the long one huge
# A frame or two may be missing at a file's end (UCF-101 has "372 frames" of which 371 decode); more is damage.
TOLERATED_LOSS = 0.02
HD_HEIGHT = 720  # without a word in the file players take BT.709 from so many coded rows on, and BT.601 below
# Encoders write the rounding of a resize into the pixel aspect (4096:4083 in UCF-101): nobody sees 1 %, and resampling
# every frame for it would blur them.
SQUARE = 0.01
INTERLACED = ("refuse", "deinterlace", "keep")  # what may be done with interlaced video

# By their number in a stream (ITU-T H.273, MatrixCoefficients): swscale's name, and FFmpeg's, which metadata have.
MATRICES = {
    1: (Colorspace.ITU709, "bt709"),
    4: (Colorspace.FCC, "fcc"),
    5: (Colorspace.ITU601, "bt470bg"),
    6: (Colorspace.ITU601, "smpte170m"),
    7: (Colorspace.SMPTE240M, "smpte240m"),
    9: (Colorspace.BT2020, "bt2020nc"),
}
UNSTATED_MATRICES = {0, 2, 3}  # 0 is RGB, which no YUV picture can be
OTHER_MATRICES = {
    8: "YCgCo",
    10: "BT.2020 with constant luminance",
    11: "SMPTE 2085",
    12: "chromaticity-derived",
    13: "chromaticity-derived",
    14: "ICtCp",
    15: "IPT-C2",
    16: "YCgCo-Re",
    17: "YCgCo-Ro",
}


class VideoError(UserError):
    """A video that cannot be read, or is not fit to be; `reason` is why, without the file's name."""

    def __init__(self, name: object, reason: str) -> None:
        super().__init__(str(name), reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.reason}"


class Orientation(NamedTuple):
    """How a coded picture is turned for display: transposed first, then mirrored."""

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Turn an image (h, w, ...)."""
        if self == UPRIGHT:
            return image
        turned = image.swapaxes(0, 1) if self.transposed else image
        return np.ascontiguousarray(turned[:: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1])


UPRIGHT = Orientation()


@dataclass(frozen=True)
class Colours:
    """How a file's samples become RGB.

    matrix:     as swscale and H.273 know it; None for RGB and grey pictures, which need none
    number:     of the matrix in H.273
    name:       FFmpeg's name of the matrix, "rgb" or "gray"
    full_range: 0 to 255 for black to white; otherwise 16 to 235
    stated:     the file says which matrix; otherwise it follows from the height (`HD_HEIGHT`)
    primaries, transfer: by their numbers in H.273; 2 where the file says nothing
    """

    matrix: Colorspace | None
    number: int
    name: str
    full_range: bool
    stated: bool
    primaries: int = 2
    transfer: int = 2


@dataclass(frozen=True)
class VideoFacts:
    """What is known when the first frame is decoded.

    size:         height and width as displayed: turned, and with square pixels
    coded_size:   height and width as coded
    pixel_aspect: width to height of a coded pixel, as the file states it
    rate:         frames a second on average
    """

    codec: str
    size: tuple[int, int]
    coded_size: tuple[int, int]
    orientation: Orientation
    colours: Colours
    pixel_aspect: Fraction
    interlaced: bool
    rate: Fraction

    @property
    def plain(self) -> bool:
        """Whether any decoder gives the right picture without being told how (all take BT.601 where nothing is stated)."""
        guessed_hd = not self.colours.stated and self.colours.matrix == Colorspace.ITU709
        return self.orientation == UPRIGHT and self.size == self.coded_size and not guessed_hd


def find_stream(container: InputContainer, name: object) -> av.VideoStream:
    """The video stream that players show: FFmpeg's choice, which passes over covers and previews.

    Raises:
        VideoError: there is none, or its pictures are of an absurd size.
    """
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream):
        raise VideoError(name, "no video stream in the file")
    refuse_absurd(stream.codec_context.height, stream.codec_context.width, name)  # before a picture is decoded
    return stream


def facts_of(stream: av.VideoStream, first: av.VideoFrame, name: object) -> VideoFacts:
    """What a file's first frame says about all of them.

    Raises:
        VideoError: it cannot be shown as it should be, or is of an absurd size.
    """
    colours = _colours_of(first, name)
    orientation = _orientation_of(first, name)
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    width = round(first.width * aspect) if abs(aspect - 1) > SQUARE else first.width
    size = (width, first.height) if orientation.transposed else (first.height, width)
    refuse_absurd(*size, name)
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    codec = stream.codec_context.codec.canonical_name
    coded_size = (first.height, first.width)
    return VideoFacts(codec, size, coded_size, orientation, colours, aspect, first.interlaced_frame, rate)


def to_rgb(frame: av.VideoFrame, facts: VideoFacts) -> np.ndarray:
    """A frame as players show it, uint8 RGB (h, w, 3) of the size `facts.size`.

    Frames of another coded size than the file's first keep theirs; the caller refuses them.
    """
    width = frame.width
    if (frame.height, width) == facts.coded_size:
        width = facts.size[0] if facts.orientation.transposed else facts.size[1]
    image = frame.to_ndarray(
        format="rgb24",
        width=width,
        src_colorspace=facts.colours.matrix,
        src_color_range=ColorRange.JPEG if facts.colours.full_range else ColorRange.MPEG,
        interpolation=Interpolation.BICUBIC if width != frame.width else Interpolation.BILINEAR,
        threads=1,  # handing slices to threads costs more than it saves, and processes use every core already
    )
    return facts.orientation.apply(image)


def stated_frames(container: InputContainer, stream: av.VideoStream) -> int:
    """How many frames the header promises to show; 0 where it says nothing.

    An MP4 or MOV has a table of its samples, from which libav has taken what an edit list cuts off and marked what it
    hides; the number in the header counts them all.
    """
    if "mp4" in container.format.name.split(","):
        return sum(not entry.is_discard for entry in stream.index_entries)
    return stream.frames


def find_damage(decoded: int, stated: int, failed: int, corrupt: int, error: str = "") -> str:
    """Why a file with so many frames is damaged beyond use, or "" where it is not: the one rule for all readers.

    Args:
        decoded: frames that were decoded.
        stated: frames that the header promises, see `stated_frames`.
        failed: packets that could not be decoded.
        corrupt: decoded frames that libav marks as corrupt.
        error: libav's word for the last failure.
    """
    if not decoded:
        return f"no frame decodes ({error or 'the stream is empty'})"
    if corrupt > TOLERATED_LOSS * decoded:
        return f"damaged: {corrupt} of {decoded} decoded frames are corrupt"
    whole = max(stated, decoded + failed)
    if whole - decoded > max(1, TOLERATED_LOSS * whole):
        return f"truncated or damaged: {decoded} of {whole} frames decode"
    return ""


def refuse_absurd(height: int, width: int, name: object) -> None:
    """Refuse pictures that no memory should be taken for.

    Raises:
        VideoError: they have more than MAX_PIXELS pixels, or are longer than MAX_ASPECT times their width.
    """
    if height * width > MAX_PIXELS or max(height, width) > MAX_ASPECT * min(height, width):
        raise VideoError(name, f"claims pictures of {width}x{height} pixels, which is beyond all use")


def _colours_of(frame: av.VideoFrame, name: object) -> Colours:
    full_range = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    if frame.format.is_rgb or frame.format.has_palette:
        return Colours(None, 0, "rgb", full_range=True, stated=True)
    number = int(frame.colorspace)
    if number in OTHER_MATRICES:
        raise VideoError(name, f"its colours are {OTHER_MATRICES[number]}, which cannot be converted to RGB here")
    if len(frame.format.components) < 3:
        return Colours(None, 2, "gray", full_range, stated=True)
    stated = number in MATRICES
    number = number if stated else (1 if frame.height >= HD_HEIGHT else 6)
    matrix, label = MATRICES[number]
    return Colours(matrix, number, label, full_range, stated, int(frame.color_primaries), int(frame.color_trc))


def _orientation_of(frame: av.VideoFrame, name: object) -> Orientation:
    """From the display matrix [a b u; c d v; x y w] of the container or an SEI: x' = a x + c y, y' = b x + d y."""
    side_data: Any = frame.side_data
    if (matrix := side_data.get("DISPLAYMATRIX")) is None:
        return UPRIGHT
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(float)
    along, across = min(abs(a), abs(d)), min(abs(b), abs(c))
    one_degree = math.tan(math.radians(1))  # as ffmpeg allows
    if max(abs(b), abs(c)) <= one_degree * along or not (along or across):
        return Orientation(False, rows_reversed=bool(d < 0), columns_reversed=bool(a < 0))
    if max(abs(a), abs(d)) <= one_degree * across:
        return Orientation(True, rows_reversed=bool(b < 0), columns_reversed=bool(c < 0))
    angle = round(math.degrees(math.atan2(b, a))) % 360
    raise VideoError(name, f"is to be shown turned by {angle} degrees; multiples of 90 are supported")

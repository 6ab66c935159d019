"""Videos that lie as folders of numbered pictures: DAVIS (00000.jpg), MOT (img1/000001.jpg), mmaction2 (img_00001.jpg).

Such a video becomes a QuickTime file with the pictures' own bytes as its frames, Motion JPEG or PNG: nothing is encoded
again, and players and loaders read it like any other video.
"""

import configparser
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from operator import itemgetter
from pathlib import Path

import av
from PIL import Image

from data.ingest.check import RefusedError
from data.ingest.lists import Row
from data.shards.format import IMAGE_EXTENSIONS, MAX_VIDEO_BYTES
from tae.runtime.paths import Entry
from tae.runtime.scratch import ScratchList, group_on_disk
from tae.video.facts import VideoError
from tae.video.image import ORIENTATION, open_image, to_pixels

FRAMES_EXTENSION = "mov"
NUMBERED = re.compile(r"(.*?)(\d+)\.(\w+)")
SEQUENCE = "seqinfo.ini"  # of MOT: beside the folder of pictures, with their rate
CODECS = {"JPEG": "mjpeg", "PNG": "png"}


def find_frame_folders(entries: Iterable[Entry]) -> Iterator[tuple[Row, str]]:
    """Files that are no numbered pictures, and folders of such pictures, each with the reason to reject it or ""."""
    # Folder and series of each picture; of many that follow each other, of one.
    pictures: ScratchList[tuple[str, str]] = ScratchList()
    last: tuple[str, str] | None = None
    for entry in entries:
        folder, _, name = entry.path.rpartition("/")
        series = None if entry.reason else series_of(name)
        if series is None:
            reason = entry.reason or (
                "read for the rate of its pictures" if name == SEQUENCE else "not a numbered picture by its name"
            )
            yield Row(entry.path), reason
        elif (found := (folder or ".", series)) != last:
            pictures.append(last := found)
    for members in group_on_disk(pictures, key=itemgetter(0)):
        kinds = {series for _, series in members}
        shown = ", ".join(sorted(kinds))
        yield Row(members[0][0]), f"holds several series of pictures ({shown})" if len(kinds) > 1 else ""


def series_of(name: str) -> str | None:
    """What pictures of one video have in common, `img_*.jpg` of `img_00001.jpg`; None for other files."""
    match = NUMBERED.fullmatch(name)
    if not match or match[3].lower() not in IMAGE_EXTENSIONS:
        return None
    return f"{match[1]}*.{match[3]}"


def name_of(folder: str, root: Path) -> str:
    """The path that names a folder's video: of MOT's `SEQUENCE/img1` the sequence's own."""
    parent = folder.rpartition("/")[0]
    return parent if parent and (root / parent / SEQUENCE).is_file() else folder


def numbered_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder by their numbers.

    Raises:
        RefusedError: there are none, or numbers are missing between the first and the last.
    """
    pictures = {}
    for path in folder.iterdir():
        if path.is_file() and series_of(path.name) and (match := NUMBERED.fullmatch(path.name)):
            if (number := int(match[2])) in pictures:
                raise RefusedError(f"two of its pictures have the number {number}")
            pictures[number] = path
    if not pictures:
        raise RefusedError("holds no numbered pictures")
    first, last = min(pictures), max(pictures)
    if missing := [number for number in range(first, last + 1) if number not in pictures][:1]:
        raise RefusedError(f"picture {missing[0]} is missing between {first} and {last}")
    return [pictures[number] for number in sorted(pictures)]


def rate_of(folder: Path, default: float) -> Fraction:
    """Frames a second by seqinfo.ini, in the folder or above it, or the default.

    Raises:
        RefusedError: the file states none that can be.
    """
    for path in (folder / SEQUENCE, folder.parent / SEQUENCE):
        if path.is_file():
            parser = configparser.ConfigParser()
            try:
                with path.open(encoding="utf-8-sig", errors="replace") as text:
                    parser.read_string(text.read(1 << 16))
                rate = Fraction(parser["Sequence"]["frameRate"])
            except (configparser.Error, KeyError, ValueError, ZeroDivisionError) as error:
                raise RefusedError(f"its {SEQUENCE} states no frameRate ({error})") from error
            if not 0 < rate < 1000:
                raise RefusedError(f"its {SEQUENCE} states an impossible frame rate ({float(rate):g})")
            return rate
    return Fraction(default).limit_denominator(1001)


def pack_frames(folder: Path, default_rate: float) -> bytes:
    """A video file of the pictures in a folder.

    Raises:
        RefusedError: pictures are missing, damaged, of several sizes, or too many bytes.
    """
    try:
        rate, paths = rate_of(folder, default_rate), numbered_pictures(folder)
        if (size := sum(path.stat().st_size for path in paths)) > MAX_VIDEO_BYTES:
            raise RefusedError(
                f"{size / 2**30:.1f} GiB of pictures; readers of shards take {MAX_VIDEO_BYTES >> 30} GiB"
            )
        pictures = [path.read_bytes() for path in paths]
    except OSError as error:
        raise RefusedError(f"cannot be read: {error.strerror}") from error
    width, height, codec = _what_they_are(paths, pictures)
    if codec is None:
        codec, pictures = "png", [_as_png(picture) for picture in pictures]
    file = io.BytesIO()
    with av.open(file, "w", format=FRAMES_EXTENSION) as sink:
        stream = sink.add_mux_stream(codec, rate=rate, width=width, height=height)
        stream.time_base = 1 / rate
        for number, picture in enumerate(pictures):
            packet = av.Packet(picture)
            packet.stream, packet.time_base, packet.is_keyframe = stream, 1 / rate, True
            packet.pts = packet.dts = number
            packet.duration = 1
            sink.mux(packet)
    return file.getvalue()


def _what_they_are(paths: Sequence[Path], pictures: Sequence[bytes]) -> tuple[int, int, str | None]:
    """Width, height, and the codec that all of them are of and that shows them as they are; None: there is none.

    Raises:
        RefusedError: a picture cannot be used, or is of another size than the first.
    """
    kinds, first = set(), None
    for path, picture in zip(paths, pictures, strict=True):
        try:
            with open_image(picture) as image:
                size = image.size
                turned = image.getexif().get(ORIENTATION, 1) != 1
                kinds.add((CODECS.get(image.format or ""), image.mode, turned or image.has_transparency_data))
        except VideoError as error:
            raise RefusedError(f"{path.name}: {error.reason}") from error
        first = first or size
        if size != first:
            raise RefusedError(f"its pictures are of several sizes ({first[0]}x{first[1]}, {size[0]}x{size[1]})")
    assert first is not None
    (codec, mode, special), *others = kinds
    usable = not others and not special and mode in ("RGB", "L")
    return *first, codec if usable else None


def _as_png(picture: bytes) -> bytes:
    """The picture as it is displayed, without loss."""
    file = io.BytesIO()
    try:
        with open_image(picture) as image:
            pixels = to_pixels(image)
    except VideoError as error:
        raise RefusedError(error.reason) from error
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()

"""Pictures: JPEG, PNG and WebP files as RGB, the right way up."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tae.runtime.errors import first_line
from tae.video.facts import VideoError, refuse_absurd

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
ORIENTATION = 0x0112  # EXIF tag; from 5 on rows and columns are exchanged
SIDEWAYS = range(5, 9)


def is_image(content: bytes) -> bool:
    """Whether a file begins as a JPEG, PNG or WebP does."""
    return content.startswith(SIGNATURES) or (content[:4] == b"RIFF" and content[8:12] == b"WEBP")


@contextmanager
def open_image(content: bytes) -> Iterator[Image.Image]:
    """Open a picture without decoding it; errors while the block uses it are those of this function.

    Raises:
        VideoError: it is none of the three kinds, is animated or damaged, or claims an absurd size.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            image = Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
        with image:
            refuse_absurd(image.height, image.width, "image")  # before a pixel is decoded
            # Of a phone's MPO the first picture counts; the others are previews and maps of brightness.
            count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            if count > 1:
                raise VideoError("image", f"an animation of {count} pictures; as a video file it can be used")
            yield image
    except VideoError:
        raise
    except UnidentifiedImageError as error:
        raise VideoError("image", "not a JPEG, PNG or WebP picture") from error
    except Image.DecompressionBombError as error:
        raise VideoError("image", "claims more pixels than any picture has, which is beyond all use") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError, MemoryError) as error:
        raise VideoError("image", f"damaged: {first_line(error)}") from error  # what Pillow raises for broken files


def image_size(image: Image.Image) -> tuple[int, int]:
    """Height and width as displayed."""
    size = image.height, image.width
    return size[::-1] if image.getexif().get(ORIENTATION) in SIDEWAYS else size


def to_pixels(image: Image.Image) -> np.ndarray:
    """A picture as it is displayed, uint8 RGB (h, w, 3): turned as its EXIF orientation says, on white where it is
    transparent, 16 bits of grey cut to 8. Colours are taken for sRGB, whatever profile is embedded."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        picture = image.convert("RGBA")
        image = Image.new("RGBA", picture.size, "white")
        image.alpha_composite(picture)
    return np.array(image.convert("RGB"))  # a copy, since torch warns about memory that cannot be written

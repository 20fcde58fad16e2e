"""One image file as 8-bit RGB."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# What the content may be, whatever the name says. A closed list: some of Pillow's other readers start
# external programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


class UnreadableError(Exception):
    """A file, or one frame of it, cannot be decoded; the message is the reason, in one line."""


def read_image(path: Path | BytesIO, *, decode: bool = True) -> Image.Image:
    """The image in the file `path` (of an animation the first frame), upright by its EXIF orientation.

    16-bit grey keeps its upper 8 bits; transparency is dropped and grey, palette and CMYK images are
    converted, as the published loaders do. With `decode` False only the header is read, and the image
    that comes back is good for its size alone.

    Raises UnreadableError when the file is missing, empty, truncated or no image.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return _upright_rgb(image) if decode else image
    except Image.UnidentifiedImageError:
        reason = "empty file" if _is_empty(path) else "not an image, or of a kind that is not supported"
        raise UnreadableError(reason) from None
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise UnreadableError(str(error) or type(error).__name__) from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    image = _upright(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.mode.startswith("I"):  # convert("RGB") would clip every value over 255
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block is no reason to lose the picture
        return image


def _is_empty(path: Path | BytesIO) -> bool:
    return (len(path.getvalue()) if isinstance(path, BytesIO) else path.stat().st_size) == 0

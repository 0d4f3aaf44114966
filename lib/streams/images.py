"""Tell images from other files, and decode any image to RGB of one size."""

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Images that Pillow reads with a plugin at most: to be named, not to be taken for other files.
UNSUPPORTED = {".heic", ".heif", ".hif", ".jxl", ".svg", ".cr2", ".cr3", ".nef", ".arw", ".dng"}
# The largest values of grey images of more than 8 bits: as fractions, and of 8, 12 and 16 bits.
FRACTIONS, DEPTHS = 1, (255, 4095, 65535)


class UnreadableImage(ValueError):
    """An image that cannot be decoded, with the reason."""


@cache
def _readable() -> set[str]:
    # Not when this is imported: plugins may be registered later.
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def is_image(file: Path) -> bool:
    """Whether a file counts as an image: by its suffix, or where that says nothing, by its first bytes."""
    if file.suffix.lower() in _readable() | UNSUPPORTED:
        return True
    try:
        Image.open(file).close()
    except OSError:
        return False
    except Image.DecompressionBombError:
        pass
    return True


def open_file(file: Path) -> Image.Image:
    """Open an image file. Raises UnreadableImage where it is empty or in no format that Pillow reads."""
    with file.open("rb") as opened:
        start = opened.read(12)
    if not start:
        raise UnreadableImage("the file is empty")
    kind = file.suffix[1:].upper()
    if file.suffix.lower() not in UNSUPPORTED - _readable():
        try:
            return Image.open(file)
        except UnidentifiedImageError:
            kind = "HEIC" if start[4:8] == b"ftyp" else "this"
    raise UnreadableImage(f"{kind} is no format that Pillow reads: convert it to JPEG or PNG")


def decode(open_image: Callable[[], Image.Image], image_size: int) -> np.ndarray:
    """The image that `open_image` opens, as uint8 RGB (image_size, image_size, 3), squashed to a square.

    The first frame of several, turned as its EXIF says, over white where it is transparent. Grey values of
    more than 8 bits are scaled by the smallest usual range that holds them: 0 to 1 for fractions, 8, 12 or 16
    bits. Raises UnreadableImage, also for one of more pixels than Pillow takes for harmless.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = open_image()
            if image.format == "JPEG":
                # A large one is decoded at half its size or less.
                image.draft(None, (2 * image_size, 2 * image_size))
            image = _rgb(image)
        if image.size != (image_size, image_size):
            image = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
        return np.asarray(image)
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # each of Pillow's decoders has its own
        raise UnreadableImage(str(error) or type(error).__name__) from error


def _rgb(image: Image.Image) -> Image.Image:
    is_deep = any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))
    white_is_zero = getattr(image, "tag_v2", {}).get(262) == 0  # which Pillow mends up to 8 bits only
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        grey = Image.fromarray(_eight_bits(np.asarray(image)))
        return (ImageOps.invert(grey) if white_is_zero else grey).convert("RGB")
    # Of 16 bits a channel, Pillow keeps the upper 8.
    if is_deep and 0 < np.asarray(image.convert("RGB")).max() < 16:
        raise UnreadableImage("it uses no more than 12 of its 16 bits: scale its values to 8 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    tops = DEPTHS if values.dtype.kind in "iu" else (FRACTIONS, *DEPTHS)
    top = next((top for top in tops if 0 <= low <= high <= top), None)
    if top is None:  # also where some are not a number
        raise UnreadableImage(
            f"its values go from {low:g} to {high:g}: expected 0 to 1, 255, 4095 or 65535; scale them to 8 bits"
        )
    return (values * (255 / top)).round().astype(np.uint8)

"""Decode any image to RGB of one size."""

import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps


class UnreadableImage(ValueError):
    """An image that cannot be decoded, with the reason."""


def decode(open_image: Callable[[], Image.Image], image_size: int) -> np.ndarray:
    """The image that `open_image` opens, as uint8 RGB (image_size, image_size, 3), squashed to a square.

    The first frame of several, turned as its EXIF says, over white where it is transparent, 16 bits scaled
    down to 8. Raises UnreadableImage, also for one of more pixels than Pillow takes for harmless.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = open_image()
        if image.format == "JPEG":
            # A large one is decoded at half its size or less.
            image.draft(None, (2 * image_size, 2 * image_size))
        image = _rgb(ImageOps.exif_transpose(image))
        if image.size != (image_size, image_size):
            image = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
        return np.asarray(image)
    except Exception as error:  # each of Pillow's decoders has its own
        raise UnreadableImage(str(error)) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float64)
        if image.mode.startswith("I"):
            values = values / 257
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")

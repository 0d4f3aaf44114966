"""Textures: patches of materials, without their colour, brightness or contrast."""

import io
import re
import zipfile

import numpy as np
from PIL import Image

from tools.pocket.common import SIDE, Sample, Sources, Task, drop_near_duplicates, task

PATCHES_PER_TEXTURE = 6


@task("materials")
def materials(sources: Sources, of: Task) -> list[Sample]:
    """Patches of the textures whose file name says what they are made of."""
    package = sources.deb("ufoai-textures") / "usr/share/games/ufoai/base/0textures.pk3"
    textures = []
    with zipfile.ZipFile(package) as archive:
        for name in sorted(archive.namelist()):
            material = _material(name, of)
            if material is not None:
                picture = Image.open(io.BytesIO(archive.read(name)))
                if min(picture.size) >= SIDE and max(picture.size) <= 2 * min(picture.size):
                    textures.append(Sample(picture.convert("RGBA").convert("L"), material, name))
    # Some textures are made of others' parts: a patch that was there already is left out.
    samples: dict[bytes, Sample] = {}
    for texture in drop_near_duplicates(textures):
        for patch in _patches(texture.image):
            samples.setdefault(patch.tobytes(), Sample(patch, texture.label, texture.group))
    return list(samples.values())


def _material(name: str, of: Task) -> int | None:
    """The material that the name says, numbers cut off: the first whose pattern matches."""
    stem = name.rpartition("/")[2].rpartition(".")[0]
    if "_nm" in stem or "_sm" in stem:
        return None
    word = re.sub(r"[\d_]*$", "", re.sub(r"_?\d+[a-z]?$", "", stem))
    for label, pattern in enumerate(of.by_class.values()):
        if re.fullmatch(pattern, word):
            return label
    return None


def _patches(texture: Image.Image) -> list[Image.Image]:
    """Patches of half the shorter side that overlap by half at most, from the corners inwards."""
    side = max(SIDE, min(texture.size) // 2)
    across = np.linspace(0, texture.width - side, 3).round().astype(int)
    down = np.linspace(0, texture.height - side, 2).round().astype(int)
    boxes = {(int(x), int(y), int(x) + side, int(y) + side) for y in down for x in across}
    return [
        _levelled(texture.crop(box).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
        for box in sorted(boxes)[:PATCHES_PER_TEXTURE]
    ]


def _levelled(patch: Image.Image) -> Image.Image:
    """The patch with mean 128 and a standard deviation of 45 grey levels, as far as 0..255 allows."""
    pixels = np.asarray(patch, np.float64)
    pixels = 128 + (pixels - pixels.mean()) * (45 / max(1.0, pixels.std()))
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))

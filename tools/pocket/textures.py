"""Textures: patches of materials, of ground underfoot and of land from above.

All patches of one texture are in one group, and of textures that are likely to be made from one another.
"""

import io
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tools.pocket.common import SIDE, Sample, Sources, Task, drop_near_duplicates, files, task

SMALLEST = 64  # side of a patch
PATCHES_PER_TEXTURE = 6


@task("materials")
def materials(sources: Sources, of: Task) -> list[Sample]:
    """Patches of the textures whose file name says what they are made of, without colour and brightness."""
    package = sources.deb("ufoai-textures") / "usr/share/games/ufoai/base/0textures.pk3"
    return _patches(_named(_zipped(package, "textures/"), _without_number, of), grey=True, level=True)


@task("ground")
def ground(sources: Sources, of: Task) -> list[Sample]:
    """Patches of the colour textures of the terrains of all climates."""
    archive = sources.deb("0ad-data") / "usr/share/games/0ad/mods/public/public.zip"
    return _patches(_named(_zipped(archive, "art/textures/terrain/types/"), _bare, of))


@task("land_cover")
def land_cover(sources: Sources, of: Task) -> list[Sample]:
    """Patches of the scenery's textures of all regions and seasons."""
    root = sources.deb("flightgear-data-base") / "usr/share/games/flightgear/Textures/Terrain"
    return _patches(_named(((path.name, path) for path in files(root, ["*.png"])), _bare, of), level=True)


def _zipped(archive: Path, folder: str) -> Iterator[tuple[str, io.BytesIO]]:
    with zipfile.ZipFile(archive) as opened:
        for name in sorted(opened.namelist()):
            if name.startswith(folder) and not name.endswith(("/", ".xml", ".xmb")):
                yield name.removeprefix(folder), io.BytesIO(opened.read(name))


def _named(found: Iterable[tuple[str, Path | io.BytesIO]], bare, of: Task) -> Iterator[Sample]:
    """The textures that are large enough, each of the first class whose pattern its name fits.

    Their group is the class and the part of the name that rules.group matches.
    """
    for name, file in found:
        fits = (label for label, pattern in enumerate(of.by_class.values()) if re.fullmatch(pattern, bare(name)))
        label = next(fits, None)
        if label is not None and not re.search(of.rules["maps"], name):
            picture = Image.open(file)
            if min(picture.size) >= SMALLEST and max(picture.size) <= 2 * min(picture.size):
                yield Sample(
                    _small(picture.convert("RGBA").convert("RGB")),
                    label,
                    f"{label} {re.match(of.rules['group'], name)[0]}",
                )


def _small(texture: Image.Image) -> Image.Image:
    """The texture at a size whose patches have 160 px, or as it is where they have fewer."""
    scale = 2 * SIDE / min(texture.size)
    size = (round(texture.width * scale), round(texture.height * scale))
    return texture.resize(size, Image.Resampling.LANCZOS) if scale < 1 else texture


def _bare(name: str) -> str:
    """The name without its folder and extensions."""
    return name.rpartition("/")[2].partition(".")[0]


def _without_number(name: str) -> str:
    """The name without its folder, extension, and numbers at its end."""
    return re.sub(r"[\d_]*$", "", re.sub(r"_?\d+[a-z]?$", "", name.rpartition("/")[2].rpartition(".")[0]))


def _patches(textures: Iterable[Sample], grey: bool = False, level: bool = False) -> list[Sample]:
    """Patches of each texture. Some textures are made of others' parts: what was there already is left out."""
    samples: dict[bytes, Sample] = {}
    for texture in drop_near_duplicates(list(textures)):
        for patch in _cut(texture.image.convert("L") if grey else texture.image):
            patch = _levelled(patch) if level else patch
            samples.setdefault(patch.tobytes(), Sample(patch, texture.label, texture.group))
    return list(samples.values())


def _cut(texture: Image.Image) -> list[Image.Image]:
    """Patches of half the shorter side that overlap by half at most, from the corners inwards."""
    side = max(SMALLEST, min(texture.size) // 2)
    across = np.linspace(0, texture.width - side, 3).round().astype(int)
    down = np.linspace(0, texture.height - side, 2).round().astype(int)
    boxes = {(int(x), int(y), int(x) + side, int(y) + side) for y in down for x in across}
    return [texture.crop(box) for box in sorted(boxes)[:PATCHES_PER_TEXTURE]]


def _levelled(patch: Image.Image) -> Image.Image:
    """The patch with a lightness of mean 128 and standard deviation 45, as far as 0..255 allows; hues stay."""
    if patch.mode == "RGB":
        lightness, *hues = patch.convert("YCbCr").split()
        return Image.merge("YCbCr", (_levelled(lightness), *hues)).convert("RGB")
    pixels = np.asarray(patch, np.float64)
    pixels = 128 + (pixels - pixels.mean()) * (45 / max(1.0, pixels.std()))
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))

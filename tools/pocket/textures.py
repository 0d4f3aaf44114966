"""Textures: patches of materials, without their colour, brightness or contrast."""

import io
import re
import zipfile

import numpy as np
from PIL import Image

from tools.pocket.common import SIDE, Sample, Sources, drop_near_duplicates, task

# Material -> pattern for the file's name, numbers cut off. The first that matches decides.
MATERIALS = {
    "brick": r"(wall_)?(stone)?bricks?(_[a-z])?|wall_bricks|trak4_brick|streetbricks",
    "carpet": r"carpet|textil",
    "concrete": r"concrete(_[a-z])?",
    "grass": r"grass(_[a-z])?|grass_(lush|mowed_\w+|tall_\w+)|hedge|jungle",
    "ground": r"dirt(_[a-z]+)?|ground_dirt|desert|sand(_s)?|soil|drymud|rockyground|sp_ground",
    "metal": r"metall?(_[a-z])?|ab_metal|e8_mtlwall\w?|mtl_gray|rust|tin",
    "rock": r"(pj)?rocks?(_w)?",
    "roof": r"roof(_[a-z])?",
    "tiles": r"tiles?(_[a-z])?",
    "wood": r"(s_)?wood(_?[a-z])?|floor_wood|wall_wood|wizwood|woodceiling\w|parquet",
}
PATCHES_PER_TEXTURE = 6


@task(
    name="materials",
    year=2005,
    year_reason="classifying materials over many samples of each began with KTH-TIPS2 in 2005.",
    domain="textures",
    classes=tuple(MATERIALS),
    title="Of which material is this patch of a surface?",
    packages=("ufoai-textures",),
    upstream="UFO: Alien Invasion, textures",
    licence="GPL-2.0-or-later AND CC-BY-3.0 AND CC-BY-SA-3.0",
    attribution="The UFO:AI team and the contributors whom the package's copyright file lists file by file.",
    notes="Square patches of half a texture's side, up to six from each; all patches of one texture are "
    "in one split. Grey, mean and contrast made equal, so that structure alone decides. Mostly "
    "photographs, some painted over.",
)
def materials(sources: Sources) -> list[Sample]:
    """Patches of the textures whose file name says what they are made of."""
    package = sources.deb("ufoai-textures") / "usr/share/games/ufoai/base/0textures.pk3"
    textures = []
    with zipfile.ZipFile(package) as archive:
        for name in sorted(archive.namelist()):
            material = _material(name)
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


def _material(name: str) -> int | None:
    stem = name.rpartition("/")[2].rpartition(".")[0]
    if "_nm" in stem or "_sm" in stem:
        return None
    word = re.sub(r"[\d_]*$", "", re.sub(r"_?\d+[a-z]?$", "", stem))
    for label, pattern in enumerate(MATERIALS.values()):
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

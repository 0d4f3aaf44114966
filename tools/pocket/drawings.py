"""Drawings: clip art with categories and with tags, and emoji with their groups."""

import hashlib
import io
import re
import warnings
from collections.abc import Iterator

from fontTools.ttLib import TTFont
from PIL import Image

from tools.pocket.common import Sample, Sources, drop_near_duplicates, files, fit, task

CLIPART = ("openclipart-png", "openclipart-svg")
CLIPART_UPSTREAM = "the Open Clip Art Library, release 0.18"
CLIPART_LICENCE = "LicenseRef-Public-Domain-Dedication"
CLIPART_ATTRIBUTION = (
    "The contributors of the Open Clip Art Library dedicated their drawings to the public domain "
    "(Creative Commons Public Domain Dedication)."
)

# Class -> folders of the library.
CATEGORIES = {
    "animal": ["animals"],
    "building": ["buildings"],
    "food": ["food"],
    "musical instrument": ["recreation/music"],
    "person": ["people"],
    "plant": ["plants"],
    "sport": ["recreation/sports"],
    "tool": ["tools"],
    "vehicle": ["transportation"],
}

# Tag -> words in the drawing's own list of tags, or names of its folders.
TAGS = {
    "animal": ["animal", "animals", "bird", "birds", "fish"],
    "building": ["building", "buildings"],
    "clothing": ["clothing", "hat"],
    "drink": ["beverage", "beverages", "alcohol"],
    "food": ["food", "dessert", "desserts", "icecream", "candy"],
    "fruit": ["fruit"],
    "holiday": ["holiday", "festive", "christmas", "party"],
    "insect": ["insect", "bugs"],
    "mammal": ["mammal", "mammals"],
    "music": ["music"],
    "office": ["office"],
    "person": ["people", "stickmen", "woman"],
    "plant": ["plant", "plants", "flower", "flowers", "tree", "trees"],
    "sport": ["sports"],
    "tool": ["tool", "tools"],
    "transport": ["transport", "transportation", "vehicle", "vehicles", "boat", "sailing"],
}
# Folders of abstract drawings, whose tags say what they are for and not what they show.
UNTAGGED = ("computer", "shapes", "signs_and_symbols", "special", "unsorted", "geography", "logos")
ABSTRACT = (
    "transportation/roadsigns",
    "transportation/aiga-symbols",
    "transportation/boating",
    "people/smilies",
)
SIGNS = {"roadsign", "sign", "symbol", "mapsym"}
# Folders of things that are not what the folder above says, and that folder's words.
APART = {
    "people/clothing": {"people"},
    "people/bodypart": {"people"},
    "buildings/furniture": {"building", "buildings"},
}
LARGEST = 30_000_000  # pixels; a few posters are larger and take long to read


@task(
    name="clipart",
    year=2004,
    year_reason="the Open Clip Art Library opened in 2004.",
    domain="drawings",
    classes=tuple(CATEGORIES),
    title="What does the clip art show?",
    packages=CLIPART,
    upstream=CLIPART_UPSTREAM,
    licence=CLIPART_LICENCE,
    attribution=CLIPART_ATTRIBUTION,
    notes="In grey, because colour alone tells food and plants from vehicles. On white, cut to the "
    "drawing. One half of the library's drawings; the other half is in clipart_tags.",
)
def clipart(sources: Sources) -> list[Sample]:
    """The first half of the library, by folder; the longest folder name that fits decides."""
    label_of = {folder: label for label, folders in enumerate(CATEGORIES.values()) for folder in folders}
    samples = []
    for name, picture, _ in _drawings(sources, half=0):
        fits = [folder for folder in label_of if name.startswith(f"{folder}/")]
        if fits and not name.startswith(tuple(APART)):
            label = label_of[max(fits, key=len)]
            samples.append(Sample(fit(picture, grey=True), label, _series(name)))
    return drop_near_duplicates(samples)


@task(
    name="clipart_tags",
    year=2006,
    year_reason="PASCAL VOC made several labels an image common, and release 0.18 of the library, "
    "whose tags these are, dates from the same years.",
    domain="drawings",
    kind="multi-label",
    classes=tuple(TAGS),
    title="Which tags did the drawing's author give it?",
    packages=CLIPART,
    upstream=CLIPART_UPSTREAM,
    licence=CLIPART_LICENCE,
    attribution=CLIPART_ATTRIBUTION,
    notes="Labels are the tags in the drawing's metadata, words for the same thing put together, "
    "and the names of its folders; authors leave tags out, so some are missing. On white, cut to "
    "the drawing. The other half of the library is in clipart.",
    sizes=(700, 200, 320),
)
def clipart_tags(sources: Sources) -> list[Sample]:
    """The second half of the library, with every tag that its author or its folder gives."""
    # The library has some drawings twice, under names of different halves.
    elsewhere = {fit(picture, grey=True).tobytes() for _, picture, _ in _drawings(sources, half=0)}
    samples = []
    for name, picture, tags in _drawings(sources, half=1):
        if fit(picture, grey=True).tobytes() in elsewhere:
            continue
        words = set(name.split("/")[:-1]) | tags
        for folder, misleading in APART.items():
            if name.startswith(folder):
                words -= misleading
        label = tuple(i for i, synonyms in enumerate(TAGS.values()) if words & set(synonyms))
        if label:
            samples.append(Sample(fit(picture), label, _series(name)))
    return drop_near_duplicates(samples)


def _drawings(sources: Sources, half: int) -> Iterator[tuple[str, Image.Image, set[str]]]:
    """Name, picture and tags of the concrete drawings in one half of the library.

    Series stay in one half. Signs, and drawings that show a linked file, which is missing, are
    left out.
    """
    pictures = sources.deb("openclipart-png") / "usr/share/openclipart/png"
    texts = sources.deb("openclipart-svg") / "usr/share/openclipart/svg"
    for path in files(pictures, ["*.png"]):
        name = path.relative_to(pictures).as_posix()
        mine = hashlib.sha256(_series(name).encode()).digest()[0] % 2 == half
        if not mine or name.startswith(UNTAGGED + ABSTRACT):
            continue
        text = (texts / name).with_suffix(".svg").read_text("utf-8", "replace")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(path)
        tags = _metadata_tags(text)
        if tags & SIGNS or re.search(r"<(svg:)?image", text):
            continue
        if picture.width * picture.height <= LARGEST:
            yield name, picture, tags


def _series(name: str) -> str:
    """What variants of one drawing share: the folder and the file name's first word."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{re.split(r'[^a-z]', file.lower())[0]}"


def _metadata_tags(text: str) -> set[str]:
    subject = re.search(r"<dc:subject>(.*?)</dc:subject>", text, re.DOTALL)
    tags = re.findall(r"<rdf:li>(.*?)</rdf:li>", subject[1]) if subject else []
    return {tag.strip().lower() for tag in tags}


EMOJI_GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
)


@task(
    name="emoji",
    year=2010,
    year_reason="Unicode 6.0 took emoji in, in 2010.",
    domain="symbols",
    classes=EMOJI_GROUPS,
    title="To which group of the Unicode emoji list does the emoji belong?",
    packages=("fonts-noto-color-emoji", "unicode-data"),
    upstream="Noto Color Emoji; the groups are those of Unicode's emoji-test.txt",
    licence="OFL-1.1",
    attribution="Noto Color Emoji, copyright Google Inc., SIL Open Font License 1.1. emoji-test.txt, "
    "copyright Unicode Inc., Unicode-DFS-2016.",
    notes="In grey, because yellow gives smileys and people away. Emoji of a single code point, so no "
    "skin tones, genders or flags.",
)
def emoji(sources: Sources) -> list[Sample]:
    """The font's own bitmaps, one an emoji."""
    listing = sources.deb("unicode-data") / "usr/share/unicode/emoji/emoji-test.txt"
    folder = sources.deb("fonts-noto-color-emoji") / "usr/share/fonts/truetype/noto"
    font = TTFont(folder / "NotoColorEmoji.ttf")
    glyphs, bitmaps = font.getBestCmap(), font["CBDT"].strikeData[0]
    samples, group = [], ""
    for line in listing.read_text("utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        found = re.match(r"([0-9A-F]+)(?: FE0F)? +; fully-qualified", line)
        if found and group in EMOJI_GROUPS:
            glyph = glyphs.get(int(found[1], 16))
            if glyph in bitmaps:
                picture = Image.open(io.BytesIO(bitmaps[glyph].imageData))
                samples.append(Sample(fit(picture, grey=True), EMOJI_GROUPS.index(group), found[1]))
    return drop_near_duplicates(samples, threshold=0.04)

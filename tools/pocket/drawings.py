"""Drawings: clip art with categories and with tags, and emoji with their groups."""

import hashlib
import io
import re
import warnings
from collections.abc import Iterator

from fontTools.ttLib import TTFont
from PIL import Image

from tools.pocket.common import CARDS, Sample, Sources, Task, drop_near_duplicates, files, fit, task

RULES = CARDS["clipart"]["rules"]
LARGEST = 30_000_000  # pixels; a few posters are larger and take long to read


@task("clipart")
def clipart(sources: Sources, of: Task) -> list[Sample]:
    """The first half of the library, by folder; the longest folder name that fits decides."""
    label_of = of.label_of
    samples = []
    for name, picture, _ in _drawings(sources, half=0):
        fits = [folder for folder in label_of if name.startswith(f"{folder}/")]
        if fits and not name.startswith(tuple(RULES["apart"])):
            label = label_of[max(fits, key=len)]
            samples.append(Sample(fit(picture, grey=True), label, _series(name)))
    return drop_near_duplicates(samples)


@task("clipart_tags")
def clipart_tags(sources: Sources, of: Task) -> list[Sample]:
    """The second half of the library, with every tag that its author or its folder gives."""
    # The library has some drawings twice, under names of different halves.
    elsewhere = {fit(picture, grey=True).tobytes() for _, picture, _ in _drawings(sources, half=0)}
    samples = []
    for name, picture, tags in _drawings(sources, half=1):
        if fit(picture, grey=True).tobytes() in elsewhere:
            continue
        words = set(name.split("/")[:-1]) | tags
        for folder, misleading in RULES["apart"].items():
            if name.startswith(folder):
                words -= set(misleading)
        label = tuple(i for i, synonyms in enumerate(of.by_class.values()) if words & set(synonyms))
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
        if not mine or name.startswith(tuple(RULES["abstract"])):
            continue
        text = (texts / name).with_suffix(".svg").read_text("utf-8", "replace")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(path)
        tags = _metadata_tags(text)
        if tags & set(RULES["signs"]) or re.search(r"<(svg:)?image", text):
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


@task("emoji")
def emoji(sources: Sources, of: Task) -> list[Sample]:
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
        if found and group in of.classes:
            glyph = glyphs.get(int(found[1], 16))
            if glyph in bitmaps:
                picture = Image.open(io.BytesIO(bitmaps[glyph].imageData))
                samples.append(Sample(fit(picture, grey=True), of.classes.index(group), found[1]))
    return drop_near_duplicates(samples, threshold=0.04)

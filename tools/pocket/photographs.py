"""Photographs: things cut out of their background, landscapes, and what telescopes see."""

import re
import sqlite3
from contextlib import closing

from PIL import Image

from tools.pocket.common import Sample, Sources, Task, drop_near_duplicates, files, fit, shrunk, task

# Folders, or parts of their names, whose stamps are drawn.
DRAWN = re.compile(r"cartoon|toys|plastic|mushrooms/|clothes/(?!hats)")


@task("stamps")
def stamps(sources: Sources, of: Task) -> list[Sample]:
    """The stamps that are bitmaps, by folder; the longest folder name that fits decides."""
    root = sources.deb("tuxpaint-stamps-default") / "usr/share/tuxpaint/stamps"
    label_of = of.label_of
    samples = []
    for path in files(root, ["*.png"]):
        name = path.relative_to(root).as_posix()
        fits = [folder for folder in label_of if name.startswith(folder)]
        if fits and not DRAWN.search(name):
            kind = re.split(r"[_\-\d.]", path.stem.lower())[0]
            picture = fit(Image.open(path), grey=True)
            samples.append(Sample(picture, label_of[max(fits, key=len)], f"{path.parent.name} {kind}"))
    return drop_near_duplicates(samples)


@task("scenes")
def scenes(sources: Sources, of: Task) -> list[Sample]:
    """The left and the right half of each photograph; its name without the number says what it shows."""
    folder = sources.deb("endless-sky-data") / "usr/share/games/endless-sky/images/land"
    label_of = of.label_of
    samples = []
    for path in files(folder, ["*.jpg"]):
        label = label_of.get(re.split(r"[^a-z]", path.name)[0])
        if label is not None:
            picture = Image.open(path).convert("RGB")
            side = min(picture.height, picture.width // 2)
            for left in (0, picture.width - side):
                half = shrunk(picture.crop((left, 0, left + side, side)))
                samples.append(Sample(half, label, path.stem))
    return drop_near_duplicates(samples)


@task("deep_sky")
def deep_sky(sources: Sources, of: Task) -> list[Sample]:
    """The pictures whose credit names a free source, by what the New General Catalogue says of the object."""
    folder = sources.deb("stellarium-data") / "usr/share/stellarium/nebulae/default"
    kinds = _catalogue(sources)
    samples = []
    for entry in re.split(r'"imageCredits"', (folder / "textures.json").read_text("utf-8"))[1:]:
        credit = entry[: entry.index("}")]
        name = re.findall(r'"imageUrl"\s*:\s*"([^"]*)"', entry[len(credit) :])[0]
        letters, number = re.match(r"([a-z]*)(\d*)", name.lower()).groups()
        kind = kinds.get(f"{of.rules['catalogues'].get(letters)} {number}")
        free = any(source in credit for source in of.rules["free"])
        if kind in of.classes and free and not any(other in credit for other in of.rules["not_free"]):
            picture = _on_black(Image.open(folder / name))
            samples.append(Sample(shrunk(picture), of.classes.index(kind), f"{letters}{number}"))
    return drop_near_duplicates(samples, threshold=0.02)


def _catalogue(sources: Sources) -> dict[str, str]:
    """What each object of OpenNGC is, under each of its names; galaxies by how much they are tilted."""
    file = sources.deb("kstars-data") / "usr/share/kstars/OpenNGC.kscat"
    kinds = {3: "open cluster", 4: "globular cluster", 5: "diffuse nebula", 6: "planetary nebula", 8: "galaxy"}
    found: dict[str, str] = {}
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as catalogue:
        rows = catalogue.execute("select type, name, long_name, major_axis, minor_axis from cat order by oid")
        for number, name, others, major, minor in rows:
            kind = kinds.get(number)
            if kind == "galaxy":
                kind = "tilted galaxy" if minor and minor < 0.5 * major else "round galaxy" if minor else None
            for alias in (name, *others.split(", ")):
                if kind:
                    found.setdefault(alias, kind)
    return found


def _on_black(picture: Image.Image) -> Image.Image:
    canvas = Image.new("RGBA", picture.size, "black")
    canvas.alpha_composite(picture.convert("RGBA"))
    return canvas.convert("RGB")

"""Photographs: things cut out of their background."""

import re

from PIL import Image

from tools.pocket.common import Sample, Sources, drop_near_duplicates, files, fit, task

# What the stamp shows -> folders of the collection.
STAMPS = {
    "bird": ["animals/birds"],
    "food": ["food"],
    "mammal": ["animals/mammals", "animals/marsupials"],
    "other animal": ["animals"],
    "plant": ["plants"],
    "thing": ["clothes", "hobbies", "household", "medical", "sports"],
    "vehicle": ["vehicles", "military/vehicles", "space/apollo", "space/voyager"],
}
# Folders, or parts of their names, whose stamps are drawn.
DRAWN = re.compile(r"cartoon|toys|plastic|mushrooms/|clothes/(?!hats)")


@task(
    name="stamps",
    year=2002,
    year_reason="Tux Paint, whose stamps these are, is of 2002.",
    domain="photographs",
    classes=tuple(STAMPS),
    title="What kind of thing is in the photograph?",
    packages=("tuxpaint-stamps-default",),
    upstream="Tux Paint stamps",
    licence="GPL-2.0-or-later",
    attribution="Bill Kendrick and the contributors of Tux Paint's stamps, many of them photographs "
    "that were given to the collection or are in the public domain.",
    notes="In grey, because food and plants have colours of their own. On white, cut to the "
    "object; folders of cartoons are left out, a few drawings remain. A small task: the collection "
    "has no more.",
    sizes=(220, 40, 90),
)
def stamps(sources: Sources) -> list[Sample]:
    """The stamps that are bitmaps, by folder; the longest folder name that fits decides."""
    root = sources.deb("tuxpaint-stamps-default") / "usr/share/tuxpaint/stamps"
    label_of = {folder: label for label, folders in enumerate(STAMPS.values()) for folder in folders}
    samples = []
    for path in files(root, ["*.png"]):
        name = path.relative_to(root).as_posix()
        fits = [folder for folder in label_of if name.startswith(folder)]
        if fits and not DRAWN.search(name):
            kind = re.split(r"[_\-\d.]", path.stem.lower())[0]
            picture = fit(Image.open(path), grey=True)
            samples.append(Sample(picture, label_of[max(fits, key=len)], f"{path.parent.name} {kind}"))
    return drop_near_duplicates(samples)

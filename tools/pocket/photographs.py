"""Photographs: things cut out of their background."""

import re

from PIL import Image

from tools.pocket.common import Sample, Sources, Task, drop_near_duplicates, files, fit, task

# Folders, or parts of their names, whose stamps are drawn.
DRAWN = re.compile(r"cartoon|toys|plastic|mushrooms/|clothes/(?!hats)")


@task("stamps")
def stamps(sources: Sources, of: Task) -> list[Sample]:
    """The stamps that are bitmaps, by folder; the longest folder name that fits decides."""
    root = sources.deb("tuxpaint-stamps-default") / "usr/share/tuxpaint/stamps"
    label_of = {folder: label for label, folders in enumerate(of.by_class.values()) for folder in folders}
    samples = []
    for path in files(root, ["*.png"]):
        name = path.relative_to(root).as_posix()
        fits = [folder for folder in label_of if name.startswith(folder)]
        if fits and not DRAWN.search(name):
            kind = re.split(r"[_\-\d.]", path.stem.lower())[0]
            picture = fit(Image.open(path), grey=True)
            samples.append(Sample(picture, label_of[max(fits, key=len)], f"{path.parent.name} {kind}"))
    return drop_near_duplicates(samples)

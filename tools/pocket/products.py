"""Products: clothes from a shop's catalogue, furniture from a catalogue of room models."""

import gzip
import io
import re
import zipfile

import numpy as np
from PIL import Image

from tools.pocket.common import Sample, Sources, drop_near_duplicates, files, fit, task

FASHION_PER_CLASS = 140
ROOMS = (
    "Bathroom",
    "Bedroom",
    "Characters",
    "Doors and windows",
    "Exterior",
    "Kitchen",
    "Lights",
    "Living room",
    "Office",
    "Vehicles",
)


@task(
    name="fashion_mnist",
    year=2017,
    year_reason="Xiao, Rasul and Vollgraf, Fashion-MNIST, 2017.",
    domain="products",
    classes=(
        "t-shirt",
        "trousers",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
    title="Which kind of garment does the shop's picture show?",
    packages=("dataset-fashion-mnist",),
    upstream="Zalando Research's Fashion-MNIST, its training file",
    licence="MIT",
    attribution="Copyright 2017 Zalando SE.",
    notes="Grey, stored at the native 28 x 28; the first 140 images of each class.",
)
def fashion_mnist(sources: Sources) -> list[Sample]:
    """The head of the training file, class by class."""
    folder = sources.deb("dataset-fashion-mnist") / "usr/share/datasets/fashion-mnist"
    images = _idx(folder / "train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    labels = _idx(folder / "train-labels-idx1-ubyte.gz", 8)
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:FASHION_PER_CLASS] for c in range(10)]))
    return [Sample(Image.fromarray(images[i]), int(labels[i]), f"{i:05d}") for i in chosen]


def _idx(path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


@task(
    name="furniture",
    year=2008,
    year_reason="the first of these catalogues appeared for Sweet Home 3D in 2008.",
    domain="products",
    classes=ROOMS,
    title="In which part of the catalogue is this piece found?",
    packages=("sweethome3d-furniture",),
    upstream="the furniture libraries for Sweet Home 3D",
    licence="CC-BY-3.0 AND CC-BY-3.0-US AND CC0-1.0",
    attribution="Models by Scopia, Andrew Kator and Jennifer Legaz, Reallusion, the BlendSwap "
    "contributors, and Emmanuel Puybaret / eTeks.",
    notes="Rendered pictures of models, on white, cut to the object. The catalogue's sections are "
    "the classes, all but Miscellaneous and Staircases; a lamp or a chair may stand in several.",
    sizes=(500, 130, 230),
)
def furniture(sources: Sources) -> list[Sample]:
    """The catalogue pictures of every library; colour variants of one model are dropped."""
    folder = sources.deb("sweethome3d-furniture") / "usr/share/sweethome3d/furniture"
    samples = []
    for library in files(folder, ["*.sh3f"]):
        with zipfile.ZipFile(library) as archive:
            text = archive.read("PluginFurnitureCatalog.properties").decode("latin-1")
            entries: dict[str, dict[str, str]] = {}
            for key, number, value in re.findall(r"^(\w+)#(\d+)=(.*)$", text, re.MULTILINE):
                entries.setdefault(number, {})[key] = value.strip()
            for entry in entries.values():
                if entry.get("category") in ROOMS and entry["icon"].lstrip("/") in archive.namelist():
                    picture = Image.open(io.BytesIO(archive.read(entry["icon"].lstrip("/"))))
                    model = re.sub(r"\W*\d+$", "", entry["name"].lower())
                    samples.append(
                        Sample(fit(picture), ROOMS.index(entry["category"]), f"{library.stem} {model}")
                    )
    return drop_near_duplicates(samples)

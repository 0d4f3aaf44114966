"""Products: clothes from a shop's catalogue, furniture from a catalogue of room models."""

import gzip
import io
import re
import zipfile

import numpy as np
from PIL import Image

from tools.pocket.common import Sample, Sources, Task, drop_near_duplicates, files, fit, task

FASHION_PER_CLASS = 140


@task("fashion_mnist")
def fashion_mnist(sources: Sources, of: Task) -> list[Sample]:
    """The head of the training file, class by class."""
    folder = sources.deb("dataset-fashion-mnist") / "usr/share/datasets/fashion-mnist"
    images = _idx(folder / "train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    labels = _idx(folder / "train-labels-idx1-ubyte.gz", 8)
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:FASHION_PER_CLASS] for c in range(10)]))
    return [Sample(Image.fromarray(images[i]), int(labels[i]), f"{i:05d}") for i in chosen]


def _idx(path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


@task("furniture")
def furniture(sources: Sources, of: Task) -> list[Sample]:
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
                if entry.get("category") in of.classes and entry["icon"].lstrip("/") in archive.namelist():
                    picture = Image.open(io.BytesIO(archive.read(entry["icon"].lstrip("/"))))
                    model = re.sub(r"\W*\d+$", "", entry["name"].lower())
                    samples.append(Sample(fit(picture), of.classes.index(entry["category"]), f"{library.stem} {model}"))
    return drop_near_duplicates(samples)

"""Build the shipped calibration images: photographs without labels out of Debian's packages.

    python -m tools.pocket.calibration --out lib/streams/calibration [--cache DIR]

Who took each photograph and under which licence is read from the package's copyright file.
"""

import argparse
import hashlib
import io
import re
import struct
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lib.common.errors import UserError
from lib.common.files import atomic_path
from lib.streams import load_stream
from tools.pocket.common import Sample, Sources, files, generator, thumbnails

COUNT, SIDE, QUALITY = 512, 160, 90
ALIKE = 0.07  # root mean square difference of two thumbnails, 0..1

# Package -> where its photographs lie (a Qt resource file ends in .rcc), and which of them: all whose
# path below that folder the pattern matches. Drawings, paintings and abstract patterns are left out.
PHOTOGRAPHS = {
    "gcompris-qt-data": {
        "usr/share/gcompris-qt/rcc/explore_monuments.rcc": r".*",
        "usr/share/gcompris-qt/rcc/explore_farm_animals.rcc": r".*",
        "usr/share/gcompris-qt/rcc/explore_world_animals.rcc": r".*",
        "usr/share/gcompris-qt/rcc/explore_world_music.rcc": r".*",
        "usr/share/gcompris-qt/rcc/categorization.rcc": r".*/images/(?!alphabets|numbers)\w+/.*",
        "usr/share/gcompris-qt/rcc/details.rcc": r".*/(?!Gogh|Van|Vincent|Portrait|Eglise)[^/]*_background.*",
        "usr/share/gcompris-qt/rcc/erase.rcc": r".*",
        "usr/share/gcompris-qt/rcc/clickgame.rcc": r".*/sea\d.*",
    },
    "scratch": {
        "usr/share/scratch/Media/Backgrounds": r"(?!.*(woods-and-bench|moon|school2|mural|graffiti|atom|room2"
        r"|spotlight|party|bedroom)).*\.jpg|Nature/flowers\.gif"
    },
    "tuxpaint-data": {"usr/share/tuxpaint/templates": r".*\.jpg"},
    "lomiri-wallpapers-16.04": {"usr/share/backgrounds": r"(?!analog|Picture_0B|umang).*\.jpg"},
    "lomiri-wallpapers-20.04": {"usr/share/backgrounds": r"Kleiber.*"},
    "mate-backgrounds": {"usr/share/backgrounds/mate/nature": r"(?!Blinds).*\.jpg"},
    "palapeli-data": {"usr/share/palapeli/collection": r".*\.jpg"},
    "plasma-workspace-wallpapers": {
        "usr/share/wallpapers": r"(Autumn|BytheWater|ColorfulCups|DarkestHour|EveningGlow|FallenLeaf|Grey"
        r"|Kite|OneStandsOut|Path|summer_1am)/contents/images/2560x1600\.jpg"
    },
}


@dataclass(frozen=True)
class Rights:
    """What a paragraph of a copyright file says of the files that fit its patterns."""

    patterns: tuple[str, ...]
    author: str
    licence: str
    page: str  # where the photograph was published, if that is said


@dataclass(frozen=True)
class Photograph:
    """One photograph of a package, and what is known of its rights."""

    image: Image.Image
    source: str
    rights: Rights


def photographs(sources: Sources) -> list[Photograph]:
    """Every photograph of PHOTOGRAPHS in the order of its packages and names."""
    found = []
    for package, places in PHOTOGRAPHS.items():
        root = sources.deb(package)
        whole = _paragraphs((root / "usr/share/doc" / package / "copyright").read_text("utf-8"))
        for place, pattern in places.items():
            contents = dict(_contents(root / place))
            # GCompris tells the rights of each picture in a README beside it, newer than Debian's file.
            notes = {
                name.removesuffix("README"): _paragraphs(content.decode())
                for name, content in contents.items()
                if name.endswith("README")
            }
            for name, content in contents.items():
                if re.fullmatch(pattern, name) and name.endswith((".jpg", ".gif", ".webp")):
                    nearest = max((folder for folder in notes if name.startswith(folder)), key=len, default="")
                    rights = _rights(f"{place}/{name}", whole + notes.get(nearest, []))
                    image = Image.open(io.BytesIO(content))
                    image.draft("RGB", (1024, 1024))
                    source = f"{package} {sources.versions[package]}: {name}"
                    found.append(Photograph(image.convert("RGB"), source, rights))
    return found


def _contents(place: Path) -> Iterator[tuple[str, bytes]]:
    if place.suffix == ".rcc":
        yield from sorted(_qt_resources(place.read_bytes()))
    else:
        for file in files(place, ["*"]):
            yield file.relative_to(place).as_posix(), file.read_bytes()


def _qt_resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a compiled Qt resource file (QResource's format, version 2 and later)."""
    magic, version, tree, contents, names = struct.unpack_from(">4sIIII", data)
    if magic != b"qres" or version < 2:
        raise UserError(f"Not a Qt resource file of version 2 or later: it begins with {data[:8]!r}.")

    def name_at(offset: int) -> str:
        (length,) = struct.unpack_from(">H", data, names + offset)
        return data[names + offset + 6 : names + offset + 6 + 2 * length].decode("utf-16-be")

    def walk(node: int, folder: str) -> Iterator[tuple[str, bytes]]:
        at = tree + 22 * node
        name, flags = struct.unpack_from(">IH", data, at)
        path = f"{folder}{name_at(name)}" if node else ""
        if flags & 2:
            count, first = struct.unpack_from(">II", data, at + 6)
            for child in range(first, first + count):
                yield from walk(child, f"{path}/" if path else "")
        elif not flags & 4:  # zstandard is used for text only
            (start,) = struct.unpack_from(">I", data, at + 10)
            (length,) = struct.unpack_from(">I", data, contents + start)
            content = data[contents + start + 4 : contents + start + 4 + length]
            yield path, zlib.decompress(content[4:]) if flags & 1 else content

    return walk(0, "")


def _paragraphs(text: str) -> list[Rights]:
    """The Files paragraphs of a copyright file (DEP-5), or of a README that is written like one."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text):
        fields = {}
        for key, value in re.findall(r"^(\w+):(.*(?:\n(?!\w+:).*)*)", paragraph, re.MULTILINE):
            fields[key] = [line.strip() for line in value.strip().splitlines()]
        if {"Files", "Copyright", "License"} <= fields.keys():
            licence = fields["License"][0]
            for spelling, usual in (
                (r"(?i)public.domain", "public-domain"),
                (r"GPLv", "GPL-"),
                (r"^(CC[\w-]+) ", r"\1-"),
            ):
                licence = re.sub(spelling, usual, licence)
            page = re.search(r"https?://\S+", " ".join(fields.get("Source", []) + fields.get("Comment", [])))
            patterns = tuple(" ".join(fields["Files"]).split())
            paragraphs.append(Rights(patterns, ", ".join(fields["Copyright"]), licence, page[0] if page else ""))
    return paragraphs


def _rights(path: str, paragraphs: list[Rights]) -> Rights:
    """The last paragraph that fits the file's path upstream.

    A package installs files below other folders and converted to other formats than upstream has them, so
    any end of the path may fit, or the name alone, and its extension does not count.
    """
    parts = path.split("/")
    ends = ["/".join(parts[start:]).rpartition(".")[0] for start in range(len(parts))]
    for rights in reversed(paragraphs):
        for pattern in rights.patterns:
            stem = re.sub(r"\.(jpe?g|png|gif|webp)$", "", pattern)
            fits = any(fnmatch(end, stem) for end in ends) or stem.rpartition("/")[2] == ends[-1]
            if fits and not stem.startswith("debian/"):
                return rights
    raise UserError(f"No paragraph of the copyright file fits {path}: leave it out.")


def squares(found: list[Photograph]) -> list[tuple[Photograph, Image.Image]]:
    """COUNT squares: the middle of each photograph, of the largest ones the left and the right half."""
    halves = {id(p): min(p.image.height, p.image.width // 2) for p in found}
    largest = sorted(found, key=lambda p: -halves[id(p)])[: COUNT - len(found)]
    if len(found) > COUNT or any(halves[id(p)] < SIDE for p in largest):
        raise UserError(f"{len(found)} photographs give no {COUNT} squares of {SIDE} px: change PHOTOGRAPHS.")
    two = {id(p) for p in largest}
    cut = []
    for photograph in found:
        width, height = photograph.image.size
        side = halves[id(photograph)] if id(photograph) in two else min(width, height)
        top, middle = (height - side) // 2, (width - side) // 2
        for left in (0, width - side) if id(photograph) in two else (middle,):
            square = photograph.image.crop((left, top, left + side, top + side))
            cut.append((photograph, square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)))
    generator("calibration").shuffle(cut)
    return cut


def _webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=6)
    return buffer.getvalue()


def _tiny(images: list[Image.Image]) -> np.ndarray:
    return thumbnails([Sample(image, 0, "") for image in images])


def drop_seen(found: list[Photograph]) -> list[Photograph]:
    """Without those that look like one before them or like an image of a pocket task, mirrored or not."""
    tasks = load_stream("pocket").tasks
    pocket = [
        Image.fromarray(image)
        for task in tasks
        for split in (task.read(64).train, task.read(64).dev, task.read(64).test)
        for image in split.images.numpy()
    ]
    seen = list(_tiny(pocket))
    kept = []
    for photograph, tiny in zip(found, _tiny([p.image for p in found]), strict=True):
        mirrored = tiny.reshape(16, 16)[:, ::-1].reshape(-1)
        others = np.stack(seen)
        distance = np.minimum(((others - tiny) ** 2).mean(1), ((others - mirrored) ** 2).mean(1)).min()
        if distance**0.5 > min(ALIKE, tiny.std() / 3):
            kept.append(photograph)
            seen.append(tiny)
    return kept


def build(out: Path, cache: Path) -> None:
    """Write images.parquet, README.md and contact.png."""
    found = photographs(Sources(cache))
    kept = drop_seen(found)
    cut = squares(kept)
    table = pa.table(
        {
            "image": pa.array([_webp(square) for _, square in cut], pa.binary()),
            "source": [photograph.source for photograph, _ in cut],
            "page": [photograph.rights.page for photograph, _ in cut],
            "author": [photograph.rights.author for photograph, _ in cut],
            "licence": [photograph.rights.licence for photograph, _ in cut],
        }
    )
    with atomic_path(out / "images.parquet") as temporary:
        pq.write_table(table, temporary, compression="zstd")
    sheet = Image.new("RGB", (32 * 48, COUNT // 32 * 48))
    for place, (_, square) in enumerate(cut):
        sheet.paste(square.resize((48, 48), Image.Resampling.BOX), (place % 32 * 48, place // 32 * 48))
    with atomic_path(out / "contact.webp") as temporary:
        sheet.save(temporary, "WEBP", quality=60, method=6)
    _write_readme(cut, len(kept), out)
    print(f"{len(found)} photographs, {len(kept)} kept, {len(cut)} squares")


def _write_readme(cut: list[tuple[Photograph, Image.Image]], kept: int, out: Path) -> None:
    digest = hashlib.sha256((out / "images.parquet").read_bytes()).hexdigest()
    packages = Counter(photograph.source.partition(": ")[0] for photograph, _ in cut)
    licences = Counter(photograph.rights.licence for photograph, _ in cut)
    lines = [
        "# The shipped calibration images",
        "",
        f"{COUNT} photographs at {SIDE} px without labels (WebP, quality {QUALITY}), which a repair may look "
        "at once, before any task. Written by `python -m tools.pocket.calibration`; do not edit.",
        "",
        f"They are the middle squares of {kept} photographs; of the {COUNT - kept} largest the left and the "
        "right half instead. None is in a task of the pocket stream, nor looks like one that is: their "
        f"16 x 16 thumbnails differ by more than {ALIKE} of the range in root mean square, mirrored or not.",
        "",
        "![contact sheet](contact.webp)",
        "",
        "`images.parquet` names the file, the page it came from, the author and the licence of each, as the "
        "package's copyright file or the README beside the picture tells them.",
        "",
        f"sha256 of images.parquet: `{digest}`",
        "",
        "| Debian package | images |",
        "| --- | --- |",
        *(f"| {package} | {count} |" for package, count in packages.most_common()),
        "",
        "| licence | images |",
        "| --- | --- |",
        *(f"| {licence} | {count} |" for licence, count in licences.most_common()),
    ]
    with atomic_path(out / "README.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 when the images were built, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m tools.pocket.calibration", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder that gets the images")
    parser.add_argument("--cache", type=Path, help="folder that keeps downloads between runs")
    options = parser.parse_args(arguments)
    folder = nullcontext(options.cache) if options.cache else tempfile.TemporaryDirectory()
    try:
        with folder as cache:
            build(options.out, Path(cache))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

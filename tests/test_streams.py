"""Streams: the data is what the cards say, parts do not share images, damage is reported."""

import hashlib
import io
import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lib.common.errors import UserError
from lib.streams import Stream, TaskData, list_tasks, load_stream, shipped
from lib.streams.shipped import POCKET

COLUMNS = ["name", "year", "domain", "kind", "num_classes", "available", "how"]
CARDS = {card["name"]: card for card in json.loads((POCKET / "cards.json").read_text())}
NAMES = list(CARDS)
NATURAL = {"aerial", "astronomy", "photographs", "textures"}
TASKS = [
    (stream, task.name)
    for stream in ["pocket"]
    for task in load_stream(stream).tasks
    if list_tasks(stream).set_index("name").loc[task.name, "available"]
]


@cache
def read(stream: str, name: str) -> TaskData:
    return next(task for task in load_stream(stream).tasks if task.name == name).read(64)


def parts(data: TaskData):
    return {"train": data.train, "dev": data.dev, "test": data.test}.items()


def digests(images: torch.Tensor) -> list[bytes]:
    return [hashlib.sha256(image.numpy().tobytes()).digest() for image in images]


@pytest.mark.parametrize("stream", ["pocket"])
def test_list_of_tasks_has_the_promised_columns(stream):
    table = list_tasks(stream)
    assert list(table.columns) == COLUMNS
    assert table["available"].dtype == bool and table["how"].str.len().min() > 0
    assert set(table["kind"]) <= {"classification", "multi-label"}
    assert table["name"].tolist() == [task.name for task in load_stream(stream).tasks]
    for task, row in zip(load_stream(stream).tasks, table.itertuples(), strict=True):
        described = (task.year, task.domain, task.kind, task.num_classes)
        assert described == (row.year, row.domain, row.kind, row.num_classes)


def test_pocket_stream_is_ordered_varied_and_all_there():
    table = list_tasks("pocket")
    assert table["available"].all() and table["name"].is_unique
    assert table["year"].is_monotonic_increasing and table["year"].between(1980, 2030).all()
    assert len(table) >= 5 and table["domain"].nunique() >= 3
    assert {"mnist", "letters", "scripts", "fashion_mnist"} <= set(table["name"])


@pytest.mark.parametrize(("stream", "name"), TASKS)
def test_images_and_labels_have_the_promised_form(stream, name):
    task = next(task for task in load_stream(stream).tasks if task.name == name)
    for _, part in parts(read(stream, name)):
        assert part.images.dtype == torch.uint8 and part.images.shape == (len(part), 64, 64, 3)
        assert len(part.labels) == len(part) > 0
        if task.kind == "classification":
            assert part.labels.dtype == torch.int64 and part.labels.ndim == 1
            assert part.labels.min() >= 0 and part.labels.max() < task.num_classes
        else:
            assert part.labels.is_floating_point() and part.labels.shape == (len(part), task.num_classes)
            assert set(part.labels.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(("stream", "name"), TASKS)
def test_training_part_has_every_class(stream, name):
    labels = read(stream, name).train.labels
    classes = next(task for task in load_stream(stream).tasks if task.name == name).num_classes
    seen = labels.unique().tolist() if labels.ndim == 1 else labels.any(0).nonzero().flatten().tolist()
    assert seen == list(range(classes))


@pytest.mark.parametrize(("stream", "name"), TASKS)
def test_no_image_is_in_two_parts(stream, name):
    data = read(stream, name)
    train, dev, test = (set(digests(part.images)) for _, part in parts(data))
    assert not train & dev and not train & test and not dev & test


@pytest.mark.parametrize(("stream", "name"), TASKS)
def test_images_are_pictures_and_not_blank(stream, name):
    images = read(stream, name).train.images.float()
    assert images.flatten(1).std(1).min() > 2
    assert images.mean(0).std() > 0.5


@pytest.mark.parametrize(("stream", "name"), TASKS)
def test_first_images_stand_for_all(stream, name):
    """A cap keeps the first images, so their order has to be mixed: no class may fill the first fifth."""
    labels = read(stream, name).train.labels
    fifth = labels[: len(labels) // 5]
    if labels.ndim == 1:
        assert len(fifth.unique()) > 0.5 * len(labels.unique())
    else:
        assert (fifth.mean(0) - labels.mean(0)).abs().max() < 0.25


def test_tasks_do_not_share_images():
    owner: dict[bytes, str] = {}
    for name in NAMES:
        for _, part in parts(read("pocket", name)):
            for digest in digests(part.images):
                assert owner.setdefault(digest, name) == name


@pytest.mark.parametrize("name", NAMES)
def test_card_tells_the_truth(name):
    card, data = CARDS[name], read("pocket", name)
    assert card["counts"] == {label: len(part) for label, part in parts(data)}
    assert len(card["classes"]) == card["num_classes"] == len(set(card["classes"]))
    assert card["sha256"] == hashlib.sha256((POCKET / f"{name}.parquet").read_bytes()).hexdigest()
    if card["kind"] == "classification":
        test = data.test.labels.numpy()
        assert card["majority"] == pytest.approx(np.bincount(test).max() / len(test), abs=0.005)


@pytest.mark.parametrize("name", NAMES)
def test_card_gives_licence_origin_and_baselines(name):
    card = CARDS[name]
    for field in ("licence", "origin", "attribution", "title"):
        assert len(card[field].strip()) >= 3
    assert card["majority"] <= card["linear_pixels"] + 0.1 <= 1.1
    assert card["linear_colour"] < 0.9  # colour alone does not decide the task


def test_repository_stays_small():
    sizes = [file.stat().st_size for file in POCKET.rglob("*") if file.is_file()]
    assert sum(sizes) <= 40_000_000


@pytest.mark.parametrize("name", NAMES)
def test_images_keep_their_resolution_up_to_160_px(name):
    """Stored as the card says: square, no larger, and without loss where the card does not name a quality."""
    card, rows = CARDS[name], pd.read_parquet(POCKET / f"{name}.parquet")
    sides = {Image.open(io.BytesIO(image)).size for image in rows["image"]}
    assert all(width == height for width, height in sides)
    assert card["sides"] == [min(sides)[0], max(sides)[0]] and card["sides"][1] <= 160
    assert card["sides"] == [28, 28] if name in ("mnist", "fashion_mnist") else card["sides"][1] > 100
    lossless = {b"VP8L" in image[:16] for image in rows["image"]}
    assert lossless == {card["encoding"] == "lossless WebP"}
    assert card["bytes"] == (POCKET / f"{name}.parquet").stat().st_size


def test_at_least_four_tasks_are_natural_images_in_colour():
    """Their pixels are far from grey, and neither colours nor a linear model of the pixels decide them."""
    natural = [card for card in CARDS.values() if card["domain"] in NATURAL]
    coloured = []
    for card in natural:
        images = read("pocket", card["name"]).train.images.float()
        if (images.amax(-1) - images.amin(-1)).mean() > 4:
            coloured.append(card)
    assert len(coloured) >= 4
    for card in coloured:
        assert card["kind"] == "classification" and card["num_classes"] >= 5
        assert sum(card["counts"].values()) >= 250
        assert max(card["linear_colour"], card["linear_pixels"]) < 0.6


def test_every_file_belongs_to_a_card():
    assert {file.stem for file in POCKET.glob("[!.]*.parquet")} == set(CARDS)


def test_images_are_resized_on_request():
    task = load_stream("pocket").tasks[0]
    large, small = task.read(96).dev.images, task.read(64).dev.images
    assert large.shape[1:] == (96, 96, 3)
    shrunk = torch.nn.functional.interpolate(large.permute(0, 3, 1, 2).float(), 64, mode="area")
    assert (shrunk - small.permute(0, 3, 1, 2)).abs().mean() < 12


def test_content_is_stable_and_sees_data_and_order():
    stream = load_stream("pocket")
    assert load_stream("pocket").content == stream.content
    first, *others = stream.tasks
    changed = [
        Stream("pocket", tuple(others)),
        Stream("pocket", (*others, first)),
        Stream("pocket", (replace(first, content="0" * 64), *others)),
        Stream("pocket", (replace(first, name="other"), *others)),
    ]
    assert len({stream.content, *(other.content for other in changed)}) == 5
    assert Stream("renamed", stream.tasks).content == stream.content


def test_first_images_and_chosen_tasks():
    stream = load_stream("pocket")
    tags, classes = stream.only(["clipart_tags", "mnist"]).tasks[::-1]
    assert [task.name for task in stream.only(["clipart_tags", "mnist"]).tasks] == ["mnist", "clipart_tags"]
    assert tags.read(64).dev.is_multilabel and not classes.read(64).dev.is_multilabel
    assert stream.only(None) == stream and stream.only([]).tasks == ()
    whole = classes.read(64)
    assert [len(part) for part in vars(whole.first(5, 3)).values()] == [5, 3, 3]
    assert [len(part) for part in vars(whole.first(None, 10**6)).values()] == [700, 200, 300]
    assert torch.equal(whole.train.first(5).images, whole.train.images[:5])
    with pytest.raises(UserError, match=r"tasks=\['river'\] are not in the stream 'pocket': expected some of"):
        stream.only(["mnist", "river"])


@pytest.mark.parametrize("name", NAMES)
def test_classes_have_the_card_s_names(name):
    (task,) = load_stream("pocket").only([name]).tasks
    assert task.classes == tuple(CARDS[name]["classes"]) and len(task.classes) == task.num_classes


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Path:
    """A pocket stream of one task that may be damaged."""
    monkeypatch.setenv("INGEST_CACHE", str(tmp_path / "cache"))
    card = CARDS["mnist"]
    (tmp_path / "cards.json").write_text(json.dumps([card]))
    shutil.copy(POCKET / "mnist.parquet", tmp_path)
    monkeypatch.setattr(shipped, "POCKET", tmp_path)
    return tmp_path / "mnist.parquet"


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [_flip, Path.unlink, lambda file: file.write_bytes(b""), lambda file: file.write_bytes(file.read_bytes()[:999])],
    ids=["a bit flipped", "missing", "empty", "cut off"],
)
def test_damaged_file_is_refused_with_its_name(copy, damage):
    (task,) = load_stream("pocket").tasks
    assert len(task.read(64).train) == CARDS["mnist"]["counts"]["train"]
    damage(copy)
    with pytest.raises(UserError, match=str(copy)):
        load_stream("pocket")


def test_unknown_stream_is_refused_with_the_others():
    for call in (load_stream, list_tasks):
        with pytest.raises(UserError, match=r"'river'.*pocket"):
            call("river")

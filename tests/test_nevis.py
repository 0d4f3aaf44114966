"""Nevis'22: its tables, its prepared directories, which are written here by the format alone, torchvision."""

import base64
import collections
import gzip
import io
import itertools
import json
import os
import pickle
import pickletools
import shutil
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_stream_files import fill, stream_file

from lib.common.errors import UserError
from lib.runs.run import run_stream
from lib.runs.spec import RunSpec
from lib.streams import list_tasks, load_stream, nevis
from lib.streams.cuts import by_count, by_last_of_class, by_lot
from lib.streams.nevis import PreparedSource, _packages, features, masked_crc, records
from lib.streams.torchvision_sets import LOADERS, TorchvisionSource, how_to_get

FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist
NETWORK = {"backbone": "resnet18half_64", "ratio": 0.5, "repair": "none"}


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("INGEST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DATASETS", str(tmp_path / "datasets"))


# --- the tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "events", "before_2020", "names"),
    [
        ("full", 106, 92, 97),
        ("short", 29, 25, 28),
        ("tiny", 7, 6, 6),
        ("major_domain_only", 70, 56, 64),
        ("large_dataset_only", 67, 53, 64),
        ("debug", 2, 2, 2),
        ("imagenet_only", 1, 1, 1),
        ("no_imagenet", 105, 91, 97),
        ("remove_first_30_tasks", 76, 62, 75),
        ("remove_last_30_tasks", 76, 62, 70),
        ("random_dataset/40", 40, 26, 39),
    ],
)
def test_streams_have_the_benchmark_s_counts(stream, events, before_2020, names):
    tasks = list_tasks(f"nevis/{stream}")
    years = tasks["year"].tolist()
    assert (len(tasks), sum(year < 2020 for year in years), tasks["name"].nunique()) == (events, before_2020, names)
    assert years == sorted(years)
    first = list_tasks(f"nevis/{stream}/meta_train")
    assert first.equals(tasks[tasks["year"] < 2020].reset_index(drop=True))
    assert not tasks["available"].any() and tasks["how"].str.len().gt(0).all()


def test_names_order_and_years_are_the_benchmark_s():
    tiny = list_tasks("nevis/tiny")
    assert list(zip(tiny["year"], tiny["name"], strict=True)) == [
        (2004, "MNIST"),
        (2010, "Caltech 101"),
        (2014, "Pascal 2012"),
        (2018, "CIFAR 100"),
        (2018, "MNIST"),
        (2018, "ISBI-ISIC 2017 melanoma classification challenge"),
        (2020, "CUB 200"),
    ]
    # What the benchmark's own code draws: numpy's shuffle with this seed.
    assert list_tasks("nevis/random_dataset/20/1/meta_train")["name"].tolist() == [
        "Butterfly dataset",
        "Caltech cars, motorbikes",
        "UMD",
        "KTH-TIPS2-b",
        "Pascal 2012",
        "LFWA",
    ]
    full = list_tasks("nevis/full")["name"].tolist()
    assert list_tasks("nevis/remove_first_30_tasks")["name"].tolist() == full[30:]
    events = list(zip(list_tasks("nevis/full")["year"], full, strict=True))
    before = [event for event in events if event[0] < 2020]
    for ablation, removed in {
        "remove_last_30_tasks": sorted(before, key=lambda event: -event[0])[:30],  # within a year from its first task
        "no_imagenet": [event for event in before if event[1] == "ImageNet"],
    }.items():
        left = list_tasks(f"nevis/{ablation}")
        assert list(zip(left["year"], left["name"], strict=True)) == [e for e in events if e not in removed]
    short = list_tasks("nevis/short")
    known = json.loads((Path(nevis.__file__).parent / "nevis.json").read_text())["datasets"]
    assert sum("torchvision" in known[name] for name in short["name"].unique()) == 13


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ("nevis/full/2020", "expected nevis/full, or with /meta_train"),
        ("nevis/random_dataset", "expected nevis/random_dataset/COUNT"),
        ("nevis/random_dataset/14", "15 to 106 tasks"),
        ("nevis/random_dataset/107", "15 to 106 tasks"),
        ("nevis/huge", "Unknown stream 'nevis/huge'"),
        ("pocket/meta_train", "expected pocket alone"),
    ],
)
def test_unknown_streams_are_refused(stream, message):
    with pytest.raises(UserError, match=message):
        list_tasks(stream)


def test_missing_tasks_are_all_listed_with_how_to_get_them():
    with pytest.raises(UserError) as error:
        load_stream("nevis/tiny")
    assert str(error.value).startswith("7 of 7 tasks of the stream 'nevis/tiny' are not here")
    for word in ("MNIST", "download=True, train=True and with train=False", "melanoma with dm_nevis", "CUB 200"):
        assert word in str(error.value)


def sizes(parts: dict) -> dict[str, int]:
    return {part: len(found) for part, found in parts.items()}


# --- the cuts -------------------------------------------------------------------------------------


def test_parts_are_cut_as_the_benchmark_does():
    shares = {"train": 0.7, "dev": 0.15, "dev_test": 0.15}
    parts = by_count(range(101), shares)
    assert sizes(parts) == {"train": 70, "dev": 15, "dev_test": 16}
    assert sorted(np.concatenate(list(parts.values()))) == list(range(101))

    # The benchmark's procedure: parts by name, a draw an image, seed 0.
    state = np.random.RandomState(0)
    drawn = [int(np.argmax(state.multinomial(1, [0.12, 0.12, 0.2, 0.56]))) for _ in range(500)]
    cut = by_lot(range(500), {"train": 0.56, "dev": 0.12, "dev_test": 0.12, "test": 0.2})
    for number, part in enumerate(["dev", "dev_test", "test", "train"]):
        assert cut[part].tolist() == [i for i, d in enumerate(drawn) if d == number]

    faces = by_last_of_class([1, 0, 0, 0, 0, 0, -1, 1, 1, 1, 1, 1], dict.fromkeys(("train", "dev", "dev_test", "test")))
    assert {part: found.tolist() for part, found in faces.items()} == {
        "train": [1, 0, 7],
        "dev": [2, 8],
        "dev_test": [3, 9],
        "test": [4, 5, 10, 11],
    }


# --- prepared directories -------------------------------------------------------------------------


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF)


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(png: bytes, labels: list[int], name: str = "label") -> bytes:
    """A serialized tf.train.Example of an image and its labels."""
    integers = field(3, field(1, b"".join(map(varint, labels))))  # packed
    image = field(1, field(1, png))
    entries = {"png_encoded_image": image, name: integers}
    return field(1, b"".join(field(1, field(1, key.encode()) + field(2, value)) for key, value in entries.items()))


def png(colour: tuple[int, int, int], mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (9, 7), colour).convert(mode).save(out, "PNG")
    return out.getvalue()


def metadata(num_classes: int, protocol: int = 4) -> bytes:
    """What the benchmark writes: base64, in lines, of a pickle of objects whose classes are not installed."""
    modules = {}
    for name, kind in (
        ("dm_nevis.datasets_storage.handlers.types", "DatasetMetaData"),
        ("tensorflow_datasets.core.features", "FeaturesDict"),
    ):
        modules[name] = types.ModuleType(name)
        setattr(modules[name], kind, type(kind, (), {"__module__": name}))
    meta = modules["dm_nevis.datasets_storage.handlers.types"].DatasetMetaData()
    counts = collections.defaultdict(int, {"train": 8})
    meta.__dict__ = {
        "num_classes": num_classes,
        "num_channels": 3,
        "image_shape": (),
        "additional_metadata": {"num_data_points_per_split": counts, "splits": ["train"], "mean": np.ones(3)},
        "features": modules["tensorflow_datasets.core.features"].FeaturesDict(),
        "preprocessing": "",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            for end, letter in enumerate(name):
                if letter == ".":  # pickle imports the packages above, too
                    patch.setitem(sys.modules, name[:end], types.ModuleType(name[:end]))
            patch.setitem(sys.modules, name, module)
        return base64.encodebytes(pickle.dumps(meta, protocol=protocol))


PARTS = {"train": 8, "dev": 4, "dev-test": 2, "test": 6, "train_and_dev": 12}


def prepare(folder: Path, num_classes: int = 2, multi: bool = False, shards: int = 2) -> Path:
    """A prepared directory; an image's colour tells its class, part and number."""
    for place, (part, count) in enumerate(PARTS.items()):
        (folder / part).mkdir(parents=True)
        written = [b""] * shards
        for number in range(count):
            label = number % num_classes
            labels = [label, num_classes - 1] if multi and label != num_classes - 1 else [label]
            data = example(png((label * 100, place * 40, number)), labels, "multi_label" if multi else "label")
            written[number % shards] += record(data)
        for number, content in enumerate(written):
            (folder / part / f"data-{number:05d}-of-{shards:05d}").write_bytes(content)
    (folder / "metadata").write_bytes(metadata(num_classes))
    (folder / "status").write_text("ready")
    return folder


def stream_of(folder: Path, *sources: str) -> str:
    tasks = "".join(f'  - {{name: task{i}, source: "{s}", year: 2020}}\n' for i, s in enumerate(sources))
    return stream_file(folder, f"name: mine\ntasks:\n{tasks}")


def test_records_and_features_are_read_as_written(tmp_path):
    rng = np.random.default_rng(0)
    contents = [rng.bytes(int(size)) for size in (0, 1, 300, 70_000)]
    file = tmp_path / "data"
    file.write_bytes(b"".join(map(record, contents)))
    found = list(records(file))
    assert [data for _, data in found] == contents
    assert [file.read_bytes()[place:][: len(data)] for place, data in found] == contents
    assert masked_crc(contents[2]) == masked(contents[2])
    assert features(example(b"pixels", [3, 300], "multi_label")) == {
        "png_encoded_image": [b"pixels"],
        "multi_label": [3, 300],
    }


@pytest.mark.parametrize("multi", [False, True])
def test_a_prepared_directory_is_read_by_its_format(tmp_path, multi):
    prepare(tmp_path / "nevis" / "MNIST", 3, multi)
    (task,) = load_stream(stream_of(tmp_path, "nevis:nevis/MNIST")).tasks
    assert (task.kind, task.num_classes) == ("multi-label" if multi else "classification", 3)
    data = task.read(32)
    for part, place in {"train": 0, "dev": 1, "test": 3}.items():
        split, count = getattr(data, part), PARTS[part]
        colours = split.images[:, 0, 0].tolist()
        assert sorted(colours) == sorted([i % 3 * 100, place * 40, i] for i in range(count))
        for colour, label in zip(colours, split.labels, strict=True):
            wanted = {colour[0] // 100} | ({2} if multi else set())
            found = set(label.nonzero().flatten().tolist()) if multi else {label.item()}
            assert found == wanted


def test_a_prepared_directory_fills_its_place_in_the_benchmark(tmp_path):
    prepare(tmp_path / "datasets" / "nevis" / "melanoma", 3)
    tasks = list_tasks("nevis/tiny").set_index("name")
    assert tasks.index[tasks["available"]].tolist() == ["ISBI-ISIC 2017 melanoma classification challenge"]
    stream = load_stream("nevis/tiny", missing="skip")
    assert len(stream.tasks) == 1 and len(stream.left_out) == 6
    assert [len(part) for part in vars(stream.tasks[0].read(32)).values()] == [8, 4, 6]
    source = PreparedSource(tmp_path / "datasets" / "nevis" / "melanoma")
    assert sizes(source.parts()) == {"train": 8, "dev": 4, "dev_test": 2, "test": 6}


@pytest.mark.parametrize("package", ["google_crc32c", "google.protobuf.descriptor_pb2"])
def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch, package):
    prepare(tmp_path / "mine")
    _packages.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package} is not installed: .*pip install '.\[nevis\]'"):
        load_stream(stream_of(tmp_path, "nevis:mine"))


def test_labels_of_biwi_are_mended(tmp_path):
    folder = prepare(tmp_path / "biwi", 15, multi=True)
    image = png((0, 0, 0))
    # The first angle lacks its last bucket, and the next has its own and a first one too many.
    data = example(image, [5, 7, 11], "multi_label")
    for number in range(2):
        (folder / "test" / f"data-0000{number}-of-00002").write_bytes(record(data))
    assert {e.label for e in PreparedSource(folder).parts()["test"]} == {(4, 7, 11)}


def flip(place: int):
    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[place] ^= 1
        file.write_bytes(content)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-3]), "is cut short"),
        (lambda file: file.write_bytes(file.read_bytes()[:-30]), "is cut short"),
        (lambda file: file.write_bytes(file.read_bytes() + b"1234"), "ends within a header"),
        (flip(0), "wrong checksum of its length"),
        (flip(40), "at byte 0 has a wrong checksum:"),
        (flip(-1), "has a wrong checksum:"),
        (lambda file: file.unlink(), "holds 1 of 2 shards"),
        (lambda file: file.write_bytes(record(b"no message")), "is no tf.train.Example"),
        (lambda file: file.write_bytes(record(example(b"", [9]))), r"has the label \[9\]: expected one of 0 to 1"),
        (lambda file: file.write_bytes(record(example(b"", []))), r"has the label \[\]"),
        (lambda file: file.write_bytes(record(example(b"", [1], "name"))), "has no label"),
    ],
    ids=["footer", "data", "header", "length", "content", "crc", "shard", "message", "class", "none", "name"],
)
def test_a_damaged_shard_is_named(tmp_path, damage, message):
    folder = prepare(tmp_path / "damaged")
    damage(folder / "dev" / "data-00001-of-00002")
    with pytest.raises(UserError, match=message) as error:
        load_stream(stream_of(tmp_path, "nevis:damaged")).tasks[0].read(32)
    assert "damaged/dev" in str(error.value)


def test_an_image_that_is_none_counts_as_unreadable(tmp_path):
    folder = prepare(tmp_path / "mine")
    shard = folder / "train" / "data-00000-of-00002"
    shard.write_bytes(shard.read_bytes() + record(example(b"no image", [0])))
    assert len(load_stream(stream_of(tmp_path, "nevis:mine")).tasks[0].read(32).train) == 8


def test_an_unfinished_or_empty_directory_is_refused(tmp_path):
    folder = prepare(tmp_path / "mine")
    (folder / "status").write_text("not_ready")
    with pytest.raises(UserError, match="was not prepared to its end"):
        load_stream(stream_of(tmp_path, "nevis:mine"))
    (folder / "metadata").unlink()
    with pytest.raises(UserError, match="has no file metadata"):
        load_stream(stream_of(tmp_path, "nevis:mine"))
    with pytest.raises(UserError, match=r"prepare elsewhere with dm_nevis and put it at .*elsewhere"):
        load_stream(stream_of(tmp_path, "nevis:elsewhere"))


class _Calls:
    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("call", ["system", "eval", "exec", "open", "getattr", "import"])
def test_a_malicious_pickle_runs_nothing(tmp_path, call):
    target = tmp_path / "ran"
    calls = {
        "system": _Calls(os.system, f"touch {target}"),
        "eval": _Calls(eval, f"open({str(target)!r}, 'w')"),
        "exec": _Calls(exec, f"open({str(target)!r}, 'w')"),
        "open": _Calls(open, str(target), "w"),
        "getattr": _Calls(getattr, Path(), "touch"),
        "import": _Calls(__import__, "this"),
    }
    folder = prepare(tmp_path / "mine")
    for protocol in (2, 5):
        pickled = pickle.dumps({"num_classes": calls[call]}, protocol=protocol)
        (folder / "metadata").write_bytes(base64.encodebytes(pickled))
        with pytest.raises(UserError, match="nothing of it was run"):
            load_stream(stream_of(tmp_path, "nevis:mine"))
    assert not target.exists() and "this" not in sys.modules


@pytest.mark.parametrize(
    "content", [b"", b"not base64!", base64.b64encode(b"no pickle"), base64.b64encode(pickle.dumps({"num_classes": 2}))]
)
def test_metadata_that_is_none_is_refused(tmp_path, content):
    folder = prepare(tmp_path / "mine")
    (folder / "metadata").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        load_stream(stream_of(tmp_path, "nevis:mine"))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("num_classes", [2, 300, 70_000])
def test_the_number_of_classes_is_read_from_any_pickle(tmp_path, protocol, num_classes):
    folder = prepare(tmp_path / "mine")
    (folder / "metadata").write_bytes(metadata(num_classes, protocol))
    assert PreparedSource(folder).num_classes == num_classes


def test_the_metadata_of_the_test_names_the_benchmark_s_classes():
    named = {arg for op, arg, _ in pickletools.genops(base64.b64decode(metadata(2))) if "UNICODE" in op.name}
    assert {"dm_nevis.datasets_storage.handlers.types", "DatasetMetaData", "FeaturesDict"} <= named


# --- torchvision ----------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    """The format of MNIST's files."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def mnist(root: Path, train: int = 40, test: int = 10) -> None:
    """Files of MNIST's format in which an image's first pixels are its number and its class."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", train), ("t10k", test)):
        images = np.zeros((count, 28, 28))
        images[:] = np.arange(count)[:, None, None]
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))


def test_torchvision_s_parts_labels_and_content(tmp_path):
    mnist(tmp_path / "datasets" / "torchvision")
    (task,) = load_stream(stream_of(tmp_path, "torchvision:MNIST")).tasks
    data = task.read(32)
    source = TorchvisionSource("MNIST", tmp_path / "datasets" / "torchvision")
    parts = source.parts()
    assert sizes(parts) == {"train": 28, "dev": 6, "dev_test": 6, "test": 10}
    numbers = {part: [np.asarray(e.open())[0, 0] for e in found] for part, found in parts.items()}
    for part, split in vars(data).items():
        assert split.images[:, 0, 0, 0].tolist() == numbers[part]
        assert split.labels.tolist() == [number % 10 for number in numbers[part]]
    del numbers["test"]
    assert sorted(itertools.chain(*numbers.values())) == list(range(40))
    assert task.classes[3] == "3 - three"
    available = list_tasks("nevis/tiny").set_index("name")["available"]
    assert available.tolist() == [name == "MNIST" for name in available.index]
    mnist(tmp_path / "other", train=50)
    assert TorchvisionSource("MNIST", tmp_path / "other").content() != source.content()
    (tmp_path / "datasets" / "torchvision" / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="torchvision cannot read MNIST"):
        TorchvisionSource("MNIST", tmp_path / "datasets" / "torchvision").parts()


def voc(root: Path, year: str, sets: dict[str, int]) -> None:
    place = root / "VOCdevkit" / f"VOC{year}"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    for image_set, count in sets.items():
        names = [f"{image_set}{i}" for i in range(count)]
        (place / "ImageSets" / "Main" / f"{image_set}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            Image.new("RGB", (20, 20)).save(place / "JPEGImages" / f"{name}.jpg")
            objects = "".join(f"<object><name>{n}</name></object>" for n in ("person", "dog", "person"))
            (place / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")


def test_pascal_is_multi_label_and_cut_as_the_benchmark_does(tmp_path):
    voc(tmp_path, "2012", {"train": 10, "val": 10})
    parts = TorchvisionSource("VOC2012", tmp_path).parts()
    assert sizes(parts) == {"train": 8, "dev": 2, "dev_test": 5, "test": 5}
    assert {example.label for found in parts.values() for example in found} == {(11, 14)}
    voc(tmp_path, "2007", {"train": 10, "val": 5, "test": 3})
    parts = TorchvisionSource("VOC2007", tmp_path).parts()
    assert sizes(parts) == {"train": 8, "dev": 2, "dev_test": 5, "test": 3}


def test_a_set_without_parts_is_cut_whole(tmp_path):
    fill(tmp_path / "eurosat", {"2750": 10}, [f"{label:03d}" for label in range(10)])
    parts = TorchvisionSource("EuroSAT", tmp_path).parts()
    assert sizes(parts) == {"train": 56, "dev": 12, "dev_test": 12, "test": 20}


@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_takes_its_arguments_and_says_what_is_missing(tmp_path, name):
    with pytest.raises(UserError, match=f"torchvision cannot read {name}") as error:
        TorchvisionSource(name, tmp_path).parts()
    assert "unexpected keyword" not in str(error.value)
    assert how_to_get(name, tmp_path) in str(error.value)


def test_an_unknown_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="torchvision:MINST is unknown: expected one of Caltech101"):
        load_stream(stream_of(tmp_path, "torchvision:MINST"))


# --- from stream.yaml to records ------------------------------------------------------------------


def unpacked_fashion(root: Path) -> None:
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in FASHION.glob("*.gz"):
        with gzip.open(packed) as source, (raw / packed.stem).open("wb") as target:
            shutil.copyfileobj(source, target)


def test_a_prepared_directory_runs_from_its_stream_file_to_records(tmp_path):
    prepare(tmp_path / "mine")
    spec = RunSpec(**NETWORK, stream=stream_of(tmp_path, "nevis:mine"), budgets=[16], body_rate=0.001, head_rate=0.001)
    records = run_stream(spec, tmp_path / "runs")
    assert records["steps"].gt(0).all() and records["error_test"].between(0, 1).all()


@pytest.mark.slow
def test_fashion_mnist_runs_through_torchvision_from_debian_s_files_to_records(tmp_path):
    assert FASHION.is_dir(), "Debian's dataset-fashion-mnist is missing: apt-get install dataset-fashion-mnist"
    unpacked_fashion(tmp_path / "datasets" / "torchvision")
    spec = RunSpec(
        **NETWORK,
        stream=stream_of(tmp_path, "torchvision:FashionMNIST"),
        budgets=[256, 1024],
        train_images=1500,
        evaluation_images=500,
        body_rate=1e-4,
        head_rate=1e-2,
    )
    records = run_stream(spec, tmp_path / "runs")
    # A linear model on raw pixels has an error of 0.16 with all 60,000 images.
    assert records["error_test"].tolist()[1] < 0.35
    (task,) = load_stream(spec.stream).tasks
    assert len(task.read(64).train) == 42_000 and len(task.read(64).dev) == 9_000

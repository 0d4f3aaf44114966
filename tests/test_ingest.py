"""Ingesting: any image becomes the same RGB once, and what is on disk is whole or not there."""

import errno
import hashlib
import io
import json
import multiprocessing
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import warnings
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib.common.errors import UserError
from lib.streams import TaskData, cuts, ingest, load_stream
from lib.streams.images import UnreadableImage, decode
from lib.streams.ingest import task_from
from lib.streams.task import Example

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8)[None].repeat(64, 0)  # dark left, light right


class Pictures:
    """A source in memory: `count` grey images a part, of `classes` classes; it counts what it opens."""

    kind = "classification"
    every_class_trains = True

    def __init__(self, count: int = 20, classes: int = 2, broken: int = 0, name: str = "pictures"):
        self.count, self.num_classes, self.broken, self.name = count, classes, broken, name
        self.opened = 0

    def classes(self) -> tuple[str, ...]:
        return tuple(f"grey {number}" for number in range(self.num_classes))

    def content(self) -> str:
        return f"{self.name}-{self.count}-{self.num_classes}-{self.broken}".ljust(24, "-")

    def _open(self, place: int) -> Image.Image:
        self.opened += 1
        if place < self.broken:
            raise OSError("broken data stream")
        return Image.new("L", (9, 7), 10 * place % 256)

    def parts(self) -> dict[str, list[Example]]:
        return {
            part: [
                Example(
                    f"{part} {place}", place % self.num_classes, partial(self._open, place + 1000 * (part != "train"))
                )
                for place in range(self.count)
            ]
            for part in ("train", "dev", "test")
        }


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("INGEST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def read(source, size: int = 16) -> TaskData:
    return task_from(source, "pictures", 2000, "other").read(size)


def png(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "PNG"), **options)
    return buffer.getvalue()


def opened(encoded: bytes):
    return lambda: Image.open(io.BytesIO(encoded))


PALETTE = Image.fromarray(RAMP).quantize(64)
KINDS = {
    "grey": png(Image.fromarray(RAMP)),
    "rgb": png(Image.fromarray(RAMP).convert("RGB")),
    "16 bits": png(Image.fromarray(RAMP.astype(np.uint16) * 257)),
    "palette": png(PALETTE),
    "cmyk": png(Image.fromarray(RAMP).convert("RGB").convert("CMYK"), format="JPEG", quality=100),
    "opaque alpha": png(Image.fromarray(RAMP).convert("RGBA")),
    "grey and alpha": png(Image.fromarray(RAMP).convert("LA")),
    "tiff of floats": png(Image.fromarray(RAMP.astype(np.float32)), format="TIFF"),
    "gif": png(PALETTE, format="GIF", save_all=True, append_images=[PALETTE.rotate(180)]),
    "webp": png(Image.fromarray(RAMP).convert("RGB"), format="WEBP", lossless=True),
}


def deep_png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, which Pillow cannot write: uint16 (H, W, C), C of 1 to 4."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, (0, 4, 2, 6)[channels - 1], 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiff(values: np.ndarray) -> bytes:
    return png(Image.fromarray(values), format="TIFF")


def ramp(kind: type, top: float) -> np.ndarray:
    values = np.linspace(0, top, 64)[None].repeat(64, 0)
    return values.astype(kind) if np.dtype(kind).kind == "f" else values.round().astype(kind)


RGB = Image.fromarray(RAMP).convert("RGB")
KINDS |= {
    "floats in 0 to 1": tiff(ramp(np.float32, 1)),
    "floats in 0 to 255": tiff(ramp(np.float32, 255)),
    "floats of 12 bits": tiff(ramp(np.float32, 4095)),
    "floats of 16 bits": tiff(ramp(np.float32, 65535)),
    "8 bits in 16": tiff(ramp(np.uint16, 255)),
    "12 bits in 16": tiff(ramp(np.uint16, 4095)),
    "16 bits, TIFF": tiff(ramp(np.uint16, 65535)),
    "int32 to 255": tiff(ramp(np.int32, 255)),
    "int32 to 4095": tiff(ramp(np.int32, 4095)),
    "int32 to 65535": tiff(ramp(np.int32, 65535)),
    "12 bits in 16, PNG": deep_png(ramp(np.uint16, 4095)[..., None]),
    "16 bits of grey and alpha": deep_png(np.dstack([ramp(np.uint16, 65535), np.full((64, 64), 65535)])),
    "16 bits a channel": deep_png(ramp(np.uint16, 65535)[..., None].repeat(3, 2)),
    "avif": png(RGB, format="AVIF", quality=100),
    "bmp": png(RGB, format="BMP"),
    "tga": png(RGB, format="TGA"),
    "jpeg 2000": png(RGB, format="JPEG2000"),
    "ppm": png(RGB, format="PPM"),
    "cmyk tiff": png(RGB.convert("CMYK"), format="TIFF"),
    "ycbcr tiff": png(RGB.convert("YCbCr"), format="TIFF"),
    "lzw tiff": png(RGB, format="TIFF", compression="tiff_lzw"),
    "animated webp": png(RGB, format="WEBP", save_all=True, append_images=[RGB.rotate(90)], lossless=True),
    "animated png": png(RGB, save_all=True, append_images=[RGB.rotate(90)]),
    "pages of tiff": png(RGB, format="TIFF", save_all=True, append_images=[RGB.rotate(90)]),
    "palette with opaque transparency": png(PALETTE, transparency=bytes([255] * 64)),
    "palette of gif": png(RGB.quantize(200), format="GIF"),
    "progressive": png(RGB, format="JPEG", quality=100, progressive=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_becomes_the_same_rgb(kind):
    found = decode(opened(KINDS[kind]), 64)
    assert found.shape == (64, 64, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - RAMP[..., None]).max() <= 6


def test_transparent_is_white_and_one_bit_is_black_and_white():
    assert (decode(opened(png(Image.new("RGBA", (5, 5), (9, 9, 9, 0)))), 8) == 255).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0] * 256)
    assert (decode(opened(png(palette, transparency=0)), 8) == 255).all()
    assert set(np.unique(decode(opened(png(Image.new("1", (8, 8), 1))), 8))) == {255}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(9))
def test_turned_as_the_exif_says(format, orientation):
    """EXIF's numbers: 3 is upside down, 6 and 8 lie on a side, 2, 4, 5 and 7 are seen in a mirror."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(opened(png(RGB, format=format, exif=exif, quality=100)), 64)[..., 0].astype(int)
    dark_side = {0: "left", 1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom"}
    left, right, top, bottom = found[:, 0].mean(), found[:, -1].mean(), found[0].mean(), found[-1].mean()
    sides = {"left": left, "right": right, "top": top, "bottom": bottom}
    assert min(sides, key=sides.get) == dark_side.get(orientation, "bottom")


@pytest.mark.parametrize("bits", [8, 16])
def test_white_may_be_zero(bits):
    """Pillow inverts 8 bits when it writes and when it reads such a file, and 16 bits never."""
    values = RAMP if bits == 8 else ramp(np.uint16, 65535)[:, ::-1]
    encoded = png(Image.fromarray(values), format="TIFF", tiffinfo={262: 0})
    assert np.abs(decode(opened(encoded), 64)[..., 0].astype(int) - RAMP).max() <= 1


REFUSED = {
    "not a number": (tiff(np.full((4, 4), np.nan, np.float32)), "from nan to nan: expected 0 to 1, 255"),
    "some not a number": (tiff(np.array([[0, np.nan]], np.float32)), "its values go from nan"),
    "infinite": (tiff(np.array([[0, np.inf]], np.float32)), "from 0 to inf"),
    "below zero": (tiff(np.array([[-1, 1]], np.float32)), "from -1 to 1"),
    "of a scanner": (tiff(np.array([[-1024, 3071]], np.int32)), "from -1024 to 3071"),
    "of more than 16 bits": (tiff(np.array([[0, 1 << 20]], np.int32)), r"from 0 to 1\.04858e\+06"),
    "12 bits a channel": (deep_png(ramp(np.uint16, 4095)[..., None].repeat(3, 2)), "12 of its 16 bits"),
    "12 bits and alpha": (
        deep_png(np.dstack([ramp(np.uint16, 4095)[..., None].repeat(3, 2), np.full((64, 64), 65535)])),
        "12 of its 16 bits",
    ),
    "empty": (b"", "cannot identify"),
    "text": (b"hello" * 99, "cannot identify"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_usual_range_is_refused(kind):
    encoded, said = REFUSED[kind]
    with pytest.raises(UnreadableImage, match=said):
        decode(opened(encoded), 8)


def test_small_and_black_images_of_16_bits_are_read():
    assert (decode(opened(deep_png(np.zeros((4, 4, 3), np.uint16))), 4) == 0).all()
    assert (decode(opened(tiff(np.zeros((4, 4), np.float32))), 4) == 0).all()
    dark = Image.new("RGB", (16, 16), (3, 2, 1))  # of 8 bits; its size is no depth
    assert (decode(opened(png(dark)), 16) == [3, 2, 1]).all()
    assert (decode(opened(png(dark, format="TIFF")), 16) == [3, 2, 1]).all()


def test_reading_changes_no_filter_of_warnings_and_warns_of_nothing(recwarn):
    before = warnings.filters.copy()
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\xff\xff"
    for encoded in (png(RGB, format="JPEG", exif=exif), KINDS["palette with opaque transparency"]):
        assert decode(opened(encoded), 8).shape == (8, 8, 3)
    assert warnings.filters == before and not len(recwarn)


def test_one_pixel_is_enough():
    assert (decode(opened(png(Image.new("RGB", (1, 1), (1, 2, 3)))), 8) == [1, 2, 3]).all()


@pytest.mark.slow
def test_a_huge_image_is_refused_with_its_size():
    huge = png(Image.new("1", (20_000, 20_000)))
    with pytest.raises(UnreadableImage, match="400000000 pixels"):
        decode(opened(huge), 8)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0, 0.02, 0.5])
def test_cut_off_files_are_unreadable(format, share):
    noise = png(Image.effect_noise((64, 64), 50).convert("RGB"), format=format)
    with pytest.raises(UnreadableImage):
        decode(opened(noise[: int(share * len(noise))]), 64)


def test_decodes_once_and_maps_afterwards():
    source = Pictures()
    first = read(source)
    assert source.opened == 60 and len(first.train) == 20
    assert first.train.images.shape == (20, 16, 16, 3) and first.train.labels.tolist() == [0, 1] * 10
    assert first.train.images[:, 0, 0, 0].tolist() == [10 * i % 256 for i in range(20)]
    again = Pictures()
    second = read(again)
    assert again.opened == 0 and torch.equal(first.train.images, second.train.images)
    read(again, 24)
    assert again.opened == 60  # another size is another entry


def test_writing_to_the_images_changes_no_file(cache):
    read(Pictures()).train.images.zero_()
    files = {file: file.read_bytes() for file in cache.rglob("*.npy")}
    ingest._opened.cache_clear()
    assert read(Pictures()).train.images[5].float().mean() == 50
    assert files == {file: file.read_bytes() for file in cache.rglob("*.npy")}


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "entry"])
def test_a_corrupt_entry_is_made_anew(cache, damage):
    expected = read(Pictures()).train.images.clone()
    (file,) = cache.glob("*/train-images.npy")
    if damage == "entry":
        (file.parent / "entry.json").write_text("{")
    elif damage == "remove":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content[:-7] if damage == "cut" else content)
    ingest._opened.cache_clear()
    source = Pictures()
    assert torch.equal(read(source).train.images, expected) and source.opened == 60


def test_the_decoder_s_number_stands_for_what_it_makes():
    """Where this fails, a pixel, a label or a part became another: raise DECODER, and all is read anew."""
    digest = hashlib.sha256(str(ingest.DECODER).encode())
    lossy = {"cmyk", "avif", "jpeg 2000", "progressive"}  # other versions of the decoders may differ by one
    for kind in sorted(KINDS.keys() - lossy):
        digest.update(decode(opened(KINDS[kind]), 48).tobytes())
    sizes = cuts.SHARES[()]
    for cut in (cuts.by_count, cuts.by_lot, cuts.by_class):
        for part, places in cut([0, 1, 1, 2] * 10, sizes).items():
            digest.update(f"{part} {places.tolist()}".encode())
    assert digest.hexdigest()[:16] == "50e5d4f2051c9c1d"


def test_few_unreadable_images_are_left_out_and_named(cache):
    data = read(Pictures(count=40, broken=10))
    assert len(data.train) == 30 and data.train.labels.tolist() == [0, 1] * 15
    (entry,) = cache.glob("*/entry.json")
    left_out = json.loads(entry.read_text())["left_out"]
    assert len(left_out) == 10 and left_out[3] == "train 3 (broken data stream)"


def test_a_class_whose_images_cannot_be_read_is_an_error(cache):
    with pytest.raises(UserError, match="no training image of class 'grey 0'"):
        read(Pictures(count=20, classes=20, broken=1))
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_many_unreadable_images_are_an_error_and_leave_nothing(cache):
    with pytest.raises(UserError, match=r"11 of 120 images of the task 'pictures'.*train 0 \(broken data stream\)"):
        read(Pictures(count=40, broken=11))
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_too_little_memory_makes_no_image_unreadable(cache):
    source = Pictures()
    whole, entry = read(source), cache.glob("*/entry.json")
    before = next(entry).read_bytes()
    for error in (MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ingest, "_opened", partial(_raise, error))
            with pytest.raises(type(error)):
                read(source)
    assert next(cache.glob("*/entry.json")).read_bytes() == before and source.opened == 60
    source = Pictures(name="others")
    source._open = lambda place: _raise(MemoryError())
    with pytest.raises(MemoryError):
        read(source)
    assert torch.equal(read(Pictures()).train.images, whole.train.images)
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


def _raise(error: BaseException, *_: object):
    raise error


def _ingest_with_little_room(folder: str) -> None:
    os.environ["INGEST_CACHE"] = folder
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    with pytest.raises(UserError, match=r"Cannot ingest the task 'pictures'.*INGEST_CACHE"):
        read(Pictures(), 64)


def test_a_full_disk_is_an_error_in_one_sentence_and_leaves_nothing(cache):
    process = multiprocessing.get_context("fork").Process(target=_ingest_with_little_room, args=(str(cache),))
    process.start()
    process.join()
    assert process.exitcode == 0 and not [path for path in cache.iterdir() if path.is_dir()]


def test_classes_are_checked():
    with pytest.raises(UserError, match="'pictures' has 1 class"):
        read(Pictures(classes=1))
    with pytest.raises(UserError, match="no training image of class 'grey 20'"):
        read(Pictures(count=20, classes=21))


def _ingest_slowly(folder: str, counted: str) -> None:
    os.environ["INGEST_CACHE"] = folder
    source = Pictures()
    original = source._open

    def slow(place: int) -> Image.Image:
        with Path(counted).open("a") as file:
            file.write("x")
        time.sleep(0.005)
        return original(place)

    source._open = slow
    read(source)


def test_two_processes_ingest_a_task_once(cache, tmp_path):
    counted = tmp_path / "counted"
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_ingest_slowly, args=(str(cache), str(counted))) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert len(counted.read_text()) == 60


def test_a_killed_ingest_leaves_no_entry(cache, tmp_path):
    counted = tmp_path / "counted"
    process = multiprocessing.get_context("fork").Process(target=_ingest_slowly, args=(str(cache), str(counted)))
    process.start()
    while not counted.exists() or len(counted.read_text()) < 20:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not list(cache.glob("[!.]*/entry.json"))
    source = Pictures()
    assert len(read(source).train) == 20 and source.opened == 60


READ_MUCH = """
import torch
from test_ingest import Pictures, anonymous_megabytes, read
idle = anonymous_megabytes()
data = read(Pictures(count=8000), 128)
total = sum(int(batch[::16].sum()) for batch in data.train.images.split(64))
print(anonymous_megabytes() - idle, len(data.train.images), total > 0)
"""


def anonymous_megabytes() -> int:
    """Memory of this process that is not mapped from files."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line)
    return int(line.split()[1]) // 1024


@pytest.mark.slow
def test_a_task_larger_than_the_memory_it_takes():
    """1.2 GB of images are ingested and read in batches."""
    out = subprocess.run(
        [sys.executable, "-c", READ_MUCH], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    grown, count, seen = out.stdout.split()
    assert (count, seen) == ("8000", "True") and int(grown) < 150


def test_pocket_stream_goes_through_the_cache(cache):
    task = next(task for task in load_stream("pocket").tasks if task.name == "stamps")
    data = task.read(64)
    (entry,) = cache.glob("*/entry.json")
    for part, split in vars(data).items():
        assert np.array_equal(np.load(entry.parent / f"{part}-images.npy"), split.images)
        assert np.array_equal(np.load(entry.parent / f"{part}-labels.npy"), split.labels)

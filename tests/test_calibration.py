"""The shipped calibration images: photographs of known rights that no pocket task holds."""

import hashlib
import re

import numpy as np
import pandas as pd
import pytest
import torch

from lib.common.errors import UserError
from lib.streams import calibration_images, load_stream
from lib.streams.shipped import CALIBRATION as FILE
from tools.pocket.calibration import _paragraphs, _rights


def blocks(images: torch.Tensor, side: int = 16) -> torch.Tensor:
    """Grey means of the fields of a grid, without brightness and contrast: (N, side * side)."""
    grey = images.float().mean(-1)[:, None]
    small = torch.nn.functional.adaptive_avg_pool2d(grey, side).flatten(1)
    small = small - small.mean(1, keepdim=True)
    return small / small.norm(dim=1, keepdim=True).clamp(min=1e-6)


def test_images_are_colour_photographs_of_known_origin_and_licence():
    images = calibration_images()
    assert images.shape == (512, 160, 160, 3) and images.dtype == torch.uint8
    table = pd.read_parquet(FILE)
    assert set(table) == {"image", "source", "page", "author", "licence"}
    assert table[["source", "author", "licence"]].map(len).min().min() > 3
    assert set(table["licence"].str.extract(r"^(CC0|CC-BY|GPL|public-domain)")[0]) == {
        "CC0", "CC-BY", "GPL", "public-domain",
    }  # fmt: skip
    assert table["source"].value_counts().max() <= 2
    assert (images.float().std((1, 2)).amax(1) > 4).all()  # none is empty
    readme = (FILE.parent / "README.md").read_text()
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() in readme
    assert sum(int(n) for n in re.findall(r"^\| (?:CC|GPL|public)\S* \| (\d+) \|$", readme, re.M)) == 512
    assert FILE.stat().st_size < 6 * 2**20


def test_the_first_few_are_as_varied_as_all_and_sizes_are_kept():
    few, all_of_them = calibration_images(64, 32), calibration_images(512, 32)
    assert torch.equal(few, all_of_them[:64])
    spread = [images.float().flatten(1).std(0).mean().item() for images in (few, all_of_them)]
    assert spread[0] == pytest.approx(spread[1], rel=0.1)
    with pytest.raises(UserError, match="expected 1 to 512"):
        calibration_images(513)


def test_no_task_of_the_pocket_stream_holds_one():
    shipped = calibration_images(512, 64)
    known = {hashlib.sha256(image.numpy().tobytes()).digest() for image in shipped}
    own = blocks(shipped)
    for task in load_stream("pocket").tasks:
        data = task.read(64)
        for split in (data.train, data.dev, data.test):
            images = split.images
            assert not known & {hashlib.sha256(np.ascontiguousarray(image)).digest() for image in images}
            for turned in (images, images.flip(2)):
                assert (own @ blocks(turned).T).max() < 0.97, task.name


def test_rights_are_those_of_the_last_paragraph_that_fits():
    text = """Format: 1.0

Files: *
Copyright: The team
License: GPL-2+
 long text

Files: pictures/a.jpg
       pictures/b*.png
Copyright: Ann
           Ben
License: CC-BY 4.0
Comment: from https://example.org/a.jpg

Copyright: Cleo
License: Public Domain
Files:
c.webp
"""
    paragraphs = _paragraphs(text)
    first = _rights("usr/share/it/pictures/a.webp", paragraphs)
    assert (first.author, first.licence, first.page) == ("Ann, Ben", "CC-BY-4.0", "https://example.org/a.jpg")
    assert _rights("usr/share/it/pictures/b2.png", paragraphs).author == "Ann, Ben"
    assert _rights("usr/share/it/c.webp", paragraphs).licence == "public-domain"
    assert _rights("usr/share/it/d.png", paragraphs).author == "The team"
    with pytest.raises(UserError, match="leave it out"):
        _rights("usr/share/it/d.png", paragraphs[1:])

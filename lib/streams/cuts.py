"""How Nevis'22 cuts what a data set comes with into train, dev, dev_test and test.

The sizes are the benchmark's; which image falls where follows its files' order, which other copies of the
data need not share.
"""

from collections.abc import Sequence

import numpy as np

# What the data set comes with -> the shares that its training images are cut into.
SHARES = {
    (): {"train": 0.56, "dev": 0.12, "dev_test": 0.12, "test": 0.20},
    ("test",): {"train": 0.70, "dev": 0.15, "dev_test": 0.15},
    ("dev_test", "test"): {"train": 0.80, "dev": 0.20},
}


def by_count(labels: Sequence, shares: dict[str, float]) -> dict[str, np.ndarray]:
    """A random order, cut at whole numbers: what the benchmark does with sets of TensorFlow Datasets.

    Returns the places in `labels` that each part gets.
    """
    sizes = [int(len(labels) * share) for share in list(shares.values())[:-1]]
    pieces = np.split(np.random.default_rng(0).permutation(len(labels)), np.cumsum(sizes))
    return dict(zip(shares, pieces, strict=True))


def by_lot(labels: Sequence, shares: dict[str, float]) -> dict[str, np.ndarray]:
    """Each image drawn for a part on its own, with seed 0: what it does with most sets that it prepares."""
    names = sorted(shares, key=lambda part: part.replace("_", "-"))
    state = np.random.RandomState(0)
    drawn = state.multinomial(1, [shares[name] for name in names], size=len(labels)).argmax(axis=1)
    return {name: np.flatnonzero(drawn == number) for number, name in enumerate(names)}


def by_last_of_class(labels: Sequence[int], shares: dict[str, float]) -> dict[str, np.ndarray]:
    """Of each class the last two images for test, one for dev_test and one for dev: what it does with faces.

    Labels below zero are left out; `shares` only names the parts.
    """
    numbers = np.asarray(labels)
    ends = {
        "train": slice(None, -4),
        "dev": slice(-4, -3),
        "dev_test": slice(-3, -2),
        "test": slice(-2, None),
    }
    places = [np.flatnonzero(numbers == number) for number in np.unique(numbers[numbers >= 0])]
    return {part: np.concatenate([of_class[ends[part]] for of_class in places]) for part in shares}

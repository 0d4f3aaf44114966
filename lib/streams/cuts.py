"""How Nevis'22 cuts what a data set comes with into train, dev, dev_test and test.

The sizes are the benchmark's; which image falls where follows its files' order, which other copies of the
data need not share.
"""

from collections.abc import Sequence

import numpy as np

# What the data set comes with, beside train -> the shares that its training images are cut into. The benchmark's; and,
# for folders, those with a dev part and no second one.
SHARES = {
    (): {"train": 0.56, "dev": 0.12, "dev_test": 0.12, "test": 0.20},
    ("test",): {"train": 0.70, "dev": 0.15, "dev_test": 0.15},
    ("dev_test", "test"): {"train": 0.80, "dev": 0.20},
    ("dev",): {"train": 0.80, "test": 0.20},
    ("dev", "test"): {"train": 1.0},
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
    names = sorted(shares)
    state = np.random.RandomState(0)
    drawn = state.multinomial(1, [shares[name] for name in names], size=len(labels)).argmax(axis=1)
    return {name: np.flatnonzero(drawn == number) for number, name in enumerate(names)}


def by_last_of_class(labels: Sequence, shares: dict[str, float]) -> dict[str, np.ndarray]:
    """Of each class the last two images for test, one for dev_test and one for dev: what it does with faces.

    Labels below zero are left out; `shares` only names the parts.
    """
    numbers = np.asarray(labels)
    ends = {"train": slice(None, -4), "dev": slice(-4, -3), "dev_test": slice(-3, -2), "test": slice(-2, None)}
    places = [np.flatnonzero(numbers == number) for number in np.unique(numbers[numbers >= 0])]
    return {part: np.concatenate([of_class[ends[part]] for of_class in places]) for part in shares}


def by_class(labels: Sequence, shares: dict[str, float]) -> dict[str, np.ndarray]:
    """Each class shared out alike, and the whole in the largest remainders of the shares: for folders.

    Every class gives at least one image to train, every other part that is read gets at least one; there must
    be so many.
    """
    numbers = np.asarray(labels)
    order = np.random.default_rng(0).permutation(len(numbers))
    order = order[np.argsort(numbers[order], kind="stable")]
    firsts = np.unique(numbers[order], return_index=True)[1]
    rest = np.delete(order, firsts)
    exact = np.array([share * len(order) for share in shares.values()])
    exact[0] = max(0, exact[0] - len(firsts))  # train's
    exact *= len(rest) / max(1, exact.sum())
    sizes = np.floor(exact).astype(int)
    sizes[np.argsort(sizes - exact, kind="stable")[: len(rest) - sizes.sum()]] += 1
    for place, part in enumerate(shares):
        if sizes[place] == 0 and part in ("dev", "test"):
            sizes[sizes.argmax()] -= 1
            sizes[place] = 1
    # The parts take turns, each in equal steps, and so within each class.
    turns = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes])
    owners = np.repeat(np.arange(len(sizes)), sizes)[np.argsort(turns, kind="stable")]
    parts = {part: rest[owners == place] for place, part in enumerate(shares)}
    return {**parts, "train": np.concatenate([order[firsts], parts["train"]])}

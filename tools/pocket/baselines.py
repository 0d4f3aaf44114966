"""How far pixels, colours or guessing alone get on a task, for its card."""

import warnings

import numpy as np
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from threadpoolctl import threadpool_limits

from tools.pocket.common import SPLITS, Sample, Task

SIDE = 64  # of the images whose pixels are regressed on
STRENGTHS = (0.0003, 0.003, 0.03, 0.3)


def baselines(of: Task, splits: dict[str, list[Sample]]) -> dict[str, float]:
    """Test accuracy, or mean average precision, of three references, rounded to three digits.

    The regularisation of both logistic regressions is picked on dev.
    """
    labels = {split: _targets(of, splits[split]) for split in SPLITS}
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        pixels = _linear(_rotated({s: _pixels(splits[s]) for s in SPLITS}), labels)
        colour = _linear(_standardised({s: _colours(splits[s]) for s in SPLITS}), labels)
    return {
        "linear_pixels": round(pixels, 3),
        "linear_colour": round(colour, 3),
        "majority": round(_majority(labels), 3),
    }


def _targets(of: Task, samples: list[Sample]) -> np.ndarray:
    if of.kind == "classification":
        return np.array([sample.label for sample in samples])
    targets = np.zeros((len(samples), len(of.classes)), int)
    for row, sample in enumerate(samples):
        targets[row, list(sample.label)] = 1
    return targets


def _pixels(samples: list[Sample]) -> np.ndarray:
    rows = [
        np.asarray(sample.image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for sample in samples
    ]
    return np.stack(rows).reshape(len(rows), -1).astype(np.float32) / 255


def _colours(samples: list[Sample]) -> np.ndarray:
    rows = []
    for sample in samples:
        pixels = np.asarray(sample.image.convert("RGB"), np.float32).reshape(-1, 3) / 255
        histograms = [np.histogram(pixels[:, c], bins=8, range=(0, 1))[0] for c in range(3)]
        rows.append(np.concatenate([pixels.mean(0), pixels.std(0), np.concatenate(histograms) / len(pixels)]))
    return np.stack(rows)


def _rotated(features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same points in the space that the training images span: as accurate, and faster to fit."""
    centre = features["train"].mean(axis=0)
    axes = np.linalg.svd(features["train"] - centre, full_matrices=False)[2]
    return {split: (rows - centre) @ axes.T for split, rows in features.items()}


def _standardised(features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    mean, spread = features["train"].mean(axis=0), features["train"].std(axis=0) + 1e-6
    return {split: (rows - mean) / spread for split, rows in features.items()}


def _linear(features: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> float:
    scores = []
    for strength in STRENGTHS:
        output = _fit(features, labels["train"], strength)
        scores.append((_score(output["dev"], labels["dev"]), _score(output["test"], labels["test"])))
    return max(scores, key=lambda pair: pair[0])[1]


def _fit(features: dict, train: np.ndarray, strength: float) -> dict[str, np.ndarray]:
    def model() -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=150)

    if train.ndim == 1:
        fitted = model().fit(features["train"], train)
        return {split: fitted.predict(features[split]) for split in ("dev", "test")}
    fitted = [model().fit(features["train"], column) for column in train.T]
    return {
        split: np.stack([one.decision_function(features[split]) for one in fitted], axis=1) for split in ("dev", "test")
    }


def _score(output: np.ndarray, labels: np.ndarray) -> float:
    if labels.ndim == 1:
        return float((output == labels).mean())
    return float(average_precision_score(labels, output, average="macro"))


def _majority(labels: dict[str, np.ndarray]) -> float:
    if labels["train"].ndim == 1:
        return float((labels["test"] == np.bincount(labels["train"]).argmax()).mean())
    return float(labels["test"].mean(axis=0).mean())

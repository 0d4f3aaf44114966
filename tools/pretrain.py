"""Pretrain the ladder of residual networks on Tiny ImageNet (200 classes, 64 px), resumable at any moment.

SGD with Nesterov momentum; label smoothing; random resized crops and flips; images that grow during training;
an average of the weights. On request a teacher, an ImageNet network with its head fitted to these images, whose
outputs on the enlarged images are computed once; and training cut into blocks: each starts from the fp16
weights that the one before it ended with, warms up, and falls to a rate of zero, so that its weights are
usable and a committed file is enough to go on from, bit for bit. Neither is in the recipe: three blocks with a
teacher, 18 epochs, did worse than one without, 20.

    make pretrain ARCHIVE=path/to/tiny-imagenet-200.zip [NETWORKS="resnet50_64 ..."]
"""

import io
import json
import math
import time
import zipfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lib.common.errors import UserError, choose
from lib.common.files import atomic_path, save_tensors, write_json
from lib.common.provenance import provenance
from lib.common.vision import timm
from lib.learning.engine import set_up_cpu
from lib.networks.backbone import Backbone, load_backbone, load_checkpoint, normalised
from lib.networks.catalogue import RESNETS_64, build_resnet_64


class PretrainSpec(BaseModel):
    """Everything that changes the numbers of a pretraining run."""

    model_config = ConfigDict(extra="forbid")

    network: str = "resnet26_64"
    blocks: int = Field(1, ge=1)
    block_epochs: float = Field(20, gt=0)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(0.2, gt=0)  # the first block's peak at batch 128, Nesterov momentum 0.9
    later_rate: float = Field(0.5, gt=0, le=1)  # each block's peak by that of the one before it
    warmup_epochs: float = Field(1, ge=0)
    weight_decay: float = Field(2e-4, ge=0)  # on weight matrices and filters only
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    smallest_crop: float = Field(0.25, gt=0, le=1)  # share of the image's area
    # (share of the block after which it begins, side in pixels): small images first are cheap epochs
    resolutions: list[tuple[float, int]] = [(0.0, 32), (0.4, 48), (0.75, 64)]
    average_steps: int = Field(400, ge=1)  # horizon of the exponential average of the weights
    teacher: str = "efficientnet_lite2"
    teacher_size: int = Field(128, ge=32)  # pixels; the images are enlarged
    distillation: float = Field(0, ge=0, le=1)  # share of the loss that is the distance to the teacher; 0: none
    temperature: float = Field(2, gt=0)
    precision: str = Field("bf16", pattern="^(fp32|bf16)$")
    threads: int = Field(1, ge=1)
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True)
class Part:
    """Images (N, 64, 64, 3) uint8 and labels (N,) int64, indices into the WordNet ids in sorted order."""

    images: np.ndarray
    labels: np.ndarray


def read_tiny_imagenet(archive: Path | str, per_class: int | None = None) -> tuple[Part, Part, list[str]]:
    """Tiny ImageNet's training and validation parts, decoded, and the WordNet ids in sorted order.

    `archive` is the official `tiny-imagenet-200.zip` or the folder it unpacks to. `per_class` keeps the first
    few of each class.
    """
    archive = Path(archive)
    if not archive.exists():
        raise UserError(
            f"{archive} does not exist: expected tiny-imagenet-200.zip or the folder it unpacks to. "
            "Give its path, as in `make pretrain ARCHIVE=path/to/tiny-imagenet-200.zip`."
        )
    root = zipfile.Path(archive, "tiny-imagenet-200/") if archive.is_file() else archive
    if not (root / "val" / "val_annotations.txt").exists():
        raise UserError(
            f"{archive} has no val/val_annotations.txt: expected the layout of tiny-imagenet-200 "
            "(train/<id>/images, val/images). Unpack the archive again."
        )
    classes = sorted(folder.name for folder in (root / "train").iterdir() if folder.is_dir())

    def decode(files: list, labels: list[int]) -> Part:
        images = np.empty((len(files), 64, 64, 3), np.uint8)
        for i, file in enumerate(files):
            try:
                images[i] = Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
            except (OSError, ValueError) as error:
                raise UserError(f"Cannot read {file} as an image of 64 px: {error}.") from error
        return Part(images, np.array(labels, np.int64))

    files, labels = [], []
    for label, wordnet_id in enumerate(classes):
        of_class = (root / "train" / wordnet_id / "images").iterdir()
        of_class = sorted((f for f in of_class if f.name.endswith(".JPEG")), key=lambda f: f.name)
        files += of_class[:per_class]
        labels += [label] * len(of_class[:per_class])
    rows = [line.split("\t")[:2] for line in (root / "val/val_annotations.txt").read_text().splitlines()]
    if per_class is not None:
        kept = pd.DataFrame(rows, columns=["file", "id"]).groupby("id").head(per_class)
        rows = kept.to_numpy().tolist()
    index = {wordnet_id: label for label, wordnet_id in enumerate(classes)}
    validation = decode([root / "val/images" / name for name, _ in rows], [index[c] for _, c in rows])
    return decode(files, labels), validation, classes


def random_resized_crops(images: Tensor, side: int, smallest: float, generator: torch.Generator) -> Tensor:
    """Random crops of random area and aspect ratio, flipped half of the time, at `side` pixels.

    uint8 (B, H, W, 3) -> float (B, 3, side, side) in 0..255. The area is uniform in `smallest`..1 of
    the image's, the aspect ratio log-uniform in 3/4..4/3, sampled bilinearly.
    """
    count, height = images.shape[:2]
    uniform = torch.rand(5, count, generator=generator)
    area = smallest + (1 - smallest) * uniform[0]
    aspect = torch.exp((uniform[1] * 2 - 1) * math.log(4 / 3))
    width_share = (area * aspect).sqrt().clamp(max=1)
    height_share = (area / aspect).sqrt().clamp(max=1)
    flip = torch.where(uniform[4] < 0.5, -1.0, 1.0)
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0], affine[:, 1, 1] = width_share * flip, height_share
    affine[:, 0, 2] = (uniform[2] * 2 - 1) * (1 - width_share)
    affine[:, 1, 2] = (uniform[3] * 2 - 1) * (1 - height_share)
    # Sampling at less than half the density of the image would alias: sample twice as dense, then average.
    dense = 2 if side * 2 <= height else 1
    grid = F.affine_grid(affine, [count, 3, side * dense, side * dense], align_corners=False)
    pixels = images.permute(0, 3, 1, 2).float()
    crops = F.grid_sample(pixels, grid.to(images.device), padding_mode="reflection", align_corners=False)
    return F.avg_pool2d(crops, dense) if dense > 1 else crops


@torch.inference_mode()
def predict(network: nn.Module, images: np.ndarray, precision: str, device: str = "cpu") -> np.ndarray:
    """Most likely class (N,) of uint8 images (N, 64, 64, 3) by representation and classifier."""
    network.eval()
    answers = []
    for start in range(0, len(images), 250):
        batch = torch.from_numpy(images[start : start + 250]).to(device)
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=precision == "bf16"):
            logits = network.classifier(network(normalised(batch.permute(0, 3, 1, 2), network)))
        answers.append(logits.argmax(1).cpu().numpy())
    return np.concatenate(answers)


# --- the teacher ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Teacher:
    """Logits (N, classes) fp16 of the training images, and the teacher's top-1 on the validation images: by
    the ImageNet head's rows of these classes, and by the head that was fitted."""

    logits: np.ndarray
    top1_zero_shot: float
    top1: float


HEAD_EPOCHS, HEAD_BATCH, HEAD_RATE = 3, 200, 1e-3
AT_ONCE = 2_000  # images between two files of features, so that a killed run goes on


def teach(spec: PretrainSpec, training: Part, validation: Part, classes: list[str], out: Path) -> Teacher:
    """The teacher's logits for the training images, computed once and kept in `out`.

    The head starts from the ImageNet classifier's rows of the classes, found by their WordNet ids, and is
    fitted to the representations of the training images, because enlarged images are none that it knows.
    """
    network = load_backbone(spec.teacher)
    known = timm.data.ImageNetInfo().label_names()
    rows = [known.index(wordnet_id) for wordnet_id in classes]
    weight, bias = (p.detach()[rows].clone() for p in (network.classifier.weight, network.classifier.bias))
    folder = out / f"{spec.teacher}-{spec.teacher_size}-{len(training.images)}"
    inputs, tests = (
        _features(network, spec, part.images, folder / name)
        for name, part in (("training", training), ("validation", validation))
    )
    before = _top1(tests, weight, bias, validation.labels)
    _fit_head(weight, bias, inputs, torch.from_numpy(training.labels), spec.seed)
    logits = torch.cat([features.float() @ weight.T + bias for features in inputs.split(AT_ONCE)])
    return Teacher(logits.half().numpy(), before, _top1(tests, weight, bias, validation.labels))


@torch.inference_mode()
def _features(network: Backbone, spec: PretrainSpec, images: np.ndarray, folder: Path) -> Tensor:
    """Representations (N, D) fp16 of uint8 images, enlarged; files in `folder` that are there are read."""
    parts = []
    for start in range(0, len(images), AT_ONCE):
        file = folder / f"{start:06d}.npy"
        if not file.exists():
            chunk = []
            for first in range(start, min(start + AT_ONCE, len(images)), 50):
                pixels = torch.from_numpy(images[first : min(first + 50, start + AT_ONCE)]).permute(0, 3, 1, 2)
                side = (spec.teacher_size, spec.teacher_size)
                large = F.interpolate(pixels.float(), side, mode="bicubic", antialias=True).clamp(0, 255)
                with torch.autocast("cpu", torch.bfloat16, enabled=spec.precision == "bf16"):
                    chunk.append(network(normalised(large, network)).half())
            with atomic_path(file) as temporary:
                np.save(temporary, torch.cat(chunk).numpy())
        parts.append(torch.from_numpy(np.load(file)))
    return torch.cat(parts).clone()


def _fit_head(weight: Tensor, bias: Tensor, inputs: Tensor, labels: Tensor, seed: int) -> None:
    """Fit a linear head in place: Adam, cross-entropy, a rate that falls to zero."""
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.Adam(parameters, lr=HEAD_RATE)
    generator = torch.Generator().manual_seed(seed)
    batches = [
        chosen
        for _ in range(HEAD_EPOCHS)
        for chosen in torch.randperm(len(inputs), generator=generator).split(HEAD_BATCH)
    ]
    for step, chosen in enumerate(batches):
        optimizer.param_groups[0]["lr"] = HEAD_RATE * (1 - step / len(batches))
        loss = F.cross_entropy(inputs[chosen].float() @ weight.T + bias, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for parameter in parameters:
        parameter.requires_grad_(False)


def _top1(features: Tensor, weight: Tensor, bias: Tensor, labels: np.ndarray) -> float:
    answers = (features.float() @ weight.T + bias).argmax(1).numpy()
    return round(float((answers == labels).mean()), 4)


# --- training ------------------------------------------------------------------------------------------


def rate_at(spec: PretrainSpec, block: int, progress: float) -> float:
    """Learning rate after `progress` (0..1) of a block: linear up to its peak, then linear down to zero."""
    warm = min(spec.warmup_epochs / spec.block_epochs, 0.5)
    peak = spec.learning_rate * spec.later_rate**block
    return peak * (progress / warm if progress < warm else (1 - progress) / (1 - warm))


def loss_of(spec: PretrainSpec, logits: Tensor, labels: Tensor, taught: Tensor | None) -> Tensor:
    """Cross-entropy with the labels, mixed with the divergence from the teacher's softened answers."""
    loss = F.cross_entropy(logits, labels, label_smoothing=spec.label_smoothing)
    if taught is None:
        return loss
    hot = spec.temperature
    answers, wanted = (logits / hot).log_softmax(1), (taught.float() / hot).log_softmax(1)
    # The gradient of softened answers is smaller by the square of the temperature.
    apart = F.kl_div(answers, wanted, log_target=True, reduction="batchmean") * hot**2
    return (1 - spec.distillation) * loss + spec.distillation * apart


class Block:
    """One block of training: the network, the average of its weights, the optimiser, and how far it is."""

    def __init__(self, spec: PretrainSpec, number: int, network: Backbone):
        self.number, self.done, self.curve = number, 0, []
        self.recent_loss = torch.zeros((), device=spec.device)
        self.network = network.to(spec.device, memory_format=torch.channels_last)
        averaging = get_ema_multi_avg_fn(1 - 1 / spec.average_steps)
        self.average = AveragedModel(network, multi_avg_fn=averaging, use_buffers=True)
        decayed = [p for p in network.parameters() if p.ndim > 1]
        plain = [p for p in network.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.SGD(
            [{"params": decayed, "weight_decay": spec.weight_decay}, {"params": plain}],
            lr=spec.learning_rate,
            momentum=0.9,
            nesterov=True,
            fused=True,
        )

    def save(self, file: Path, spec: PretrainSpec) -> None:
        state = {name: getattr(self, name).state_dict() for name in ("network", "average", "optimizer")}
        counters = {name: getattr(self, name) for name in ("number", "done", "curve", "recent_loss")}
        with atomic_path(file) as temporary:
            torch.save({**state, **counters, "spec": spec.model_dump_json(exclude={"blocks"})}, temporary)

    def load(self, file: Path, spec: PretrainSpec) -> None:
        """Go on from a checkpoint of this block, if there is one. Raises UserError for another spec's."""
        if not file.exists():
            return
        state = torch.load(file, weights_only=True)
        _check_spec(state["spec"], spec, file)
        if state["number"] == self.number:
            for name in ("network", "average", "optimizer"):
                getattr(self, name).load_state_dict(state[name])
            self.done, self.curve, self.recent_loss = state["done"], state["curve"], state["recent_loss"]


def _load_halves(network: Backbone, file: Path) -> dict[str, str]:
    """Load fp16 weights of a backbone and its classifier into float32; returns the file's metadata."""
    load_checkpoint(network, file)
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def _check_spec(written: str, spec: PretrainSpec, file: Path) -> None:
    """More blocks may be asked for later; nothing else may change."""
    if written != spec.model_dump_json(exclude={"blocks"}):
        raise UserError(f"{file} is of another spec: remove it, or choose another folder.")


def save_weights(network: Backbone, file: Path, blocks_done: int, spec: PretrainSpec, curve: list) -> None:
    """fp16 safetensors of a network's state dict; its metadata says what is needed to go on."""
    halves = {
        key: value.detach().half()
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    about = {
        "spec": spec.model_dump_json(exclude={"blocks"}),
        "blocks_done": str(blocks_done),
        "curve": json.dumps(curve),
    }
    save_tensors(halves, file, about)


def pretrain(
    spec: PretrainSpec,
    archive: Path | str,
    out: Path | str,
    until: int | None = None,
    per_class: int | None = None,
    checkpoint_steps: int = 200,
) -> pd.DataFrame:
    """Train `spec.network` to the end of block `until`, or of all; returns the curve, one row per epoch.

    `<out>/<network>.safetensors` holds the fp16 weights after the last finished block, also those that were
    put there to go on from, and `<out>/<network>.checkpoint` where the next one is, every `checkpoint_steps`:
    the same call goes on from them.
    """
    choose("network", spec.network, list(RESNETS_64))
    out = Path(out)
    weights = out / f"{spec.network}.safetensors"
    set_up_cpu(spec.threads)
    training, validation, classes = read_tiny_imagenet(archive, per_class)
    done, curve = 0, []
    until = spec.blocks if until is None else min(until, spec.blocks)
    teacher = None
    while True:
        torch.manual_seed(spec.seed)
        network = build_resnet_64(spec.network, num_classes=len(classes))
        if weights.exists():
            about = _load_halves(network, weights)
            _check_spec(about["spec"], spec, weights)
            done, curve = int(about["blocks_done"]), json.loads(about["curve"])
        if done >= until:
            return pd.DataFrame(curve)
        if spec.distillation and teacher is None:
            teacher = teach(spec, training, validation, classes, out)
        block = Block(spec, done, network)
        _train(spec, block, training, validation, teacher, out, checkpoint_steps)
        save_weights(block.average.module, weights, done + 1, spec, [*curve, *block.curve])


def _train(
    spec: PretrainSpec,
    block: Block,
    training: Part,
    validation: Part,
    teacher: Teacher | None,
    out: Path,
    checkpoint_steps: int,
) -> None:
    """Train a block to its end, from its checkpoint if there is one."""
    checkpoint = out / f"{spec.network}.checkpoint"
    block.load(checkpoint, spec)
    network, device = block.network, spec.device
    per_epoch = len(training.images) // spec.batch_size
    total = max(1, round(spec.block_epochs * per_epoch))
    started, seconds_before = time.monotonic(), block.curve[-1]["seconds"] if block.curve else 0
    shuffled, order = -1, np.empty(0, np.int64)
    while block.done < total:
        # Order and augmentation depend on the step alone, so a resumed run sees the same images.
        step = block.number * total + block.done
        epoch, batch = divmod(step, per_epoch)
        if epoch != shuffled:
            shuffled, order = (epoch, np.random.default_rng([spec.seed, epoch]).permutation(len(training.images)))
        generator = torch.Generator().manual_seed(spec.seed * 1_000_003 + step)
        chosen = order[batch * spec.batch_size : (batch + 1) * spec.batch_size]
        side = [side for begin, side in spec.resolutions if block.done >= begin * total][-1]
        pixels = torch.from_numpy(training.images[chosen]).to(device)
        inputs = normalised(random_resized_crops(pixels, side, spec.smallest_crop, generator), network)
        labels = torch.from_numpy(training.labels[chosen]).to(device)
        taught = None if teacher is None else torch.from_numpy(teacher.logits[chosen]).to(device)

        network.train()
        for group in block.optimizer.param_groups:
            group["lr"] = rate_at(spec, block.number, block.done / total)
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=spec.precision == "bf16"):
            logits = network.classifier(network(inputs))
        loss = loss_of(spec, logits.float(), labels, taught)
        loss.backward()
        block.optimizer.step()
        block.optimizer.zero_grad()
        block.average.update_parameters(network)
        block.recent_loss += (loss.detach() - block.recent_loss) / min(block.done + 1, 100)
        block.done += 1

        if block.done % per_epoch == 0 or block.done == total:
            # Every fourth image: a curve is worth seconds, not minutes.
            few = Part(validation.images[::4], validation.labels[::4])
            top1 = (predict(block.average.module, few.images, spec.precision, device) == few.labels).mean()
            row = {
                "block": block.number + 1,
                "epoch": round((step + 1) / per_epoch, 4),
                "side": side,
                "loss": round(block.recent_loss.item(), 4),
                "top1": round(float(top1), 4),
                "seconds": round(seconds_before + time.monotonic() - started),
            }
            if not math.isfinite(row["loss"]):
                raise UserError(f"Training diverged at step {step}: lower learning_rate={spec.learning_rate}.")
            block.curve.append(row)
            print({"network": spec.network, **row}, flush=True)
        if block.done % checkpoint_steps == 0 or block.done == total:
            block.save(checkpoint, spec)


# --- the card ------------------------------------------------------------------------------------------

# The last WordNet id of each group: in ImageNet, sorted ids go from animals to things, food, places, plants.
_GROUPS = (("n02599999", "animals"), ("n06999999", "things"), ("n07999999", "food"), ("n09999999", "places"))
LICENCE = (
    "Tiny ImageNet's images are a part of ImageNet, whose terms allow non-commercial research and education; "
    "whether they bind weights learnt from them is not settled. Use these weights accordingly."
)


# What else was tried, top-1 on the validation images: written by hand from the runs' output.
TRIED = Path(__file__).with_name("pretrain_tried.json")


def class_group(wordnet_id: str) -> str:
    """What kind of thing a class of ImageNet is: animals, things, food, places or plants."""
    return next((group for last, group in _GROUPS if wordnet_id <= last), "plants")


def write_card(
    spec: PretrainSpec, archive: Path | str, out: Path | str, per_class: int | None = None, note: str = ""
) -> dict:
    """Measure `<out>/<network>.safetensors` on all validation images, and write `<out>/<network>.json`.

    The card holds the data, the recipe, the exact command, top-1 at full precision (of the last checkpoint's
    average) and of the fp16 file, top-1 of each class and group of classes, the teacher's, the curve, seconds
    by block, the hardware, what else was tried, and what limited the result (`note`).
    """
    out = Path(out)
    set_up_cpu(spec.threads)
    training, validation, classes = read_tiny_imagenet(archive, per_class)
    halved = build_resnet_64(spec.network, len(classes))
    about = _load_halves(halved, out / f"{spec.network}.safetensors")
    exact = Block(spec, int(about["blocks_done"]) - 1, build_resnet_64(spec.network, len(classes)))
    exact.load(out / f"{spec.network}.checkpoint", spec)
    right, right_halved = (
        predict(network, validation.images, "fp32", spec.device) == validation.labels
        for network in (exact.average.module, halved)
    )
    teacher = teach(spec, training, validation, classes, out) if spec.distillation else None
    groups = np.array([class_group(wordnet_id) for wordnet_id in classes])[validation.labels]
    curve = json.loads(about["curve"])
    card = {
        "network": spec.network,
        "data": "Tiny ImageNet: 200 classes of ImageNet at 64 px, from random weights",
        "command": f"make pretrain ARCHIVE=tiny-imagenet-200.zip NETWORKS={spec.network}",
        "spec": spec.model_dump(),
        "blocks_done": int(about["blocks_done"]),
        "note": note,
        "seconds": sum(
            row["seconds"] for row, after in pairwise([*curve, {"block": 0}]) if row["block"] != after["block"]
        ),
        "licence": LICENCE,
        "training_images": len(training.images),
        "validation_images": len(validation.images),
        "top1": round(float(right.mean()), 4),
        "top1_fp16": round(float(right_halved.mean()), 4),
        "top1_by_group": {group: round(float(right[groups == group].mean()), 4) for group in np.unique(groups)},
        "top1_by_class": {
            wordnet_id: round(float(right[validation.labels == label].mean()), 2)
            for label, wordnet_id in enumerate(classes)
        },
        "teacher": teacher and {"top1_zero_shot": teacher.top1_zero_shot, "top1": teacher.top1},
        "tried": json.loads(TRIED.read_text()),
        "curve": curve,
        **provenance(),
    }
    write_json(out / f"{spec.network}.json", card)
    return card

"""Pretrain a residual network on Tiny ImageNet (200 classes, 64 px), resumable at any moment.

SGD with Nesterov momentum; the learning rate warms up, then falls linearly to zero; label smoothing;
random resized crops and flips; the resolution grows in steps; weights averaged along the way.
"""

import io
import math
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lib.common.errors import UserError
from lib.common.files import atomic_path, save_tensors, write_json
from lib.common.provenance import provenance
from lib.learning.engine import set_up_cpu
from lib.networks.backbone import Backbone
from lib.networks.catalogue import IMAGENET, RESNETS_64, build_resnet_64, load_halves


class PretrainSpec(BaseModel):
    """Everything that changes the numbers of a pretraining run."""

    model_config = ConfigDict(extra="forbid")

    network: str = "resnet26_64"
    epochs: float = Field(20, gt=0)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(0.2, gt=0)  # at batch 128, Nesterov momentum 0.9
    warmup_epochs: float = Field(1.0, ge=0)
    weight_decay: float = Field(2e-4, ge=0)  # on weight matrices and filters only
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    smallest_crop: float = Field(0.25, gt=0, le=1)  # share of the image's area
    # (share of training after which it begins, side in pixels): small images first are cheap epochs
    resolutions: list[tuple[float, int]] = [(0.0, 32), (0.4, 48), (0.75, 64)]
    average_steps: int = Field(400, ge=1)  # horizon of the exponential average of the weights
    precision: str = Field("bf16", pattern="^(fp32|bf16)$")
    threads: int = Field(2, ge=1)
    device: str = "cpu"
    seed: int = 0


def read_tiny_imagenet(archive: Path | str, per_class: int | None = None):
    """Images and labels of Tiny ImageNet's training and validation parts, decoded.

    `archive` is the official `tiny-imagenet-200.zip` or the folder it unpacks to; labels are indices
    into the WordNet ids in sorted order. `per_class` keeps the first few of each class. Returns
    ((N, 64, 64, 3) uint8, (N,) int64) for training, the same for validation, and the WordNet ids.
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

    def decode(files, labels) -> tuple[np.ndarray, np.ndarray]:
        images = np.empty((len(files), 64, 64, 3), np.uint8)
        for i, file in enumerate(files):
            try:
                images[i] = Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
            except (OSError, ValueError) as error:
                raise UserError(f"Cannot read {file} as an image of 64 px: {error}.") from error
        return images, np.array(labels, np.int64)

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


def normalise(pixels: Tensor) -> Tensor:
    """Float pixels (B, 3, H, W) in 0..255 to the network's input, channels last in memory."""
    mean, std = (torch.tensor(IMAGENET[key], device=pixels.device).view(3, 1, 1) for key in ("mean", "std"))
    return ((pixels / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def predict(network: nn.Module, images: np.ndarray, precision: str, device: str = "cpu") -> np.ndarray:
    """Most likely class (N,) of uint8 images (N, 64, 64, 3) by representation and classifier."""
    network.eval()
    answers = []
    for start in range(0, len(images), 250):
        batch = torch.from_numpy(images[start : start + 250]).to(device)
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=precision == "bf16"):
            logits = network.classifier(network(normalise(batch.permute(0, 3, 1, 2).float())))
        answers.append(logits.argmax(1).cpu().numpy())
    return np.concatenate(answers)


def rate_at(spec: PretrainSpec, progress: float) -> float:
    """Learning rate after `progress` (0..1) of training: linear up, then linear down to zero."""
    warm = min(spec.warmup_epochs / spec.epochs, 0.5)
    return spec.learning_rate * (progress / warm if progress < warm else (1 - progress) / (1 - warm))


def save_weights(network: Backbone, path: Path, steps_done: int, spec: PretrainSpec) -> None:
    """fp16 safetensors of a network's state dict, with the spec and the steps done in its metadata."""
    halves = {
        key: value.detach().half()
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    metadata = {"spec": spec.model_dump_json(), "steps_done": str(steps_done)}
    save_tensors(halves, path, metadata)


def pretrain(
    spec: PretrainSpec,
    archive: Path | str,
    out: Path | str,
    resume_from: Path | str | None = None,
    per_class: int | None = None,
    checkpoint_steps: int = 200,
) -> pd.DataFrame:
    """Train `spec.network` and write `<out>/<network>.safetensors`; returns the curve, a row an epoch.

    A checkpoint is written every `checkpoint_steps`; the same call goes on from it. `resume_from`
    names fp16 weights to go on from where there is no checkpoint (the momentum starts at zero).
    """
    if spec.network not in RESNETS_64:
        raise UserError(f"Unknown network {spec.network!r}: expected one of {', '.join(RESNETS_64)}.")
    out = Path(out)
    set_up_cpu(spec.threads)
    torch.manual_seed(spec.seed)
    (images, labels), (val_images, val_labels), classes = read_tiny_imagenet(archive, per_class)
    network = build_resnet_64(spec.network, num_classes=len(classes))
    done, curve, recent_loss = 0, [], torch.zeros((), device=spec.device)
    if resume_from is not None:
        done = int(load_halves(network, Path(resume_from))["steps_done"])
    network.to(spec.device, memory_format=torch.channels_last)
    average = AveragedModel(
        network, multi_avg_fn=get_ema_multi_avg_fn(1 - 1 / spec.average_steps), use_buffers=True
    )
    decayed = [p for p in network.parameters() if p.ndim > 1]
    plain = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": spec.weight_decay}, {"params": plain}],
        lr=spec.learning_rate,
        momentum=0.9,
        nesterov=True,
        fused=True,
    )
    checkpoint = out / f"{spec.network}.checkpoint"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["spec"] != spec.model_dump_json():
            raise UserError(f"{checkpoint} is of another spec: remove it, or choose another folder.")
        for part, key in ((network, "network"), (average, "average"), (optimizer, "optimizer")):
            part.load_state_dict(state[key])
        done, curve, recent_loss = state["done"], state["curve"], state["recent_loss"]

    def save_checkpoint() -> None:
        with atomic_path(checkpoint) as temporary:
            torch.save(
                {
                    "network": network.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "done": done,
                    "curve": curve,
                    "recent_loss": recent_loss,
                    "spec": spec.model_dump_json(),
                },
                temporary,
            )

    per_epoch = len(images) // spec.batch_size
    total = max(1, round(spec.epochs * per_epoch))
    started, seconds_before = time.monotonic(), curve[-1]["seconds"] if curve else 0.0
    while done < total:
        # Order and augmentation depend on the step alone, so a resumed run sees the same images.
        epoch, batch = divmod(done, per_epoch)
        order = np.random.default_rng([spec.seed, epoch]).permutation(len(images))
        generator = torch.Generator().manual_seed(spec.seed * 1_000_003 + done)
        chosen = order[batch * spec.batch_size : (batch + 1) * spec.batch_size]
        side = [side for begin, side in spec.resolutions if done >= begin * total][-1]
        pixels = torch.from_numpy(images[chosen]).to(spec.device)
        inputs = normalise(random_resized_crops(pixels, side, spec.smallest_crop, generator))
        targets = torch.from_numpy(labels[chosen]).to(spec.device)

        network.train()
        for group in optimizer.param_groups:
            group["lr"] = rate_at(spec, done / total)
        with torch.autocast(spec.device.split(":")[0], torch.bfloat16, enabled=spec.precision == "bf16"):
            logits = network.classifier(network(inputs))
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=spec.label_smoothing)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(network)
        recent_loss += (loss.detach() - recent_loss) / min(done + 1, 100)
        done += 1

        if done % per_epoch == 0 or done == total:
            # Every fourth image: a curve is worth seconds, not minutes.
            top1 = (
                predict(average.module, val_images[::4], spec.precision, spec.device) == val_labels[::4]
            ).mean()
            elapsed = seconds_before + time.monotonic() - started
            row = {
                "epoch": done / per_epoch,
                "side": side,
                "loss": round(recent_loss.item(), 4),
                "top1": round(float(top1), 4),
                "seconds": round(elapsed),
            }
            if not math.isfinite(row["loss"]):
                raise UserError(
                    f"Training diverged at step {done}: lower learning_rate={spec.learning_rate}."
                )
            curve.append(row)
            print(row, flush=True)
        if done % checkpoint_steps == 0 or done == total:
            save_checkpoint()
            save_weights(average.module, out / f"{spec.network}.safetensors", done, spec)
    return pd.DataFrame(curve)


# The last WordNet id of each group: in ImageNet, sorted ids go from animals to things, food, places, plants.
_GROUPS = (("n02599999", "animals"), ("n06999999", "things"), ("n07999999", "food"), ("n09999999", "places"))
LICENCE = (
    "Tiny ImageNet's images are a part of ImageNet, whose terms allow non-commercial research and education; "
    "whether they bind weights learnt from them is not settled. Use these weights accordingly."
)


def class_group(wordnet_id: str) -> str:
    """What kind of thing a class of ImageNet is: animals, things, food, places or plants."""
    return next((group for last, group in _GROUPS if wordnet_id <= last), "plants")


def write_card(
    spec: PretrainSpec, archive: Path | str, out: Path | str, per_class: int | None = None
) -> dict:
    """Measure the finished weights on all validation images, and write `<out>/<network>.json`.

    The card holds the data, the recipe, the exact command, top-1 at full precision of the checkpoint's
    average and of the fp16 file, top-1 of each class and group of classes, the curve, the seconds, the
    hardware, and a note on the licence.
    """
    out = Path(out)
    state = torch.load(out / f"{spec.network}.checkpoint", weights_only=True)
    _, (images, labels), classes = read_tiny_imagenet(archive, per_class)
    exact, halved = (build_resnet_64(spec.network, len(classes)) for _ in range(2))
    average = AveragedModel(exact, use_buffers=True)
    average.load_state_dict(state["average"])
    metadata = load_halves(halved, out / f"{spec.network}.safetensors")
    right, right_halved = (
        predict(network, images, "fp32", spec.device) == labels for network in (average.module, halved)
    )
    groups = np.array([class_group(wordnet_id) for wordnet_id in classes])[labels]
    card = {
        "network": spec.network,
        "data": "Tiny ImageNet: 200 classes of ImageNet at 64 px, from random weights",
        "command": f"make pretrain ARCHIVE=tiny-imagenet-200.zip NETWORKS={spec.network}",
        "spec": spec.model_dump(),
        "seconds": state["curve"][-1]["seconds"],
        "licence": LICENCE,
        "steps_done": int(metadata["steps_done"]),
        "training_images": 500 * len(classes) if per_class is None else per_class * len(classes),
        "validation_images": len(labels),
        "top1": round(float(right.mean()), 4),
        "top1_fp16": round(float(right_halved.mean()), 4),
        "top1_by_group": {
            group: round(float(right[groups == group].mean()), 4) for group in np.unique(groups)
        },
        "top1_by_class": {
            wordnet_id: round(float(right[labels == label].mean()), 2)
            for label, wordnet_id in enumerate(classes)
        },
        "curve": state["curve"],
        **provenance(),
    }
    write_json(out / f"{spec.network}.json", card)
    return card

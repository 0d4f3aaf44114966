"""What a plan is computed from: scores and corrections, on images where they need some, and its MACs."""

import copy
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from lib.common.errors import UserError
from lib.networks.macs import forward_macs
from lib.pruning.criteria import CRITERIA, Evidence, elimination_macs, score_filters
from lib.pruning.repairs import REPAIRS, Damage, Repair
from lib.pruning.sites import Site
from lib.pruning.statistics import Moments, reader_moments, reestimate_norms, synthetic_images
from lib.pruning.surgery import cut, mask_channels

SYNTHETIC_IMAGES = 64
MORE_SYNTHETIC_IMAGES = 256  # for a repair that fits every layer


@dataclass
class Calibration:
    """What criterion and repair compute on the `images` given or on synthetic ones, and its MACs so far."""

    network: nn.Module
    sites: list[Site]
    images: Tensor | None
    image_size: int
    seed: int
    macs: int = 0
    moments: dict[str, dict[str, Moments]] = field(default_factory=dict)

    def _pass(self, network: nn.Module, images: Tensor) -> None:
        self.macs += len(images) * forward_macs(network, images.shape[-1])

    def _looked_at(self, kind: str, count: int) -> tuple[nn.Module, Tensor]:
        """The dense network and the images given, or `count` "synthetic" ones."""
        if kind != "synthetic":
            return self.network, self.images
        # Batch norms bring each channel back to the mean and deviation that it has on photographs.
        dtype = next(self.network.parameters()).dtype
        images = synthetic_images(count, self.image_size, self.seed).to(dtype)
        network = copy.deepcopy(self.network)
        reestimate_norms(network, images)
        self._pass(network, images)
        return network, images

    def _moments(self, kind: str) -> dict[str, Moments]:
        """Moments on the images given, or on "synthetic" ones."""
        if kind not in self.moments:
            network, images = self._looked_at(kind, SYNTHETIC_IMAGES)
            self._pass(network, images)
            self.moments[kind] = reader_moments(network, self.sites, images)
        return self.moments[kind]

    def scores(self, criterion: str) -> list[Tensor]:
        """The scores (C,) of every site's filters."""
        inputs, scores = {}, []
        if CRITERIA[criterion].needs_images:
            inputs = self._moments("images")
            consumers = [consumer for site in self.sites for consumer in site.consumers]
            self.macs += sum(elimination_macs(self.network, each, inputs[each.name]) for each in consumers)
        for place, site in enumerate(self.sites):
            # A seed per site: `random` must not draw the same order everywhere.
            generator = torch.Generator().manual_seed(self.seed * 10_007 + place)
            scores.append(score_filters(Evidence(self.network, site, generator, inputs), criterion))
        return scores

    def corrections(self, name: str, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the repair `name` changes of the network that keeps `kept` of each site: tensors by name."""
        if name == "none":
            return {}
        try:
            found = self._corrections(REPAIRS[name], kept)
        except torch.linalg.LinAlgError as error:
            raise UserError(f"repair={name!r} cannot be solved ({error}): give other images.") from error
        for tensor, value in found.items():
            if not value.isfinite().all():
                raise UserError(
                    f"repair={name!r} leads to values that are not finite in {tensor}: expected finite "
                    "weights, and images normalised as the network's are."
                )
        return found

    def _corrections(self, repair: Repair, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        start = cut(self.network, self.sites, kept).state_dict()
        if not repair.cut:
            damage = Damage(copy.deepcopy(self.network), self.sites, kept)
            if repair.solves:
                damage.dense = self._moments(repair.needs)
            elif repair.needs == "images":
                damage.images = self.images
                self._pass(damage.network, self.images)
            for site in self.sites:
                mask_channels(damage.network, site, kept[site.name])
            repair.correct(damage)
            self.macs += damage.macs
            after = cut(damage.network, self.sites, kept).state_dict()
            return {name: value for name, value in after.items() if not torch.equal(value, start[name])}
        dense, images = self._looked_at(repair.needs, MORE_SYNTHETIC_IMAGES)
        damage = Damage(cut(dense, self.sites, kept), self.sites, kept, images, original=dense)
        before = copy.deepcopy(damage.network.state_dict())
        for network in (dense, damage.network):
            self._pass(network, images)
        repair.correct(damage)
        self.macs += damage.macs
        # What the synthetic images alone did to the norms does not stay.
        after = damage.network.state_dict()
        return {n: start[n] + v - before[n] for n, v in after.items() if not torch.equal(v, before[n])}


def checked_images(images: Tensor | np.ndarray | None, hungry: list[str], dtype: torch.dtype) -> Tensor | None:
    """The images as the network takes them, for what of a request is `hungry` for some."""
    if images is None:
        if hungry:
            raise UserError(
                f"{' and '.join(hungry)} works on images and none were given: give images= (normalised, "
                "(N, 3, H, W)), or choose one that is data-free."
            )
        return None
    is_array = isinstance(images, (Tensor, np.ndarray))
    shape = tuple(images.shape) if is_array else ()
    square = len(shape) == 4 and shape[0] > 0 and shape[1] == 3 and shape[2] == shape[3] > 0
    if not square or "float" not in str(images.dtype):
        what = f"{images.dtype} of shape {shape}" if is_array else f"a {type(images).__name__}"
        raise UserError(
            f"images are {what}: expected a tensor or an array of normalised floats (N, 3, H, W), square, as "
            "lib.networks.backbone.normalised(images, network) gives them."
        )
    taken = torch.tensor(np.ascontiguousarray(images)) if isinstance(images, np.ndarray) else images
    taken = taken.detach().to("cpu", dtype)
    if not taken.isfinite().all():
        raise UserError("images hold values that are not finite: expected normalised photographs.")
    return taken

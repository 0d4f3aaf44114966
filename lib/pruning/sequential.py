"""Sequential repair: the pruned network's layers re-fitted one after the other, from their own inputs there.

So each makes good what the layers before it have lost (He et al., Channel pruning for accelerating very deep
networks, 2017). One pass of the dense network and one of the pruned do it, all images at once: a layer is
fitted the moment it is reached. X (n, p) are its inputs at n positions, a column for each channel and tap;
R (n, out) is what its outputs lack of the dense network's; both about their means. Then

    W <- W + D,    D = argmin |R - X D|^2 / n + (RIDGE + SHORTAGE p / n) sum_j var(X_j) |D_j|^2

and the means' difference goes into the bias or the batch norm behind; for a depthwise kernel that is all. At
the layer that ends a residual branch, R is what the sum of branch and shortcut lacks, over the slope from the
outputs to that sum (a batch norm's, a layer scale's): so the error of the residual stream is made good too.
Neither depthwise kernels re-fitted nor deviations restored would bring EfficientNet-Lite0 nearer.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lib.common.vision import timm
from lib.pruning.repairs import Damage, repair
from lib.pruning.sites import BATCH_NORMS, residual_sums

ROWS = 4096  # positions that a layer is fitted on, spread over images and maps; all where there are fewer
RIDGE = 0.01
SHORTAGE = 0.3
SMALLEST_SLOPE = 0.01  # of the mean one: a channel that its norm all but closes asks for no large weights
GOLDEN = 0.618033988749895

# Name, layer, its inputs and outputs, and what is aimed at: the outputs or, where it ends a branch, the sum.
Visit = Callable[[str, nn.Module, Tensor, Tensor, Tensor], Tensor | None]


@repair("sequential", needs="images", cut=True)
@repair("sequential_synthetic", needs="synthetic", cut=True)
@torch.no_grad()
def _sequential(damage: Damage) -> None:
    """Layers re-fitted in the order of the forward pass, from their inputs in the pruned network."""
    sums = residual_sums(damage.original)
    aims: dict[str, Tensor] = {}

    def keep_rows(name: str, layer: nn.Module, inputs: Tensor, outputs: Tensor, values: Tensor) -> None:
        aims.setdefault(name, _rows(values, None if name in sums else layer))

    norms = _visit(damage.original, sums, damage.images, keep_rows)
    for site in damage.sites:
        for name in aims.keys() & set(site.output_sliced):
            aims[name] = aims[name][:, damage.kept[site.name]]
    small = damage.network.requires_grad_(False)  # but for the slopes no gradient is wanted

    @torch.no_grad()
    def refit(name: str, layer: nn.Module, inputs: Tensor, outputs: Tensor, values: Tensor) -> Tensor | None:
        if name not in aims:
            return None  # it is called again
        lacking = aims.pop(name) - _rows(values, None if name in sums else layer)
        if name in sums:
            slope = torch.autograd.grad(values, outputs, torch.ones_like(values))[0]
            slope = _channels_last(slope, layer)[0].flatten(0, -2)[0]
            if not slope.any():
                return values.detach()  # a norm that closes the branch: nothing in it can help
            steep = slope.abs().clamp(min=SMALLEST_SLOPE * slope.abs().mean())
            lacking = lacking / torch.where(slope < 0, -steep, steep)
        norm = norms.get(name)
        free = layer.bias is not None or norm is not None
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels:
            change, offset = torch.zeros_like(layer.weight), lacking.mean(0) * free
        else:
            known = _patches(layer, inputs)
            change, offset = _least_squares(known, lacking, free)
            change = change.mT.reshape(layer.weight.shape)
            # Moments, Cholesky factor, two triangular solves.
            groups, count, width = known.shape
            damage.macs += groups * (count * width**2 + width**3 // 3) + (count + width) * width * lacking.shape[1]
        layer.weight += change
        within, behind = offset, torch.zeros_like(offset)
        if layer.bias is not None:
            layer.bias += within
        elif norm is not None:
            within, behind = behind, within
            small.get_submodule(norm).running_mean -= behind
        moved = functional_call(layer, {"weight": change, "bias": within}, (inputs,))
        damage.macs += moved.numel() * change[0].numel()
        if name not in sums:
            return outputs + moved
        added = slope * (_channels_last(moved, layer) + behind)
        return values.detach() + (added.movedim(-1, 1) if values.ndim == 4 else added)

    with torch.enable_grad():
        _visit(small, sums, damage.images, refit)


def _visit(network: nn.Module, sums: dict[str, tuple[str, bool]], images: Tensor, visit: Visit) -> dict[str, str]:
    """Run a network and call `visit` for every convolution and linear layer, as soon as what it aims at is there.

    What that returns is passed on instead. Returns the name of the batch norm behind each layer.
    """
    norms: dict[str, str] = {}
    latest: tuple[str, Tensor | None] = ("", None)
    ends: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}

    def at_layer(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor | None:
        nonlocal latest
        latest = (name, outputs)
        if name not in sums:
            return visit(name, layer, inputs[0], outputs, outputs)
        ends[name] = layer, inputs[0], outputs
        # Its slope is asked for, and what follows may write to it.
        return outputs.requires_grad_() + 0 if torch.is_grad_enabled() else None

    def at_norm(norm: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0] is latest[1]:
            norms[latest[0]] = norm

    def at_sum(name: str, _: nn.Module, *values: Tensor | tuple[Tensor, ...]) -> Tensor | None:
        summed = values[-1][0] if isinstance(values[-1], tuple) else values[-1]
        # torchvision calls one activation several times in a block
        return visit(name, *ends.pop(name), summed) if name in ends else None

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                hooks.enter_context(module.register_forward_hook(partial(at_layer, name)))
            elif isinstance(module, BATCH_NORMS):
                hooks.enter_context(module.register_forward_pre_hook(partial(at_norm, name)))
        for name, (place, enters) in sums.items():
            module = network.get_submodule(place)
            register = module.register_forward_pre_hook if enters else module.register_forward_hook
            hooks.enter_context(register(partial(at_sum, name)))
        network(images)
    return norms


def _channels_last(values: Tensor, layer: nn.Module | None = None) -> Tensor:
    """Maps or tokens with the channels behind, where a linear layer has them."""
    return values.movedim(1, -1) if values.ndim == 4 and not isinstance(layer, nn.Linear) else values


def _spread(images: int, positions: int) -> tuple[Tensor, Tensor]:
    """Indices of images (N, 1) and of positions (N, P), evenly spread, others in every image."""
    each = min(positions, -(-ROWS // images))
    image = torch.arange(images)[:, None]
    phase = image.double() * GOLDEN % 1
    return image, ((torch.arange(each) + phase) * positions / each).long()


def _rows(values: Tensor, layer: nn.Module | None = None) -> Tensor:
    """Rows (n, C) at the positions that are looked at."""
    values = _channels_last(values, layer)
    by_position = values.reshape(len(values), -1, values.shape[-1])
    return by_position[_spread(*by_position.shape[:2])].flatten(0, 1)


def _patches(layer: nn.Module, inputs: Tensor) -> Tensor:
    """What a layer reads (groups, n, p) at the positions that `_rows` takes of its outputs."""
    if isinstance(layer, nn.Linear):
        return _rows(inputs, layer)[None]
    if isinstance(layer, timm.layers.Conv2dSame):
        windows = timm.layers.pad_same(inputs, layer.kernel_size, layer.stride, layer.dilation)
    else:
        windows = F.pad(inputs, layer._reversed_padding_repeated_twice)
    for axis, (taps, stride, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        windows = windows.unfold(2 + axis, dilation * (taps - 1) + 1, stride)
    windows = windows[..., :: layer.dilation[0], :: layer.dilation[1]]
    rows, columns = windows.shape[2:4]
    image, position = _spread(len(inputs), rows * columns)
    picked = windows[image, :, position // columns, position % columns]  # (N, P, C, taps, taps)
    return picked.flatten(0, 1).unflatten(1, (layer.groups, -1)).transpose(0, 1).flatten(2)


def _least_squares(known: Tensor, lacking: Tensor, free: bool) -> tuple[Tensor, Tensor]:
    """The change (groups, p, out / groups) of a layer's weights, and of its intercept (out,) where `free`.

    `known` (groups, n, p) is what the layer reads, `lacking` (n, out) what it should give more.
    """
    groups, count, width = known.shape
    lacking = lacking.unflatten(1, (groups, -1)).transpose(0, 1)
    mean = known.mean(1, keepdim=True) * free
    centred = known - mean
    deviation = centred.square().mean(1, keepdim=True).sqrt()
    deviation = deviation + 1e-3 * deviation.mean() + 1e-12
    scaled = centred / deviation
    gram = scaled.mT @ scaled / count
    gram.diagonal(dim1=1, dim2=2).add_(RIDGE + SHORTAGE * width / count)
    change = torch.cholesky_solve(scaled.mT @ lacking / count, torch.linalg.cholesky(gram)) / deviation.mT
    offset = (lacking.mean(1, keepdim=True) - mean @ change) * free
    return change, offset.flatten()

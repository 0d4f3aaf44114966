"""The declared families: which modules a block's channels run through, torchvision's and timm's variants.

Each block is a line; the parametrised tests take up whatever is declared here.
"""

from dataclasses import dataclass

from torch import nn

from lib.common.vision import timm, torchvision

_tv, _timm = torchvision.models, timm.models
_efficient = _timm._efficientnet_blocks


@dataclass(frozen=True)
class Block:
    """How channels run through one block of a family.

    `branch` names its modules in the order of the forward pass, `shortcut` the module beside it (None or an
    identity: the input is added as it is). `skip` says whether the input is added, or names the attribute
    that says so (None and False: it is not). `activation` follows the sum. `absent` names optional modules
    that the declaration does not cover.
    """

    branch: str
    shortcut: str | None = None
    skip: bool | str = True
    activation: str | None = None
    absent: str = ""

    def adds_input(self, module: nn.Module) -> bool:
        skip = getattr(module, self.skip) if isinstance(self.skip, str) else self.skip
        return skip is not None and skip is not False


_RESNET = {"shortcut": "downsample", "absent": "se aa drop_block"}
_inverted = Block("block", skip="use_res_connect")
_vgg = Block("features", skip=False)  # one chain; its last convolution makes the representation

BLOCKS: dict[type[nn.Module], Block] = {
    # ResNet, Wide-ResNet, ResNeXt
    _tv.resnet.BasicBlock: Block("conv1 bn1 relu conv2 bn2", "downsample", activation="relu"),
    _tv.resnet.Bottleneck: Block("conv1 bn1 relu conv2 bn2 relu conv3 bn3", "downsample", activation="relu"),
    _timm.resnet.BasicBlock: Block("conv1 bn1 act1 conv2 bn2", activation="act2", **_RESNET),
    _timm.resnet.Bottleneck: Block("conv1 bn1 act1 conv2 bn2 act2 conv3 bn3", activation="act3", **_RESNET),
    _tv.VGG: _vgg,
    _timm.VGG: _vgg,
    # MobileNetV2, MobileNetV3, EfficientNet, EfficientNetV2, EfficientNet-Lite
    _tv.mobilenetv2.InvertedResidual: Block("conv", skip="use_res_connect"),
    _tv.mobilenetv3.InvertedResidual: _inverted,
    _tv.efficientnet.MBConv: _inverted,
    _tv.efficientnet.FusedMBConv: _inverted,
    _efficient.InvertedResidual: Block(
        "conv_pw bn1 conv_dw bn2 se conv_pwl bn3", skip="has_skip", absent="aa conv_s2d bn_s2d"
    ),
    _efficient.EdgeResidual: Block("conv_exp bn1 se conv_pwl bn2", skip="has_skip", absent="aa"),
    _efficient.DepthwiseSeparableConv: Block(
        "conv_dw bn1 se conv_pw bn2", skip="has_skip", absent="aa conv_s2d bn_s2d"
    ),
    _efficient.ConvBnAct: Block("conv bn1", skip="has_skip", absent="aa"),
    # RegNet
    _tv.regnet.ResBottleneckBlock: Block("f", "proj", activation="activation"),
    _timm.regnet.Bottleneck: Block("conv1 conv2 se conv3", "downsample", skip="downsample", activation="act3"),
    # ConvNeXt and vision transformers (ViT, DeiT): the hidden width of the MLP
    _tv.convnext.CNBlock: Block("block.2 block.3 block.4 block.5"),
    _timm.convnext.ConvNeXtBlock: Block("norm mlp"),
    _tv.vision_transformer.EncoderBlock: Block("ln_2 mlp"),
    _timm.vision_transformer.Block: Block("norm2 mlp"),
}

# The modules of a network that write its first residual stream, None where it has no such stream. Networks of
# these kinds offer the granularity `channel`.
STEMS: dict[type[nn.Module], str | None] = {
    _tv.ResNet: "conv1 bn1 relu",
    _timm.ResNet: "conv1 bn1 act1",
    _tv.VGG: None,
    _timm.VGG: None,
    _tv.MobileNetV2: "features.0",
    _tv.MobileNetV3: "features.0",
    _tv.EfficientNet: "features.0",
    _timm.EfficientNet: "conv_stem bn1",
    _timm.MobileNetV3: "conv_stem bn1",
    _tv.RegNet: "stem",
    _timm.RegNet: "stem",
}

"""The declared families: which modules a block's channels run through, torchvision's and timm's variants.

Each is a line: the modules of the residual branch in the order of the forward pass, and the shortcut. The
parametrised tests take up whatever is declared here.
"""

from torch import nn

from lib.common.vision import timm, torchvision
from lib.pruning.sites import Block, declare_block, declare_stem

_tv, _timm = torchvision.models, timm.models


# ResNet, Wide-ResNet, ResNeXt
@declare_block(_tv.resnet.BasicBlock)
def _tv_basic(block: nn.Module) -> Block:
    return Block("conv1 bn1 relu conv2 bn2", shortcut="downsample", activation="relu")


@declare_block(_tv.resnet.Bottleneck)
def _tv_bottleneck(block: nn.Module) -> Block:
    return Block("conv1 bn1 relu conv2 bn2 relu conv3 bn3", shortcut="downsample", activation="relu")


@declare_block(_timm.resnet.BasicBlock)
def _timm_basic(block: nn.Module) -> Block:
    return Block(
        "conv1 bn1 act1 conv2 bn2", shortcut="downsample", activation="act2", absent="se aa drop_block"
    )


@declare_block(_timm.resnet.Bottleneck)
def _timm_bottleneck(block: nn.Module) -> Block:
    return Block(
        "conv1 bn1 act1 conv2 bn2 act2 conv3 bn3",
        shortcut="downsample",
        activation="act3",
        absent="se aa drop_block",
    )


declare_stem(_tv.ResNet, modules="conv1 bn1 relu")
declare_stem(_timm.ResNet, modules="conv1 bn1 act1")


# VGG: one chain; its last convolution makes the representation
@declare_block(_tv.VGG, _timm.VGG)
def _vgg(network: nn.Module) -> Block:
    return Block("features", skip=False)


declare_stem(_tv.VGG, _timm.VGG, modules=None)


# MobileNetV2, MobileNetV3, EfficientNet, EfficientNetV2, EfficientNet-Lite
@declare_block(_tv.mobilenetv2.InvertedResidual)
def _tv_inverted_v2(block: nn.Module) -> Block:
    return Block("conv", skip=block.use_res_connect)


@declare_block(_tv.mobilenetv3.InvertedResidual, _tv.efficientnet.MBConv, _tv.efficientnet.FusedMBConv)
def _tv_inverted(block: nn.Module) -> Block:
    return Block("block", skip=block.use_res_connect)


@declare_block(_timm._efficientnet_blocks.InvertedResidual)
def _timm_inverted(block: nn.Module) -> Block:
    return Block("conv_pw bn1 conv_dw bn2 se conv_pwl bn3", skip=block.has_skip, absent="aa conv_s2d bn_s2d")


@declare_block(_timm._efficientnet_blocks.EdgeResidual)
def _timm_edge(block: nn.Module) -> Block:
    return Block("conv_exp bn1 se conv_pwl bn2", skip=block.has_skip, absent="aa")


@declare_block(_timm._efficientnet_blocks.DepthwiseSeparableConv)
def _timm_separable(block: nn.Module) -> Block:
    return Block("conv_dw bn1 se conv_pw bn2", skip=block.has_skip, absent="aa conv_s2d bn_s2d")


@declare_block(_timm._efficientnet_blocks.ConvBnAct)
def _timm_conv_bn_act(block: nn.Module) -> Block:
    return Block("conv bn1", skip=block.has_skip, absent="aa")


declare_stem(_tv.MobileNetV2, _tv.MobileNetV3, _tv.EfficientNet, modules="features.0")
declare_stem(_timm.EfficientNet, _timm.MobileNetV3, modules="conv_stem bn1")


# RegNet
@declare_block(_tv.regnet.ResBottleneckBlock)
def _tv_regnet(block: nn.Module) -> Block:
    return Block("f", shortcut="proj", activation="activation")


@declare_block(_timm.regnet.Bottleneck)
def _timm_regnet(block: nn.Module) -> Block:
    return Block(
        "conv1 conv2 se conv3", shortcut="downsample", skip=block.downsample is not None, activation="act3"
    )


declare_stem(_tv.RegNet, _timm.RegNet, modules="stem")


# ConvNeXt and vision transformers (ViT, DeiT): the hidden width of the MLP
@declare_block(_tv.convnext.CNBlock)
def _tv_convnext(block: nn.Module) -> Block:
    return Block("block.2 block.3 block.4 block.5")


@declare_block(_timm.convnext.ConvNeXtBlock)
def _timm_convnext(block: nn.Module) -> Block:
    return Block("norm mlp")


@declare_block(_tv.vision_transformer.EncoderBlock)
def _tv_transformer(block: nn.Module) -> Block:
    return Block("ln_2 mlp")


@declare_block(_timm.vision_transformer.Block)
def _timm_transformer(block: nn.Module) -> Block:
    return Block("norm2 mlp")

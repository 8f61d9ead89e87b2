"""Convolutions as backbones and heads build and fill them."""

from torch import nn

from detectron2.layers import Conv2d, get_norm


def conv_norm(
    in_channels: int, out_channels: int, kernel_size: int, norm="", bias: bool = False, conv=Conv2d, **kwargs
) -> nn.Module:
    """Convolution (of the class `conv`) that keeps the size at stride 1, with a norm as `get_norm` takes it."""
    padding = kwargs.get("dilation", 1) * (kernel_size // 2)
    norm = get_norm(norm, out_channels)
    return conv(in_channels, out_channels, kernel_size, padding=padding, bias=bias, norm=norm, **kwargs)


def head_conv(in_channels: int, out_channels: int, norm="") -> nn.Module:
    """3x3 convolution, norm (then without bias) and ReLU, as heads have them."""
    return conv_norm(in_channels, out_channels, 3, norm, bias=not norm, activation=nn.ReLU())


def normal_fill(module: nn.Module, std: float) -> None:
    """Fill all convolutions and linear layers in it, in their order: weights from N(0, std), biases 0."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

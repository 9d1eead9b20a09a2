"""Convolutional encoder and decoder blocks in the style of IMPALA (arXiv 1802.01561), shared by every image model."""

import torch
from torch import nn
from torch.nn import functional as F

WIDTHS = (16, 32, 32)  # channels of the three blocks at scale 1


class ResidualBlock(nn.Module):
    """x + conv3x3(relu6(conv3x3(relu6(x)))). (B, C, H, W) -> the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.relu6(self.conv1(F.relu6(x))))


class EncoderBlock(nn.Sequential):
    """A 3x3 convolution that halves the map, then residual blocks. (B, in, H, W) -> (B, out, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int, residual_blocks: int):
        super().__init__(nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1),
                         *(ResidualBlock(out_channels) for _ in range(residual_blocks)))


class DecoderBlock(nn.Sequential):
    """A 2x2 transposed convolution that doubles the map, then residual blocks. (B, in, H, W) -> (B, out, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int, residual_blocks: int):
        super().__init__(nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2),
                         *(ResidualBlock(out_channels) for _ in range(residual_blocks)))


class ImageEncoder(nn.Sequential):
    """Three encoder blocks of (16, 32, 32) x scale channels. (B, in_channels, H, W) -> (B, channels, H/8, W/8).

    `channels` (int) is the width of the last map.
    """

    def __init__(self, in_channels: int, scale: int, residual_blocks: int):
        widths = [in_channels, *(scale * width for width in WIDTHS)]
        super().__init__(*(EncoderBlock(*pair, residual_blocks) for pair in zip(widths, widths[1:], strict=False)))
        self.channels = widths[-1]


class ImageDecoder(nn.Sequential):
    """Three decoder blocks in mirror order. (B, in_channels, H, W) -> (B, channels, 8H, 8W)."""

    def __init__(self, in_channels: int, scale: int, residual_blocks: int):
        widths = [in_channels, *(scale * width for width in reversed(WIDTHS))]
        super().__init__(*(DecoderBlock(*pair, residual_blocks) for pair in zip(widths, widths[1:], strict=False)))
        self.channels = widths[-1]


def orthogonal(module: nn.Module) -> None:
    """Set orthogonal weights and zero biases in every convolution and linear layer of the module."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)

"""Latent action models: an inverse model (IDM) infers a latent action from two observations, a forward model (FDM)
predicts the second one from the first and the latent action."""

import torch
from torch import nn
from torch.nn import functional as F

from oclam.cnn import ImageDecoder, ImageEncoder, orthogonal


class ImageInverse(nn.Module):
    """Inverse model: both observations as channels, encoder, GELU, linear. Two (B, C, H, W) -> latent (B, L)."""

    def __init__(self, channels: int, size: int, latent_dim: int, scale: int, residual_blocks: int):
        super().__init__()
        self.encoder = ImageEncoder(2 * channels, scale, residual_blocks)
        self.head = nn.Linear(self.encoder.channels * (size // 8) ** 2, latent_dim)

    def forward(self, now: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        return self.head(F.gelu(self.encoder(torch.cat([now, later], 1)).flatten(1)))


class ImageForward(nn.Module):
    """Forward model: the encoded observation and a map of the latent, decoded. (B, C, H, W), (B, L) -> (B, C, H, W)."""

    def __init__(self, channels: int, size: int, latent_dim: int, scale: int, residual_blocks: int):
        super().__init__()
        self.encoder = ImageEncoder(channels, scale, residual_blocks)
        self.latent = nn.Linear(latent_dim, self.encoder.channels * (size // 8) ** 2)
        self.decoder = ImageDecoder(2 * self.encoder.channels, scale, residual_blocks)
        self.image = nn.Conv2d(self.decoder.channels, channels, 1)

    def forward(self, now: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        code = self.encoder(now)
        code = torch.cat([code, self.latent(latent).view_as(code)], 1)  # (B, 2 x encoder.channels, H/8, W/8)
        return torch.tanh(self.image(F.gelu(self.decoder(code))))


class ImageLatentActionModel(nn.Module):
    """LAPO on stacked frames (arXiv 2312.10812; the paper's Table 8).

    Images are (B, channels, size, size) in [-1, 1]. 211,847,849 parameters at the paper's sizes (Table 4).

    Args:
        channels: 3 x frame_stack.
        size: edge of the image in pixels, a multiple of 8.
        latent_dim: width of the latent action.
        scale, residual_blocks: of `oclam.cnn.ImageEncoder`.
    """

    def __init__(self, channels: int, size: int, latent_dim: int, scale: int, residual_blocks: int):
        super().__init__()
        self.sizes = {"channels": channels, "size": size, "latent_dim": latent_dim, "scale": scale,
                      "residual_blocks": residual_blocks}
        self.idm = ImageInverse(channels, size, latent_dim, scale, residual_blocks)
        self.fdm = ImageForward(channels, size, latent_dim, scale, residual_blocks)
        orthogonal(self)

    def forward(self, now: torch.Tensor, future: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The latent action (B, L) between `now` and `future`, and the predicted observation after `now`."""
        latent = self.idm(now, future)
        return latent, self.fdm(now, latent)


class MlpBlock(nn.Module):
    """x -> LayerNorm(x + W''(activation(W' x))). (B, dim) -> (B, dim)."""

    def __init__(self, dim: int, expansion: int, activation: type[nn.Module] = nn.GELU):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, expansion * dim), activation(), nn.Linear(expansion * dim, dim))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.mlp(x))


class MlpHead(nn.Module):
    """h = B0(W0 x), then twice h = B(W [h, skip]), then W3 h. (B, input_dim), (B, skip_dim) -> (B, output_dim)."""

    def __init__(self, input_dim: int, skip_dim: int, output_dim: int, hidden_dim: int, expansion: int,
                 activation: type[nn.Module] = nn.GELU):
        super().__init__()
        widths = (input_dim, hidden_dim + skip_dim, hidden_dim + skip_dim)
        self.linear = nn.ModuleList(nn.Linear(width, hidden_dim) for width in widths)
        self.block = nn.ModuleList(MlpBlock(hidden_dim, expansion, activation) for _ in widths)
        self.output = nn.Linear(hidden_dim, output_dim)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        for linear, block in zip(self.linear, self.block, strict=True):
            h = block(linear(x))  # (B, hidden_dim)
            x = torch.cat([h, skip], 1)
        return self.output(h)


class SlotLatentActionModel(nn.Module):
    """LAPO on slots (the paper's Table 7): both heads see their skip input at every layer.

    89,186,432 parameters at the paper's sizes (Table 4).

    Args:
        slot_dim: width of the chosen slots together.
        latent_dim: width of the latent action.
        hidden_dim: of the heads.
        expansion: the blocks' hidden layer is as many times wider.
    """

    def __init__(self, slot_dim: int, latent_dim: int, hidden_dim: int, expansion: int):
        super().__init__()
        self.sizes = {"slot_dim": slot_dim, "latent_dim": latent_dim, "hidden_dim": hidden_dim, "expansion": expansion}
        self.inverse = MlpHead(2 * slot_dim, 2 * slot_dim, latent_dim, hidden_dim, expansion)
        self.forward_head = MlpHead(slot_dim + latent_dim, latent_dim, slot_dim, hidden_dim, expansion)
        orthogonal(self)

    def idm(self, now: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        """Two (B, slot_dim) -> latent (B, L)."""
        both = torch.cat([now, later], 1)
        return self.inverse(both, both)

    def fdm(self, now: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """(B, slot_dim), (B, L) -> (B, slot_dim)."""
        return self.forward_head(torch.cat([now, latent], 1), latent)

    def forward(self, now: torch.Tensor, future: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The latent action (B, L) between `now` and `future`, and the predicted slots after `now`."""
        latent = self.idm(now, future)
        return latent, self.fdm(now, latent)


def reconstruction_error(prediction: torch.Tensor, target: torch.Tensor,
                         weight: torch.Tensor | None = None, mean: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error, or its weighted mean (after MaskLAM, arXiv 2602.02259); all (B, ...).

    A constant weight changes nothing, and weights that are all 0 give 0. mean: the weights' in the whole batch, where
    this is a share of it.
    """
    error = (prediction - target).square()
    if weight is None:
        return error.mean()
    return (weight * error).mean() / (weight.mean() if mean is None else mean).clamp_min(1e-8)

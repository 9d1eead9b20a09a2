"""Behaviour cloning: an actor predicts latent actions from frames, a decoder turns them into true actions."""

import torch
from torch import nn
from torch.nn import functional as F

from oclam.cnn import ImageEncoder, orthogonal


class Actor(nn.Module):
    """Three encoder blocks, average pooling, ReLU6, linear. (B, channels, H, W) in [-1, 1] -> (B, outputs).

    `outputs` is the width of the latent action, or of the true action where that is cloned directly. The map is pooled
    to cells x cells, in the paper to 1 x 1, which loses the pose unless there are many channels.
    107,541,504 parameters at the paper's sizes (Table 4).
    """

    def __init__(self, channels: int, outputs: int, scale: int, residual_blocks: int, cells: int = 1):
        super().__init__()
        self.encoder, self.cells = ImageEncoder(channels, scale, residual_blocks), cells
        self.head = nn.Linear(self.encoder.channels * cells**2, outputs)
        orthogonal(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = F.adaptive_avg_pool2d(self.encoder(images), self.cells)
        return self.head(F.relu6(means.flatten(1)))


class ActionDecoder(nn.Sequential):
    """Linear, ReLU6, linear, ReLU6, linear. Latents (B, latent_dim) -> true actions (B, action_dim)."""

    def __init__(self, latent_dim: int, hidden_dim: int, action_dim: int):
        super().__init__(nn.Linear(latent_dim, hidden_dim), nn.ReLU6(),
                         nn.Linear(hidden_dim, hidden_dim), nn.ReLU6(),
                         nn.Linear(hidden_dim, action_dim))
        orthogonal(self)


class Policy(nn.Module):
    """Actor and decoder: stacked frames (B, channels, H, W) in [-1, 1] -> actions (B, action_dim), not clipped.

    Without a decoder the actor predicts true actions itself.
    """

    def __init__(self, actor: nn.Module, decoder: nn.Module | None = None):
        super().__init__()
        self.actor, self.decoder = actor, nn.Identity() if decoder is None else decoder

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.actor(images))

    @torch.no_grad()
    def rescale(self, offset: torch.Tensor, scale: torch.Tensor) -> None:
        """Make the policy return offset + scale x action, (A,) each, by the weights of the last layer."""
        last = self.actor.head if isinstance(self.decoder, nn.Identity) else self.decoder[-1]
        last.weight *= scale[:, None].to(last.weight.device)
        last.bias *= scale.to(last.bias.device)
        last.bias += offset.to(last.bias.device)

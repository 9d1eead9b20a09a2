"""Behaviour cloning: the actor that predicts latent actions from frames, and the decoder to true actions."""

from torch import nn
from torch.nn import functional as F

from oclam.cnn import ImageEncoder, orthogonal

__all__ = ["ActionDecoder", "Actor", "Policy"]


class Actor(nn.Module):
    """Three encoder blocks, mean over positions, ReLU6, linear. (B, channels, H, W) in [-1, 1] -> (B, outputs).

    `outputs` is the latent's width, or the action's where all true actions are cloned directly. 107,541,504 parameters
    at the paper's sizes (Table 4).
    """

    def __init__(self, channels, outputs, scale, residual_blocks):
        super().__init__()
        self.encoder = ImageEncoder(channels, scale, residual_blocks)
        self.head = nn.Linear(self.encoder.channels, outputs)
        orthogonal(self)

    def forward(self, images):
        return self.head(F.relu6(self.encoder(images).mean((2, 3))))


class ActionDecoder(nn.Sequential):
    """Linear, ReLU6, linear, ReLU6, linear. Latents (B, latent_dim) -> true actions (B, action_dim)."""

    def __init__(self, latent_dim, hidden_dim, action_dim):
        super().__init__(nn.Linear(latent_dim, hidden_dim), nn.ReLU6(),
                         nn.Linear(hidden_dim, hidden_dim), nn.ReLU6(),
                         nn.Linear(hidden_dim, action_dim))
        orthogonal(self)


class Policy(nn.Module):
    """Actor and decoder. Stacked frames (B, channels, H, W) in [-1, 1] -> actions (B, action_dim), not yet clipped.

    The decoder is an identity where the actor predicts true actions itself.
    """

    def __init__(self, actor, decoder=None):
        super().__init__()
        self.actor, self.decoder = actor, nn.Identity() if decoder is None else decoder

    def forward(self, images):
        return self.decoder(self.actor(images))

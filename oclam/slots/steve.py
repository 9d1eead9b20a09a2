"""A small variant of STEVE (arXiv 2205.14065): slots from which a transformer predicts the frame's discrete tokens."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from oclam.slots.attention import RecurrentSlots, TransformerBlock, mlp
from oclam.slots.published_steve import PublishedSteve

PATCH, HEADS = 4, 4
SHARPNESS = 5.0  # standard deviation of a token's logits; the sampling noise has about 1.3


def to_unit(images: torch.Tensor) -> tuple[torch.Tensor]:
    """The model's input for uint8 frames (N, H, W, 3): one tensor (N, 3, H, W) in 0..1."""
    return (images.movedim(-1, -3).float() / 255,)


class DiscreteVae(nn.Module):
    """Discrete autoencoder: one of so many tokens for every patch of 4 x 4 pixels.

    Sampling is straight-through, so the decoder is trained on real tokens and no temperature is annealed.
    """

    def __init__(self, hidden: int, vocabulary: int):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, hidden, PATCH, PATCH), nn.ReLU(), nn.Conv2d(hidden, hidden, 1),
                                     nn.ReLU(), nn.Conv2d(hidden, vocabulary, 1, bias=False),
                                     # Makes all tokens equally likely over a batch; else a few serve for everything.
                                     nn.BatchNorm2d(vocabulary, affine=False, track_running_stats=False))
        self.decoder = nn.Sequential(nn.Conv2d(vocabulary, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, hidden, 3, 1, 1),
                                     nn.ReLU(), nn.Conv2d(hidden, 3 * PATCH**2, 1), nn.PixelShuffle(PATCH))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The reconstruction of images (N, 3, H, W), and the most likely token of every patch (N, P)."""
        logits = SHARPNESS * self.encoder(images).float()
        chosen = F.gumbel_softmax(logits, hard=True, dim=1)
        return self.decoder(chosen), logits.argmax(1).flatten(1)


class Steve(nn.Module):
    """Convolutional features, recurrent slots, and an autoregressive decoder that attends to the slots alone.

    Args:
        size: edge of the square images.
        slots, slot_dim: how many slots, and their width.
        feature_hidden: channels of the convolutions.
        decoder_hidden: channels of the discrete autoencoder.
        decoder_layers: blocks of the transformer.
        vocabulary: how many tokens there are.
    """

    def __init__(self, size: int, *, slots: int, slot_dim: int, feature_hidden: int, decoder_hidden: int,
                 decoder_layers: int, vocabulary: int):
        super().__init__()
        self.grid = size // PATCH
        channels = (3, *[feature_hidden] * 4)
        self.convolutions = nn.Sequential(*[
            layer for i in range(4) for layer in
            (nn.Conv2d(channels[i], channels[i + 1], 5, stride=2 if i < 2 else 1, padding=2), nn.ReLU())
        ][:-1])  # the last one is linear, as published: after a ReLU all features of a patch could die
        self.position = nn.Parameter(0.02 * torch.randn(self.grid**2, feature_hidden))
        self.features = nn.Sequential(nn.LayerNorm(feature_hidden), *mlp(feature_hidden, feature_hidden, slot_dim))
        self.slots = RecurrentSlots(slots, slot_dim)
        self.vae = DiscreteVae(decoder_hidden, vocabulary)
        self.token = nn.Embedding(vocabulary + 1, slot_dim)  # the last one starts a frame
        self.token_position = nn.Parameter(0.02 * torch.randn(self.grid**2, slot_dim))
        self.past = nn.ModuleList(TransformerBlock(slot_dim, HEADS) for _ in range(decoder_layers))
        self.read = nn.ModuleList(TransformerBlock(slot_dim, HEADS) for _ in range(decoder_layers))
        self.logits = nn.Sequential(nn.LayerNorm(slot_dim), nn.Linear(slot_dim, vocabulary))

    def project(self, images: torch.Tensor) -> torch.Tensor:
        """Images (..., 3, H, W) -> features of the patches (..., P, D)."""
        maps = self.convolutions(images.flatten(0, -4))
        return self.features(maps.flatten(2).mT + self.position).unflatten(0, images.shape[:-3])

    def masks(self, slots: torch.Tensor, projected: torch.Tensor) -> torch.Tensor:
        """Soft masks: attention of slots (B, K, D) on their own frame's features (B, P, D) -> (B, K, P)."""
        return self.slots.masks(slots, projected)

    def next_token(self, tokens: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Logits (N, P, vocabulary) of every token, given those before it (N, P) and the slots (N, K, D)."""
        start = torch.full_like(tokens[:, :1], self.token.num_embeddings - 1)
        x = self.token(torch.cat([start, tokens[:, :-1]], 1)) + self.token_position
        for past, read in zip(self.past, self.read, strict=True):
            x = read(past(x, causal=True), slots)
        return self.logits(x)

    def forward(self, images: torch.Tensor, noise: torch.Tensor,
                decoded: torch.Tensor | slice = slice(None)) -> dict[str, torch.Tensor]:
        """The losses of clips: tokens predicted from the slots, and the discrete autoencoder's reconstruction.

        Args:
            images: (B, T, 3, H, W) in 0..1.
            noise: standard normal, (B, K, D).
            decoded: indices of the patches whose tokens count.
        """
        slots = self.slots(self.project(images), noise=noise).flatten(0, 1)
        reconstruction, tokens = self.vae(images.flatten(0, 1))
        logits = self.next_token(tokens, slots)[:, decoded].float()
        prediction = F.cross_entropy(logits.flatten(0, 1), tokens[:, decoded].flatten())
        error = F.mse_loss(reconstruction.float(), images.flatten(0, 1))
        return {"loss": prediction + error, "prediction": prediction, "reconstruction": error}


def make_steve(steve: SimpleNamespace, image_size: int, slots: int, slot_dim: int) -> Steve | PublishedSteve:
    """An untrained STEVE, small or as published.

    Args:
        steve: of the section steve, what shapes the model.
        image_size: edge of the frames in pixels.
        slots, slot_dim: how many slots, and their width.
    """
    kind = PublishedSteve if steve.published else Steve
    return kind(image_size, slots=slots, slot_dim=slot_dim, feature_hidden=steve.feature_hidden,
                decoder_hidden=steve.decoder_hidden, decoder_layers=steve.decoder_layers, vocabulary=steve.vocabulary)

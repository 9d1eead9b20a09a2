"""Recurrent slot attention (arXiv 2006.15055, 2306.04829): slots compete for patches, frame after frame.

`published` follows VideoSAUR's published code, which differs from standard slot attention in three ways: the GRU's
state is the normalised slot, not the slot; attention logits are multiplied by head width^0.5 instead of divided by it
(in the predictor and in the decoder's transformer); attention weights start Xavier-uniform, their biases and those of
the feature MLP and the decoder's MLP at zero.

Otherwise three starting values help an agent to a slot of its own: queries and keys are one orthogonal matrix, so that
slots first hold the patches most like them; slots are centres of clusters; and updates hardly change them.
"""

from itertools import pairwise

import torch
from scipy.cluster.vq import kmeans2
from torch import nn
from torch.nn import functional as F


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def xavier(*layers: nn.Linear) -> None:
    """Set Xavier-uniform weights and zero biases."""
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def zero_biases(layers: nn.Sequential) -> None:
    """Set the biases of the linear layers to 0."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)


class TransformerBlock(nn.Module):
    """Pre-norm attention and a 4x MLP: x (B or 1, N, D) attends to memory (B, M, D), or itself (causal: its past)."""

    def __init__(self, dim: int, heads: int, published: bool = False):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** (0.5 if published else -0.5)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim) for _ in range(4))
        self.mlp = mlp(dim, 4 * dim, dim)
        if published:
            xavier(self.query, self.key, self.value, self.output)

    def forward(self, x: torch.Tensor, memory: torch.Tensor | None = None, causal: bool = False) -> torch.Tensor:
        normed = self.norm1(x)
        memory = normed if memory is None else memory
        query, key, value = (layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer, y in
                             ((self.query, normed), (self.key, memory), (self.value, memory)))
        query = query.expand(len(key), -1, -1, -1)  # queries shared by the batch are projected once
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=self.scale)
        x = x + self.output(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Blocks one after the other; (B or 1, N, D), memory (B, M, D) or None -> (B, N, D)."""

    def __init__(self, dim: int, blocks: int, heads: int, published: bool = False):
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, published) for _ in range(blocks))

    def forward(self, x: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, memory)
        return x


class FixedInit(nn.Module):
    """A learned vector for each slot, the same in training and inference (arXiv 2412.14295)."""

    def __init__(self, slots: int, dim: int):
        super().__init__()
        self.mean = nn.Parameter(torch.randn(slots, dim))

    def forward(self, batch: int, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Initial slots (batch, slots, dim); noise changes nothing."""
        return self.mean.expand(batch, -1, -1)


class SlotInit(FixedInit):
    """A learned mean and log standard deviation for each slot (paper, appendix D).

    Training adds noise of that size; inference uses the mean, so that slot k is the same object in all episodes.
    """

    def __init__(self, slots: int, dim: int):
        super().__init__(slots, dim)
        self.log_std = nn.Parameter(torch.full((slots, dim), -1.0))

    def forward(self, batch: int, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Initial slots (batch, slots, dim); noise, standard normal of that shape, or None for the mean alone."""
        mean = super().forward(batch)
        return mean if noise is None else mean + self.log_std.exp() * noise


class SlotAttention(nn.Module):
    """Slot attention: attention normalised over slots, GRU update (arXiv 2006.15055).

    residual: add an MLP of the updated slot, as there; VideoSAUR has none.
    """

    def __init__(self, dim: int, published: bool = False, residual: bool = False):
        super().__init__()
        self.published = published
        self.norm_features, self.norm_slots = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        if not published:
            nn.init.orthogonal_(self.query.weight)
            self.key.load_state_dict(self.query.state_dict())
        self.gru = nn.GRUCell(dim, dim)
        self.residual = nn.Sequential(nn.LayerNorm(dim), *mlp(dim, 4 * dim, dim)) if residual else None
        if not published:
            nn.init.constant_(self.gru.bias_hh[dim:2 * dim], 3)  # of the update gate: 0.95 of a slot stays
            if residual:
                nn.init.zeros_(self.residual[-1].weight)
                nn.init.zeros_(self.residual[-1].bias)

    def read(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the patches, which do not depend on the slots: (..., P, D) -> two (..., P, D)."""
        features = self.norm_features(features)
        return self.key(features), self.value(features)

    def forward(self, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor, iterations: int) -> torch.Tensor:
        """Slots (B, K, D) updated by one frame's keys and values (B, P, D)."""
        for _ in range(iterations):
            slots = self.step(slots, key, value)
        return slots

    def assignment(self, slots: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Attention of every patch over the slots: (B, K, P), summing to 1 over slots."""
        query = self.query(self.norm_slots(slots))
        return (query @ key.mT * query.shape[-1] ** -0.5).softmax(1)

    def step(self, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """One iteration: weighted means of the values update the slots."""
        share = self.assignment(slots, key) + 1e-8
        update = (share / share.sum(2, keepdim=True)) @ value
        if self.published:
            slots = self.norm_slots(slots)
        slots = self.gru(update.flatten(0, 1), slots.flatten(0, 1).to(update.dtype)).view_as(slots)
        return slots if self.residual is None else slots + self.residual(slots)


class RecurrentSlots(nn.Module):
    """Slots through a clip: 3 iterations on its first frame, 2 on later ones; a transformer predicts the next ones.

    slots: how many; dim: width of slots and features; published: as VideoSAUR's code; fixed: whether
    training starts from the learned means alone; residual: as in SlotAttention.
    """

    def __init__(self, slots: int, dim: int, published: bool = False, fixed: bool = False, residual: bool = False):
        super().__init__()
        self.init = (FixedInit if fixed else SlotInit)(slots, dim)
        self.attention = SlotAttention(dim, published, residual)
        self.predictor = Transformer(dim, blocks=1, heads=4, published=published)

    def forward(self, features: torch.Tensor, previous: torch.Tensor | None = None,
                noise: torch.Tensor | None = None) -> torch.Tensor:
        """Features (B, T, P, D) -> slots (B, T, K, D).

        previous: the slots (B, K, D) of the frame before, to continue an episode; None starts one, from the learned
        means and `noise` (B, K, D).
        """
        key, value = self.attention.read(features)
        slots, through_time = previous, []
        for t in range(features.shape[1]):
            first = slots is None
            slots = self.init(len(features), noise) if first else self.predictor(slots)
            slots = self.attention(slots, key[:, t], value[:, t], iterations=3 if first else 2)
            through_time.append(slots)
        return torch.stack(through_time, 1)

    @torch.no_grad()
    def start_from_clusters(self, features: torch.Tensor, seed: int) -> None:
        """Make the initial slots' means the centres of the normalised features' clusters (k-means++).

        Each slot then begins with patches of its own; from random means, one often takes the whole frame.

        features: of many frames' patches, (..., P, D).
        """
        normalised = self.attention.norm_features(features.float()).flatten(0, -2).cpu().numpy()
        centres, _ = kmeans2(normalised, len(self.init.mean), iter=20, minit="++", rng=seed)
        self.init.mean.copy_(torch.from_numpy(centres))

    def masks(self, slots: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Attention masks (B, K, P) of slots (B, K, D) on the features (B, P, D) of their own frame.

        VideoSAUR's grouping masks are the attention of the last iteration, before its update; these are of the final
        slots.
        """
        return self.attention.assignment(slots, self.attention.read(features)[0])

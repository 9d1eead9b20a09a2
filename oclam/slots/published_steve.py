"""STEVE as published (arXiv 2205.14065): its sizes, initial weights, losses and schedules."""

import math

import torch
from torch import nn
from torch.nn import functional as F

PATCH, HEADS, DROPOUT, ITERATIONS = 4, 4, 0.1, 2
WARMEST, COLDEST, COOLING = 1.0, 0.1, 30_000  # temperatures of the soft tokens, and over how many steps
SLOWER = 1 / 3  # the encoder's learning rate, as a share of the others'


def cosine_decay(step: int, first: float, last: float, steps: int) -> float:
    """`first` at step 0, `last` from `steps` on, half a cosine between them."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1)))


def linear(inputs: int, outputs: int, bias: bool = True, gain: float = 1.0) -> nn.Linear:
    """A layer with Xavier-uniform weights and zero bias."""
    layer = nn.Linear(inputs, outputs, bias)
    nn.init.xavier_uniform_(layer.weight, gain)
    return zero_bias(layer)


def before_relu(layer: nn.Module) -> nn.Sequential:
    """The layer with Kaiming-uniform weights and zero bias, and a ReLU."""
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    return nn.Sequential(zero_bias(layer), nn.ReLU())


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution with Xavier-uniform weights and zero bias that keeps the size, or divides it by the stride."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, 0 if kernel == stride else kernel // 2)
    nn.init.xavier_uniform_(layer.weight)
    return zero_bias(layer)


def zero_bias(layer: nn.Module) -> nn.Module:
    """The layer, its bias, if any, set to 0."""
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def shared_vector(dim: int) -> nn.Parameter:
    """A Xavier-uniform vector (1, 1, dim)."""
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1, dim)))


class Attention(nn.Module):
    """Multi-head attention without biases; dropout of its weights and of its result."""

    def __init__(self, dim: int, dropout: float, gain: float):
        super().__init__()
        self.dropout = dropout
        self.query, self.key, self.value = (linear(dim, dim, bias=False) for _ in range(3))
        self.output = linear(dim, dim, bias=False, gain=gain)

    def forward(self, x: torch.Tensor, memory: torch.Tensor, causal: bool = False) -> torch.Tensor:
        """x (B, N, D) attends to memory (B, M, D), or to its own past."""
        query, key, value = (layer(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer, y in
                             ((self.query, x), (self.key, memory), (self.value, memory)))
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=causal, dropout_p=dropout)
        return F.dropout(self.output(attended.transpose(1, 2).flatten(2)), dropout)


class Block(nn.Module):
    """Attention to x itself, then, for a decoder, to the slots, then an MLP, each after a LayerNorm.

    In the first block of a stack the skip connection carries the normalised input.
    """

    def __init__(self, dim: int, dropout: float, gain: float, first: bool, decoder: bool):
        super().__init__()
        self.first, self.dropout = first, dropout
        self.norm, self.attention = nn.LayerNorm(dim), Attention(dim, dropout, gain)
        if decoder:
            self.slot_norm, self.slot_attention = nn.LayerNorm(dim), Attention(dim, dropout, gain)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(before_relu(nn.Linear(dim, 4 * dim)), linear(4 * dim, dim, gain=gain))

    def forward(self, x: torch.Tensor, slots: torch.Tensor | None = None) -> torch.Tensor:
        """x (B, N, D) -> (B, N, D); slots (B, K, D) of a decoder, whose x attends to its past alone."""
        normed = self.norm(x)
        x = (normed if self.first else x) + self.attention(normed, normed, causal=slots is not None)
        if slots is not None:
            x = x + self.slot_attention(self.slot_norm(x), slots)
        return x + F.dropout(self.mlp(self.mlp_norm(x)), self.dropout if self.training else 0.0)


class Stack(nn.Module):
    """Blocks one after the other and a LayerNorm; the gain of residual branches falls with the number of blocks."""

    def __init__(self, dim: int, blocks: int, dropout: float, decoder: bool):
        super().__init__()
        gain = ((3 if decoder else 2) * blocks) ** -0.5
        self.blocks = nn.ModuleList(Block(dim, dropout, gain, i == 0, decoder) for i in range(blocks))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor, slots: torch.Tensor | None = None) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, slots)
        return self.norm(x)


class Slots(nn.Module):
    """Recurrent slots of one shared Gaussian: two iterations a frame, an MLP between them, and a predictor.

    Inference draws the same slots for every episode, so that slot k is the same object in all of them.
    """

    def __init__(self, slots: int, dim: int):
        super().__init__()
        self.mean, self.log_std = shared_vector(dim), shared_vector(dim)
        self.norm_features, self.norm_slots, self.norm_mlp = (nn.LayerNorm(dim) for _ in range(3))
        self.query, self.key, self.value = (linear(dim, dim, bias=False) for _ in range(3))
        self.gru = nn.GRUCell(dim, dim)
        nn.init.xavier_uniform_(self.gru.weight_ih)
        nn.init.orthogonal_(self.gru.weight_hh)
        nn.init.zeros_(self.gru.bias_ih)
        nn.init.zeros_(self.gru.bias_hh)
        self.mlp = nn.Sequential(before_relu(nn.Linear(dim, dim)), linear(dim, dim))
        self.predictor = Stack(dim, blocks=1, dropout=0.0, decoder=False)
        noise = torch.randn(1, slots, dim, generator=torch.Generator().manual_seed(0), device="cpu")
        self.register_buffer("noise", noise.to(self.mean.device), persistent=False)

    def forward(self, features: torch.Tensor, previous: torch.Tensor | None = None,
                noise: torch.Tensor | None = None) -> torch.Tensor:
        """Features (B, T, P, D) -> slots (B, T, K, D); previous and noise as in `RecurrentSlots`."""
        features, through_time = self.norm_features(features), []
        key, value = self.key(features), self.value(features)
        noise = self.noise.expand(len(features), -1, -1) if noise is None else noise
        slots = self.mean + self.log_std.exp() * noise if previous is None else self.predictor(previous)
        for t in range(features.shape[1]):
            if t:
                slots = self.predictor(slots)
            for iteration in range(ITERATIONS):
                if iteration:
                    slots = slots + self.mlp(self.norm_mlp(slots))
                share = self.assignment(slots, key[:, t]) + 1e-8
                update = (share / share.sum(2, keepdim=True)) @ value[:, t]
                slots = self.gru(update.flatten(0, 1), slots.flatten(0, 1).to(update.dtype)).view_as(slots)
            through_time.append(slots)
        return torch.stack(through_time, 1)

    def assignment(self, slots: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Attention of every patch over the slots: (B, K, P), summing to 1 over slots."""
        return (self.query(self.norm_slots(slots)) @ key.mT * key.shape[-1] ** -0.5).softmax(1)

    def masks(self, slots: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Attention masks (B, K, P) of the final slots; the published ones are of the last iteration's attention."""
        return self.assignment(slots, self.key(self.norm_features(features)))


class PublishedSteve(nn.Module):
    """Slots from which a transformer predicts the frame's discrete tokens, with the interface of `steve.Steve`.

    Images of 64 pixels keep their resolution in the features, larger ones have half of it. The discrete autoencoder is
    trained on soft tokens whose `temperature` falls with the steps.

    Args:
        size: edge of the square images.
        slots, slot_dim: how many slots, and the width of slots, features and tokens (published: 192).
        feature_hidden: channels of the convolutions (64).
        decoder_hidden: channels of the discrete autoencoder (64).
        decoder_layers: blocks of the transformer (8).
        vocabulary: how many tokens there are (4,096).
    """

    def __init__(self, size: int, *, slots: int, slot_dim: int, feature_hidden: int, decoder_hidden: int,
                 decoder_layers: int, vocabulary: int):
        super().__init__()
        stride = 1 if size == 64 else 2
        self.grid, tokens = size // stride, (size // PATCH) ** 2
        self.vae = nn.ModuleDict({"encoder": nn.Sequential(
            before_relu(conv(3, decoder_hidden, PATCH, PATCH)),
            *[before_relu(conv(decoder_hidden, decoder_hidden, 1)) for _ in range(6)],
            conv(decoder_hidden, vocabulary, 1)), "decoder": nn.Sequential(
            before_relu(conv(vocabulary, decoder_hidden, 1)), *_enlarged(decoder_hidden), *_enlarged(decoder_hidden),
            conv(decoder_hidden, 3, 1))})
        self.encoder = nn.ModuleDict({
            "convolutions": nn.Sequential(
                before_relu(conv(3, feature_hidden, 5, stride)),
                *[before_relu(conv(feature_hidden, feature_hidden, 5)) for _ in range(2)],
                conv(feature_hidden, slot_dim, 5)),
            "position": linear(4, slot_dim),
            "features": nn.Sequential(nn.LayerNorm(slot_dim), before_relu(nn.Linear(slot_dim, slot_dim)),
                                      linear(slot_dim, slot_dim)),
            "slots": Slots(slots, slot_dim), "output": linear(slot_dim, slot_dim, bias=False)})
        self.decoder = nn.ModuleDict({
            "token": nn.Embedding(vocabulary, slot_dim), "transformer": Stack(slot_dim, decoder_layers, DROPOUT, True),
            "logits": linear(slot_dim, vocabulary, bias=False)})
        self.decoder.start = shared_vector(slot_dim)
        self.decoder.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1 + tokens, slot_dim)))
        line = (torch.arange(self.grid) + 0.5) / self.grid
        y, x = torch.meshgrid(line, line, indexing="ij")
        self.register_buffer("places", torch.stack([x, y, 1 - x, 1 - y], -1).flatten(0, 1), persistent=False)
        self.register_buffer("temperature", torch.tensor(WARMEST), persistent=False)

    @property
    def slots(self) -> Slots:
        return self.encoder["slots"]

    def project(self, images: torch.Tensor) -> torch.Tensor:
        """Images (..., 3, H, W) -> features of the patches (..., P, D)."""
        maps = self.encoder["convolutions"](images.flatten(0, -4)).flatten(2).mT
        features = self.encoder["features"](maps + self.encoder["position"](self.places))
        return features.unflatten(0, images.shape[:-3])

    def masks(self, slots: torch.Tensor, projected: torch.Tensor) -> torch.Tensor:
        """Soft masks: attention of slots (B, K, D) on their own frame's features (B, P, D) -> (B, K, P)."""
        return self.slots.masks(slots, projected)

    def next_token(self, tokens: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Logits (N, P, vocabulary) of every token, given those before it (N, P) and the slots (N, K, D)."""
        decoder = self.decoder
        x = torch.cat([decoder.start.expand(len(tokens), -1, -1), decoder["token"](tokens[:, :-1])], 1)
        x = F.dropout(x + decoder.position[:, :-1], DROPOUT if self.training else 0.0)
        return decoder["logits"](decoder["transformer"](x, self.encoder["output"](slots)))

    def forward(self, images: torch.Tensor, noise: torch.Tensor,
                decoded: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """The losses of clips, sums over a frame: tokens predicted from the slots, and the reconstruction.

        Args:
            images: (B, T, 3, H, W) in 0..1.
            noise: standard normal, (B, K, D).
            decoded: unused, since all tokens count.
        """
        slots = self.slots(self.project(images), noise=noise).flatten(0, 1)
        frames = images.flatten(0, 1)
        scores = self.vae["encoder"](frames).float().log_softmax(1)
        tokens = F.gumbel_softmax(scores, 1.0, hard=True, dim=1).argmax(1).flatten(1)
        reconstruction = self.vae["decoder"](F.gumbel_softmax(scores, self.temperature, dim=1))
        logits = self.next_token(tokens, slots).float()
        prediction = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="sum") / len(frames)
        error = F.mse_loss(reconstruction.float(), frames, reduction="sum") / len(frames)
        return {"loss": prediction + error, "prediction": prediction, "reconstruction": error}

    def groups(self) -> list[dict]:
        """The optimizer's groups: autoencoder, encoder with slots, and decoder."""
        return [{"params": list(part.parameters())} for part in (self.vae, self.encoder, self.decoder)]

    def schedule(self, step: int, learning_rate: float, warmup: int, half_life: int) -> list[float]:
        """Set the temperature of a step, and return the learning rates of `groups`: the autoencoder's is constant.

        warmup, half_life: in steps; the others' rates rise linearly to their value, and halve from the first step on.
        """
        self.temperature.fill_(cosine_decay(step, WARMEST, COLDEST, COOLING))
        rate = learning_rate * min((step + 1) / max(warmup, 1), 1) * 0.5 ** (step / half_life)
        return [learning_rate, SLOWER * rate, rate]


def _enlarged(hidden):
    return (before_relu(conv(hidden, hidden, 3)), *[before_relu(conv(hidden, hidden, 1)) for _ in range(2)],
            before_relu(conv(hidden, 4 * hidden, 1)), nn.PixelShuffle(2))

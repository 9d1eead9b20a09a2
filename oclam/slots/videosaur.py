"""VideoSAUR (arXiv 2306.04829): slots that predict which patches of the next frame resemble each patch."""

import torch
from torch import nn
from torch.nn import functional as F

from oclam.slots.attention import RecurrentSlots, Transformer, mlp, xavier, zero_biases


def similarity_target(keys: torch.Tensor, later: torch.Tensor, temperature: float) -> torch.Tensor:
    """For every patch, the softmax over the next frame's patches of the cosine similarity: (..., P, P), rows sum to 1.

    Negative similarities are left out; a patch with only negative ones has a uniform row. Keys of two frames' patches
    are (..., P, D) each (arXiv 2306.04829, section 3.1).
    """
    similarity = F.normalize(keys.float(), dim=-1) @ F.normalize(later.float(), dim=-1).mT
    negative = similarity < 0
    alone = negative.all(-1, keepdim=True)  # of a patch that resembles none
    similarity = similarity.masked_fill(alone, 0).masked_fill(negative & ~alone, -torch.inf)
    return similarity.div(temperature).softmax(-1)


def similarity_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over patches; logits and target (..., P, P)."""
    return -(target * logits.float().log_softmax(-1)).sum(-1).mean()


class SlotMixer(nn.Module):
    """Decoder: every position attends once over the slots; the weights are the masks (arXiv 2206.06922).

    Args:
        dim: of slots.
        patches: positions.
        hidden, layers: of the MLP.
        outputs: of every patch.
        published: as in `oclam.slots.attention`.
    """

    def __init__(self, dim: int, patches: int, hidden: int, layers: int, outputs: int, published: bool = False):
        super().__init__()
        self.position = nn.Parameter(torch.randn(patches, dim) * dim**-0.5)
        self.norm_memory, self.norm_query, self.norm_key = (nn.LayerNorm(dim) for _ in range(3))
        self.allocator = Transformer(dim, blocks=2, heads=4, published=published)
        self.query, self.key = (nn.Linear(dim, dim, bias=False) for _ in range(2))
        self.renderer = mlp(dim, *[hidden] * layers, outputs)
        if published:
            xavier(self.query, self.key, self.renderer[-1])
            zero_biases(self.renderer)

    def masks(self, slots: torch.Tensor, patches: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """Attention of every patch over the slots (B, K, D): (B, P, K), summing to 1 over slots."""
        query = self.allocator(self.position[None, patches], self.norm_memory(slots))
        score = self.query(self.norm_query(query)) @ self.key(self.norm_key(slots)).mT
        return (score * slots.shape[-1] ** -0.5).softmax(-1)

    def forward(self, slots: torch.Tensor,
                patches: torch.Tensor | slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        """Slots (B, K, D) -> outputs (B, P, outputs) and masks (B, P, K).

        patches: indices of those to decode; positions attend to the slots only, so any may be left out.
        """
        masks = self.masks(slots, patches)
        return self.renderer(masks.to(slots.dtype) @ slots + self.position[patches]), masks


class FeatureSlots(nn.Module):
    """What VideoSAUR and SlotContrast train on the frozen ViT's outputs: feature MLP, recurrent slots, decoder.

    In VideoSAUR's code the same weights are: `features` the encoder's output transform, `slots.init` the initializer,
    `slots.attention` the grouper's corrector (query, key, value: to_q, to_k, to_v), `slots.predictor` the predictor,
    `decoder.position` pos_emb, `decoder.allocator` allocator, `decoder.query` and `decoder.key` to_q and to_k,
    `decoder.renderer` renderer and, its last layer, output_transform. Queries, keys and values of the transformers are
    stacked there in one matrix.

    Args:
        feature_dim, patches: of the ViT.
        outputs: of the decoder for every patch.
        decoder: the decoder's class.
        fixed, residual: as in `oclam.slots.attention.RecurrentSlots`.
        slots, slot_dim: how many slots, and their width.
        feature_hidden: hidden width of the feature MLP.
        decoder_hidden, decoder_layers: of the decoder's MLP.
        published: as in `oclam.slots.attention`.
        masks: `decoder` as in VideoSAUR, or `attention`, whose masks find objects after fewer steps.
    """

    def __init__(self, feature_dim: int, patches: int, outputs: int, decoder: type = SlotMixer, fixed: bool = False,
                 residual: bool = False, *, slots: int, slot_dim: int,
                 feature_hidden: int, decoder_hidden: int, decoder_layers: int, published: bool = True,
                 masks: str = "decoder"):
        super().__init__()
        self.grid, self.masked_by = round(patches**0.5), masks
        self.features = nn.Sequential(nn.LayerNorm(feature_dim), *mlp(feature_dim, feature_hidden, slot_dim))
        if published:
            zero_biases(self.features)
        self.slots = RecurrentSlots(slots, slot_dim, published, fixed, residual)
        self.decoder = decoder(slot_dim, patches, decoder_hidden, decoder_layers, outputs, published)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """The inputs of slot attention: features (..., P, F) of the frozen ViT -> (..., P, D)."""
        return self.features(features)

    def masks(self, slots: torch.Tensor, projected: torch.Tensor) -> torch.Tensor:
        """Soft masks on the patch grid: slots (B, K, D) and projected features (B, P, D) -> (B, K, P)."""
        return self.decoder.masks(slots).mT if self.masked_by == "decoder" else self.slots.masks(slots, projected)

    def decode(self, slots: torch.Tensor, decoded: torch.Tensor | slice) -> torch.Tensor:
        """The decoder's outputs (B, T, P, outputs) for slots (B, T, K, D), of the patches that are decoded."""
        return self.decoder(slots.flatten(0, 1), decoded)[0].unflatten(0, slots.shape[:2])


class VideoSaur(FeatureSlots):
    """VideoSAUR's losses.

    Args:
        feature_dim, patches, sizes: as in `FeatureSlots`.
        similarity_weight, similarity_temperature: of the similarity loss.
        reconstruction_weight: of the feature reconstruction; 0 leaves its outputs out.
    """

    def __init__(self, feature_dim: int, patches: int, *, similarity_weight: float = 0.1,
                 similarity_temperature: float = 0.075, reconstruction_weight: float = 0.0, **sizes):
        super().__init__(feature_dim, patches, patches + (feature_dim if reconstruction_weight else 0), **sizes)
        self.weights, self.temperature = (similarity_weight, reconstruction_weight), similarity_temperature

    def forward(self, features: torch.Tensor, keys: torch.Tensor, noise: torch.Tensor,
                decoded: torch.Tensor | slice = slice(None)) -> dict[str, torch.Tensor]:
        """The losses of clips, scalars: loss, and similarity and reconstruction before weighting.

        Args:
            features, keys: of the frozen ViT, (B, T, P, F) each.
            noise: standard normal, (B, K, D).
            decoded: indices of the patches whose loss is computed, all by default; the mean over them estimates the
                full loss.
        """
        to_similarity, to_reconstruction = self.weights
        patches = features.shape[2]
        if not to_reconstruction:  # the last frame has no next one, so its slots would have no loss
            features = features[:, :-1]
        slots = self.slots(self.project(features), noise=noise)
        outputs = self.decode(slots, decoded)
        losses = {"loss": 0.0}
        if to_similarity:
            target = similarity_target(keys[:, :-1, decoded], keys[:, 1:], self.temperature)
            losses["similarity"] = similarity_loss(outputs[:, :target.shape[1], :, :patches], target)
            losses["loss"] += to_similarity * losses["similarity"]
        if to_reconstruction:
            losses["reconstruction"] = F.mse_loss(outputs[..., patches:].float(), features[:, :, decoded])
            losses["loss"] += to_reconstruction * losses["reconstruction"]
        return losses

"""VideoSAUR (arXiv 2306.04829): slots that predict where every patch of a frame goes in the next one."""

import torch
from torch import nn
from torch.nn import functional as F

from oclam.slots.attention import RecurrentSlots, Transformer, mlp

__all__ = ["SlotMixer", "VideoSaur", "similarity_loss", "similarity_target"]


def similarity_target(keys, later, temperature):
    """Where each patch goes: softmax over the next frame's patches of the cosine similarity, negatives dropped.

    Keys of two frames' patches, (..., P, D) each -> (..., P, P), rows summing to 1 (arXiv 2306.04829, section 3.1).
    """
    similarity = F.normalize(keys.float(), dim=-1) @ F.normalize(later.float(), dim=-1).mT
    return similarity.masked_fill(similarity < 0, -torch.inf).div(temperature).softmax(-1)


def similarity_loss(logits, target):
    """Mean cross-entropy over patches; logits and target (..., P, P)."""
    return -(target * logits.float().log_softmax(-1)).sum(-1).mean()


class SlotMixer(nn.Module):
    """One attention over slots for every position; its weights are the masks (arXiv 2206.06922).

    Args: dim of slots; patches; hidden width and layers of the MLP; outputs of every patch.
    """

    def __init__(self, dim, patches, hidden, layers, outputs):
        super().__init__()
        self.position = nn.Parameter(torch.randn(patches, dim) * dim**-0.5)
        self.norm_memory, self.norm_query, self.norm_key = (nn.LayerNorm(dim) for _ in range(3))
        self.allocator = Transformer(dim, blocks=2, heads=4)
        self.query, self.key = (nn.Linear(dim, dim, bias=False) for _ in range(2))
        self.renderer = mlp(dim, *[hidden] * layers, outputs)

    def masks(self, slots, patches=slice(None)):
        """Share of every patch that each slot explains: (B, K, D) -> (B, P, K), summing to 1 over slots."""
        query = self.allocator(self.position[None, patches], self.norm_memory(slots))
        score = self.query(self.norm_query(query)) @ self.key(self.norm_key(slots)).mT
        return (score * slots.shape[-1] ** -0.5).softmax(-1)

    def forward(self, slots, patches=slice(None)):
        """Slots (B, K, D) -> outputs (B, P, outputs) and masks (B, P, K).

        patches, indices of those to decode: positions see the slots only, never each other, so each may be left out.
        """
        masks = self.masks(slots, patches)
        return self.renderer(masks.to(slots.dtype) @ slots + self.position[patches]), masks


class VideoSaur(nn.Module):
    """The trainable part: feature MLP, recurrent slots, slot mixer; the frozen ViT's outputs are its inputs.

    Args: feature_dim and patches of the ViT; slots, slot_dim; feature_hidden, decoder_hidden, decoder_layers;
    masks, whose masks are the slots', the `decoder`'s (VideoSAUR) or the `attention`'s, which find objects sooner;
    similarity_weight, similarity_temperature, reconstruction_weight (0 leaves the reconstruction's outputs out).
    """

    def __init__(self, feature_dim, patches, *, slots, slot_dim, feature_hidden, decoder_hidden, decoder_layers,
                 masks="decoder", similarity_weight=0.1, similarity_temperature=0.075, reconstruction_weight=0.0):
        super().__init__()
        self.grid = round(patches**0.5)
        self.weights = (similarity_weight, reconstruction_weight)
        self.temperature, self.masked_by = similarity_temperature, masks
        self.features = nn.Sequential(nn.LayerNorm(feature_dim), *mlp(feature_dim, feature_hidden, slot_dim))
        self.slots = RecurrentSlots(slots, slot_dim)
        outputs = patches + (feature_dim if reconstruction_weight else 0)
        self.decoder = SlotMixer(slot_dim, patches, decoder_hidden, decoder_layers, outputs)

    def project(self, features):
        """The frozen ViT's patch features as slots read them: (..., P, F) -> (..., P, D)."""
        return self.features(features)

    def masks(self, slots, projected):
        """Soft masks on the patch grid: slots (B, K, D) of the features (B, P, D) -> (B, K, P)."""
        return self.decoder.masks(slots).mT if self.masked_by == "decoder" else self.slots.masks(slots, projected)

    def forward(self, features, keys, noise, decoded=slice(None)):
        """The losses on a clip.

        Args: features (B, T, P, F) and keys (B, T, P, F') of the frozen ViT; noise (B, K, D), standard normal;
        decoded, indices of the patches on which the losses are taken, all by default: their mean is the full loss.
        Returns a dict of scalars: loss, and similarity and reconstruction before weighting.
        """
        to_similarity, to_reconstruction = self.weights
        patches = features.shape[2]
        if not to_reconstruction:  # the last frame has no next one, so nothing would be asked of its slots
            features = features[:, :-1]
        slots = self.slots(self.project(features), noise=noise)
        outputs = self.decoder(slots.flatten(0, 1), decoded)[0].unflatten(0, slots.shape[:2])  # (B, T, P, outputs)
        losses = {"loss": 0.0}
        if to_similarity:
            target = similarity_target(keys[:, :-1, decoded], keys[:, 1:], self.temperature)
            losses["similarity"] = similarity_loss(outputs[:, :target.shape[1], :, :patches], target)
            losses["loss"] += to_similarity * losses["similarity"]
        if to_reconstruction:
            losses["reconstruction"] = F.mse_loss(outputs[..., patches:].float(), features[:, :, decoded])
            losses["loss"] += to_reconstruction * losses["reconstruction"]
        return losses

"""LAOM's latent action model, which predicts embeddings instead of frames."""

import torch
from torch import nn

from oclam.cnn import ImageEncoder, orthogonal
from oclam.latent_actions.models import MlpHead, SlotLatentActionModel


class EmbeddingLatentActionModel(nn.Module):
    """LAOM (arXiv 2502.00379): both heads read the embeddings of one encoder, and nothing is reconstructed.

    The forward model predicts the next observation's embedding by the target encoder, a moving average of `encoder`.
    An embedding (B, D) is the encoder's output less the buffer `centre`, which is 0 unless training sets it.

    Args:
        encoder: observations -> (B, dim).
        dim: of embeddings.
        latent_dim: width of the latent action.
        hidden_dim, expansion: of the heads, as of SlotLatentActionModel.
    """

    def __init__(self, encoder: nn.Module, dim: int, latent_dim: int, hidden_dim: int, expansion: int):
        super().__init__()
        self.encoder = encoder
        self.inverse = MlpHead(2 * dim, 2 * dim, latent_dim, hidden_dim, expansion, nn.ReLU6)
        self.forward_head = MlpHead(dim + latent_dim, latent_dim, dim, hidden_dim, expansion, nn.ReLU6)
        self.register_buffer("centre", torch.zeros(dim))
        orthogonal(self)

    def idm(self, now: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        """Two observations -> latent (B, L)."""
        return self._infer(now, later)[1]

    def _infer(self, now, later):
        """The embedding of `now`, without gradient, and the latent."""
        codes = (self.encoder(torch.cat([now, later])) - self.centre).chunk(2)  # one pass
        both = torch.cat(codes, 1)
        return codes[0].detach(), self.inverse(both, both)

    def forward(self, now: torch.Tensor, future: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The latent action between `now` and `future`, the predicted embedding after `now`, the embedding of `now`.

        Only the latent takes the prediction's gradient to the encoder.
        """
        code, latent = self._infer(now, future)
        return latent, self.forward_head(torch.cat([code, latent], 1), latent), code


class LaomModel(EmbeddingLatentActionModel):
    """LAOM on images; shapes are as in ImageLatentActionModel.

    Args:
        channels, size, latent_dim, scale, residual_blocks: as in ImageLatentActionModel.
        hidden_dim, expansion: of the heads.
    """

    def __init__(self, channels: int, size: int, latent_dim: int, scale: int, residual_blocks: int, hidden_dim: int,
                 expansion: int):
        encoder = ImageEncoder(channels, scale, residual_blocks)
        dim = encoder.channels * (size // 8) ** 2
        super().__init__(nn.Sequential(encoder, nn.Flatten()), dim, latent_dim, hidden_dim, expansion)
        self.sizes = {"channels": channels, "size": size, "latent_dim": latent_dim, "scale": scale,
                      "residual_blocks": residual_blocks, "hidden_dim": hidden_dim, "expansion": expansion}


class SlotLaomModel(EmbeddingLatentActionModel):
    """LAOM of slots (B, slot_dim), which a linear layer embeds; sizes are as of SlotLatentActionModel."""

    def __init__(self, slot_dim: int, latent_dim: int, hidden_dim: int, expansion: int):
        super().__init__(nn.Linear(slot_dim, hidden_dim), hidden_dim, latent_dim, hidden_dim, expansion)
        self.sizes = {"slot_dim": slot_dim, "latent_dim": latent_dim, "hidden_dim": hidden_dim, "expansion": expansion}


SLOT_MODELS = {"lapo": SlotLatentActionModel, "laom": SlotLaomModel}  # by lapo_slots.model

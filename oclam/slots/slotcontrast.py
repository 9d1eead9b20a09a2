"""SlotContrast (arXiv 2412.14295): slots that reconstruct features and resemble themselves in the next frame."""

import torch
from torch import nn
from torch.nn import functional as F

from oclam.slots.attention import mlp, zero_biases
from oclam.slots.videosaur import FeatureSlots


def contrast_loss(slots: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean cross-entropy of finding a slot in the next frame among the slots of all clips' next frames.

    Logits are cosine similarities over the temperature; slots (B, T, K, D) (arXiv 2412.14295, section 3).
    """
    slots = F.normalize(slots.float(), dim=-1).transpose(0, 1).flatten(1, 2)  # (T, B K, D)
    logits = (slots[:-1] @ slots[1:].mT).float() / temperature
    return -logits.log_softmax(-1).diagonal(dim1=1, dim2=2).mean()


class BroadcastDecoder(nn.Module):
    """Every slot is decoded at every position, and slots compete for it: the MLP decoder of arXiv 2209.14860.

    Args:
        dim: of slots.
        patches: positions.
        hidden, layers: of the MLP.
        outputs: of every patch.
        published: start its biases at zero.
    """

    def __init__(self, dim: int, patches: int, hidden: int, layers: int, outputs: int, published: bool = False):
        super().__init__()
        self.position = nn.Parameter(torch.randn(patches, dim) * 0.02)
        self.renderer = mlp(dim, *[hidden] * layers, outputs + 1)
        if published:
            zero_biases(self.renderer)

    def forward(self, slots: torch.Tensor,
                patches: torch.Tensor | slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        """Slots (B, K, D) -> outputs (B, P, outputs) and masks (B, P, K), which sum to 1 over slots."""
        decoded = self.renderer(slots[:, :, None] + self.position[patches])  # (B, K, P, outputs + 1)
        masks = decoded[..., -1:].softmax(1)
        return (masks * decoded[..., :-1]).sum(1), masks[..., 0].mT

    def masks(self, slots: torch.Tensor) -> torch.Tensor:
        """The masks alone."""
        return self.forward(slots)[1]


class SlotContrast(FeatureSlots):
    """Learned initial slots without noise; features are reconstructed, and slots contrasted, in every frame.

    Args:
        feature_dim, patches, sizes: as in `FeatureSlots`.
        contrast_weight, contrast_temperature: of the contrast beside the reconstruction, whose weight is 1.
    """

    def __init__(self, feature_dim: int, patches: int, *, contrast_weight: float = 0.5,
                 contrast_temperature: float = 0.1, **sizes):
        super().__init__(feature_dim, patches, feature_dim, BroadcastDecoder, fixed=True, residual=True, **sizes)
        self.weight, self.temperature = contrast_weight, contrast_temperature

    def forward(self, features: torch.Tensor, keys: torch.Tensor, noise: torch.Tensor,
                decoded: torch.Tensor | slice = slice(None)) -> dict[str, torch.Tensor]:
        """The losses of clips, scalars: loss, and reconstruction and contrast before weighting.

        Args:
            features: of the frozen ViT, (B, T, P, F).
            keys, noise: VideoSAUR's, unused.
            decoded: indices of the patches that are reconstructed, all by default.
        """
        slots = self.slots(self.project(features))
        reconstruction = F.mse_loss(self.decode(slots, decoded).float(), features[:, :, decoded])
        contrast = contrast_loss(slots, self.temperature)
        return {"loss": reconstruction + self.weight * contrast, "reconstruction": reconstruction,
                "contrast": contrast}

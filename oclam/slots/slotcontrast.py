"""SlotContrast (arXiv 2412.14295): slots that rebuild a frame's features and resemble themselves in the next frame."""

import torch
from torch.nn import functional as F

from oclam.slots.videosaur import FeatureSlots

__all__ = ["SlotContrast", "contrast_loss"]


def contrast_loss(slots: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean cross-entropy of finding a slot in the next frame among the slots of all clips' next frames.

    Logits are cosine similarities over the temperature; slots (B, T, K, D) (arXiv 2412.14295, section 3).
    """
    slots = F.normalize(slots.float(), dim=-1).transpose(0, 1).flatten(1, 2)  # (T, B K, D)
    logits = (slots[:-1] @ slots[1:].mT).float() / temperature
    return -logits.log_softmax(-1).diagonal(dim1=1, dim2=2).mean()


class SlotContrast(FeatureSlots):
    """Learned initial slots without noise; features are rebuilt, and slots contrasted, in every frame.

    Args:
        feature_dim, patches, sizes: as in `FeatureSlots`.
        contrast_weight, contrast_temperature: of the contrast beside the reconstruction, whose weight is 1.
    """

    def __init__(self, feature_dim: int, patches: int, *, contrast_weight: float = 0.5,
                 contrast_temperature: float = 0.1, **sizes):
        super().__init__(feature_dim, patches, feature_dim, fixed=True, **sizes)
        self.weight, self.temperature = contrast_weight, contrast_temperature

    def forward(self, features: torch.Tensor, keys: torch.Tensor, noise: torch.Tensor,
                decoded: torch.Tensor | slice = slice(None)) -> dict[str, torch.Tensor]:
        """The losses of clips, scalars: loss, and reconstruction and contrast before weighting.

        Args:
            features: of the frozen ViT, (B, T, P, F).
            keys, noise: VideoSAUR's, unused.
            decoded: indices of the patches that are rebuilt, all by default.
        """
        slots = self.slots(self.project(features))
        reconstruction = F.mse_loss(self.decode(slots, decoded).float(), features[:, :, decoded])
        contrast = contrast_loss(slots, self.temperature)
        return {"loss": reconstruction + self.weight * contrast, "reconstruction": reconstruction,
                "contrast": contrast}

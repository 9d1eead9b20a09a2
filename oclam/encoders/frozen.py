"""Frozen vision transformers, whose features and keys VideoSAUR reads (paper, section 4; arXiv 2306.04829)."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from oclam.errors import UserError


class FrozenEncoder(nn.Module):
    """A timm vision transformer without gradients, final norm and head.

    Called with uint8 frames (B, H, W, 3), it returns the last block's output and the keys of that block's attention,
    both (B, patches, dim), row by row of the patch grid, without class and register tokens, from one pass.

    Args:
        vit: a timm model with `blocks`.
        name, kwargs: what `timm.create_model` builds it from.
        image_size: frames are resized to this edge.
        mean, std: of the pixels, in 0..1.
        source: where the weights come from.
    Attributes: dim, width of both outputs; patch_size; grid, patches per side; about, the description that files keep.
    """

    def __init__(self, vit: nn.Module, *, name: str, kwargs: dict, image_size: int, mean: Sequence[float],
                 std: Sequence[float], source: str):
        super().__init__()
        vit.norm = nn.Identity()  # features are the last block's own output: 85,806,336 parameters for ViT-B/8
        self.vit = vit.eval().requires_grad_(False)
        self.dim, self.patch_size = vit.embed_dim, vit.patch_embed.patch_size[0]
        self.image_size, self.grid = image_size, image_size // self.patch_size
        self.about = {"name": name, "kwargs": dict(kwargs), "image_size": image_size, "mean": list(mean),
                      "std": list(std), "source": source}
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self._keys = None
        # The keys as attention uses them; without key normalisation this module is the identity and sees them too.
        vit.blocks[-1].attn.k_norm.register_forward_hook(self._remember_keys)

    def _remember_keys(self, module, inputs, keys):
        self._keys = keys  # (B, heads, tokens, dim / heads)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.encode(images)

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same with gradients, for distillation."""
        features = self.vit.forward_features(self.pixels(images))
        keys, self._keys = self._keys.transpose(1, 2).flatten(2), None
        prefix = self.vit.num_prefix_tokens
        return features[:, prefix:], keys[:, prefix:]

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 frames (B, H, W, 3) as the transformer's input, float32 (B, 3, image_size, image_size)."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"frames are uint8 (B, H, W, 3), got {images.dtype} {tuple(images.shape)}")
        x = images.permute(0, 3, 1, 2).float() / 255
        if x.shape[-2:] != (self.image_size, self.image_size):
            shrinks = x.shape[-1] > self.image_size  # antialias changes the kernel, and VideoSAUR enlarges without it
            x = F.interpolate(x, (self.image_size, self.image_size), mode="bicubic", antialias=shrinks).clamp(0, 1)
        return (x - self.mean) / self.std

    def resize(self, image_size: int) -> "FrozenEncoder":
        """This encoder, its position embeddings resampled for another image size."""
        check_image_size(image_size, self.patch_size)
        self.vit.set_input_size((image_size, image_size))
        self.image_size, self.grid = image_size, image_size // self.patch_size
        self.about |= {"image_size": image_size, "kwargs": self.about["kwargs"] | {"img_size": image_size}}
        return self

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stay in evaluation mode, without dropout and stochastic depth."""
        return super().train(False)


def check_image_size(image_size: int, patch_size: int) -> None:
    """Raise UserError unless patches of this edge cover images of that edge, both in pixels."""
    if image_size % patch_size:
        raise UserError(f"encoder.image_size: {image_size} given, allowed are multiples of the encoder's patch, "
                        f"{patch_size} pixels")

"""A small encoder with random weights, and frames."""

import timm
import torch

from oclam.encoders.frozen import FrozenEncoder

NAME = "vit_tiny_patch16_224"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def small(**kwargs):
    torch.manual_seed(0)
    kwargs = SMALL | kwargs
    vit = timm.create_model(NAME, num_classes=0, **kwargs)
    for parameter in vit.parameters():  # layer scale, biases and tokens start where mistakes would not show
        parameter.data.normal_(std=0.3)
    return FrozenEncoder(vit, name=NAME, kwargs=kwargs, image_size=kwargs["img_size"], source="random", **HALF)


def frames(count=3, size=32):
    return torch.randint(256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))

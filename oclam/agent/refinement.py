"""From patches to pixels: a pixel belongs to the slot when pixels of its colour mostly lie inside the slot's patches.

Colours are counted in histograms over nearby frames, as in Boykov and Jolly (ICCV 2001); the guided filter then makes
the mask follow the edges of the image.
"""

import numpy as np
import torch
from torch.nn import functional as F

from oclam.agent.guided_filter import guided_filter

__all__ = ["inside_share", "refine"]

LEVELS = 32  # of each channel in a histogram
REACH = 2  # width in patches of the band around the slot's patches whose pixels are counted too
SPAN = 25  # frames before and after whose pixels are counted
THRESHOLDS = 0.65, 0.5  # of the share: the first pass starts from patches, with background, the second from pixels


def inside_share(inside: torch.Tensor, near: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """For every pixel, the share of the nearby pixels of its colour that are inside: float32 (T, H, W).

    One pixel more is counted as outside, so that colours seen once or twice are not trusted.

    Args:
        inside: bool (T, H, W), a subset of near.
        near: bool (T, H, W), the pixels that are counted.
        images: uint8 (T, 3, H, W).
    """
    levels = (images // (256 // LEVELS)).long()
    colours, which = torch.unique((levels[:, 0] * LEVELS + levels[:, 1]) * LEVELS + levels[:, 2], return_inverse=True)
    which, time = which.flatten(1), torch.arange(len(images))
    first, last = (time - SPAN).clamp(min=0), (time + SPAN + 1).clamp(max=len(time))

    def count(mask):
        single = torch.zeros(len(images), len(colours), dtype=torch.int32)
        running = F.pad(single.scatter_add_(1, which, mask.flatten(1).int()).cumsum(0, dtype=torch.int32), (0, 0, 1, 0))
        return (running[last] - running[first]).gather(1, which).view_as(mask)

    return count(inside) / (count(near) + 1)


def refine(inside: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """The slot's mask by pixels: bool (T, H, W).

    Args:
        inside: bool (T, G, G), the patches of the slot.
        frames: uint8 (T, H, W, 3).
    """
    images, reach = torch.from_numpy(frames).movedim(-1, 1), round(REACH * frames.shape[1] / inside.shape[1])
    patches = F.interpolate(torch.from_numpy(inside)[:, None].float(), images.shape[2:])
    mask, near = (values[:, 0] > 0 for values in (patches, F.max_pool2d(patches, 2 * reach + 1, 1, reach)))
    for threshold in THRESHOLDS:
        share = inside_share(mask, near, images)[:, None]
        mask = (guided_filter(share, images / 255, radius=1)[:, 0] > threshold) & near
    return mask.numpy()

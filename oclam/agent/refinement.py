"""From patches to pixels: a pixel belongs to the slot when pixels of its colour mostly lie inside the slot's patches.

Colours are counted in histograms over nearby frames, as in Boykov and Jolly (ICCV 2001); the guided filter then makes
the mask follow the edges of the image.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from oclam.agent.guided_filter import guided_filter

LEVELS = 32  # of each channel in a histogram
REACH = 2  # width in patches of the band around the slot's patches whose pixels are counted too
SPAN = 25  # frames before and after whose pixels are counted
PASSES = 2  # the first counts whole patches, which hold background and miss parts of the agent
BETWEEN = 0.6  # where the threshold of shares lies between the means below and above it
LEAST = 0.35  # threshold: below it nothing tells the agent's colours from the background's


def agent_mask(masks: np.ndarray, chosen: Sequence[int], how: str, frames: np.ndarray) -> np.ndarray:
    """The mask of the chosen slots by pixels: uint8 (T, H, W), 0..255.

    Args:
        masks: of every slot, uint8 (T, K, G, G), 0..255.
        chosen: slot indices.
        how: `soft`, the sum of their masks, bilinearly; or `refined`.
        frames: uint8 (T, H, W, 3).
    """
    if how == "refined":
        return refine(np.isin(masks.argmax(1), chosen), frames) * np.uint8(255)
    mask = torch.from_numpy(masks[:, chosen].sum(1, dtype=np.float32))[None]
    return F.interpolate(mask, frames.shape[1:3], mode="bilinear")[0].round().clamp(0, 255).byte().numpy()


def inside_share(inside: torch.Tensor, near: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """For every pixel, the share of the nearby pixels of its colour that are inside: float32 (T, H, W).

    Two pixels more are counted as outside, so that colours seen once are not trusted.

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

    return count(inside) / (count(near) + 2)


def threshold(share: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    """For every frame, the threshold that divides the shares of near pixels into two groups: (T, 1, 1).

    A fixed one fails where patches miss much of the agent, so that its own share is low. After Ridler and Calvard
    (1978) it lies between the means of the two groups that it makes.

    Args:
        share: (T, H, W).
        near: bool (T, H, W).
    """
    share, near = share.flatten(1), near.flatten(1)
    limit = torch.full((len(share), 1), 0.5)
    for _ in range(12):  # it hardly moves after six
        groups = near & (share <= limit), near & (share > limit)
        low, high = ((share * group).sum(1) / group.sum(1).clamp(min=1) for group in groups)
        limit = (low + BETWEEN * (high - low)).clamp(min=LEAST)[:, None]
    return limit[:, :, None]


def refine(inside: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """The slot's mask by pixels: bool (T, H, W).

    Args:
        inside: bool (T, G, G), the patches of the slot.
        frames: uint8 (T, H, W, 3).
    """
    images, reach = torch.from_numpy(frames).movedim(-1, 1), round(REACH * frames.shape[1] / inside.shape[1])
    patches = F.interpolate(torch.from_numpy(inside)[:, None].float(), images.shape[2:])
    rows = F.max_pool2d(patches, (2 * reach + 1, 1), 1, (reach, 0))  # an axis after the other is faster than a square
    mask, near = (values[:, 0] > 0 for values in (patches, F.max_pool2d(rows, (1, 2 * reach + 1), 1, (0, reach))))
    for _ in range(PASSES):
        share = guided_filter(inside_share(mask, near, images)[:, None], images / 255, radius=1)[:, 0]
        mask = (share > threshold(share, near)) & near
    return mask.numpy()

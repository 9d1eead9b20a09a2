"""From patches to pixels: a pixel is the slot's when the slot holds most of its colour, here and in the frames around.

The colour models are histograms, as in Boykov and Jolly (ICCV 2001); the guided filter then follows edges.
"""

import torch
from torch.nn import functional as F

from oclam.agent.guided_filter import guided_filter

__all__ = ["held_share", "refine"]

LEVELS = 32  # of each channel in a histogram
REACH = 2  # patches around the slot's in which a colour may be the slot's or the background's
SPAN = 25  # frames before and after whose pixels count
BARS = 0.65, 0.5  # the share that makes a pixel held: of what patches hold, which is background too, then of pixels


def held_share(held, near, images):
    """The share of every pixel's colour that is held, among the pixels near the slot in the frames around.

    Args: held and near, bool (T, H, W), held only where near; images uint8 (T, 3, H, W). Returns float32 (T, H, W).
    One pixel more counts as not held, so that colours seen once or twice are not trusted.
    """
    levels = (images // (256 // LEVELS)).long()
    colours, which = torch.unique((levels[:, 0] * LEVELS + levels[:, 1]) * LEVELS + levels[:, 2], return_inverse=True)
    which, time = which.flatten(1), torch.arange(len(images))
    first, last = (time - SPAN).clamp(min=0), (time + SPAN + 1).clamp(max=len(time))

    def count(mask):
        single = torch.zeros(len(images), len(colours), dtype=torch.int32)
        running = F.pad(single.scatter_add_(1, which, mask.flatten(1).int()).cumsum(0, dtype=torch.int32), (0, 0, 1, 0))
        return (running[last] - running[first]).gather(1, which).view_as(mask)

    return count(held) / (count(near) + 1)


def refine(held, frames):
    """The pixels of what a slot's patches hold: held bool (T, G, G), frames uint8 (T, H, W, 3) -> bool (T, H, W)."""
    images, reach = torch.from_numpy(frames).movedim(-1, 1), round(REACH * frames.shape[1] / held.shape[1])
    patches = F.interpolate(torch.from_numpy(held)[:, None].float(), images.shape[2:])
    found, near = (values[:, 0] > 0 for values in (patches, F.max_pool2d(patches, 2 * reach + 1, 1, reach)))
    for bar in BARS:
        share = held_share(found, near, images)[:, None]
        found = (guided_filter(share, images / 255, radius=1)[:, 0] > bar) & near
    return found.numpy()

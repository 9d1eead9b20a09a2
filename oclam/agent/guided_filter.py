"""The guided filter (He, Sun and Tang, ECCV 2010, Guided Image Filtering): masks that follow the edges of an image."""

import torch
from torch.nn import functional as F


def guided_filter(masks: torch.Tensor, images: torch.Tensor, radius: int, epsilon: float = 2e-4) -> torch.Tensor:
    """Masks that follow the edges of the images: (N, 1, H, W).

    In every window the mask is fitted by an affine function of the colour; the fits are averaged over windows. The time
    does not depend on the radius.

    Args:
        masks: (N, 1, H, W).
        images: the guide, (N, 3, H, W) in 0..1.
        radius: pixels from a window's centre to its edge.
        epsilon: ridge penalty of the fits: fluctuations of the colour with less variance are smoothed.
    """
    count = _window_sums(torch.ones_like(masks[:1]), radius)

    def mean(values):
        return _window_sums(values, radius) / count

    first, second = torch.triu_indices(3, 3, device=masks.device)  # of the symmetric matrix: rr, rg, rb, gg, gb, bb
    colour, mask = mean(images), mean(masks)
    products = mean(torch.cat([images * masks, images[:, first] * images[:, second]], 1))
    covariance = products[:, :3] - colour * mask
    rr, rg, rb, gg, gb, bb = (products[:, 3:] - colour[:, first] * colour[:, second]).unbind(1)
    rr, gg, bb = rr + epsilon, gg + epsilon, bb + epsilon
    # Its inverse by cofactors: a batched solver takes ten times as long on millions of 3 x 3 matrices.
    c_rg, c_rb, c_gb = rb * gb - rg * bb, rg * gb - rb * gg, rg * rb - rr * gb
    adjugate = torch.stack([gg * bb - gb**2, c_rg, c_rb,
                            c_rg, rr * bb - rb**2, c_gb,
                            c_rb, c_gb, rr * gg - rg**2], 1).unflatten(1, (3, 3))
    determinant = rr * adjugate[:, 0, 0] + rg * adjugate[:, 0, 1] + rb * adjugate[:, 0, 2]
    slope = (adjugate * covariance[:, None]).sum(2) / determinant[:, None]
    offset = mask - (slope * colour).sum(1, keepdim=True)
    slope, offset = mean(torch.cat([slope, offset], 1)).split([3, 1], 1)
    return (slope * images).sum(1, keepdim=True) + offset


def _window_sums(values, radius):
    """Sums over windows cut off at the borders, (N, C, H, W): differences of running sums, one axis after the other."""
    for axis in (3, 2):
        size = values.shape[axis]
        running = F.pad(values, (0, 0) * (3 - axis) + (radius + 1, radius)).cumsum(axis)
        values = running.narrow(axis, 2 * radius + 1, size) - running.narrow(axis, 0, size)
    return values

"""The agent at one angle and one size: frames turned and scaled as its mask lies, which undoes a camera that rolls and
nears. Its centre needs nothing: the suite's cameras keep looking at the agent."""

import torch
from torch.nn import functional as F

__all__ = ["mask_moments", "poses", "register"]

SPAN = 10  # frames before and after over which a pose is averaged, so that it follows the camera and not the limbs
SCALES = 0.5, 2.0  # no agent is seen smaller or larger, but masks may be wrong


def mask_moments(masks):
    """Area of masks, and area times the moments xx - yy and 2 xy about their centre: (T, H, W) -> (T, 3) float64.

    Pixels are as wide as 2 / W; (0, 0, 0) is a mask that holds nothing.
    """
    y, x = (torch.arange(size) * 2 / size - 1 + 1 / size for size in masks.shape[1:])
    grids = torch.stack([torch.ones(masks.shape[1:]), *torch.meshgrid(y, x, indexing="ij")]).double()
    area, y, x, yy, xy, xx = torch.einsum(
        "thw,khw->kt", masks.double(), torch.cat([grids, grids[[1, 1, 2]] * grids[[1, 2, 2]]]))
    some = area.clamp(min=1e-9)
    return torch.stack([area, xx - yy - (x * x - y * y) / some, 2 * (xy - x * y / some)], 1)


def poses(moments, reference):
    """How a film's masks lie, against a reference: moments (T, 3), (3,) -> (T, 2), angle in -pi/2..pi/2 and scale.

    The angle (radians, from the image's x towards its y) is that of the longest axis, averaged over the frames around.
    """
    area, straight, oblique = F.avg_pool1d(moments.T, 2 * SPAN + 1, 1, SPAN, count_include_pad=False)
    turn = torch.atan2(oblique, straight) - torch.atan2(reference[2], reference[1])
    turn, scale = torch.atan2(turn.sin(), turn.cos()) / 2, (area / reference[0]).sqrt().clamp(*SCALES)
    seen = area > 0
    return torch.stack([turn * seen, torch.where(seen, scale, 1)], 1)


def register(images, poses):
    """Images (T, C, H, W) turned back by their pose's angle and divided by its scale; 0 comes in from outside."""
    angle, scale = poses.to(images.dtype).unbind(1)
    cos, sin, zero = scale * angle.cos(), scale * angle.sin(), torch.zeros_like(scale)
    places = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    return F.grid_sample(images, F.affine_grid(places, images.shape, align_corners=False), align_corners=False)

"""Registered frames: turned and scaled so that the agent's mask has one angle and one size, which undoes a camera that
rolls and zooms. The centre stays as it is: the suite's cameras follow the agent."""

import torch
from torch.nn import functional as F

SPAN = 10  # frames before and after over which a pose is averaged, so that it follows the camera and not the limbs
SCALES = 0.5, 2.0  # limits, since masks may be wrong


def mask_moments(masks: torch.Tensor) -> torch.Tensor:
    """Area of masks in pixels, and area times the central moments xx - yy and 2 xy: (T, H, W) -> (T, 3) float64.

    For the moments the image is 2 wide; an empty mask gives (0, 0, 0).
    """
    y, x = (torch.arange(size) * 2 / size - 1 + 1 / size for size in masks.shape[1:])
    grids = torch.stack([torch.ones(masks.shape[1:]), *torch.meshgrid(y, x, indexing="ij")]).double()
    area, y, x, yy, xy, xx = torch.einsum(
        "thw,khw->kt", masks.double(), torch.cat([grids, grids[[1, 1, 2]] * grids[[1, 2, 2]]]))
    some = area.clamp(min=1e-9)
    return torch.stack([area, xx - yy - (x * x - y * y) / some, 2 * (xy - x * y / some)], 1)


def poses(moments: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Angle and scale of a clip's masks relative to a reference, averaged over nearby frames: (T, 2).

    The angle, in radians in -pi/2..pi/2 from the image's x towards its y, is that of the longest axis.

    Args:
        moments: (T, 3) of the clip's masks, as `mask_moments` gives them.
        reference: (3,), the mean moments of some masks.
    """
    area, straight, oblique = F.avg_pool1d(moments.T, 2 * SPAN + 1, 1, SPAN, count_include_pad=False)
    turn = torch.atan2(oblique, straight) - torch.atan2(reference[2], reference[1])
    turn, scale = torch.atan2(turn.sin(), turn.cos()) / 2, (area / reference[0].clamp(min=1e-9)).sqrt().clamp(*SCALES)
    seen = area > 0
    return torch.stack([turn * seen, torch.where(seen, scale, 1)], 1)


def register(images: torch.Tensor, poses: torch.Tensor, centres: torch.Tensor | None = None,
             size: int | None = None) -> torch.Tensor:
    """Images (T, C, H, W) turned back by the angle and divided by the scale of their pose (T, 2), filled with 0.

    Args:
        centres: (T, 2), x and y of what comes to the centre, where the image is 2 wide; None: 0, the image's own.
        size: edge of the result in pixels; None: that of the images.
    """
    angle, scale = poses.to(images.dtype).unbind(1)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    x, y = (torch.zeros_like(poses) if centres is None else centres).to(images.dtype).unbind(1)
    places = torch.stack([torch.stack([cos, -sin, x], 1), torch.stack([sin, cos, y], 1)], 1)
    shape = images.shape if size is None else (*images.shape[:2], size, size)
    return F.grid_sample(images, F.affine_grid(places, shape, align_corners=False), align_corners=False)

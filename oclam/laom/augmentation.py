"""LAOM's augmentations (arXiv 2502.00379) of a whole batch at once: shifts, rotations and perspectives."""

import math

import torch
from torch.nn import functional as F

# Shares of the edge: shifts of up to 14 of 64 pixels; a perspective distorts the image padded by 30 on each side.
SHIFT, PICTURE = 14 / 64, 124 / 64
# Indices of two steps: 0 none, 1 shift, 2 rotation, 3 perspective.
CHAINS = torch.tensor([(0, 0), (1, 0), (2, 0), (3, 0), (1, 2), (2, 1), (2, 3), (3, 2)])


def augment(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Every image (B, C, H, H) changed by one of eight chains of augmentations, each as likely: (B, C, H, H).

    Args:
        strength: 1 is the published one, 0 changes nothing.
        generator: on the CPU.
    """
    if strength == 0:
        return images
    return warp(images, draw_maps(len(images), images.shape[-1], strength, generator).to(images.device))


def draw_maps(count: int, size: int, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Two random steps for each image: homographies (count, 2, 3, 3) from places in the result to places in the source.

    Places are (x, y, 1) in pixels from the image's centre.
    """
    def uniform(*shape):
        return 2 * torch.rand(count, 2, *shape, generator=generator) - 1

    maps = torch.eye(3).repeat(count, 2, 4, 1, 1)  # of the four kinds
    maps[:, :, 1, :2, 2] = (uniform(2) * SHIFT * size * strength).round()  # whole pixels stay sharp
    angle = uniform() * math.pi / 2 * strength
    maps[:, :, 2, :2, :2] = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))
    corners = (PICTURE * size - 1) / 2 * torch.tensor([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    inwards = (uniform(4, 2) + 1) / 2 * (PICTURE * size / 4 * strength)  # published: up to half of the half edge
    maps[:, :, 3] = homography(corners - inwards * corners.sign(), corners)
    chosen = CHAINS[torch.randint(len(CHAINS), (count,), generator=generator)]  # (count, 2)
    return maps.gather(2, chosen[:, :, None, None, None].expand(-1, -1, 1, 3, 3)).squeeze(2)


def homography(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The maps that take four points (..., 4, 2) to four others (4, 2): (..., 3, 3) with last entry 1."""
    points = F.pad(source, (0, 1), value=1.0)
    zero = torch.zeros_like(points)
    # X = (a x + b y + c) / (g x + h y + 1), and so for Y: two linear equations a point.
    rows = torch.cat([torch.cat([points, zero], -1), torch.cat([zero, points], -1)], -2)  # (..., 8, 6)
    right = target.T.reshape(8, 1)  # every X, then every Y
    rows = torch.cat([rows, -right * source.repeat(*[1] * (source.ndim - 2), 2, 1)], -1)
    return F.pad(torch.linalg.solve(rows, right.expand(*rows.shape[:-1], 1)).squeeze(-1), (0, 1),
                 value=1.0).unflatten(-1, (3, 3))


def warp(images: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, H) after both steps of `draw_maps` (B, 2, 3, 3), in one bilinear interpolation.

    Outside the image, also that between the steps, the nearest pixel of its edge is repeated.
    """
    size = images.shape[-1]
    edge = (size - 1) / 2
    line = torch.linspace(-edge, edge, size, device=images.device)
    places = torch.stack([line.repeat(size), line.repeat_interleave(size)], -1)  # (H H, 2)
    for step in (maps[:, 1], maps[:, 0]):  # from the result back to the source
        places = F.pad(places, (0, 1), value=1.0) @ step.mT
        places = (places[..., :2] / places[..., 2:]).clamp(-edge, edge)
    return F.grid_sample(images, (places * (2 / size)).view(-1, size, size, 2), padding_mode="border",
                         align_corners=False)

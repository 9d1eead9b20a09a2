from itertools import product

import pytest
import torch
from torch.nn import functional as F

from oclam.agent.guided_filter import guided_filter


def scene(height=9, width=11):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, 4, height, width, generator=generator, dtype=torch.float64).split([1, 3], 1)


def naive(masks, images, radius, epsilon):
    """A ridge regression in one window after the other; every pixel takes the mean of what its windows say of it."""
    said, count = torch.zeros_like(masks), torch.zeros_like(masks)
    for place in product(*map(range, masks.shape)):
        window = tuple(slice(max(at - r, 0), at + r + 1) for at, r in zip(place, (0, radius, radius), strict=True))
        colours, target = images.movedim(1, -1)[window].flatten(0, 2), masks[window].flatten()
        centred = torch.cat([colours - colours.mean(0), (len(target) * epsilon) ** 0.5 * torch.eye(3).double()])
        slope = torch.linalg.lstsq(centred, F.pad(target - target.mean(), (0, 3))[:, None]).solution[:, 0]
        said[window] += ((colours - colours.mean(0)) @ slope + target.mean()).view_as(said[window])
        count[window] += 1
    return said / count


@pytest.mark.parametrize(("radius", "epsilon"), [(1, 1e-3), (3, 0.1), (12, 1e-2)])
def test_it_is_a_ridge_regression_in_every_window(radius, epsilon):
    masks, images = scene()
    expected = naive(masks[:, 0], images, radius, epsilon)
    torch.testing.assert_close(guided_filter(masks, images, radius, epsilon)[:, 0], expected)


def test_a_mask_that_is_a_function_of_the_colour_stays_and_a_complement_goes_with_it():
    masks, images = scene()
    affine = images.mul(torch.tensor([0.2, -0.3, 0.5]).view(3, 1, 1)).sum(1, keepdim=True) + 0.4
    torch.testing.assert_close(guided_filter(affine, images, 2, epsilon=1e-12), affine)
    torch.testing.assert_close(guided_filter(1 - masks, images, 2), 1 - guided_filter(masks, images, 2))
    torch.testing.assert_close(guided_filter(torch.ones_like(masks), images, 2), torch.ones_like(masks))


def test_blocks_around_an_object_shrink_to_its_edge():
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    disc = ((y - 30) ** 2 + (x - 33) ** 2 < 100).float()[None, None]
    images = 0.2 + 0.6 * disc + 0.02 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    blocks = F.interpolate(F.max_pool2d(disc, 4), (64, 64))  # every patch that the disc touches

    def iou(mask):
        return float((mask * disc).sum() / (mask + disc).clamp(max=1).sum())

    found = (guided_filter(blocks, images, radius=10) > 0.5).float()
    assert iou(blocks) < 0.8 and iou(found) > 0.99

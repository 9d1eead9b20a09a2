import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as reference
from torchvision.transforms.v2.functional import InterpolationMode

from oclam.laom.augmentation import augment, draw_maps, homography, warp

IDENTITY = torch.eye(3)


def images(count=1, size=64):
    """Smooth, so that interpolating twice, as the reference does, hardly blurs."""
    torch.manual_seed(0)
    return F.interpolate(torch.randn(count, 3, 6, 6), size=(size, size), mode="bicubic")


def shift(x, y):
    return torch.tensor([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


def rotation(degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def warped(x, first, second=IDENTITY):
    return warp(x, torch.stack([first, second]).expand(len(x), 2, 3, 3))


def padded(x, pad):
    return F.pad(x, (pad, pad, pad, pad), mode="replicate")


def rotated(x, degrees):
    turned = reference.rotate(padded(x, 17), degrees, interpolation=InterpolationMode.BILINEAR)
    return reference.center_crop(turned, [64, 64])


def shifted(x, dx, dy):
    return padded(x, 14)[..., 14 + dy:78 + dy, 14 + dx:78 + dx]


def test_a_shift_of_whole_pixels_repeats_the_edge():
    x = images()
    torch.testing.assert_close(warped(x, shift(5, -9)), shifted(x, 5, -9), rtol=0, atol=1e-4)


def test_a_rotation_is_torchvision_s_on_padded_images():
    x = images()
    for degrees in (90, 37, -64):
        torch.testing.assert_close(warped(x, rotation(degrees)), rotated(x, degrees), rtol=0, atol=1e-3)


def test_a_perspective_is_torchvision_s_on_padded_images():
    x, corners = images(), [[0, 0], [123, 0], [123, 123], [0, 123]]
    moved = [[10, 5], [100, 20], [110, 115], [3, 118]]
    expected = reference.center_crop(reference.perspective(padded(x, 30), corners, moved), [64, 64])
    centred = [torch.tensor(points) - 62.0 for points in (moved, corners)]  # its pixels have their centres at i + 0.5
    torch.testing.assert_close(warped(x, homography(*centred)), expected, rtol=0, atol=1e-3)


def test_two_steps_are_the_one_after_the_other_cut_to_the_image_between():
    x = images()
    torch.testing.assert_close(warped(x, shift(12, 3), rotation(50)), rotated(shifted(x, 12, 3), 50), rtol=0, atol=1e-3)
    exact = warped(warped(x, rotation(90)), shift(-8, 11))
    torch.testing.assert_close(warped(x, rotation(90), shift(-8, 11)), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [32, 64])
def test_eight_chains_are_as_likely_and_stay_in_their_ranges(size):
    maps = draw_maps(8000, size, 1.0, torch.Generator().manual_seed(0))
    flat = (maps - IDENTITY).flatten(2).abs()
    moves, bends = flat[..., [2, 5]].sum(-1) > 0, flat[..., [6, 7]].sum(-1) > 0
    turns = (maps[..., 0, 1] == -maps[..., 1, 0]) & (maps[..., 0, 1] != 0) & ~bends
    kinds = torch.where(bends, 3, torch.where(turns, 2, torch.where(moves, 1, 0)))
    chains = torch.tensor([(0, 0), (1, 0), (2, 0), (3, 0), (1, 2), (2, 1), (2, 3), (3, 2)])  # as published
    shares = torch.stack([(kinds == chain).all(1).float().mean() for chain in chains])
    torch.testing.assert_close(shares, torch.full((8,), 1 / 8), rtol=0, atol=0.015)
    assert maps[kinds == 1][:, :2, 2].abs().max() == 14 * size // 64
    angles = torch.atan2(maps[kinds == 2][:, 1, 0], maps[kinds == 2][:, 0, 0]) * 180 / math.pi
    assert 88 < angles.max() <= 90 and -90 <= angles.min() < -88


def test_strength_scales_the_ranges_and_0_changes_nothing():
    weak, full = (draw_maps(500, 64, strength, torch.Generator().manual_seed(1)) for strength in (0.5, 1.0))
    turned = full[:, 0, 0, 1].abs() == full[:, 0, 1, 0].abs()
    angle = [torch.atan2(maps[turned, 0, 1, 0], maps[turned, 0, 0, 0]) for maps in (weak, full)]
    torch.testing.assert_close(2 * angle[0], angle[1])
    x = images(4, 16)
    assert augment(x, 0.0, None) is x


@pytest.mark.parametrize("size", [32, 64])
def test_a_perspective_moves_each_corner_inwards_by_up_to_half_of_the_half_edge(size):
    edge, edges = size * 124 / 64, torch.tensor([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    corners, inwards = F.pad((edge - 1) / 2 * edges, (0, 1), value=1.0), []
    for strength in (1.0, 0.5):
        maps = draw_maps(4000, size, strength, torch.Generator().manual_seed(0))[:, 0].double()  # result to source
        bends = maps[maps[:, 2, :2].abs().sum(1) > 0]
        moved = torch.linalg.solve(bends, corners.double().T).mT  # (B, 4, 3)
        inwards.append((corners.double() - moved / moved[..., 2:])[..., :2] * edges)
    torch.testing.assert_close(inwards[1], inwards[0] / 2, rtol=0, atol=1e-3)
    low, high = inwards[0].aminmax()
    assert -1e-3 < low < 0.01 * edge and 0.24 * edge < high < 0.25 * edge + 1e-3


def test_one_call_is_the_images_one_by_one_and_every_image_draws_its_own():
    x = images(1).expand(6, -1, -1, -1)
    maps = draw_maps(6, 64, 1.0, torch.Generator().manual_seed(3))
    together = warp(x, maps)
    for image, single, own in zip(together, x.split(1), maps.split(1), strict=True):
        torch.testing.assert_close(image, warp(single, own)[0])
    assert torch.equal(augment(x, 1.0, torch.Generator().manual_seed(3)), together)
    assert len({image.sum().item() for image in together}) > 3

import math

import pytest
import torch

from oclam.slots.registration import SPAN, mask_moments, poses, register


def ellipse(angle, size=1.0, centre=(0.0, 0.0), pixels=128):
    """A bright ellipse with half-axes 0.6 and 0.2, turned from x towards y: (H, W) in 0..1."""
    place = torch.arange(pixels) * 2 / pixels - 1 + 1 / pixels
    y, x = torch.meshgrid(place - centre[1], place - centre[0], indexing="ij")
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    distance = ((along / 0.6) ** 2 + (across / 0.2) ** 2).sqrt() / size
    return ((1 - distance) * 30).clamp(0, 1)


def test_moments_are_those_of_an_ellipse_at_any_place():
    a, b = 0.6, 0.2
    for angle, centre in ((0.0, (0.0, 0.0)), (0.5, (0.1, -0.2)), (-1.2, (-0.3, 0.2))):
        area, straight, oblique = mask_moments((ellipse(angle, centre=centre, pixels=512) > 0.5).double()[None])[0]
        assert area / 512**2 * 4 == pytest.approx(math.pi * a * b, rel=0.05)
        spread = (a**2 - b**2) / 4  # of an ellipse, xx - yy along its own axes
        assert straight / area == pytest.approx(spread * math.cos(2 * angle), abs=0.006)
        assert oblique / area == pytest.approx(spread * math.sin(2 * angle), abs=0.006)
    assert not mask_moments(torch.zeros(2, 8, 8)).any()


@pytest.mark.parametrize("upright", [0.0, 1.5])  # 1.5: an axis beyond which the angle of an axis jumps by pi
def test_poses_are_the_cameras_angle_and_zoom_and_register_undoes_them(upright):
    turns, zooms = (-0.3, 0.0, 0.15, 0.4), (0.8, 1.0, 1.2, 1.1)
    seen = torch.stack([ellipse(upright + turn, zoom) for turn, zoom in zip(turns, zooms, strict=True)])
    still, reference = ellipse(upright), mask_moments(ellipse(upright)[None])[0]
    for image, turn, zoom in zip(seen, turns, zooms, strict=True):
        found = poses(mask_moments(image[None]), reference)
        torch.testing.assert_close(found, torch.tensor([[turn, zoom]]).double(), rtol=0, atol=0.01)
        apart = (register(image[None, None], found)[0, 0] - still).abs().mean()
        assert apart < max(0.1 * (image - still).abs().mean(), 1e-3 * still.mean())  # the still one stays as it is


def test_a_pose_is_the_mean_of_those_around():
    one, other = mask_moments(ellipse(0.2)[None]), mask_moments(ellipse(-0.2)[None])
    clip = torch.cat([one, other] * 30)
    found = poses(clip, one[0])
    inside = found[SPAN:-SPAN, 0]
    assert abs(inside + 0.2).max() < 0.2 / SPAN and inside[0] != inside[1]
    torch.testing.assert_close(found[:, 1], torch.ones(60).double(), rtol=0, atol=0.01)


def test_frames_without_agent_stay_and_wrong_masks_have_limits():
    reference, image = mask_moments(ellipse(0.0)[None])[0], torch.rand(1, 3, 16, 16)
    still = poses(torch.zeros(1, 3).double(), reference)
    assert still.tolist() == [[0, 1]]
    torch.testing.assert_close(register(image, still), image)
    assert poses(reference[None] * 100, reference)[0, 1] == 2 and poses(reference[None] / 100, reference)[0, 1] == 0.5


def test_a_quarter_turn_is_a_rotation_of_the_pixels():
    image = torch.rand(1, 3, 16, 16)
    turned = register(image, torch.tensor([[math.pi / 2, 1.0]]))
    torch.testing.assert_close(turned, image.rot90(1, (2, 3)), rtol=0, atol=1e-5)


def test_an_agent_that_is_out_of_sight_turns_nothing_whatever_the_reference_s_angle():
    still = poses(torch.zeros(1, 3).double(), mask_moments(ellipse(0.5)[None])[0])
    assert still.tolist() == [[0, 1]]

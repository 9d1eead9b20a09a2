from collections import Counter

import numpy as np
import pytest
import torch

from oclam.agent import refinement
from oclam.agent.refinement import agent_mask, inside_share, refine, threshold


def clip(shape, frames=3, size=16, patch=4):
    """A red object of this shape (bool (h, w)) on noise, a step to the right a frame: frames, object, its patches."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(120, size=(frames, size, size, 3), dtype=np.uint8)
    agent = np.zeros((frames, size, size), bool)
    for t in range(frames):
        agent[t, 5:5 + shape.shape[0], 3 + t:3 + t + shape.shape[1]] = shape
    pixels[agent] = [250, 10, 10]
    return pixels, agent, agent.reshape(frames, size // patch, patch, size // patch, patch).any((2, 4))


@pytest.mark.parametrize("span", [0, 1, 9])
def test_share_is_what_a_count_of_pixels_gives(span, monkeypatch):
    monkeypatch.setattr(refinement, "SPAN", span)
    rng = np.random.default_rng(0)
    images = 40 * rng.integers(2, size=(4, 3, 5, 6), dtype=np.uint8)
    images += rng.integers(8, size=images.shape, dtype=np.uint8)
    near = rng.random((4, 5, 6)) < 0.8
    inside = near & (rng.random((4, 5, 6)) < 0.5)
    found = inside_share(*map(torch.from_numpy, (inside, near, images)))
    for t in range(4):
        window = slice(max(t - span, 0), t + span + 1)
        colours = [tuple(colour) for colour in (images[window] // 8).transpose(0, 2, 3, 1).reshape(-1, 3)]
        all_near, all_held = (Counter(colour for colour, counts in zip(colours, mask[window].ravel(), strict=True)
                                      if counts) for mask in (near, inside))
        for row, column in np.ndindex(5, 6):
            colour = tuple(images[t, :, row, column] // 8)
            assert found[t, row, column] == pytest.approx(all_held[colour] / (all_near[colour] + 2))


def test_patches_become_the_objects_pixels_whatever_the_order_of_channels():
    pixels, agent, patches = clip(np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 0, 0, 1]], bool), frames=6)
    assert patches.mean() > 1.8 * agent.mean()
    np.testing.assert_array_equal(refine(patches, pixels), agent)
    np.testing.assert_array_equal(refine(patches, pixels[..., ::-1].copy()), agent)
    assert not refine(np.zeros_like(patches), pixels).any()


def test_what_one_frame_cannot_tell_from_the_object_others_can():
    pixels, agent, patches = clip(np.ones((2, 4), bool), frames=6)
    stone = np.zeros_like(agent)
    stone[:, 9:12, 4:7] = True
    pixels[stone] = [10, 10, 250]
    patches[0] |= stone[0].reshape(4, 4, 4, 4).any((1, 3))  # one frame's patches take it in
    np.testing.assert_array_equal(refine(patches, pixels), agent)
    assert (refine(patches[:1], pixels[:1])[0] & stone[0]).any()


def test_patches_that_miss_half_of_the_object_find_all_of_it():
    pixels, agent, patches = clip(np.ones((4, 8), bool), size=32)
    patches[:, :, 2:] = False
    covered = patches.repeat(4, 1).repeat(4, 2) & agent
    assert covered.sum() == agent.sum() / 2
    np.testing.assert_array_equal(refine(patches, pixels), agent)


def test_threshold_lies_between_the_means_of_the_groups_that_it_makes():
    share = torch.from_numpy(np.random.default_rng(0).choice([0.05, 0.15, 0.6, 0.7], (5, 8, 8))).float()
    near = torch.ones_like(share, dtype=torch.bool)
    for values, limit in zip(share.numpy(), threshold(share, near).flatten().tolist(), strict=True):
        assert limit == pytest.approx(0.4 * values[values < 0.4].mean() + 0.6 * values[values > 0.4].mean(), rel=1e-5)
    near[:, 4:] = False
    cut = torch.where(near, share, torch.rand_like(share))
    assert torch.equal(threshold(cut, near), threshold(share, near))  # other pixels do not count
    assert (threshold(share / 10, near) == np.float32(0.35)).all()


def test_only_colours_nearby_compete():
    pixels, agent, patches = clip(np.ones((2, 2), bool), size=48, frames=2)
    pixels[:, 16:] = [250, 10, 10]  # the object's colour, but far more of it, two patches below those of the object
    np.testing.assert_array_equal(refine(patches, pixels), agent)
    pixels[:, 12:, :] = [250, 10, 10]  # as much of it next to the object hides it
    assert not refine(patches, pixels).any()


def test_a_soft_mask_is_the_rounded_sum_of_the_chosen_between_the_patches_centres():
    masks = np.zeros((2, 3, 2, 2), np.uint8)
    masks[0, 0, :, 1], masks[0, 2, :, 1], masks[0, 1] = 100, 103, 255
    masks[1, 0], masks[1, 2] = 200, 57  # shares are rounded, and may sum to more than all
    across = np.array([0, 0, 1, 3, 5, 7, 8, 8]) / 8  # of 8 pixels, from the centre of one patch to that of the next
    expected = np.stack([np.broadcast_to(np.round(203 * across), (8, 8)), np.full((8, 8), 255)])
    found = agent_mask(masks, [0, 2], "soft", np.zeros((2, 8, 8, 3), np.uint8))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_a_colour_is_counted_as_often_as_it_is_there():
    pixels = 9 * 64 * 64  # more than 16 bits hold
    everywhere = torch.ones(9, 64, 64, dtype=torch.bool)
    share = inside_share(everywhere, everywhere, torch.zeros(9, 3, 64, 64, dtype=torch.uint8))
    torch.testing.assert_close(share, torch.full((9, 64, 64), pixels / (pixels + 2)))


def test_the_threshold_of_shares_between_0_and_1_that_are_all_as_frequent_is_0_6():
    share = torch.linspace(0, 1, 10_000).view(1, 100, 100)  # t = 0.4 (t / 2) + 0.6 (1 + t) / 2
    limit = threshold(share, torch.ones_like(share, dtype=torch.bool))
    assert limit.shape == (1, 1, 1) and limit.item() == pytest.approx(0.6, abs=5e-4)


def test_a_pixel_of_almost_the_object_s_colour_goes_with_it():
    pixels, agent, patches = clip(np.ones((4, 4), bool))
    pixels[agent], pixels[1, 6, 5] = [248, 10, 10], [247, 10, 10]  # which no other pixel of the histogram has
    np.testing.assert_array_equal(refine(patches, pixels), agent)

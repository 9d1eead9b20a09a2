"""Slot vectors with the pose: on drawn figures whose joints are known, and against closed forms."""

import cv2
import numpy as np
import pytest
import torch
import zarr
from torch.nn import functional as F

from oclam.slots.components import (
    CROP,
    TRANSFORM,
    Components,
    aligned_crops,
    sample,
    slot_transforms,
    write_components,
)

EPISODES, STEPS, SIZE, GRID, WIDTH = 6, 60, 64, 16, 64


def figure(angles, place):
    """A torso with a thigh and a shin, drawn at `place` (x, y): bool (SIZE, SIZE). angles: of hip and knee."""
    points = [np.array(place) + (-12, 0), np.array(place, float)]
    direction = 0.0
    for angle in angles:
        direction += angle
        points.append(points[-1] + 14 * np.array([np.cos(direction), np.sin(direction)]))
    image = np.zeros((SIZE, SIZE), np.uint8)
    for start, end in zip(points, points[1:], strict=False):
        cv2.line(image, *(np.round(point * 16).astype(int).tolist() for point in (start, end)), 1, 5, cv2.LINE_8, 4)
    return image.astype(bool)


def scene(place=(28, 26), seed=0, textured=True):
    """Pixels (E, T, H, W, 3), masks (E, T, 2, G, G) of background and figure, and the joints' angles (E, T, 2)."""
    rng = np.random.default_rng(seed)
    phase, time = rng.uniform(0, 2 * np.pi, (EPISODES, 1, 2)), np.arange(STEPS)[:, None]
    speed = rng.uniform(0.2, 0.5, (EPISODES, 1, 2))
    angles = np.array([1.2, 0.9]) + np.array([0.7, 0.8]) * np.sin(phase + time * speed)
    inside = np.array([[figure(angle, place) for angle in episode] for episode in angles])
    texture = rng.integers(0, 200 if textured else 1, (SIZE + STEPS, SIZE + STEPS, 3), dtype=np.uint8)
    pixels = np.stack([np.stack([texture[t:t + SIZE, t:t + SIZE] for t in range(STEPS)])] * EPISODES)
    pixels[inside] = (220, 60, 40)
    share = inside.reshape(EPISODES, STEPS, GRID, 4, GRID, 4).mean((3, 5))
    return pixels, np.round(255 * np.stack([1 - share, share], 2)).astype(np.uint8), angles


def stored(pixels, masks, training=EPISODES - 2):
    group = zarr.group(zarr.storage.MemoryStore())
    group.create_array("slots", shape=(*masks.shape[:3], WIDTH), dtype="float16")
    group.create_array("masks", data=masks)
    write_components(group, pixels, training)
    return group


@pytest.fixture(scope="module")
def drawn():
    pixels, masks, angles = scene()
    return stored(pixels, masks), angles


def explained(inputs, targets):
    """R2 on the last two episodes of a ridge fitted on the others, mean over targets."""
    x, y = (values.reshape(EPISODES, -1, values.shape[-1]).astype(float) for values in (inputs, targets))
    x = np.concatenate([x, np.ones((*x.shape[:2], 1))], 2)
    fit, test = (np.concatenate(part) for part in (x[:-2], x[-2:]))
    weight = np.linalg.solve(fit.T @ fit + 1e-2 * np.eye(x.shape[-1]), fit.T @ np.concatenate(y[:-2]))
    truth = np.concatenate(y[-2:])
    return (1 - ((test @ weight - truth) ** 2).mean(0) / truth.var(0)).mean()


def test_the_vector_predicts_the_joint_angles(drawn):
    group, angles = drawn
    targets = np.concatenate([np.sin(angles), np.cos(angles)], 2)
    assert explained(group["slots"][:, :, 1], targets) > 0.9
    mean_colour = np.zeros((EPISODES, STEPS, 3))  # what a weighted mean without positions keeps: here, one colour
    assert explained(mean_colour, targets) < 0.1


def test_a_figure_that_is_moved_changes_its_place_alone():
    groups = [stored(*scene(place, textured=False)[:2]) for place in ((28, 26), (36, 30))]  # by two patches and one
    here, moved = (group["slots"][:, :, 1].astype(float) for group in groups)
    shift = moved[..., -TRANSFORM:] - here[..., -TRANSFORM:]
    np.testing.assert_allclose(shift, np.broadcast_to([8 * 2 / SIZE, 4 * 2 / SIZE, 0, 0], shift.shape), atol=2e-3)
    np.testing.assert_allclose(moved[..., :10], here[..., :10], atol=0.005)  # of deviations of 0.2 to 0.9


def test_an_upright_slot_is_the_masked_frame_averaged():
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (3, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
    masks = torch.full((3, GRID, GRID), 255, dtype=torch.uint8)
    upright = torch.tensor([0.0, 0, 0, 1]).expand(3, TRANSFORM)
    expected = F.avg_pool2d(frames.movedim(-1, 1).float() / 255 - 0.4, SIZE // CROP)
    found = aligned_crops(frames, masks, upright).view(3, 4, CROP, CROP)
    torch.testing.assert_close(found[:, 1:], expected)
    torch.testing.assert_close(found[:, 0], torch.full((3, CROP, CROP), 0.5))


def test_a_turned_frame_of_reference_turns_the_view():
    frames = torch.randint(256, (1, SIZE, SIZE, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    masks = torch.full((1, GRID, GRID), 255, dtype=torch.uint8)
    turned = torch.rot90(frames, -1, (1, 2))  # x becomes y: the slot's angle is pi / 2
    quarter = torch.tensor([[0.0, 0, torch.pi / 2, 1]])
    upright = torch.tensor([[0.0, 0, 0, 1]])
    torch.testing.assert_close(aligned_crops(turned, masks, quarter), aligned_crops(frames, masks, upright),
                               rtol=0, atol=1e-4)


def test_slot_transforms_equal_a_naive_loop_and_an_empty_slot_is_at_the_centre():
    _, masks, _ = scene()
    masks = torch.from_numpy(np.concatenate([masks[0], np.zeros_like(masks[0, :, :1])], 1))
    found = slot_transforms(masks, torch.tensor([[200.0, 0, 0], [20, 1, 0], [0, 0, 0]]).double())
    centres = []
    for t in range(STEPS):
        rows, columns = np.nonzero(masks[t].argmax(0).numpy() == 1)
        centres.append([(2 * columns + 1).mean() / GRID - 1, (2 * rows + 1).mean() / GRID - 1])
    for t in (0, 7, STEPS - 1):
        np.testing.assert_allclose(found[t, 1, :2], np.mean(centres[max(t - 10, 0):t + 11], 0), atol=1e-6)
    torch.testing.assert_close(found[:, 2], torch.tensor([0.0, 0, 0, 1]).expand(STEPS, TRANSFORM))


def test_frames_where_a_slot_is_empty_do_not_move_it():
    masks = torch.zeros(40, 2, GRID, GRID, dtype=torch.uint8)
    masks[:, 0] = 1
    masks[::2, 1, 12:14, 10:12] = 9  # patches centred at x = 2 * 11 / 16 - 1, y = 2 * 13 / 16 - 1
    found = slot_transforms(masks, torch.tensor([[200.0, 0, 0], [4, 0, 0]]).double())
    torch.testing.assert_close(found[:, 1, :2], torch.tensor([0.375, 0.625]).expand(40, 2))


def test_components_are_those_of_the_covariance():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 3)) @ rng.normal(size=(3, 10)) + 5
    found = Components(torch.from_numpy(rows), 5)
    values, directions = np.linalg.eigh(np.cov(rows.T))
    coordinates = found(torch.from_numpy(rows).float()).numpy()
    np.testing.assert_allclose(coordinates.var(0, ddof=1)[:3], values[::-1][:3], rtol=1e-4)
    np.testing.assert_allclose(np.abs(found.basis[:, 0]), np.abs(directions[:, -1]), atol=1e-4)
    np.testing.assert_allclose(coordinates @ found.basis.numpy().T + found.mean.numpy(), rows, atol=1e-3)


@pytest.mark.parametrize("episodes, steps", [
    (64, 250), (160, 250), (200, 1000), (5000, 1000), (2000, 64), (2000, 250), (2000, 1000), (4000, 100), (3, 10),
    (1, 1)])
def test_a_sample_has_frames_of_many_times_of_an_episode(episodes, steps):
    found = sample(episodes, steps)
    assert len((found % steps).unique()) >= min(16, steps)
    assert len(found.diff().unique()) <= 1 and found[0] == 0 and found[-1] < episodes * steps
    assert min(episodes * steps, 1800) <= len(found) <= 4000


def test_a_sample_smaller_than_the_number_of_episodes_skips_some(monkeypatch):
    pixels, masks, _ = scene()
    monkeypatch.setattr("oclam.slots.components.SAMPLE", 1)  # one frame of 4 episodes of 60
    assert np.isfinite(stored(pixels, masks)["slots"][:]).all()


def test_the_largest_entry_of_every_direction_is_positive():
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 8)))
    for sign in (1, -1):
        basis = Components(sign * rows, 8).basis
        assert (basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all()


def test_held_out_episodes_take_no_part_in_components_and_reference():
    pixels, masks, _ = scene()
    before = stored(pixels, masks)["slots"][:-2]
    pixels[-2:], masks[-2:] = 255 - pixels[-2:], masks[-2:].transpose(0, 1, 2, 4, 3)
    np.testing.assert_array_equal(stored(pixels, masks)["slots"][:-2], before)

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import zarr

from oclam.slots import extraction as slots_module
from oclam.slots.extraction import extract_slots, find_masks
from oclam.slots.videosaur import VideoSaur
from tests import Killed, contents

EPISODES, STEPS, K, D, GRID = 5, 11, 3, 8, 2
# Frames after each unit of work: 2, 2 and 1 episodes, of 4, 4 and 3 steps.
FINISHED = np.cumsum([episodes * steps for episodes in (2, 2, 1) for steps in (4, 4, 3)]).tolist()


@pytest.fixture(autouse=True)
def small_units(monkeypatch):
    monkeypatch.setattr(slots_module, "EPISODES", 2)
    monkeypatch.setattr(slots_module, "STEPS", 4)
    monkeypatch.setattr(slots_module, "ENCODER_BATCH", 3)


@pytest.fixture
def models():
    torch.manual_seed(0)
    return [VideoSaur(12, GRID**2, slots=K, slot_dim=D, feature_hidden=16, decoder_hidden=16, decoder_layers=1)
            for _ in range(2)]


@pytest.fixture
def model(models):
    return models[0]


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(256, size=(EPISODES, STEPS, 4, 4, 3), dtype=np.uint8)


class Encoder:
    """Every 2 x 2 patch's pixels; counts frames and dies before `until`."""

    def __init__(self, until=None):
        self.frames, self.until = 0, until

    def __call__(self, images):
        if self.until is not None and self.frames + len(images) > self.until:
            raise Killed
        self.frames += len(images)
        patches = images.float().div(255).unflatten(1, (2, 2)).unflatten(3, (2, 2))  # (N, 2, 2, 2, 2, 3)
        return (patches.transpose(2, 3).flatten(1, 2).flatten(2),)


def extract(model, pixels, folder, name, observe=None, window=None, finish=None):
    folder.mkdir(exist_ok=True)
    extract_slots(model, observe or Encoder(), pixels, folder / name, folder / "work", slots=K, slot_dim=D,
                  window=window, forward=nullcontext, attrs={"model": "videosaur"}, finish=finish)
    group = zarr.open_group(folder / name, mode="r")
    return {key: group[key][:] for key in ("slots", "masks")}


@torch.no_grad()
def naive(model, pixels, window):
    """One episode and one frame after the other."""
    found = []
    for episode in pixels:
        previous = None
        for t, frame in enumerate(episode):
            projected = model.project(Encoder()(torch.from_numpy(frame[None]))[0])
            previous = None if window and t % window == 0 else previous
            slots = model.slots(projected[:, None], previous)
            previous = slots[:, -1]
            masks = model.masks(previous, projected)[0].unflatten(-1, (GRID, GRID))
            found.append((previous[0], masks))
    return [torch.stack(column).unflatten(0, (EPISODES, STEPS)).numpy() for column in zip(*found, strict=True)]


@pytest.mark.parametrize("window", [None, 1, 3])
def test_extraction_equals_one_frame_after_the_other(model, pixels, tmp_path, window):
    found = extract(model, pixels, tmp_path, "slots.zarr", window=window)
    slots, masks = naive(model, pixels, window)
    np.testing.assert_allclose(found["slots"], slots, atol=2e-3)
    np.testing.assert_allclose(found["masks"] / 255, masks, atol=3e-3)
    assert found["slots"].dtype == np.float16 and found["masks"].dtype == np.uint8


@pytest.mark.parametrize("window", [None, 1, 3])
def test_masks_of_a_few_episodes_are_those_of_the_extraction_with_every_model(models, pixels, tmp_path, window):
    encoder = Encoder()
    found = find_masks(models, encoder, pixels[:2], window=window, forward=nullcontext)
    assert encoder.frames == 2 * STEPS  # once for all models
    for k, model in enumerate(models):
        expected = extract(model, pixels, tmp_path, f"{k}", window=window)["masks"][:2]
        assert found[k].shape == expected.shape and abs(found[k].astype(int) - expected).max() <= 1
    assert abs(found[0].astype(int) - found[1]).max() > 1


def test_windows_forget_and_recurrence_remembers(model, pixels, tmp_path):
    changed = pixels.copy()
    changed[:, 0] = 0
    for window, remembers in ((None, True), (3, False)):
        one, other = (extract(model, p, tmp_path, f"{window}", window=window)["slots"] for p in (pixels, changed))
        assert np.array_equal(one[:, 3:], other[:, 3:]) != remembers


@pytest.mark.parametrize("until", [0, 10, 30, 52])
def test_resumed_equals_uninterrupted_to_the_byte(model, pixels, tmp_path, until):
    extract(model, pixels, tmp_path / "whole", "slots.zarr")
    with pytest.raises(Killed):
        extract(model, pixels, tmp_path / "cut", "slots.zarr", Encoder(until))
    rest = Encoder()
    extract(model, pixels, tmp_path / "cut", "slots.zarr", rest)
    finished = sum(end <= until for end in FINISHED)  # units before the kill are not repeated
    assert rest.frames == EPISODES * STEPS - [0, *FINISHED][finished]
    assert contents(tmp_path / "whole/slots.zarr") == contents(tmp_path / "cut/slots.zarr")


def test_every_frame_passes_the_encoder_once(model, pixels, tmp_path):
    encoder = Encoder()
    extract(model, pixels, tmp_path, "slots.zarr", encoder)
    assert encoder.frames == EPISODES * STEPS


@pytest.mark.parametrize("damaged", ["slots/zarr.json", "slots/c", "masks/c", None])
def test_a_store_that_was_damaged_while_it_was_finished_ends_in_the_same_slots(model, pixels, tmp_path, damaged):
    def finish(store, episodes=EPISODES):
        for episode in range(episodes):
            store["slots"][episode] = store["masks"][episode].mean((-2, -1))[..., None].astype("float16")
        if episodes < EPISODES:
            raise Killed

    expected = extract(model, pixels, tmp_path, "whole.zarr", finish=finish)
    with pytest.raises(Killed):
        extract(model, pixels, tmp_path, "cut.zarr", finish=lambda store: finish(store, 3))
    if damaged:
        path = tmp_path / "work/slots.zarr" / damaged
        path = path if path.is_file() else next(file for file in path.rglob("*") if file.is_file())
        path.write_bytes(path.read_bytes()[:5])
    found = extract(model, pixels, tmp_path, "cut.zarr", finish=finish)
    assert all(np.array_equal(found[key], expected[key]) for key in expected)

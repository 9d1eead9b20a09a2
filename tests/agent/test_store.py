"""The store of the chosen slots: what killed it does not show in its bytes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr
from torch.nn import functional as F

from oclam.agent import store
from oclam.artifacts import load_tensors
from tests import Killed, contents

EPISODES, STEPS, SIZE = 9, 12, 16


@pytest.fixture
def made(tmp_path):
    """Slots and frames without meaning."""
    rng = np.random.default_rng(0)
    slots = zarr.open_group(tmp_path / "slots.zarr", mode="w")
    slots.create_array("slots", data=rng.normal(size=(EPISODES, STEPS, 3, 4)).astype(np.float16))
    slots.create_array("masks", data=rng.integers(80, size=(EPISODES, STEPS, 3, 4, 4), dtype=np.uint8))
    data = zarr.open_group(tmp_path / "data.zarr", mode="w")
    pixels = data.create_array("pixels", data=rng.integers(256, size=(EPISODES, STEPS, SIZE, SIZE, 3), dtype=np.uint8))
    return slots, SimpleNamespace(pixels=pixels, episodes=6)


def test_the_mask_is_the_sum_of_the_chosen_however_their_vectors_are_combined(made, tmp_path):
    slots, dataset = made
    for how in ("mean", "concatenate"):
        select = SimpleNamespace(combine=how, masks="soft", registered=False)
        store.write_selection(tmp_path / how, tmp_path / "work", slots, [0, 2], select, dataset)
    mean, concatenated = (zarr.open_group(tmp_path / how, mode="r") for how in ("mean", "concatenate"))
    assert mean["slots"].shape[2] == 4 and concatenated["slots"].shape[2] == 8
    np.testing.assert_array_equal(mean["mask"][:], concatenated["mask"][:])
    sums = slots["masks"][:][:, :, [0, 2]].sum(2)
    np.testing.assert_allclose(mean["mask"][:].mean((2, 3)), sums.mean((2, 3)), atol=1)


def test_components_are_of_the_sampled_frames(made, tmp_path, monkeypatch):
    slots, dataset = made
    slots.attrs["vectors"] = "components"
    seen, components = [], store.Components
    monkeypatch.setattr("oclam.slots.components.SAMPLE", 12)  # every sixth of 72 training frames
    monkeypatch.setattr("oclam.slots.components.TIMES", 2)
    monkeypatch.setattr(store, "Components", lambda rows, width: (seen.append(rows), components(rows, width))[1])
    select = SimpleNamespace(combine="concatenate", masks="soft", registered=False)
    store.write_selection(tmp_path / "out", tmp_path / "work", slots, [0, 2], select, dataset)
    frames = torch.from_numpy(zarr.open_group(tmp_path / "out", mode="r")["frames"][:6]).flatten(0, 1)[::6]
    expected = F.adaptive_avg_pool2d(frames.movedim(-1, 1) / 255, store.CROP).flatten(1)
    torch.testing.assert_close(seen[0], expected)


def test_components_of_labelled_trajectories_are_those_of_a_dataset_that_has_no_others(made, tmp_path):
    slots, dataset = made
    slots.attrs["vectors"] = "components"
    dataset.episodes = EPISODES
    select = SimpleNamespace(combine="mean", masks="refined", registered=True)
    store.write_selection(tmp_path / "out", tmp_path / "work", slots, [0, 2], select, dataset)
    found = store.masked_components(list(dataset.pixels[:]), list(slots["masks"][:]), select, 4, [0, 2])
    written = zarr.open_group(tmp_path / "out", mode="r")
    # The store has float16; frames are rounded to whole levels by both.
    np.testing.assert_allclose(np.stack(found), written["slots"][:], rtol=1e-3, atol=1e-3)
    assert written["slots"][:].std() > 0.1


@pytest.mark.parametrize("function, vectors", [
    ("agent_mask", "attention"), ("register", "components"), ("_write_components", "components")])
def test_an_interrupted_selection_resumes_to_the_same_bytes(made, tmp_path, monkeypatch, function, vectors):
    slots, dataset = made
    slots.attrs["vectors"] = vectors
    select = SimpleNamespace(combine="concatenate", masks="refined", registered=True)
    calls, work = [], getattr(store, function)

    def write(name, kill_at=None):
        def counted(*arguments):
            calls.append(name)
            result = work(*arguments)
            if calls.count(name) == kill_at:
                raise Killed
            return result

        with monkeypatch.context() as context:
            context.setattr(store, function, counted)
            store.write_selection(tmp_path / f"{name}.zarr", tmp_path / name, slots, [0, 2], select, dataset)
        return contents(tmp_path / f"{name}.zarr")

    whole = write("whole")
    with pytest.raises(Killed):
        write("killed", kill_at=(calls.count("whole") + 1) // 2)
    assert not (tmp_path / "killed.zarr").exists()
    if function == "agent_mask":  # killed at the fifth of 9 episodes, of which the first part of 4 was done
        assert write("killed") == whole and calls.count("killed") == 5 + 5
    else:
        monkeypatch.setattr(store, "combine", None)  # all slots are there
        if function == "_write_components":  # killed once more, where frames are written again
            with monkeypatch.context() as context, pytest.raises(TypeError):
                context.setattr(store, "register", None)
                write("killed")
        assert write("killed") == whole


def test_a_preview_shows_held_out_frames_beside_their_masks_and_what_their_vectors_say_of_them(made, tmp_path):
    slots, dataset = made
    slots.attrs["vectors"], dataset.steps = "components", STEPS
    select = SimpleNamespace(combine="concatenate", masks="soft", registered=False)
    store.write_selection(tmp_path / "out", tmp_path / "work", slots, [0, 2], select, dataset)
    selection, path = zarr.open_group(tmp_path / "out", mode="r"), tmp_path / "preview.safetensors"
    store.write_preview(path, dataset, None, slots["masks"][6:], selection, range(6, EPISODES), [0, 2])
    found, about = load_tensors(path)
    for i, place in enumerate(zip(about["episodes"], about["steps"], strict=True)):
        np.testing.assert_array_equal(found["frames"][i], dataset.pixels[place])
        np.testing.assert_array_equal(found["masks"][i], slots["masks"][place])
        view = selection["basis"][:] @ selection["slots"][place].astype(float) + selection["mean"][:]
        view = 255 * view.reshape(3, store.CROP, store.CROP).transpose(1, 2, 0).clip(0, 1)
        np.testing.assert_allclose(found["decoded"][i], view, rtol=0, atol=1.01)
    np.testing.assert_array_equal(found["animation_frames"], dataset.pixels[6])

"""A model beside that of ocp: what is written of it, by a model whose masks are known, and how it is trained."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr
from torch.nn import functional as F

from oclam import comparison, paths
from oclam.artifacts import load_tensors
from oclam.comparison import train_for_comparison
from oclam.slots.steve import make_steve, to_unit
from tests import Killed

TASK, TRAINING, HELD_OUT, SEGMENTED, STEPS, SIZE, GRID = "cheetah-run", 2, 3, 2, 11, 16, 4
SETTINGS = SimpleNamespace(slots=3, slot_dim=8, clip_length=2, batch_size=2, kept_clips=None, decoded_patches=None,
                           steps=2, learning_rate=3e-3, warmup_steps=1, decay_steps=6, clip_norm=0.05)
STEVE = SimpleNamespace(published=False, feature_hidden=8, decoder_hidden=8, decoder_layers=1, vocabulary=64)


class Bright(torch.nn.Module):
    """Slot 1 has the patches that are brighter than a limit; at first none is."""

    grid = GRID

    def __init__(self):
        super().__init__()
        self.limit, self.pieces = torch.nn.Parameter(torch.tensor(2.0)), []

    def project(self, images):
        return F.adaptive_avg_pool2d(images, GRID).mean(1).flatten(1)[..., None]

    def slots(self, projected, previous):
        self.pieces.append(projected.shape[1])
        return torch.zeros(*projected.shape[:2], 3, 1)

    def masks(self, slots, projected):
        bright = (projected[..., 0] > self.limit).float()
        return torch.stack([1 - bright, bright, 0 * bright], 1)


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """The patches of the agent, which is white on black, in the dataset's episodes."""
    monkeypatch.chdir(tmp_path)
    agent = np.random.default_rng(0).random((TRAINING + HELD_OUT, STEPS, GRID, GRID)) < 0.4
    large = agent.repeat(SIZE // GRID, 2).repeat(SIZE // GRID, 3).astype(np.uint8)
    group = zarr.open_group(paths.dataset(TASK, "distracted"), mode="w", attributes={
        "task": TASK, "view": "distracted", "episodes": TRAINING, "test_episodes": HELD_OUT})
    flat = np.zeros((TRAINING + HELD_OUT, STEPS, 1), np.float32)
    for name, value in {"pixels": 255 * large[..., None].repeat(3, 4), "actions": flat, "states": flat,
                        "rewards": flat[..., 0], "segmentation": large[TRAINING:TRAINING + SEGMENTED]}.items():
        group.create_array(name, data=value)
    return agent


def untrained(size):
    return make_steve(STEVE, size, slots=3, slot_dim=8)


def run(name="steve", seed=0, make=untrained, precision="float32", compiled=False, kill_at=None, inputs=()):
    """What is written, and whether each batch of frames was observed in reduced precision."""
    observed = []

    def observer(images):
        observed.append(torch.is_autocast_enabled("cpu"))
        if len(observed) == kill_at:
            raise Killed
        return to_unit(images)

    params = SimpleNamespace(compute=SimpleNamespace(precision=precision, compile=compiled),
                             ocp=SimpleNamespace(window=3))
    train_for_comparison(name, TASK, seed, params, SETTINGS, make, observer, torch.device("cpu"), *inputs, model="A")
    return *load_tensors(paths.compared(TASK, seed, name)), observed


@pytest.mark.parametrize("segmented", [True, False])
def test_masks_are_the_trained_model_s_of_held_out_frames_and_measured_where_the_agent_is_segmented(
        agent, monkeypatch, segmented):
    model, rows = Bright(), [{"step": 2, "loss": 0.5}]

    def train(model, clips, settings, checkpoint, *, seed, forward, compiled):
        assert len(clips.frames) == TRAINING * STEPS and clips.seed == seed == 7 and compiled
        model.limit.data.fill_(0.5)
        return rows

    monkeypatch.setattr(comparison, "train_slots", train)
    if not segmented:
        del zarr.open_group(paths.dataset(TASK, "distracted"), mode="r+")["segmentation"]
    tensors, about, _ = run(seed=7, make=lambda size: model, compiled=True)
    shown = SEGMENTED if segmented else HELD_OUT
    places = [(TRAINING + i % shown, t) for i, t in enumerate([0, 2, 4, 6, 8, 10])]
    assert list(zip(about["episodes"], about["steps"], strict=True)) == places
    inside = np.stack([agent[place] for place in places])
    np.testing.assert_array_equal(tensors["masks"], 255 * np.stack([~inside, inside, 0 * inside], 1))
    assert model.pieces == shown * [3, 3, 3, 2]  # windows
    assert about["log"] == rows and about["model"] == "A"
    if segmented:
        area = agent[TRAINING:TRAINING + SEGMENTED].mean()
        assert about["slots"][1] == pytest.approx({"agent_iou": 1, "agent_recall": 1, "area": area, "stability": 1})
        assert about["slots"][0]["agent_iou"] == 0 and about["best"] == about["fg_ari"] == 1
    else:
        assert about["slots"] == [] and about["best"] is about["fg_ari"] is None


def test_name_and_seed_alone_decide_what_is_learned(agent):
    weights = []

    def make(size):
        model = untrained(size)
        weights.append(torch.nn.utils.parameters_to_vector(model.parameters()).sum().item())
        return model

    logs = [run(name, seed, make)[1]["log"] for name, seed in 2 * (("a", 0), ("a", 1), ("b", 0))]
    assert logs[:3] == logs[3:] and len({log[0]["loss"] for log in logs}) == 3
    assert weights[:3] == weights[3:] and len(set(weights)) == 3


@pytest.mark.parametrize("content, seed, steps", [("one", 0, 0), ("another", 0, 3), ("one", 1, 3)])
def test_a_killed_comparison_resumes_unless_its_seed_or_what_it_reads_is_another(agent, tmp_path, content, seed, steps):
    encoder = tmp_path / "encoder"
    encoder.write_text("one")
    with pytest.raises(Killed):
        run(kill_at=4, inputs=[encoder])  # after the clusters and two updates, at the first masks
    encoder.write_text(content)
    assert len(run(seed=seed, inputs=[encoder])[2]) == steps + SEGMENTED
    assert not list((tmp_path / ".resume").glob(f"steve-{TASK}-{seed}-*"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_frames_are_observed_in_the_precision_that_was_asked_for(agent, precision):
    assert run(precision=precision)[2] == (3 + SEGMENTED) * [precision == "bfloat16"]

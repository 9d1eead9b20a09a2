"""A training step's batch, model and loss meet on the GPU: PyTorch's fake tensors, where there is none, refuse to mix
devices. The backward pass needs a GPU."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from oclam.datasets import Frames, FrameStacks
from oclam.latent_actions import training as lapo_training
from oclam.latent_actions.models import ImageLatentActionModel
from oclam.latent_actions.observations import FrameObservations
from oclam.params import Compute
from oclam.policies import training as bc_training
from oclam.policies.networks import Actor
from oclam.slots import training as slots_training
from oclam.slots.attention import RecurrentSlots
from oclam.slots.clips import Clips
from oclam.slots.extraction import project, slots_of
from oclam.slots.slotcontrast import SlotContrast
from oclam.slots.steve import Steve, to_unit
from oclam.slots.videosaur import VideoSaur
from oclam.training import autocast

pytestmark = pytest.mark.filterwarnings("ignore:CUDA is not available")
GPU, COMPUTE = torch.device("cuda"), Compute(precision="bfloat16", compile=False, devices=1, threads=1)
T, SIZE, B = 12, 16, 4
EPOCHS = SimpleNamespace(epochs=1, warmup_epochs=0, learning_rate=1e-3)
UNSAVED = SimpleNamespace(save=lambda *_, **__: None)


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    """One step of a training loop, in this thread, on fake tensors."""
    for module in (lapo_training, bc_training, slots_training):
        monkeypatch.setattr(module, "train", lambda step, *_, **__: step(0))
        monkeypatch.setattr(module, "update", lambda *_: None)
    for module in (lapo_training, bc_training):
        monkeypatch.setattr(module, "Prefetch", lambda make: make)
    with FakeTensorMode():
        yield


def sampler(indices):
    batch = [torch.zeros(B, dtype=torch.int64) for _ in range(indices)]
    return SimpleNamespace(batch=lambda _: batch if indices > 1 else batch[0], steps_per_epoch=5, batch_size=B)


def rows(*shape, of=torch.uint8):
    return Frames(torch.empty(3 * T, *shape, dtype=of, device=GPU), GPU)


def stacks():
    return FrameStacks(rows(SIZE, SIZE, 3), stack=2, steps=T)


def test_rows_on_the_gpu_are_gathered_there():
    assert stacks()(torch.zeros(B, dtype=torch.int64)).device.type == "cuda"


def test_fake_tensors_refuse_to_mix_devices():
    with pytest.raises(RuntimeError, match="cpu"):
        torch.empty(3, device=GPU) + torch.empty(3)


@pytest.mark.parametrize("weight", [None, 0.1])
def test_latent_action_model(weight):
    masks = None if weight is None else rows(SIZE, SIZE)
    with GPU:
        model = ImageLatentActionModel(6, SIZE, 4, 1, 1)
    losses = lapo_training.train_model(model, FrameObservations(stacks(), masks, weight), sampler(3),
                                       torch.empty(3 * T, 2), EPOCHS, COMPUTE, UNSAVED)
    assert {loss.device.type for loss in losses.values()} == {"cuda"}


def test_behaviour_cloning():
    with GPU:
        actor = Actor(6, 4, 1, 1)
    actor.to = lambda **_: actor  # fake weights have no memory layout to change
    targets = rows(4, of=torch.float16).gather
    losses = bc_training.regress(actor, stacks(), targets, sampler(1), 5, 1e-3, UNSAVED, COMPUTE)
    assert losses["loss"].device.type == "cuda"


@pytest.mark.parametrize("decoded", [None, 5])
@pytest.mark.parametrize("make", [
    lambda sizes: (VideoSaur(48, 16, feature_hidden=8, **sizes), [torch.empty(B, 3, 16, 48)] * 2),
    lambda sizes: (SlotContrast(48, 16, feature_hidden=8, **sizes), [torch.empty(B, 3, 16, 48)] * 2),
    lambda sizes: (Steve(SIZE, feature_hidden=8, vocabulary=16, **sizes), [torch.empty(B, 3, 3, SIZE, SIZE)])])
def test_object_centric_models(monkeypatch, make, decoded):
    clustered = []  # k-means is on the CPU and needs true numbers
    monkeypatch.setattr(RecurrentSlots, "start_from_clusters", lambda self, features, seed: clustered.append(features))
    with GPU:
        model, clips = make({"slots": 3, "slot_dim": 8, "decoder_hidden": 8, "decoder_layers": 1})
    settings = SimpleNamespace(slots=3, slot_dim=8, clip_length=3, batch_size=B, steps=5, decoded_patches=decoded,
                               learning_rate=1e-3, warmup_steps=1, decay_steps=6, clip_norm=0.05)
    losses = slots_training.train_slots(model, lambda _, **whole: clips, settings, UNSAVED, seed=0, compiled=False,
                                        forward=lambda: autocast(GPU, "bfloat16"))
    assert {loss.device.type for loss in losses.values()} | {features.device.type for features in clustered} == {"cuda"}


def test_clips_and_extraction():
    with GPU:
        model = Steve(SIZE, slots=3, slot_dim=8, feature_hidden=8, decoder_hidden=8, decoder_layers=1,
                      vocabulary=16)
    clips = Clips(rows(SIZE, SIZE, 3), to_unit, episodes=3, steps=T, length=3, batch_size=B, kept=None, seed=0)
    assert [part.device.type for part in clips(0)] == ["cuda"]
    projected, = project([model], to_unit, torch.empty(2, 5, SIZE, SIZE, 3, dtype=torch.uint8, device=GPU))
    assert [part.device.type for part in slots_of(model, projected, None, 1)] == ["cuda", "cuda"]


def test_labels_and_predictions():
    with GPU:
        model, actor, t = ImageLatentActionModel(6, SIZE, 4, 1, 1), Actor(6, 4, 1, 1), torch.arange(5, device="cpu")
    observe = FrameObservations(stacks())
    assert model.idm(observe(t), observe(t + 1)).device.type == "cuda"
    assert bc_training.predict(actor, stacks(), 5, 2, COMPUTE).device.type == "cuda"
    assert lapo_training.pictures(model, observe, t, GPU, "bfloat16")["swapped"].device.type == "cuda"

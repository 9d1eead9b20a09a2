from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import yaml
import zarr

from oclam import paths
from oclam.checkpoint import Checkpoint
from oclam.errors import UserError
from oclam.params import Ocp
from oclam.slots.models import make_model, make_observer
from oclam.slots.steve import make_steve, to_unit
from oclam.slots.training import SLOT_RATE, clips_of, train_slots
from oclam.slots.videosaur import VideoSaur
from oclam.training import autocast, exponential_decay
from tests import ROOT, Killed

SETTINGS = SimpleNamespace(slots=3, slot_dim=8, clip_length=2, batch_size=2, kept_clips=None, decoded_patches=None,
                           steps=6, learning_rate=3e-3, warmup_steps=1, decay_steps=6, clip_norm=0.05)


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = torch.randint(256, (3, 6, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    group = zarr.open_group("dataset.zarr", mode="w")
    return SimpleNamespace(pixels=group.create_array("pixels", data=pixels.numpy()), episodes=2, steps=6)


def attempt(dataset, name, kill_at=None, published=False, precision="float32", **changes):
    """Weights and rows of a whole training, and how many clips were looked at."""
    calls = []

    def observer(images):
        calls.append(len(images))
        if len(calls) == kill_at:
            raise Killed
        return to_unit(images)

    torch.manual_seed(0)
    steve = SimpleNamespace(published=published, feature_hidden=8, decoder_hidden=8, decoder_layers=1, vocabulary=64)
    model = make_steve(steve, 16, slots=3, slot_dim=8)
    settings = SimpleNamespace(**vars(SETTINGS) | changes)
    device = torch.device("cpu")
    forward = partial(autocast, device, precision)
    clips = clips_of(dataset, observer, settings, seed=0, device=device, forward=forward)
    rows = train_slots(model, clips, settings, Checkpoint(name, SETTINGS, interval=0), seed=0, forward=forward,
                       compiled=False)
    return torch.cat([parameter.flatten() for parameter in model.parameters()]).detach(), rows, len(calls)


@pytest.mark.parametrize("published", [False, True])
def test_resumed_equals_uninterrupted_to_the_bit(dataset, published):
    weights, rows, calls = attempt(dataset, "whole", published=published)
    with pytest.raises(Killed):
        attempt(dataset, "cut", kill_at=4, published=published)
    resumed, resumed_rows, resumed_calls = attempt(dataset, "cut", published=published)
    assert torch.equal(weights, resumed) and rows == resumed_rows
    assert resumed_calls < calls  # it did go on
    again, _, calls = attempt(dataset, "cut", published=published)
    assert torch.equal(weights, again) and calls == 0  # training was over


def test_held_out_episodes_are_never_learned_from(dataset):
    weights, _, _ = attempt(dataset, "first")
    dataset.pixels[2:] = 0
    assert torch.equal(weights, attempt(dataset, "second")[0])
    dataset.pixels[:2] = 0
    assert not torch.equal(weights, attempt(dataset, "third")[0])


def test_kept_clips_and_fewer_patches_are_what_the_settings_say(dataset):
    calls = attempt(dataset, "fresh")[2], attempt(dataset, "kept", kept_clips=2)[2]
    assert calls == (1 + SETTINGS.steps, 1)  # the first finds the clusters that slots start from
    everything, some = (attempt(dataset, f"{count}", decoded_patches=count)[0] for count in (None, 4))
    assert torch.equal(everything, attempt(dataset, "16", decoded_patches=16)[0])  # which are all that there are
    assert not torch.equal(everything, some)


@pytest.mark.parametrize("published", [False, True])
def test_what_forms_slots_from_clusters_learns_at_a_tenth_of_the_rate(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = VideoSaur(12, 16, slots=3, slot_dim=8, feature_hidden=16, decoder_hidden=16, decoder_layers=2,
                      published=published)
    before, settings = deepcopy(model), SimpleNamespace(**vars(SETTINGS) | {"steps": 1})
    train_slots(model, lambda *_, **__: (torch.randn(2, 2, 16, 12),) * 2, settings, Checkpoint("rates", SETTINGS),
                seed=0, forward=nullcontext, compiled=False)
    rate = SETTINGS.learning_rate * exponential_decay(0, SETTINGS.decay_steps, SETTINGS.warmup_steps)
    for part, share in (("features", SLOT_RATE), ("slots.attention", SLOT_RATE), ("decoder", 1)):
        parameters = (m.get_submodule(part).parameters() for m in (model, before))
        # Adam's first step is the rate, whatever the gradient
        moved = max((a - b).abs().max().item() for a, b in zip(*parameters, strict=True))
        assert moved == pytest.approx(rate if published else share * rate, rel=1e-3)


@pytest.mark.parametrize("kept", [None, 2])
def test_bfloat16_trains_as_float32_does(dataset, kept):
    (_, exact, _), (_, rounded, _) = (attempt(dataset, precision, precision=precision, kept_clips=kept)
                                      for precision in ("float32", "bfloat16"))
    # wider than the rounding (2**-8), which also moves patches between the clusters that slots start from
    assert [row["loss"] for row in rounded] == pytest.approx([row["loss"] for row in exact], rel=0.05)
    assert rounded != exact


def test_more_decoded_patches_than_there_are_is_one_line():
    def observer(patches):
        settings = SimpleNamespace(model="videosaur", decoded_patches=patches)
        return make_observer(settings, ROOT / paths.embedded_encoder, torch.device("cpu"))

    patches = observer(None).grid ** 2
    observer(patches)
    with pytest.raises(UserError, match=f"ocp.decoded_patches: {patches + 1} given, the encoder has {patches} patches"):
        observer(patches + 1)


def test_every_step_has_noise_and_patches_of_its_own_and_in_time_all_patches_are_decoded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, given = VideoSaur(12, 16, slots=3, slot_dim=8, feature_hidden=8, decoder_hidden=8, decoder_layers=1), []
    model.register_forward_pre_hook(lambda module, inputs: given.append(inputs[2:]))
    settings = SimpleNamespace(**vars(SETTINGS) | {"steps": 30, "decoded_patches": 4})
    train_slots(model, lambda *_, **__: (torch.randn(2, 2, 16, 12),) * 2, settings, Checkpoint("steps", SETTINGS),
                seed=0, forward=nullcontext, compiled=False)
    noise, decoded = map(torch.stack, zip(*given, strict=True))
    assert len(noise.unique(dim=0)) == 30 and decoded.shape == (30, 4)
    assert decoded.unique().tolist() == list(range(16))


def first_step(published, **changes):
    """A STEVE before and after the first step on noise."""
    steve = SimpleNamespace(published=published, feature_hidden=8, decoder_hidden=8, decoder_layers=1, vocabulary=64)
    torch.manual_seed(0)
    model, settings = make_steve(steve, 16, slots=3, slot_dim=8), SimpleNamespace(**vars(SETTINGS) | changes)
    before = deepcopy(model)
    train_slots(model, lambda *_, **__: (torch.rand(2, 2, 3, 16, 16),), settings, Checkpoint("first", SETTINGS),
                seed=0, forward=nullcontext, compiled=False)
    return before, model


@pytest.mark.parametrize(("published", "norm"), [(False, 2), (True, torch.inf)])
def test_gradients_are_clipped_by_their_length_and_as_published_by_their_largest_entry(
        published, norm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, model = first_step(published, steps=1, clip_norm=0.01)
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert gradient.norm(norm).item() == pytest.approx(0.01, rel=1e-3)


def test_the_published_autoencoder_encoder_and_decoder_learn_at_rates_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = first_step(published=True, steps=1, warmup_steps=4)
    for part, share in (("vae", 1), ("encoder", 1 / 3 / 4), ("decoder", 1 / 4)):  # the first of four steps of warm-up
        parameters = (model.get_submodule(part).parameters() for model in models)
        moved = max((a - b).abs().max().item() for a, b in zip(*parameters, strict=True))
        assert moved == pytest.approx(share * SETTINGS.learning_rate, rel=1e-3)  # Adam's first step is the rate


@pytest.mark.parametrize(("published", "masks"), [(True, "attention"), (False, "decoder")])
def test_the_model_is_what_the_section_ocp_says(published, masks):
    section = yaml.safe_load((ROOT / "params.yaml").read_text())["ocp"] | {"published": published, "masks": masks}
    section |= {"similarity_weight": 0.2, "similarity_temperature": 0.3, "reconstruction_weight": 0.4,
                "contrast_weight": 0.6, "contrast_temperature": 0.7}
    saur, contrast = (make_model(Ocp(**section | {"model": name}), None, SimpleNamespace(dim=12, grid=4), 16)
                      for name in ("videosaur", "slotcontrast"))
    for model in (saur, contrast):
        assert model.slots.attention.published == published and model.masked_by == masks and model.grid == 4
    assert (saur.weights, saur.temperature, contrast.weight, contrast.temperature) == ((0.2, 0.4), 0.3, 0.6, 0.7)

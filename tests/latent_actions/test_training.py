import dataclasses
import itertools
import math
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr
from torch.nn.utils import parameters_to_vector

from oclam import paths
from oclam.artifacts import CHECKSUMS, is_absent, load_tensors, read_csv, read_json
from oclam.checkpoint import FOLDER, Checkpoint
from oclam.datasets import Frames, FrameStacks, TripleSampler, open_dataset, stack_index, transition_of
from oclam.errors import UserError
from oclam.laom.models import SlotLaomModel
from oclam.laom.training import train_laom
from oclam.latent_actions import training as lapo_training
from oclam.latent_actions.models import ImageLatentActionModel, SlotLatentActionModel
from oclam.latent_actions.observations import FrameObservations, SlotObservations
from oclam.latent_actions.training import learn, learn_from_images, open_frames, pictures, projection, train_model
from oclam.params import Compute, LapoImage
from oclam.seeding import seed_of
from oclam.variants import view_of
from tests import Unsaved

E, HELD_OUT, T, SIZE = 3, 2, 12, 16
VARIANTS = {"lapo": None, "lapo-masks": None, "lapo-no-distractors": None, "lapo-focus": 0.1}
PARAMS = SimpleNamespace(
    compute=Compute(precision="float32", compile=False, devices=1, threads=1),
    lapo=LapoImage(latent_dim=4, frame_stack=2, future_offset=3, encoder_scale=1, residual_blocks=1, batch_size=8,
                   epochs=3.0, warmup_epochs=0.5, learning_rate=1e-3))
on_both = pytest.mark.parametrize("kind, trainer", [(SlotLatentActionModel, train_model), (SlotLaomModel, train_laom)])


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_world()


def write_world():
    """Tiny stores with the pipeline's layout."""
    rng = np.random.default_rng(0)
    for view in ("distracted", "clean"):
        group = zarr.create_group(paths.dataset("a-b", view))
        group.attrs.update(task="a-b", view=view, episodes=E, test_episodes=HELD_OUT)
        arrays = {"pixels": rng.integers(0, 256, (E + HELD_OUT, T, SIZE, SIZE, 3), dtype=np.uint8),
                  "actions": rng.normal(size=(E + HELD_OUT, T, 2)).astype(np.float32),
                  "states": np.zeros((E + HELD_OUT, T, 1), np.float32),
                  "rewards": np.zeros((E + HELD_OUT, T), np.float32)}
        for name, array in arrays.items():
            group.create_array(name, data=array)
    masks = rng.integers(0, 256, (E + HELD_OUT, T, SIZE, SIZE), dtype=np.uint8)
    frames = rng.integers(0, 256, (*masks.shape, 3), dtype=np.uint8)
    for seed in (0, 1):
        selection = zarr.create_group(paths.selection("a-b", seed))
        selection.create_array("mask", data=masks)
        selection.create_array("frames", data=frames)


def written(variant):
    outputs = [paths.lapo("a-b", 0, variant), paths.log(paths.lapo("a-b", 0, variant)),
               paths.probe("a-b", 0, variant), paths.samples("a-b", 0, variant)]
    store = paths.latents("a-b", 0, variant)
    return [path.read_bytes() for path in outputs + sorted(file for file in store.rglob("*") if file.is_file())]


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_writes_all_its_artifacts(world, variant):
    learn_from_images("a-b", 0, variant, PARAMS, VARIANTS[variant])
    rows = read_csv(paths.log(paths.lapo("a-b", 0, variant)))
    assert rows[-1]["step"] == 15 and set(rows[0]) == {"step", "loss", "probe_mse"}  # 3 epochs of ceil(33 / 8)
    latents = zarr.open_group(paths.latents("a-b", 0, variant), mode="r")["latents"]
    assert latents.shape == (E + HELD_OUT, T - 1, 4)
    probe = read_json(paths.probe("a-b", 0, variant))
    assert {"online_mse", "ridge_mse", "ridge_r2", "ridge_mse_per_dim", "ridge_r2_per_dim", "shuffled_mse",
            "frame_difference_mse", "action_variance"} <= set(probe)
    trained_on = zarr.open_group(paths.dataset("a-b", view_of(variant)))["actions"][:E, :-1].reshape(E * (T - 1), -1)
    assert probe["online_mse"] == pytest.approx(np.mean([row["probe_mse"] for row in rows[-2:]]))  # the last tenth
    assert probe["online_variance"] == pytest.approx(trained_on.var(0, dtype=float).mean())
    samples, _ = load_tensors(paths.samples("a-b", 0, variant))
    source = (zarr.open_group(paths.selection("a-b", 0))["frames"] if variant == "lapo-masks" else
              zarr.open_group(paths.dataset("a-b", view_of(variant)))["pixels"])
    held_out = source[E:].reshape(-1, SIZE, SIZE, 3)
    same = (held_out[None] == samples["current"].numpy()[:, None]).all((2, 3, 4))
    shown = torch.from_numpy(same.argmax(1))
    assert transition_of(shown, T).tolist() == [3, 6, 9, 12, 15, 18]  # of 22
    assert same.any(1).all() and torch.equal(samples["target"], torch.from_numpy(held_out[shown + 1]))
    assert {name: tuple(samples[name].shape) for name in samples} == {
        **{name: (6, SIZE, SIZE, 3) for name in ("current", "target", "prediction", "swapped")},
        "latents": (22, 2), "actions": (22, 2)}
    assert not list(paths.DATA.glob("**/*.tmp")) and not list(FOLDER.iterdir())


@pytest.mark.parametrize("unknown", [slice(E), slice(E + 1, None)])  # of training, or of a held-out episode
def test_without_actions_to_fit_or_to_measure_the_probe_is_absent(world, unknown):
    zarr.open_group(paths.dataset("a-b", "distracted"))["actions"][unknown] = np.nan
    learn_from_images("a-b", 0, "lapo", PARAMS)
    assert is_absent(paths.probe("a-b", 0, "lapo"))
    assert set(load_tensors(paths.samples("a-b", 0, "lapo"))[0]) == {"current", "target", "prediction", "swapped"}


@pytest.mark.parametrize("variant", ["lapo", "lapo-focus"])
def test_the_first_loss_is_of_the_next_frame_and_the_latent_action_to_a_future_one(world, variant):
    params = SimpleNamespace(**vars(PARAMS) | {"lapo": PARAMS.lapo.model_copy(update={"epochs": 0.1})})  # one update
    learn_from_images("a-b", 1, variant, params, VARIANTS[variant])
    _, observe, _ = open_frames("a-b", 1, variant, 2, "cpu", VARIANTS[variant])
    torch.manual_seed(seed_of("lapo", "a-b", 1))
    model = ImageLatentActionModel(6, SIZE, 4, 1, 1)
    t, after, future = TripleSampler(E, T, 8, 3, "lapo a-b 1").batch(0)
    with torch.no_grad():
        error = (model(observe(t), observe(future))[1] - observe(after)).square()
    weight = observe.loss_weight(after)
    expected = error.mean() if weight is None else (weight * error).sum() / weight.sum()
    row, = read_csv(paths.log(paths.lapo("a-b", 1, variant)))
    assert row["loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_what_a_new_variant_observes_is_asked_for_where_it_is_opened(world, monkeypatch):
    row = dataclasses.replace(lapo_training.VARIANTS["lapo"], observes="edges")
    monkeypatch.setitem(lapo_training.VARIANTS, "lapo", row)
    with pytest.raises(UserError, match="^lapo: observes edges; add how to `open_frames` in "):
        open_frames("a-b", 0, "lapo", 2, "cpu")


def test_held_out_actions_have_no_part_in_training(world):
    store = zarr.open_group(paths.dataset("a-b", "distracted"))
    store.attrs["adopted"] = "store"  # its units are of the training episodes
    learn_from_images("a-b", 0, "lapo", PARAMS)
    rows = read_csv(paths.log(paths.lapo("a-b", 0, "lapo")))
    shutil.rmtree(paths.latents("a-b", 0, "lapo"))
    store["actions"][E] = np.nan
    store["actions"][E + 1] = 100
    learn_from_images("a-b", 0, "lapo", PARAMS)
    assert read_csv(paths.log(paths.lapo("a-b", 0, "lapo"))) == rows


class Repeated:
    """Observations (B, 6) of episodes that are all alike."""

    def __call__(self, t):
        return torch.sin(torch.arange(1.0, 7) * (t % T)[:, None])

    def loss_weight(self, t):
        return None


@on_both
def test_the_online_probe_s_error_is_that_of_the_known_actions_however_few(tmp_path, monkeypatch, kind, trainer):
    monkeypatch.chdir(tmp_path)
    actions, errors = torch.randn(T, 2).repeat(10, 1), []
    for labelled in (10, 1):
        actions[labelled * T:] = np.nan
        torch.manual_seed(0)
        settings = SimpleNamespace(epochs=1, warmup_epochs=0, learning_rate=1e-9, target_rate=0.1, augmentation=0,
                                   centred=False)  # one epoch in which nothing is learned
        rows = trainer(kind(6, 4, 8, 2), Repeated(), TripleSampler(10, T, 5, 1, 0), actions, settings, PARAMS.compute,
                       Checkpoint(f"labelled{labelled}", PARAMS))
        errors.append(np.mean([row["probe_mse"] for row in rows]))
    assert len(rows) == 22 and errors[1] == pytest.approx(errors[0], rel=1e-4)


@on_both
def test_the_first_update_moves_model_and_probe_by_the_warm_up_s_share_of_the_rate(kind, trainer):
    states = []
    for rate in (0.0, 0.01):
        torch.manual_seed(0)
        settings = SimpleNamespace(epochs=0.01, warmup_epochs=2, learning_rate=rate, target_rate=0.1, augmentation=0,
                                   centred=False)  # one update, a warm-up of 44
        checkpoint = Unsaved()
        trainer(kind(6, 4, 8, 2), Repeated(), TripleSampler(10, T, 5, 1, 0), torch.randn(10 * T, 2), settings,
                PARAMS.compute, checkpoint)
        states.append({name: parameters_to_vector(checkpoint.parts[name].parameters()) for name in ("model", "probe")})
    for name, before in states[0].items():
        assert (states[1][name] - before).abs().max().item() == pytest.approx(0.01 / 45, rel=0.01)


def stored(kind, variant):
    tensors, about = load_tensors(paths.lapo("a-b", 0, variant))
    model = kind(**about["sizes"])
    model.load_state_dict(tensors)
    return model


def test_the_stored_model_gives_the_stored_latents_of_the_stacks_it_was_trained_on(world):
    learn_from_images("a-b", 0, "lapo", PARAMS)
    model = stored(ImageLatentActionModel, "lapo")
    pixels = zarr.open_group(paths.dataset("a-b", "distracted"), mode="r")["pixels"][:]
    latents = zarr.open_group(paths.latents("a-b", 0, "lapo"), mode="r")["latents"][:]

    def stack(e, t):  # two frames, channels in order; the first repeats itself at an episode's start
        both = [pixels[e, max(t - 1, 0)], pixels[e, t]]
        return torch.from_numpy(np.concatenate(both, -1)).permute(2, 0, 1)[None].float() / 127.5 - 1

    for e, t in ((0, 0), (0, 1), (2, 5), (4, T - 2)):
        with torch.no_grad():
            expected = model.idm(stack(e, t), stack(e, t + 1))[0]
        np.testing.assert_allclose(latents[e, t], expected.numpy(), rtol=2e-3, atol=2e-3)


def test_same_seed_same_bytes_and_another_seed_another_model(world):
    learn_from_images("a-b", 0, "lapo", PARAMS)
    first = written("lapo")
    shutil.rmtree(paths.latents("a-b", 0, "lapo"))
    learn_from_images("a-b", 0, "lapo", PARAMS)
    assert first == written("lapo")
    learn_from_images("a-b", 1, "lapo", PARAMS)
    assert paths.lapo("a-b", 1, "lapo").read_bytes() != first[0]


def test_slots_are_standardised_by_the_training_episodes_so_that_their_scale_and_place_change_nothing(tmp_path):
    slots = np.random.default_rng(0).normal(size=(E + HELD_OUT, T, 6)).astype(np.float32)
    slots[E:] *= 100  # held out: no part in mean and deviation
    group, t = zarr.create_group(tmp_path / "slots.zarr"), torch.arange((E + HELD_OUT) * T)
    observed = [SlotObservations.load(group.create_array(name, data=array), E, "cpu")(t)
                for name, array in (("plain", slots), ("moved", 0.05 * slots + 3))]
    training = observed[0][:E * T]
    torch.testing.assert_close(training.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(training.std(0, correction=0), torch.ones(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(observed[1], observed[0], atol=1e-4, rtol=1e-4)


def test_slots_are_learned_from_alike_but_show_no_pictures(world):
    slots = torch.randn((E + HELD_OUT) * T, 6).half()
    dataset = open_dataset(paths.dataset("a-b", "distracted"))
    observe = SlotObservations(Frames(slots, "cpu"), 0.0, 1.0)
    learn("a-b", 0, "lapo-slots", PARAMS, PARAMS.lapo, SlotLatentActionModel(6, 4, 8, 2), observe, dataset, [])
    samples, _ = load_tensors(paths.samples("a-b", 0, "lapo-slots"))
    assert set(samples) == {"latents", "actions"}
    latents = zarr.open_group(paths.latents("a-b", 0, "lapo-slots"), mode="r")["latents"]
    with torch.no_grad():
        idm = stored(SlotLatentActionModel, "lapo-slots").idm
        expected = idm(slots[2 * T:3 * T - 1].float(), slots[2 * T + 1:3 * T].float())
    np.testing.assert_allclose(latents[2], expected.numpy(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("killed_in", ["training", "latents", "probes", "checksums"])
def test_a_killed_stage_resumes_to_the_same_bytes(world, monkeypatch, killed_in):
    learn_from_images("a-b", 0, "lapo", PARAMS)
    expected = written("lapo")
    shutil.rmtree(paths.DATA / "a-b" / "seed0" / "lapo")
    shutil.rmtree(paths.RESULTS)

    calls = []

    def killed(original, at):
        def call(*arguments, **keywords):
            calls.append(None)
            if len(calls) > at:
                raise KeyboardInterrupt
            return original(*arguments, **keywords)
        return call

    with monkeypatch.context() as patch:
        patch.setattr(lapo_training, "Checkpoint", partial(Checkpoint, interval=0.0))
        name = {"training": "reconstruction_error", "latents": "write_latents", "probes": "probe_frames",
                "checksums": "move_store"}[killed_in]
        at = 8 if killed_in == "training" else 0
        patch.setattr(lapo_training, name, killed(getattr(lapo_training, name), at))
        with pytest.raises(KeyboardInterrupt):
            learn_from_images("a-b", 0, "lapo", PARAMS)
    assert FOLDER.exists() and not paths.latents("a-b", 0, "lapo").exists()
    if killed_in == "checksums":
        (next(FOLDER.rglob("latents.zarr")) / CHECKSUMS).touch()  # opened, not yet written
    steps = []
    original = lapo_training.reconstruction_error
    monkeypatch.setattr(lapo_training, "reconstruction_error", lambda *a: (steps.append(None), original(*a))[1])
    learn_from_images("a-b", 0, "lapo", PARAMS)
    assert len(steps) == (15 - 8 if killed_in == "training" else 0)
    assert written("lapo") == expected


def test_lapo_focus_sees_plain_frames_and_weighs_by_the_targets_masks():
    torch.manual_seed(0)
    frames = torch.randint(0, 256, (2 * T, SIZE, SIZE, 3), dtype=torch.uint8)
    masks = torch.randint(0, 256, (2 * T, SIZE, SIZE), dtype=torch.uint8)
    stacks = FrameStacks(Frames(frames, "cpu"), stack=2, steps=T)
    observe = FrameObservations(stacks, Frames(masks, "cpu"), background_weight=0.25)
    plain, t = FrameObservations(stacks), torch.tensor([0, 5, T, T + 3])
    assert torch.equal(observe(t), plain(t)) and plain.loss_weight(t) is None
    mask = masks[stack_index(t, 2, T)].float() / 255  # (B, 2, H, W)
    for channel in range(6):  # two frames of three colours
        torch.testing.assert_close(observe.loss_weight(t)[:, channel], 0.25 + 0.75 * mask[:, channel // 3])


class Brighten(torch.nn.Module):
    """IDM: by how much the newest frame grew brighter; FDM: the observation, so much brighter."""

    def idm(self, now, after):
        return (after - now)[:, -3:].mean((1, 2, 3))[:, None]

    def fdm(self, now, latent):
        return now + latent[..., None, None]


def test_pictures_show_the_newest_frame_and_swap_the_next_moments_latent():
    levels = torch.tensor([10, 20, 50, 51, 7, 100], dtype=torch.uint8)
    frames = Frames(levels.view(-1, 1, 1, 1).expand(6, 8, 8, 3).contiguous(), "cpu")
    observe = FrameObservations(FrameStacks(frames, stack=2, steps=6))
    shown = pictures(Brighten(), observe, torch.tensor([0, 2, 4]), torch.device("cpu"), "float32")
    values = {name: picture[:, 0, 0, 0].tolist() for name, picture in shown.items()}
    assert values == {"current": [10, 50, 7], "target": [20, 51, 100], "prediction": [20, 51, 100],
                      "swapped": [11, 143, 17]}


def test_projection_finds_the_two_directions_of_largest_variance():
    torch.manual_seed(0)
    plane = torch.randn(200, 2) * torch.tensor([5.0, 2.0])
    directions = torch.linalg.qr(torch.randn(6, 6)).Q[:2]
    points = projection(plane @ directions + 0.01 * torch.randn(200, 6) + 7)
    centred = plane - plane.mean(0)
    axes = torch.linalg.eigh(torch.cov(plane.T)).eigenvectors.flip(1)
    torch.testing.assert_close(points.abs(), (centred @ axes).abs(), rtol=0, atol=0.1)


def test_the_largest_entry_of_each_direction_is_positive():
    angles = math.pi / 8 * (torch.arange(8) + 0.5)
    columns = torch.cos(angles[:, None] * torch.tensor([1, 2, 3])) * torch.tensor([5, 2, 1])  # orthogonal, of mean 0
    for sign, places in itertools.product((1, -1), itertools.permutations(range(3))):
        torch.testing.assert_close(projection(sign * columns[:, places] + 7), sign * columns[:, :2], rtol=0, atol=1e-5)


def test_a_single_latent_is_drawn_on_a_line():
    latents = torch.arange(5.0)[:, None]
    torch.testing.assert_close(projection(latents), torch.stack([latents[:, 0] - 2, torch.zeros(5)], 1))


def test_slots_that_hardly_vary_are_not_amplified_beyond_a_limit(tmp_path):
    slots = np.random.default_rng(0).choice([-1.0, 1.0], size=(2, 500, 3)) * [1, 0.5, 0.03] + 7
    array = zarr.create_group(tmp_path / "slots.zarr").create_array("slots", data=slots.astype(np.float32))
    found = SlotObservations.load(array, 2, torch.device("cpu"))(torch.arange(1000))
    torch.testing.assert_close(found.std(0, correction=0), torch.tensor([1, 1, 0.03 / 0.3]), rtol=0.01, atol=0)


def test_the_online_probe_is_of_the_action_between_its_frames(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    actions, rows = torch.randn(10 * T, 2), []
    settings = SimpleNamespace(epochs=1, warmup_epochs=0, learning_rate=1e-3)
    for last in (0.0, 9.0):  # the last frame of an episode begins no transition
        actions[T - 1::T] = last
        torch.manual_seed(0)
        rows.append(train_model(SlotLatentActionModel(6, 4, 8, 2), Repeated(), TripleSampler(10, T, 5, 3, 0), actions,
                                settings, PARAMS.compute, Checkpoint(f"last{last}", PARAMS)))
    assert rows[0] == rows[1]

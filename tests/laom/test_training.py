from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr

from oclam import paths
from oclam.artifacts import load_tensors, read_csv, read_json
from oclam.checkpoint import FOLDER, Checkpoint
from oclam.datasets import TripleSampler
from oclam.laom import training
from oclam.laom.models import LaomModel, SlotLaomModel
from oclam.laom.training import Labels, learn_laom, train_laom
from oclam.latent_actions import training as learning
from oclam.params import Compute, Laom
from oclam.report.tables import warnings
from oclam.seeding import seed_of
from tests import Unsaved
from tests.laom.test_models import SIZES
from tests.latent_actions.test_training import SIZE, E, T, write_world, written

LAOM = Laom(hidden_dim=8, expansion=2, batch_size=8, epochs=3.0, warmup_epochs=0.5, learning_rate=1e-3,
            target_rate=0.1, augmentation=0.5, centred=True)
PARAMS = SimpleNamespace(
    compute=Compute(precision="float32", compile=False, devices=1, threads=1), laom=LAOM,
    lapo=SimpleNamespace(latent_dim=4, frame_stack=2, future_offset=3, encoder_scale=1, residual_blocks=1))
LABELS = Labels([2, 0], (0.0, 1.0), batch_size=12, coefficient=1.0)  # more than the 8 of the other triples


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_world()


@pytest.mark.parametrize("variant", ["laom", "laom-masks", "laom-labels"])
def test_the_stored_model_gives_the_stored_latents_of_frames_that_are_not_augmented(world, variant):
    learn_laom("a-b", 0, variant, PARAMS, LABELS if variant == "laom-labels" else None)
    rows, probe = read_csv(paths.log(paths.lapo("a-b", 0, variant))), read_json(paths.probe("a-b", 0, variant))
    assert rows[-1]["step"] == 15 and set(rows[0]) == {"step", "loss", "probe_mse", "state_variance"}
    late = np.mean([row["state_variance"] for row in rows[-2:]])  # the last tenth of 15 rows
    assert probe["state_variance_kept"] == pytest.approx(late / rows[0]["state_variance"])
    assert set(load_tensors(paths.samples("a-b", 0, variant))[0]) == {"latents", "actions"}
    tensors, about = load_tensors(paths.lapo("a-b", 0, variant))
    model = LaomModel(**about["sizes"])
    model.load_state_dict(tensors)
    source = zarr.open_group(paths.selection("a-b", 0))["frames"] if variant == "laom-masks" else zarr.open_group(
        paths.dataset("a-b", "distracted"))["pixels"]
    frames = torch.from_numpy(source[4]).permute(0, 3, 1, 2).float() / 127.5 - 1
    stacks = torch.cat([torch.cat([frames[:1], frames[:-1]]), frames], 1)
    with torch.no_grad():
        expected = model.idm(stacks[:-1], stacks[1:])
    latents = zarr.open_group(paths.latents("a-b", 0, variant))["latents"][4]
    np.testing.assert_allclose(latents, expected.numpy(), rtol=2e-3, atol=2e-3)


def test_a_rate_of_0_stores_the_model_that_the_seed_begins_with(world):
    learn_laom("a-b", 1, "laom", SimpleNamespace(**vars(PARAMS) | {"laom": LAOM.model_copy(
        update={"epochs": 0.1, "learning_rate": 0.0, "centred": False})}))
    tensors, about = load_tensors(paths.lapo("a-b", 1, "laom"))
    torch.manual_seed(seed_of("laom", "a-b", 1))
    for name, value in LaomModel(**about["sizes"]).state_dict().items():
        assert torch.equal(tensors[name], value)


@pytest.mark.parametrize("labels", [None, LABELS])
def test_a_killed_training_resumes_to_the_same_bytes(world, monkeypatch, labels):
    learn_laom("a-b", 0, "laom", PARAMS, labels)
    expected, calls = written("laom"), []

    def killed(*arguments):
        calls.append(None)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return original(*arguments)

    original = training.follow
    with monkeypatch.context() as patch:
        patch.setattr(learning, "Checkpoint", partial(Checkpoint, interval=0.0))
        patch.setattr(training, "follow", killed)
        with pytest.raises(KeyboardInterrupt):
            learn_laom("a-b", 0, "laom", PARAMS, labels)
    assert list(FOLDER.iterdir())
    monkeypatch.setattr(training, "follow", lambda *arguments: (calls.append(None), original(*arguments)))
    learn_laom("a-b", 0, "laom", PARAMS, labels)
    assert len(calls) == 9 + 15 - 8  # 8 updates were saved, the ninth runs again
    assert written("laom") == expected


FRAMES = torch.randint(0, 256, (E * T, 6, SIZE, SIZE), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
ACTIONS = torch.randn(E * T, 2, generator=torch.Generator().manual_seed(1))


def fit(labels=None, actions=ACTIONS, **settings):
    """The model, its checkpoint (with the other parts) and the rows of a training."""
    torch.manual_seed(0)
    model, checkpoint = LaomModel(**SIZES), Unsaved()
    rows = train_laom(model, FRAMES.__getitem__, TripleSampler(E, T, 8, 3, "seed"), actions,
                      LAOM.model_copy(update=settings), PARAMS.compute, checkpoint, labels)
    return model, checkpoint.parts, rows


def test_actions_that_move_slots_are_read_from_the_latents():
    """Slots s_t+1 = s_t / 2 + B a_t: a linear map of the latents leaves 14% of the actions' variance, untrained 54%."""
    episodes, steps, rng = 24, 40, torch.Generator().manual_seed(0)
    actions, effect = torch.randn(episodes, steps, 2, generator=rng), torch.randn(2, 6, generator=rng)
    slots = [torch.randn(episodes, 6, generator=rng)]
    for t in range(steps - 1):
        slots.append(slots[-1] / 2 + actions[:, t] @ effect)
    slots = torch.stack(slots, 1).flatten(0, 1)
    slots = slots / slots.std()
    torch.manual_seed(0)
    model, sampler = SlotLaomModel(6, 4, 16, 2), TripleSampler(episodes, steps, 32, 1, "seed")
    train_laom(model, slots.__getitem__, sampler, actions.flatten(0, 1),
               LAOM.model_copy(update={"epochs": 20.0, "learning_rate": 3e-3, "target_rate": 0.01, "augmentation": 0.0,
                                       "centred": False}), PARAMS.compute, Unsaved())
    now = torch.arange(episodes * steps).view(episodes, steps)[:, :-1].flatten()
    with torch.no_grad():
        latents = torch.nn.functional.pad(model.idm(slots[now], slots[now + 1]), (0, 1), value=1.0)
    true = actions[:, :-1].flatten(0, 1)
    left = latents @ torch.linalg.lstsq(latents, true).solution - true
    assert left.square().mean() < 0.2 * true.var()


def state(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_target_takes_no_gradient_and_moves_as_the_encoder_did(monkeypatch):
    history, original = [], training.follow

    def follow(target, source, rate):
        assert all(not p.requires_grad and p.grad is None for p in target.parameters())
        history.append((state(target), state(source)))
        original(target, source, rate)

    monkeypatch.setattr(training, "follow", follow)
    _, parts, _ = fit(target_rate=0.3)
    expected = 0.7**15 * history[0][0] + sum(0.3 * 0.7**(14 - i) * source for i, (_, source) in enumerate(history))
    torch.testing.assert_close(state(parts["target"]), expected)
    model, parts, _ = fit(target_rate=1.0)  # it follows after the update
    assert torch.equal(state(parts["target"]), state(model.encoder))


def test_the_second_loss_is_of_the_embedding_by_the_target_that_followed_the_first_update():
    model, parts, _ = fit(epochs=0.2, augmentation=0.0, centred=False)  # one update
    rows = fit(epochs=0.4, augmentation=0.0, centred=False)[2]
    t, after, future = TripleSampler(E, T, 8, 3, "seed").batch(1)
    with torch.no_grad():
        loss = (model(FRAMES[t], FRAMES[future])[1] - parts["target"](FRAMES[after])).square().mean()
    assert len(rows) == 2 and rows[1]["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_true_actions_reach_the_model_from_labelled_trajectories_alone():
    plain, weighted = fit()[0], fit(LABELS)[0]
    assert not torch.equal(state(plain), state(weighted))
    assert torch.equal(state(plain), state(fit(actions=-ACTIONS)[0]))  # the probe's gradient stays in the probe
    unlabelled, labelled = ACTIONS.clone(), ACTIONS.clone()
    unlabelled[T:2 * T], labelled[:T] = 9.0, 9.0  # trajectories 1 and 0
    assert torch.equal(state(fit(LABELS, unlabelled)[0]), state(weighted))
    assert not torch.equal(state(fit(LABELS, labelled)[0]), state(weighted))


def test_a_coefficient_of_0_leaves_the_model_as_without_labels():
    torch.testing.assert_close(state(fit(replace(LABELS, coefficient=0.0), augmentation=0.0)[0]),
                               state(fit(augmentation=0.0)[0]))


def test_centred_embeddings_have_mean_0_in_the_first_batch_and_the_published_ones_no_centre():
    torch.manual_seed(0)
    start, (t, _, _) = LaomModel(**SIZES), TripleSampler(E, T, 8, 3, "seed").batch(0)
    with torch.no_grad():
        mean = start.encoder(FRAMES[t]).mean(0)
    torch.testing.assert_close(fit(augmentation=0.0)[0].centre, mean)
    assert not fit(centred=False)[0].centre.any()
    model, parts, rows = fit(augmentation=0.0, epochs=0.2)  # one update
    with torch.no_grad():
        _, after, future = TripleSampler(E, T, 8, 3, "seed").batch(0)
        start.centre.copy_(mean)
        loss = (start(FRAMES[t], FRAMES[future])[1] - (start.encoder(FRAMES[after]) - mean)).square().mean()
        variance = start.encoder(FRAMES[t]).var(0, correction=0).mean()
    assert len(rows) == 1 and rows[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert rows[0]["state_variance"] == pytest.approx(variance.item(), rel=1e-5)


def test_labels_add_the_error_of_the_actions_between_their_own_frames():
    labels, offset, scale = replace(LABELS, coefficient=0.5), torch.tensor([0.3, -0.2]), torch.tensor([2.0, 0.5])
    model, parts, (row,) = fit(replace(labels, units=(offset, scale)), augmentation=0.0, centred=False, epochs=0.2,
                               learning_rate=0.0)  # one update that changes nothing
    t, after, future = TripleSampler(E, T, 8, 3, "seed").batch(0)
    now, _, later = (torch.tensor(LABELS.episodes)[index // T] * T + index % T
                     for index in TripleSampler(2, T, 12, 3, "labels seed").batch(0))
    with torch.no_grad():
        loss = (model(FRAMES[t], FRAMES[future])[1] - model.encoder(FRAMES[after])).square().mean()
        wrong = offset + scale * parts["head"](model.idm(FRAMES[now], FRAMES[later])) - ACTIONS[now]
    assert row["loss"] == pytest.approx((loss + 0.5 * (wrong / scale).square().mean()).item(), rel=1e-5)


def shrink(target, source, rate):
    """The encoder forgets what it observes."""
    for parameter in source.parameters():
        parameter.data.mul_(0.8)


def test_frames_that_are_all_the_same_count_as_collapsed(world):
    frames = zarr.open_group(paths.selection("a-b", 0), mode="r+")["frames"]
    frames[:] = 0
    learn_laom("a-b", 0, "laom-masks", SimpleNamespace(**vars(PARAMS) | {"laom": LAOM.model_copy(
        update={"augmentation": 0.0})}))
    assert read_json(paths.probe("a-b", 0, "laom-masks"))["state_variance_kept"] == 0


def test_a_batch_of_one_says_nothing_about_collapse(world):
    single = LAOM.model_copy(update={"augmentation": 0.0, "batch_size": 1, "epochs": 0.1})
    learn_laom("a-b", 0, "laom", SimpleNamespace(**vars(PARAMS) | {"laom": single}))
    assert "state_variance_kept" not in read_json(paths.probe("a-b", 0, "laom"))


@pytest.mark.parametrize("move, warned", [(training.follow, 0), (shrink, 1)])
def test_the_report_warns_of_a_collapsed_model_and_of_no_other(world, monkeypatch, move, warned):
    monkeypatch.setattr(training, "follow", move)
    learn_laom("a-b", 0, "laom", PARAMS)
    row = {"task": "a-b", "seed": 0, "variant": "laom", **read_json(paths.probe("a-b", 0, "laom"))}
    row |= {"shuffled_mse": 9.0, "online_variance": 9.0}  # random actions: only the embeddings are judged here
    found = warnings(SimpleNamespace(encoder={}, selections=[], probes=[row], losses=[], tasks=[]))
    assert sum("seed 0, laom: the variance of the embeddings fell" in text for text in found) == len(found) == warned


@pytest.mark.parametrize("labels", [None, LABELS])
def test_an_episode_s_last_action_is_that_of_no_transition(labels):
    changed = ACTIONS.clone()
    changed[T - 1::T] = 9.0
    (plain, _, rows), (again, _, others) = fit(labels), fit(labels, changed)
    assert rows == others and torch.equal(state(plain), state(again))


def test_labels_in_other_units_train_the_same_model():
    offset, scale = torch.tensor([4.0, -2.0]), torch.tensor([8.0, 0.5])
    moved = fit(replace(LABELS, units=(offset, scale)), ACTIONS * scale + offset)[0]
    torch.testing.assert_close(state(moved), state(fit(LABELS)[0]), rtol=0, atol=1e-4)


def test_every_step_augments_all_its_frames_anew_with_the_strength_that_was_asked_for(monkeypatch):
    drawn = []
    monkeypatch.setattr(training, "augment", lambda images, strength, generator: (
        drawn.append((generator.initial_seed(), strength, len(images))), images)[1])
    fit(LABELS, augmentation=0.25, centred=False)  # which would look at the first batch once more
    assert drawn[:15] == [(seed_of("augment", "seed", i), 0.25, 3 * 8 + 2 * 12) for i in range(15)]
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("part", ["model", "probe", "head"])
def test_the_first_of_adam_s_updates_moves_weights_by_the_warm_up_s_share_of_the_rate(part):
    before, after = (state(fit(LABELS, epochs=0.2, warmup_epochs=2.0, learning_rate=rate)[1][part])
                     for rate in (0.0, 1e-3))  # one update, a warm-up of ten
    assert (after - before).abs().max().item() == pytest.approx(1e-3 / 11, rel=0.01)

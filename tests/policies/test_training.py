from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr
from torch import nn
from torch.nn import functional as F

from oclam.checkpoint import Checkpoint
from oclam.datasets import Frames, FrameSampler, FrameStacks, open_dataset
from oclam.errors import UserError
from oclam.params import Compute, Finetune
from oclam.policies.files import Card
from oclam.policies.networks import Policy
from oclam.policies.training import LOSSES, fine_tune, latent_targets, new_actor, predict, regress, updates_of
from oclam.seeding import seed_of
from tests import Killed

COMPUTE = Compute(precision="float32", compile=False, devices=1, threads=1)
CARD = Card("cheetah-run", "clean", "lapo", 3, image_size=16, frame_stack=2, encoder_scale=1, residual_blocks=0,
            latent_dim=6, hidden_dim=5, action_dim=2)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def dataset(tmp_path):
    """Four training episodes and a held-out one, of 9 steps."""
    random, group = np.random.default_rng(0), zarr.create_group(tmp_path / "clean.zarr")
    group.attrs.update(task="cheetah-run", view="clean", episodes=4, test_episodes=1)
    group.create_array("pixels", data=random.integers(0, 256, (5, 9, 16, 16, 3), dtype=np.uint8))
    for name, shape in {"actions": (2,), "states": (3,), "rewards": ()}.items():
        group.create_array(name, data=random.uniform(-1, 1, (5, 9, *shape)).astype(np.float32))
    return open_dataset(tmp_path / "clean.zarr")


def settings(**changed):
    return Finetune(**{"budgets": [1, 3], "hidden_dim": 5, "batch_size": 8, "updates": 12, "epochs": 0,
                       "loss": "squares", "learning_rate": 0.01, "unfreeze": False, "decoder_init": "orthogonal",
                       **changed})


def start(card=CARD):
    """The same actor every time, and a new decoder."""
    state = torch.get_rng_state()
    actor = (torch.manual_seed(7), card.actor())[1]
    torch.set_rng_state(state)
    return Policy(actor, card.decoder())


def tune(dataset, frozen, **changed):
    options = settings(**changed)
    checkpoints = {budget: Checkpoint(f"tune-{budget}", options) for budget in options.budgets}
    result = list(fine_tune(start, CARD, dataset, options, COMPUTE, checkpoints, frozen, torch.device("cpu")))
    for checkpoint in checkpoints.values():
        checkpoint.remove()
    return result


def test_a_budget_above_the_dataset_is_one_line(dataset):
    with pytest.raises(UserError, match="finetune.budgets: 9 given, .*clean.zarr has 4"):
        tune(dataset, frozen=True, budgets=[2, 9])


def stored(values, name):
    return zarr.open_group("latents.zarr", mode="a").create_array(name, data=values.astype(np.float16))


def test_latent_targets_have_mean_0_and_mean_variance_1_unless_published():
    latents = stored(np.random.default_rng(1).normal([30, -2, 0], [0.1, 0.3, 0.02], (4, 8, 3)), "latents")
    index, raw = torch.tensor([[0, 7], [9, 25]]), latents[:].astype(np.float64)  # frames of 9 a trajectory
    rows = np.stack([[raw[0, 0], raw[0, 7]], [raw[1, 0], raw[2, 7]]])
    assert torch.equal(latent_targets(latents, 3, True, "cpu")(index), torch.from_numpy(rows).float())
    known = raw[:3].reshape(-1, 3)
    expected = torch.from_numpy((rows - known.mean(0)) / known.var(0).mean() ** 0.5).float()
    torch.testing.assert_close(latent_targets(latents, 3, False, "cpu")(index), expected, rtol=1e-5, atol=1e-5)


def test_an_actor_predicts_0_at_first_unless_published(dataset):
    images = FrameStacks(Frames.load(dataset.pixels, range(4), "cpu"), stack=2, steps=9)(torch.arange(36))
    published, ours = (new_actor(CARD, how, torch.device("cpu")) for how in (True, False))
    assert published(images).square().mean() > 0.01 and not ours(images).any()
    bodies = published.encoder.state_dict().values(), ours.encoder.state_dict().values()
    assert all(torch.equal(*pair) for pair in zip(*bodies, strict=True))


def test_an_actor_learns_the_same_from_latents_that_differ_by_offset_and_scale_unless_published(dataset):
    latents = np.random.default_rng(2).integers(-16, 17, (5, 8, 6)) / 8
    moved = 32 + latents / 4  # float16 holds both exactly
    images = FrameStacks(Frames.load(dataset.pixels, range(4), "cpu"), stack=2, steps=9)

    def losses(name, values, published):
        actor = new_actor(CARD, published, torch.device("cpu"))
        targets = latent_targets(stored(values, name), 4, published, torch.device("cpu"))
        rows = regress(actor, images, targets, FrameSampler(4, 9, 8, 0), 6, 0.01, Checkpoint(name, ()), COMPUTE)
        return [row["loss"] for row in rows]

    assert losses("moved", moved, False) == pytest.approx(losses("same", latents, False), rel=1e-4)
    assert losses("moved, published", moved, True) != pytest.approx(losses("published", latents, True), rel=0.5)


def test_fit_finds_the_least_squares_solution():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3
    torch.manual_seed(0)
    network = nn.Linear(3, 1)
    sampler = FrameSampler(1, 61, 60, "order")
    rows = regress(network, lambda t: x[t], lambda t: y[t], sampler, 600, 0.05, Checkpoint("fit", ()), COMPUTE)
    assert torch.allclose(network.weight, torch.tensor([[1.0, -2.0, 0.5]]), atol=1e-3)
    assert network.bias.item() == pytest.approx(0.3, abs=1e-3)
    assert rows[0]["loss"] > 1e-2 > 1e-5 > rows[-1]["loss"]


@pytest.mark.parametrize(("loss", "best"), [("squares", np.mean), ("absolute", np.median)])
def test_absolute_errors_do_not_shrink_actions_that_the_limits_cut_off(loss, best):
    y = (1 + 0.4 * torch.randn(61, 1, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    network, sampler = nn.Linear(1, 1), FrameSampler(1, 62, 61, "order")
    regress(network, lambda t: torch.zeros(len(t), 1), lambda t: y[t], sampler, 900, 0.03, Checkpoint("fit", ()),
            COMPUTE, loss_of=LOSSES[loss])
    assert network.bias.item() == pytest.approx(best(y.numpy()), abs=2e-3)
    assert np.mean(y.numpy()) < 0.9 and np.median(y.numpy()) > 0.99


@pytest.mark.parametrize(("updates", "epochs", "expected"), [(12, 0, 12), (12, 1.5, 12), (12, 4, 14), (0, 4, 14)])
def test_updates_grow_with_the_labels_where_passes_ask_for_more(updates, epochs, expected):
    assert updates_of(SimpleNamespace(updates=updates, epochs=epochs, batch_size=8), frames=27) == expected


def test_an_epoch_of_a_budget_is_of_its_own_frames(dataset):
    trained = tune(dataset, True, updates=1, epochs=8)  # of 9 and 27 frames, in batches of 8
    assert [rows[-1]["step"] for *_, rows in trained] == [9, 27]


def test_resumed_equals_uninterrupted_to_the_bit():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))

    def attempt(kill_at=None):
        calls = []

        def inputs(index):
            calls.append(index)
            if len(calls) == kill_at:
                raise Killed
            return x[index]

        torch.manual_seed(0)
        network = nn.Linear(3, 1)
        sampler, checkpoint = FrameSampler(1, 41, 16, "order"), Checkpoint("fit", (), interval=0.0)
        rows = regress(network, inputs, lambda t: x[t, :1], sampler, 30, 0.01, checkpoint, COMPUTE)
        checkpoint.remove()
        return network.weight, rows, len(calls)

    weight, rows, calls = attempt()
    with pytest.raises(Killed):
        attempt(kill_at=20)
    resumed, resumed_rows, resumed_calls = attempt()
    assert torch.equal(weight, resumed) and rows == resumed_rows
    assert resumed_calls < calls  # it did go on


def test_predictions_stand_in_the_order_of_frames(dataset):
    frames = Frames.load(dataset.pixels, range(4), "cpu")
    images, actor = FrameStacks(frames, stack=2, steps=dataset.steps), start().actor
    every = predict(actor, images, len(frames), 7, COMPUTE)
    assert every.shape == (36, 6) and not every.requires_grad
    for t in (0, 8, 9, 35):
        assert torch.allclose(every[t], actor(images(torch.tensor([t])))[0], atol=1e-5)


def test_frozen_equals_running_the_actor_at_every_step(dataset):
    fast = tune(dataset, frozen=True)
    labelled = dataset.labelled(3, CARD.seed, "a.b")
    for (policy, card, _), budget in zip(fast, (1, 3), strict=True):
        assert card.budget == budget
        # The same decoder trained through the actor on frames of those trajectories alone.
        naive_frames = Frames(torch.from_numpy(np.concatenate([dataset.pixels[e] for e in labelled[:budget]])), "cpu")
        actions = torch.from_numpy(np.concatenate([dataset.actions[e] for e in labelled[:budget]]))
        images = FrameStacks(naive_frames, stack=2, steps=dataset.steps)
        purpose = f"finetune cheetah-run {CARD.seed} {budget}"
        torch.manual_seed(seed_of(purpose))
        naive = start()

        def inputs(index, images=images, actor=naive.actor):
            with torch.no_grad():
                return actor(images(index))

        regress(naive.decoder, inputs, lambda t, a=actions: a[t], FrameSampler(budget, 9, 8, purpose), 12, 0.01,
            Checkpoint(f"naive-{budget}", ()), COMPUTE)
        for ours, theirs in zip(policy.decoder.parameters(), naive.decoder.parameters(), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)
        assert not torch.allclose(policy.decoder[0].weight, start().decoder[0].weight, atol=1e-2)


def test_freezing_leaves_the_actor_and_unfreezing_trains_it(dataset):
    before = start().actor.head.weight
    assert all(torch.equal(policy.actor.head.weight, before) for policy, *_ in tune(dataset, frozen=True))
    assert not any(torch.allclose(policy.actor.head.weight, before) for policy, *_ in tune(dataset, frozen=False))


def test_same_seed_same_bytes_and_budgets_do_not_see_each_other(dataset):
    first, again = tune(dataset, frozen=False), tune(dataset, frozen=False, budgets=[3])
    assert first[1][2] == again[0][2]
    for ours, theirs in zip(first[1][0].parameters(), again[0][0].parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("frozen", [True, False])
def test_imported_actions_are_learned_as_normalised_and_come_back_in_their_units(dataset, frozen):
    small = tune(dataset, frozen)
    offset, scale = torch.tensor([64.0, -2.0]), torch.tensor([8.0, 0.25])
    dataset.actions[:] = dataset.actions * scale.numpy() + offset.numpy()
    dataset.__dict__["action_units"] = lambda episodes: (offset.numpy(), scale.numpy())
    images = torch.rand(3, 6, 16, 16)
    for (policy, *_), (large, *_) in zip(small, tune(dataset, frozen), strict=True):
        torch.testing.assert_close(large(images), offset + scale * policy(images), rtol=1e-4, atol=1e-3)


def test_a_policy_knows_nothing_of_unlabelled_actions(dataset):
    dataset.attrs["adopted"] = "store"
    policy, *_ = tune(dataset, frozen=True)[0]
    unlabelled = list({*range(4)} - {*dataset.labelled(1, CARD.seed, "a.b")})
    dataset.actions[unlabelled] += 50
    again, *_ = tune(dataset, frozen=True)[0]
    for ours, theirs in zip(policy.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_decoder_starts_orthogonal_or_by_default(dataset):
    for kind, orthogonal in (("orthogonal", True), ("default", False)):
        policy, *_ = tune(dataset, frozen=True, budgets=[1], updates=1, learning_rate=1e-30, decoder_init=kind)[0]
        for layer in list(policy.decoder)[::2]:
            product = layer.weight @ layer.weight.T
            assert torch.allclose(product, torch.eye(len(product)), atol=1e-5) == orthogonal
            assert (layer.bias.abs() < 1e-20).all() == orthogonal


@pytest.mark.parametrize("updates", [1, 4, 20])
def test_adam_moves_weights_of_a_constant_gradient_by_the_sum_of_the_schedule(updates):
    network = nn.Linear(3, 1)
    before = network.weight.detach().clone()
    regress(network, lambda t: torch.ones(len(t), 3), lambda t: torch.full((len(t), 1), 9.0),
            FrameSampler(1, 5, 4, "a"), updates, 0.01, Checkpoint("fit", ()), COMPUTE, warmup=3, loss_of=F.l1_loss)
    moved = 0.01 * sum(min((i + 1) / 4, (updates - i) / max(updates - 3, 1)) for i in range(updates))
    torch.testing.assert_close(network.weight - before, torch.full((1, 3), moved), rtol=1e-4, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_fine_tuning_reports_the_loss_that_was_asked_for(dataset, loss):
    policy, _, rows = tune(dataset, True, budgets=[1], updates=1, learning_rate=1e-30, loss=loss)[0]
    episode, = dataset.labelled(1, CARD.seed, "a.b")
    images = FrameStacks(Frames.load(dataset.pixels, [episode], "cpu"), stack=2, steps=9)
    actions = torch.from_numpy(dataset.actions[episode, :8])  # the batch is the episode but its last frame
    expected = {"squares": lambda wrong: wrong.square(), "absolute": lambda wrong: wrong.abs()}[loss]
    assert rows[0]["loss"] == pytest.approx(expected(policy(images(torch.arange(8))) - actions).mean().item(), rel=1e-4)

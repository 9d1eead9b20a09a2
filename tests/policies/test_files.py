from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from oclam.artifacts import load_tensors, save_tensors
from oclam.datasets import stack_index, to_image
from oclam.errors import UserError
from oclam.policies.files import Agent, Card, load_actor, load_policies, save_actor, save_policies, save_policy
from oclam.policies.networks import Policy

ACTOR = Card("cheetah-run", "clean", "lapo", 0, image_size=16, frame_stack=3, encoder_scale=1, residual_blocks=1,
             latent_dim=6, cells=2)
FULL = replace(ACTOR, hidden_dim=5, action_dim=2)
FRAMES = np.random.default_rng(0).integers(0, 256, (7, 4, 16, 16, 3), dtype=np.uint8)  # 7 steps of 4 environments


@pytest.fixture
def folder(tmp_path):
    """Budgets 2 and 16 of one frozen actor."""
    torch.manual_seed(0)
    actor = ACTOR.actor()
    trained = [(Policy(actor, FULL.decoder()), replace(FULL, budget=budget), [{"step": 1, "loss": budget / 4}])
               for budget in (2, 16)]
    rows = save_policies(tmp_path / "policies", trained, (actor, ACTOR))
    assert rows == [{"budget": 2, "step": 1, "loss": 0.5}, {"budget": 16, "step": 1, "loss": 4}]
    return tmp_path / "policies"


def act(policy, frames=FRAMES):
    agent = Agent(policy, ACTOR.frame_stack)
    return np.stack([agent.act(batch) for batch in frames])


@pytest.mark.parametrize("frozen", [True, False])
def test_loaded_policy_acts_as_the_saved_one(tmp_path, frozen):
    policy, card = Policy(FULL.actor(), FULL.decoder()), replace(FULL, budget=2)
    save_policy(tmp_path, policy, card, frozen)
    if frozen:
        save_actor(tmp_path / "actor.safetensors", policy.actor, ACTOR)
    (loaded,), (its_card,) = load_policies(tmp_path, [2], task="cheetah-run", view="clean")
    assert its_card == card
    assert np.array_equal(act(policy), act(loaded))


def test_a_card_s_actor_is_that_of_the_section_bc():
    bc = SimpleNamespace(frame_stack=3, encoder_scale=2, residual_blocks=1, cells=2)
    card = Card.of(bc, "cheetah-run", "clean", "lapo", 0, image_size=16, latent_dim=6)
    assert card == replace(ACTOR, encoder_scale=2)
    assert card.actor().head.in_features == 2 * 32 * 2 * 2


def test_policy_of_all_labels_has_no_decoder(tmp_path):
    card = replace(ACTOR, latent_dim=None, action_dim=2, budget=0)
    policy = Policy(card.actor())
    save_policy(tmp_path, policy, card)
    assert [path.name for path in tmp_path.iterdir()] == ["all.safetensors"]
    (loaded,), _ = load_policies(tmp_path)
    assert np.array_equal(act(policy), act(loaded)) and act(loaded).shape == (7, 4, 2)


def test_all_budgets_load_in_order_and_share_the_frozen_actor(folder):
    policies, cards = load_policies(folder)
    assert [card.budget for card in cards] == [2, 16]
    assert policies[0].actor is policies[1].actor
    assert load_policies(folder, [16])[1] == cards[1:]
    assert sum(path.stat().st_size for path in folder.glob("[0-9]*")) < (folder / "actor.safetensors").stat().st_size


def test_an_agent_stacks_frames_as_training_does():
    torch.manual_seed(0)
    policy = Policy(FULL.actor(), FULL.decoder())
    rows = torch.from_numpy(FRAMES[:, 1])  # one environment's episode
    images = to_image(rows[stack_index(torch.arange(7), 3, 7)])
    with torch.no_grad():
        expected = policy(images).clamp(-1, 1).numpy()
    assert np.allclose(act(policy)[:, 1], expected, atol=1e-5)


def test_an_agent_forgets_at_reset():
    agent = Agent(Policy(FULL.actor(), FULL.decoder()), 3)
    first = agent.act(FRAMES[0])
    assert not np.allclose(agent.act(FRAMES[1]), agent.act(FRAMES[2]))
    agent.reset()
    assert np.array_equal(agent.act(FRAMES[0]), first)


def test_actions_may_be_of_any_size():
    policy = Policy(FULL.actor(), FULL.decoder())
    torch.nn.init.constant_(policy.decoder[-1].bias, 3.0)
    torch.nn.init.zeros_(policy.decoder[-1].weight)
    assert (act(policy) == 3).all()


@pytest.mark.parametrize(("arguments", "line"), [
    ({"budgets": [8]}, "no policy of budget 8; there are 2, 16"),
    ({"budgets": [0]}, "no policy of budget 0; there are 2, 16"),
    ({"task": "walker-run"}, "the policy has task 'cheetah-run', 'walker-run' is needed"),
    ({"view": "distracted"}, "the policy has view 'clean', 'distracted' is needed"),
])
def test_what_is_not_there_is_one_line(folder, arguments, line):
    with pytest.raises(UserError, match=line) as error:
        load_policies(folder, **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("key", "value", "its"), [("latent_dim", 7, 6), ("seed", 1, 0), ("cells", 1, 2)])
def test_a_decoder_of_another_actor_is_one_line(folder, key, value, its):
    other = replace(FULL, **{key: value}, budget=2)
    save_policy(folder, Policy(other.actor(), other.decoder()), other, frozen=True)
    with pytest.raises(UserError, match=f"its decoder has {key} {value}, not {its}, unlike the actor beside it"):
        load_policies(folder)


@pytest.mark.parametrize(("key", "size"), [("latent_dim", -1), ("hidden_dim", "x"), ("frame_stack", 0),
                                           ("residual_blocks", -1), ("encoder_scale", None), ("action_dim", True)])
def test_impossible_sizes_in_a_policy_s_file_are_one_line(folder, key, size):
    path = folder / "2.safetensors"
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, **metadata | {key: size})
    with pytest.raises(UserError, match=f"{path}: invalid {key} {size!r} in its description; delete it and"):
        load_policies(folder)


def test_damage_and_strangers_are_one_line(folder, tmp_path):
    (folder / "2.safetensors").write_bytes((folder / "2.safetensors").read_bytes()[:-8])
    with pytest.raises(UserError, match="damaged"):
        load_policies(folder)
    with pytest.raises(UserError, match="no policies there"):
        load_policies(tmp_path / "nowhere")
    save_tensors(tmp_path / "stranger.safetensors", {"weight": torch.zeros(1)}, kind="lapo")
    with pytest.raises(UserError, match="not a policy of this project"):
        load_actor(tmp_path / "stranger.safetensors")

"""Acting with a stored policy in the real environment, for a few steps."""

import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import yaml

from oclam.act import main, play
from oclam.errors import UserError
from oclam.export.card import model_card
from oclam.export.policies import HubPolicy
from oclam.policies.files import Card, load_policies, save_policy
from oclam.policies.networks import Policy
from tests import ROOT


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project with one clean policy of 2 labels that always gives the action 0.5."""
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["env"]["image_size"] = 16
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    card = Card("cheetah-run", "clean", "lapo-no-distractors", 0, image_size=16, frame_stack=2, encoder_scale=1,
                residual_blocks=0, latent_dim=4, hidden_dim=4, action_dim=6, budget=2)
    policy = Policy(card.actor(), card.decoder())
    for parameter in policy.decoder.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(policy.decoder[-1].bias, 0.5)
    save_policy(tmp_path / "policies", policy, card)
    return tmp_path / "policies"


def test_the_return_is_the_sum_of_the_rewards_of_the_policys_actions(folder):
    from oclam import envs

    gained, frames, rewards, card = play(folder, steps=4, seed=3)
    env = envs.DistractingEnv("cheetah-run", "clean", envs.DEFAULT.model_copy(update={"image_size": 16}))
    shown, expected = [env.reset(seed=3)[0]], []
    for _ in range(4):
        pixels, reward, *_ = env.step(np.full(6, 0.5))
        shown.append(pixels)
        expected.append(reward)
    np.testing.assert_array_equal(frames, shown[:4])
    np.testing.assert_allclose(rewards, expected)
    assert gained == pytest.approx(sum(expected)) and card.budget == 2


def test_the_policy_of_most_labels_acts_before_videos_that_no_training_saw(folder, monkeypatch):
    (policy,), (card,) = load_policies(folder)
    save_policy(folder, policy, Card(**vars(card) | {"budget": 8}))
    asked = []
    monkeypatch.setattr("oclam.act.evaluate", lambda policies, stack, make, *_, **__: (
        asked.append(make.args[-1]), (np.zeros((1, 1)), None, None))[1])
    assert play(folder)[3].budget == 8 and play(folder, budget=2)[3].budget == 2
    assert asked == ["test", "test"]


def test_the_command_prints_the_return_and_writes_the_video(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["act", str(folder), "--steps", "3", "--video", "episode.mp4"])
    main()
    assert capsys.readouterr().out.startswith("cheetah-run, lapo-no-distractors, 2 labelled, clean: return ")
    with av.open("episode.mp4") as file:
        assert sum(1 for _ in file.decode(video=0)) == 3


def test_a_negative_seed_is_refused(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["act", str(folder), "--seed", "-1"])
    with pytest.raises(UserError, match="--seed: -1 given, at least 0 is needed"):
        main()


def test_a_policy_of_another_task_or_budget_is_refused(folder):
    with pytest.raises(UserError, match="the policy has task 'cheetah-run', 'walker-run' is needed"):
        play(folder, task="walker-run", steps=1)
    with pytest.raises(UserError, match="no policy of budget 8; there are 2"):
        play(folder, 8, steps=1)


def test_a_policy_of_imported_data_has_no_environment_to_act_in(folder, tmp_path):
    (policy,), (card,) = load_policies(folder)
    card = Card(**vars(card) | {"task": "kitchen-sweep"})
    save_policy(tmp_path / "imported", policy, card)
    with pytest.raises(UserError, match="imported: learned from data of kitchen-sweep, for which there is no env"):
        play(tmp_path / "imported", steps=1)
    for task, known in (("kitchen-sweep", False), ("cheetah-run", True)):
        text = str(model_card(HubPolicy, {"task": task, "trained": [], "figures": [], "licence": "", "version": ""}))
        assert ("gymnasium.make(" in text) == known and "agent = Agent(" in text


def test_an_exported_policy_acts_the_same_without_params_yaml(folder, tmp_path, monkeypatch):
    (policy,), (card,) = load_policies(folder)
    env = yaml.safe_load((tmp_path / "params.yaml").read_text())["env"]
    origin = {"env": env, "trained": [], "figures": [], "licence": "", "version": ""}
    exported = HubPolicy(card=vars(card), origin=origin)
    exported.load_state_dict(policy.state_dict())
    exported.save_pretrained(tmp_path / "empty/policy")
    expected = play(folder, steps=3, seed=4)
    monkeypatch.chdir(tmp_path / "empty")
    gained, frames, _, found = play(Path("policy"), budget=2, task="cheetah-run", steps=3, seed=4)
    assert gained == expected[0] and found == card
    np.testing.assert_array_equal(frames, expected[1])
    with pytest.raises(UserError, match="policy: the policy has budget 2, 8 is needed"):
        play(Path("policy"), budget=8, steps=1)
    config = Path("policy/config.json")
    config.write_text(config.read_text()[:-9])
    with pytest.raises(UserError, match="policy/config.json: damaged JSON .*; export it again, or get it again"):
        play(Path("policy"), steps=1)
    with pytest.raises(UserError, match="nothing: no such folder"):
        play(Path("nothing"), steps=1)

"""Training of experts: NumPy equals sbx, resumed equals uninterrupted."""

import numpy as np
import pytest
import torch

pytest.importorskip("sbx", reason="experts are trained with the extra `expert` alone")

from oclam.checkpoint import Checkpoint  # noqa: E402
from oclam.errors import UserError  # noqa: E402
from oclam.experts import training as expert  # noqa: E402
from oclam.experts.policy import ExpertPolicy, save_expert  # noqa: E402
from oclam.params import Training  # noqa: E402

HYPERPARAMETERS = {
    "PPO": {"n_steps": 8, "batch_size": 8, "n_epochs": 2, "net_arch": [8], "log_std_init": -0.5, "learning_rate": 0.01,
            "target_kl": 0.02},
    "SAC": {"buffer_size": 64, "learning_starts": 8, "batch_size": 4, "net_arch": [8, 8], "gradient_steps": 2},
    "CrossQ": {"buffer_size": 64, "learning_starts": 8, "batch_size": 4, "net_arch": [8, 8], "gradient_steps": 2},
}


def training(algorithm="PPO", steps=48, **hyperparameters):
    return Training(algorithm=algorithm, steps=steps, environments=2, episode_steps=5, evaluate_every=16,
                    hyperparameters=HYPERPARAMETERS[algorithm] | hyperparameters)


@pytest.fixture(scope="module", params=HYPERPARAMETERS)
def learner(request):
    """A learner after one round; compiling is what takes long."""
    learner = expert.Learner("cheetah-run", training(request.param))
    learner.advance(lambda: True)
    return learner


def test_numpy_policy_is_sbx_deterministic_prediction(learner):
    observations = np.random.default_rng(0).normal(size=(50, 17)).astype(np.float32) * 3
    expected, _ = learner.model.predict(learner.normaliser.normalize_obs(observations), deterministic=True)
    np.testing.assert_allclose(learner.policy()(observations), expected, atol=1e-5)
    assert np.ptp(expected) > 0.1


def test_resumed_learner_is_uninterrupted(learner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = expert.Learner("cheetah-run", learner.training)
    checkpoint = Checkpoint("resumed", learner.training)
    checkpoint.save({"learner": learner}, steps=learner.steps)
    learner.advance(lambda: True)
    assert checkpoint.restore({"learner": other}) == {"steps": 16} and other.steps == 16
    other.advance(lambda: True)
    assert other.steps == learner.steps == 32
    torch.testing.assert_close(other.state_dict(), learner.state_dict(), rtol=0, atol=0)


@pytest.fixture
def demonstrator(tmp_path):
    """The file of an expert whose action is 0.3 in every dimension, whatever it sees."""
    layers = [(np.zeros((6, 17), np.float32), np.full(6, 0.3, np.float32))]
    save_expert(tmp_path / "weak.safetensors",
                ExpertPolicy("cheetah-run", "PPO", layers, np.zeros(17), np.ones(17), 10.0, "tanh", "clip"))
    return str(tmp_path / "weak.safetensors")


def test_a_demonstrator_acts_until_learning_starts(demonstrator):
    settings = training("CrossQ", learning_starts=400, buffer_size=1000).model_copy(
        update={"demonstrator": demonstrator, "evaluate_every": 600})
    learner = expert.Learner("cheetah-run", settings)
    learner.advance(lambda: True)
    first, later = np.split(learner.model.replay_buffer.actions[:300], [200])  # two environments a step
    assert first.mean() == pytest.approx(0.3, abs=4 * expert.NOISE / first.size**0.5)
    assert first.std() == pytest.approx(expert.NOISE, rel=0.1)
    assert abs(later.mean() - 0.3) > 0.1 and later.std() > 2 * expert.NOISE


class Scripted:
    """A learner whose policies' returns are known beforehand."""

    returns = {10: 5.0, 20: 9.0, 30: 7.0, 40: 8.0}

    def __init__(self, task, training):
        self.steps = 0

    def advance(self, tick):
        tick()
        self.steps += 10

    def policy(self):
        zeros = [(np.zeros((6, 17), np.float32), np.zeros(6, np.float32))]
        facts = {"steps": self.steps}
        return ExpertPolicy("cheetah-run", "PPO", zeros, np.zeros(17), np.ones(17), 10.0, "tanh", "clip", facts)

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def test_training_keeps_the_best_policy_and_resumes_after_a_kill(tmp_path, monkeypatch):
    def measured(policy, episodes, *purpose):
        if policy.facts["steps"] == fatal:
            raise KeyboardInterrupt
        return np.full(episodes, Scripted.returns[policy.facts["steps"]])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(expert, "Learner", Scripted)
    monkeypatch.setattr(expert, "measure", measured)
    monkeypatch.setattr(expert, "remeasured", lambda policy, episodes: policy)
    checkpoint, fatal = Checkpoint("best", 0, interval=0), 30
    with pytest.raises(KeyboardInterrupt):
        expert.train_expert("cheetah-run", training(steps=40), checkpoint, 2)
    fatal = None
    monkeypatch.setitem(Scripted.returns, 10, None)  # must not be trained again
    policy, rows = expert.train_expert("cheetah-run", training(steps=40), checkpoint, 2)
    assert rows == [{"step": step, "return_mean": mean, "return_std": 0.0}
                    for step, mean in ((10, 5.0), (20, 9.0), (30, 7.0), (40, 8.0))]
    assert policy.facts["steps"] == 20


def test_unknown_hyperparameter_is_named():
    with pytest.raises(UserError, match=r"expert.training.cheetah-run.hyperparameters: n_step given"):
        expert.Learner("cheetah-run", training(n_step=3))


def test_the_claimed_return_is_of_episodes_that_had_no_part_in_the_choice(tmp_path, monkeypatch):
    purposes = []

    def measured(policy, episodes, *purpose):
        purposes.append(purpose)
        return np.zeros(episodes)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(expert, "Learner", Scripted)
    for module in ("training", "policy"):
        monkeypatch.setattr(f"oclam.experts.{module}.measure", measured)
    expert.train_expert("cheetah-run", training(steps=20), Checkpoint("best", 0), 2)
    first, second, claim = purposes
    assert first == second != claim


@pytest.mark.parametrize("learner", ["SAC", "CrossQ"], indirect=True)  # those with a replay buffer
def test_no_return_of_several_steps_crosses_the_end_of_a_round(learner):
    buffer = learner.model.replay_buffer
    last = buffer.pos - 1
    assert not buffer.timeouts[last].all()
    learner.advance(lambda: True)
    assert buffer.timeouts[last].all()


def test_a_full_replay_buffer_is_resumed_whole():
    one, other = (expert.Learner("cheetah-run", training("SAC")) for _ in range(2))
    buffer, resumed = one.model.replay_buffer, other.model.replay_buffer
    buffer.rewards[:] = np.random.default_rng(0).normal(size=buffer.rewards.shape)
    buffer.pos, buffer.full = 3, True
    other.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(resumed.rewards, buffer.rewards)
    assert (resumed.pos, resumed.full) == (3, True)


@pytest.mark.parametrize(("algorithm", "rates"), [("PPO", [0.01, 0.005, 0.0002]), ("SAC", [0.0003] * 3)])
def test_ppo_alone_scales_rewards_and_lowers_its_rate_over_all_rounds(algorithm, rates):
    learner, found = expert.Learner("cheetah-run", training(algorithm)), []
    for learner.steps in (0, 24, 48):
        found.append(learner.model.lr_schedule(1.0))
    assert found == pytest.approx(rates) and learner.normaliser.norm_reward == (algorithm == "PPO")

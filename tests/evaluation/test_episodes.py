from functools import partial

import numpy as np
import pytest
import torch

from oclam.checkpoint import Checkpoint
from oclam.errors import UserError
from oclam.evaluation.episodes import episode_seeds, evaluate
from oclam.policies.files import Agent, Card
from oclam.policies.networks import Policy
from tests.evaluation.fakes import Deadly, Falling, Noise, broken

CARD = Card("cheetah-run", "clean", "lapo", 0, image_size=16, frame_stack=2, encoder_scale=1, residual_blocks=1,
            latent_dim=6, hidden_dim=5, action_dim=2, budget=1)


def policies(count, shared=True):
    torch.manual_seed(0)
    actor = CARD.actor()
    return [Policy(actor if shared else CARD.actor(), CARD.decoder()) for _ in range(count)]


def naive(policy, seed, steps, length=1000):
    """One environment, one policy call a step."""
    environment, agent, total = Noise(length), Agent(policy, 2), 0.0
    frame, _ = environment.reset(seed=seed)
    for _ in range(steps):
        frame, reward, terminated, truncated, _ = environment.step(agent.act(frame[None])[0])
        total += reward
        if terminated or truncated:
            break
    return total


@pytest.mark.parametrize("shared", [True, False])
def test_lockstep_equals_one_episode_after_the_other(shared):
    several, seeds = policies(2, shared), episode_seeds(0, 3)
    returns, _, _ = evaluate(several, 2, Noise, seeds, steps=6, workers=2)
    expected = [[naive(policy, seed, 6) for seed in seeds] for policy in several]
    assert np.allclose(returns, expected, atol=1e-2)  # the frames count actions in steps of 1/100
    assert len(np.unique(returns.round(6))) == 6


def test_other_policies_change_no_bit():
    first, second = policies(2)
    seeds, other = episode_seeds(0, 3), partial(Noise, length=4)
    alone, _, _ = evaluate([second], 2, Noise, seeds, steps=6, workers=2)
    together, _, _ = evaluate([second, first, second], 2, [other, Noise, Noise], seeds, steps=6, workers=2)
    assert np.array_equal(alone[0], together[2]) and (together[0] != together[2]).all()


def test_number_of_workers_changes_no_bit():
    results = [evaluate(policies(2), 2, Noise, episode_seeds(0, 5), steps=8, workers=workers, recorded=4)
               for workers in (1, 2, 3, 7)]
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            assert np.array_equal(ours, theirs)


def test_policies_compute_in_one_thread_and_the_others_come_back():
    (policy,), threads, before = policies(1), set(), torch.get_num_threads()
    policy.register_forward_hook(lambda *_: threads.add(torch.get_num_threads()))
    torch.set_num_threads(2)
    try:
        evaluate([policy], 2, Noise, episode_seeds(0, 1), steps=1, workers=1)
        assert threads == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_restart_evaluates_only_the_remaining_policies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    several, seeds = policies(3), episode_seeds(0, 3)
    whole = evaluate(several, 2, Noise, seeds, steps=6, workers=2, recorded=4)
    with pytest.raises(UserError, match="died"):
        evaluate(several, 2, [Noise, Noise, Deadly], seeds, steps=6, workers=2,
                 checkpoint=Checkpoint("eval", (), interval=0))
    resumed = evaluate(several, 2, [broken, broken, Noise], seeds, steps=6, workers=2, recorded=4,
                       checkpoint=Checkpoint("eval", ()))
    for ours, theirs in zip(whole, resumed, strict=True):
        assert np.array_equal(ours, theirs)


def test_a_restart_after_the_last_policy_records_its_frames_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole, again = (evaluate(policies(2), 2, Noise, episode_seeds(0, 2), steps=3, workers=1, recorded=2,
                             checkpoint=Checkpoint("eval", (), interval=0)) for _ in range(2))
    for ours, theirs in zip(whole, again, strict=True):
        assert np.array_equal(ours, theirs)


def test_recorded_frames_are_of_the_last_policys_first_episode():
    seeds, other = episode_seeds(0, 4), partial(Noise, length=2)  # two in each half
    returns, frames, rewards = evaluate(policies(2), 2, [other, Noise], seeds, steps=5, workers=1, recorded=100)
    assert frames.shape == (6, 16, 16, 3) and len(rewards) == 5  # the frame after the last action too
    assert rewards.sum() == pytest.approx(returns[1, 0])
    environment = Noise()
    assert np.array_equal(frames[0], environment.reset(seed=seeds[0])[0])


@pytest.mark.parametrize("kind", [Noise, Falling])
def test_a_finished_episode_gains_nothing_more_and_the_next_policy_begins_its_own(kind):
    several, seeds = policies(2), episode_seeds(0, 2)
    returns, _, _ = evaluate(several, 2, partial(kind, length=3), seeds, steps=9, workers=1)
    expected = [[naive(policy, seed, 9, length=3) for seed in seeds] for policy in several]
    assert np.allclose(returns, expected, atol=1e-2)


def test_returns_are_sums_in_double_precision():
    (policy,), seeds = policies(1), episode_seeds(0, 3)
    for parameter in policy.decoder.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(policy.decoder[-1].bias, 0.3)  # the action, whatever the frames
    returns, _, _ = evaluate([policy], 2, Noise, seeds, steps=9, workers=1)
    gained = float(np.full(2, 0.3, np.float32).sum())
    np.testing.assert_allclose(returns, [[9 * (gained + seed % 7) for seed in seeds]], rtol=1e-12)


def test_seeds_are_a_prefix_of_more_seeds_and_differ_by_evaluation():
    assert episode_seeds(0, 25)[:5] == episode_seeds(0, 5)
    assert not set(episode_seeds(0, 25)) & set(episode_seeds(1, 25))


def test_an_environment_that_cannot_be_made_fails_before_any_work():
    with pytest.raises(UserError, match="no OpenGL renderer"):
        evaluate(policies(1), 2, broken, [0], steps=5, workers=2)


def test_a_dead_worker_is_one_line():
    with pytest.raises(UserError, match="eval: worker process [01] died.*lower eval.episodes .*`dvc repro`"):
        evaluate(policies(1), 2, Deadly, episode_seeds(0, 4), steps=6, workers=2)

"""Batched environments against dm_control's own."""

import numpy as np
import pytest

from oclam.experts.vector import BATCHED, EPISODE, BatchedTask
from oclam.suite import flatten, load_task


@pytest.mark.parametrize("task", [*BATCHED, "reacher-easy"])
def test_batch_are_dm_control(task):
    batch, actions = BatchedTask(task, 2, seed=5, stagger=False), np.random.default_rng(0)
    alone = [load_task(task, 5 + k) for k in range(2)]
    observation = batch.reset()
    steps = [environment.reset() for environment in alone]
    np.testing.assert_allclose(observation, [flatten(step.observation) for step in steps], rtol=1e-6)
    for _ in range(30):
        action = actions.uniform(-1, 1, (2, *batch.action_space.shape)).astype(np.float32)
        observation, reward, done, _ = batch.step(action)
        steps = [environment.step(one) for environment, one in zip(alone, action, strict=True)]
        np.testing.assert_allclose(observation, [flatten(step.observation) for step in steps], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(reward, [step.reward for step in steps], rtol=1e-5, atol=1e-6)
        assert not done.any()


def test_batched_rewards_far_from_the_start_are_dm_controls():
    """Standing and running change the reward; a random policy hardly sees either, so states are set by hand."""
    for task in BATCHED:
        batch, rng = BatchedTask(task, 2, seed=0, stagger=False), np.random.default_rng(1)
        batch.reset()
        seen = []
        for _ in range(20):
            for physics in batch.physics:
                physics.reset()  # upright, as the model file has it
                physics.data.qvel[:] = rng.normal(size=physics.model.nv) * 0.1
                physics.data.qvel[:2] = rng.uniform(0, 8)  # forward is the second in walker
            _, rewards, _, _ = batch.step(rng.uniform(-1, 1, (2, *batch.action_space.shape)))
            expected = [environment.task.get_reward(environment.physics) for environment in batch.environments]
            np.testing.assert_allclose(rewards, expected, rtol=1e-5, atol=1e-6)
            seen += expected
        assert max(seen) > 0.3 and len(set(seen)) > 5, task


def test_time_alone_ends_an_episode_and_staggering_spreads_the_ends():
    batch = BatchedTask("cheetah-run", 4, seed=0, steps=20)
    batch.reset()
    assert list(batch.elapsed) == [0, 5, 10, 15] and BatchedTask("cheetah-run", 1, seed=0).steps == EPISODE == 1000
    batch.elapsed[:] = [19, 0, 0, 0]
    observation, _, done, infos = batch.step(np.zeros((4, 6)))
    assert list(done) == [True, False, False, False] and batch.elapsed[0] == 0
    assert infos[0]["TimeLimit.truncated"] and not infos[1]
    assert not np.allclose(infos[0]["terminal_observation"], observation[0])

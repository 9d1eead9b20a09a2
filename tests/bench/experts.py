"""Steps of a batch of environments of a task, against the suite's own `step`, one core."""

import time
from functools import partial

import numpy as np

from oclam.experts.vector import BATCHED, BatchedTask
from oclam.suite import flatten
from tests.bench import timing

NUMBER = 32


def main():
    print(f"{'steps/s':<14} {'suite':>8} {'batched':>8} {'ratio':>6}")
    for task in BATCHED:
        batch = BatchedTask(task, NUMBER, seed=0)
        batch.reset()
        actions = np.random.default_rng(0).uniform(-1, 1, (NUMBER, *batch.action_space.shape))

        def suite(batch=batch, actions=actions):
            for environment, action in zip(batch.environments, actions, strict=True):
                flatten(environment.step(action).observation)

        taken = timing.seconds({"suite": suite, "batched": partial(batch.step, actions)}, 30, time.process_time)
        naive, ours = (NUMBER / seconds for seconds in taken.values())
        print(f"{task:<14} {naive:>8.0f} {ours:>8.0f} {ours / naive:>6.1f}")


if __name__ == "__main__":
    main()

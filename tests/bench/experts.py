"""Steps of copies of a task with batched observations and rewards, against the suite's own `step`, one core."""

import time

import numpy as np

from oclam.experts.policy import flatten
from oclam.experts.vector import BATCHED, Copies

COPIES, STEPS = 32, 30


def rate(step):
    step()
    start = time.process_time()
    for _ in range(STEPS):
        step()
    return COPIES * STEPS / (time.process_time() - start)


def main():
    print(f"{'steps/s':<14} {'suite':>8} {'batched':>8} {'ratio':>6}")
    for task in BATCHED:
        copies = Copies(task, COPIES, seed=0)
        copies.reset()
        actions = np.random.default_rng(0).uniform(-1, 1, (COPIES, *copies.action_space.shape))

        def suite(copies=copies, actions=actions):
            for environment, action in zip(copies.environments, actions, strict=True):
                flatten(environment.step(action).observation)

        naive, ours = rate(suite), rate(lambda copies=copies, actions=actions: copies.step(actions))
        print(f"{task:<14} {naive:>8.0f} {ours:>8.0f} {ours / naive:>6.1f}")


if __name__ == "__main__":
    main()

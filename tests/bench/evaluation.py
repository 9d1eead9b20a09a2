"""Evaluation against one environment and one policy call a step, and where the time goes.

Random policies of the small scale's sizes act in the environment; the share of each part is measured alone, in one
process. `python -m tests.bench.evaluation [steps]`
"""

import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from oclam import envs
from oclam.backgrounds.store import texture_edge, write_store
from oclam.evaluation.episodes import episode_seeds, evaluate
from oclam.params import read
from oclam.policies.files import Agent, Card
from oclam.policies.networks import Policy

TASK, VIEW = "cheetah-run", "distracted"


def rate(act, frames):
    """Frames a second of act()."""
    started = time.perf_counter()
    act()
    return frames / (time.perf_counter() - started)


def one_at_a_time(policy, stack, environment, steps):
    """One environment, one policy call a step. Returns frames a second."""
    agent = Agent(policy, stack)
    frame, _ = environment.reset(seed=0)
    agent.act(frame[None])
    started = time.perf_counter()
    for _ in range(steps):
        frame, *_ = environment.step(agent.act(frame[None])[0])
    return steps / (time.perf_counter() - started)


def physics(environment, seed, steps):
    """The suite's steps, without a picture."""
    environment.reset(seed=seed)
    action = environment.action_space.sample()
    for _ in range(steps):
        environment.unwrapped._env.step(action)


def environments(params, renderer, folder):
    """A function that makes the environment; its backgrounds are noise, for what they show costs nothing."""
    edge = texture_edge(renderer, params.texture_size)
    video = np.random.default_rng(0).integers(0, 256, (10, edge, edge, 3), dtype=np.uint8)
    write_store(folder / renderer, {"train": [("noise", video)]}, "noise")
    return partial(envs.make, TASK, VIEW, params.model_copy(update={"renderer": renderer}), folder / renderer)


def measure(folder, steps):
    params = read()
    bc, episodes, budgets = params.bc, params.eval.episodes, params.finetune.budgets
    card = Card.of(bc, TASK, VIEW, "lapo", 0, image_size=params.env.image_size, latent_dim=params.lapo.latent_dim,
                   hidden_dim=params.finetune.hidden_dim, action_dim=6)
    torch.manual_seed(0)
    actor = card.actor()
    policies = [Policy(actor, card.decoder()) for _ in budgets]
    seeds, batch, half = episode_seeds(0, episodes), len(budgets) * episodes, -(-episodes // 2)
    make, reference = (environments(params.env, renderer, folder) for renderer in ("fast", "reference"))

    agent, environment = Agent(policies[0], bc.frame_stack), make()
    frame, _ = environment.reset(seed=0)
    frames = torch.from_numpy(frame).expand(half, -1, -1, -1).numpy()
    parts = {
        "physics": rate(lambda: physics(environment, 0, steps), steps),
        "physics, background and render": rate(lambda: [environment.step(environment.action_space.sample())
                                                        for _ in range(steps)], steps),
        f"policy, batch of {half}": rate(lambda: [agent.act(frames) for _ in range(20)], 20 * half),
        "policy, one frame": one_at_a_time(policies[0], bc.frame_stack, _Still(frame), steps),
    }
    slow = one_at_a_time(policies[0], bc.frame_stack, reference(), max(steps // 10, 10))
    one = one_at_a_time(policies[0], bc.frame_stack, environment, steps)
    short = rate(lambda: evaluate(policies, bc.frame_stack, make, seeds, 1), batch)
    started = batch / short  # making the environments and their first frames
    ours = batch * steps / (batch * steps / rate(lambda: evaluate(policies, bc.frame_stack, make, seeds, steps),
                                                 batch * steps) - started)

    print(f"\n{TASK}, {VIEW}, {len(budgets)} policies x {episodes} episodes x {steps} steps")
    print(f"{'alone, in one process':44} {'frames/s':>9} {'ms':>7}")
    for name, value in parts.items():
        print(f"{name:44} {value:9.0f} {1000 / value:7.2f}")
    print(f"{'acting':44} {'frames/s':>9} {'ratio':>7}")
    for name, value in {"one environment, reference rendering": slow, "one environment, fast rendering": one,
                        "in lockstep over processes": ours}.items():
        print(f"{name:44} {value:9.0f} {value / slow:7.1f}")
    print(f"over one environment with fast rendering: {ours / one:.1f} times; to begin takes {started:.1f} s")


def main():
    with TemporaryDirectory() as folder:
        measure(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 150)


class _Still:
    """An environment that costs nothing."""

    def __init__(self, frame):
        self.frame = frame

    def reset(self, seed):
        return self.frame, {}

    def step(self, action):
        return self.frame, 0.0, False, False, {}


if __name__ == "__main__":
    main()

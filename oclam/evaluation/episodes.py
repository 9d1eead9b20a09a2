"""Returns of policies: all episodes of a policy advance step by step together, environments in worker processes.

The batches depend on the episodes alone: neither workers nor other policies can change a bit of the result.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from oclam.checkpoint import Checkpoint
from oclam.evaluation.environments import Environments
from oclam.policies.files import Agent
from oclam.policies.networks import Policy
from oclam.progress import Progress
from oclam.seeding import seed_of
from oclam.training import best_device


def episode_seeds(seed: int, episodes: int) -> list[int]:
    """The seeds of the evaluation's episodes, the same for every policy and different from those of any dataset."""
    return [seed_of("evaluation", seed, episode) for episode in range(episodes)]


def evaluate(policies: Sequence[Policy], frame_stack: int, make: Callable | Sequence[Callable], seeds: Sequence[int],
             steps: int, name: str = "evaluation", workers: int | None = None, recorded: int = 0,
             checkpoint: Checkpoint | None = None) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Act in one episode for every policy and seed.

    Args:
        policies: P of them, which act one after the other in the same environments: making one costs 50 steps.
        frame_stack: how many frames they see.
        make: gives a Gymnasium environment with pixels (H, W, 3) uint8; or one such function for each policy.
        seeds: of the E episodes.
        steps: at most, per episode.
        workers: processes, by default one a core.
        recorded: how many frames of the last policy's first episode to return, at most steps + 1.
        checkpoint: keeps the rewards of finished policies, so that a resumed call begins with the next policy.
    Returns: returns float64 (P, E), recorded frames uint8 (recorded, H, W, 3) or None, the rewards that follow them.
    Raises what make raises, before any work.
    """
    # Two halves: while the policy looks at one, the workers step the other.
    halves = [half for half in np.array_split(np.arange(len(seeds)), 2) if len(half)]
    makes = make if isinstance(make, Sequence) else [make] * len(policies)
    done, rewards, kept = 0, np.zeros((len(policies), steps, len(seeds))), []
    if checkpoint and (position := checkpoint.restore({})):
        done, rewards = position["policies"], position["rewards"].numpy()
    kinds = list(dict.fromkeys(makes[done:]))  # such as with training and with test videos
    groups = [[kind] * len(half) for kind in kinds for half in halves]
    with (Environments(groups, workers) as environments, _one_thread(),  # may fork, so before any use of a GPU
          Progress(rewards.size, name, " frames", initial=rewards[:done].size) as bar):
        device = best_device()
        for number in range(done, len(policies)):
            first = kinds.index(makes[number]) * len(halves)
            agents = [Agent(policies[number], frame_stack, device) for _ in halves]
            for group, half in enumerate(halves, first):
                environments.send(group, [seeds[episode] for episode in half])
            for step in range(steps + 1):
                for group, (half, agent) in enumerate(zip(halves, agents, strict=True), first):
                    frames, gained = environments.receive(group)
                    if number == len(policies) - 1 and group == first and step < recorded:
                        kept.append(frames[0])
                    if step > 0:
                        rewards[number, step - 1, half] = gained
                    if step < steps:
                        environments.send(group, agent.act(frames))
                        bar.update(len(half))
            if checkpoint and checkpoint.due() and number + 1 < len(policies):  # the last one's frames are not kept
                checkpoint.save({}, policies=number + 1, rewards=torch.from_numpy(rewards))
    return rewards.sum(1), np.stack(kept) if kept else None, rewards[-1, :recorded, 0]


@contextmanager
def _one_thread():
    """One thread for the policies: the workers use the cores, and sums have the same order on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

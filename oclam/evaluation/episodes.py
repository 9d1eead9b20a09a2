"""Returns of policies: all episodes of a policy advance step by step together, environments in worker processes.

The batches depend on the episodes alone: neither workers nor other policies can change a bit of the result.
"""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from oclam.errors import UserError
from oclam.machine import cores, end_with_parent
from oclam.policies.files import Agent
from oclam.policies.networks import Policy
from oclam.progress import Progress
from oclam.seeding import seed_of
from oclam.training import best_device

__all__ = ["Environments", "episode_seeds", "evaluate"]


def episode_seeds(seed: int, episodes: int) -> list[int]:
    """The seeds of the evaluation's episodes, the same for every policy and different from those of any dataset."""
    if episodes < 1:
        raise UserError(f"eval.episodes: {episodes} given, at least 1 is needed")
    return [seed_of("evaluation", seed, episode) for episode in range(episodes)]


def evaluate(policies: Sequence[Policy], frame_stack: int, make: Callable | Sequence[Callable], seeds: Sequence[int],
             steps: int, name: str = "evaluation", workers: int | None = None,
             recorded: int = 0) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Act in one episode for every policy and seed.

    Args:
        policies: P of them, which act one after the other in the same environments: making one costs 50 steps.
        frame_stack: how many frames they see.
        make: gives a Gymnasium environment with pixels (H, W, 3) uint8; or one such function for each policy.
        seeds: of the E episodes.
        steps: at most, per episode.
        workers: processes, by default one a core.
        recorded: how many frames of the last policy's first episode to return.
    Returns: returns float64 (P, E), recorded frames uint8 (recorded, H, W, 3), their rewards (recorded,).
    Raises what make raises, before any work.
    """
    # Two halves: while the policy looks at one, the workers step the other.
    halves = [half for half in np.array_split(np.arange(len(seeds)), 2) if len(half)]
    makes = make if isinstance(make, Sequence) else [make] * len(policies)
    kinds = list(dict.fromkeys(makes))  # such as with training and with test videos
    rewards, kept = np.zeros((len(policies), steps, len(seeds))), []
    groups = [[kind] * len(half) for kind in kinds for half in halves]
    with (Environments(groups, workers) as environments, _one_thread(),  # forks, so before any use of a GPU
          Progress(rewards.size, name, " frames") as bar):
        device = best_device()
        for number, (policy, own) in enumerate(zip(policies, makes, strict=True)):
            first = kinds.index(own) * len(halves)
            agents = [Agent(policy, frame_stack, device) for _ in halves]
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
    return rewards.sum(1), np.stack(kept) if kept else None, rewards[-1, :recorded, 0]


class Environments:
    """Groups of environments in worker processes: `send` a group's requests, `receive` its answers. A context manager.

    The workers step other groups while one group's answers are used.

    Args:
        groups: of functions that give an environment each.
        workers: processes, by default one a core.
    """

    def __init__(self, groups: Sequence[Sequence[Callable]], workers: int | None = None):
        workers = min(workers or len(cores()), max(map(len, groups)))
        before = np.cumsum([0, *map(len, groups)])  # shared out over all groups: no worker has two more than another
        self._shares = [[range((worker - first) % workers, len(group), workers) for worker in range(workers)]
                        for first, group in zip(before, groups, strict=False)]
        context = multiprocessing.get_context("fork")  # no second import of everything; workers never touch torch
        self._pipes, self._processes = [], []
        for worker in range(workers):
            pipe, far = context.Pipe()
            own = [[group[i] for i in shares[worker]] for group, shares in zip(groups, self._shares, strict=True)]
            process = context.Process(target=_work, args=(far, own), daemon=True)
            process.start()
            far.close()
            self._pipes.append(pipe)
            self._processes.append(process)

    def __enter__(self):
        try:
            for worker in range(len(self._pipes)):
                self._answer(worker)  # that its environments are there
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()

    def send(self, group: int, requests: Sequence[int | np.ndarray]) -> None:
        """Start an episode in every environment of the group (its seed, an int) or act in it (an action, (A,))."""
        for worker, (pipe, share) in enumerate(zip(self._pipes, self._shares[group], strict=True)):
            try:
                pipe.send((group, [requests[i] for i in share]))
            except OSError:
                raise _death(worker) from None

    def receive(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames uint8 (B, H, W, 3) and rewards (B,) of the last requests; a finished episode keeps its last frame."""
        answers = [self._answer(worker) for worker in range(len(self._pipes))]
        order = np.argsort(np.concatenate([list(share) for share in self._shares[group]]))
        frames, rewards = ([value for answer in answers for value in answer[part]] for part in range(2))
        return np.stack(frames)[order], np.array(rewards)[order]

    def _answer(self, worker):
        try:
            answer = self._pipes[worker].recv()
        except (EOFError, OSError):
            raise _death(worker) from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _death(worker):
    return UserError(f"eval: worker process {worker} died, perhaps for lack of memory; lower eval.episodes "
                     "(some 60 MB for every episode), then run `dvc repro`")


@contextmanager
def _one_thread():
    """One thread for the policies: the workers use the cores, and sums have the same order on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _work(pipe, makes):
    """A worker: make the environments, then answer requests until the pipe closes."""
    # The pipe does not close when the parent is killed: this worker and later ones have its other end too.
    end_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it and ends the workers
    try:
        groups = [[_Episode(make()) for make in group] for group in makes]
        pipe.send(None)
        while True:
            group, requests = pipe.recv()
            answers = [episode.answer(request) for episode, request in zip(groups[group], requests, strict=True)]
            pipe.send(([frame for frame, _ in answers], [reward for _, reward in answers]))
    except (EOFError, BrokenPipeError):
        pass  # the parent is gone
    except Exception as error:
        pipe.send(error)


class _Episode:
    """One environment, from a seed to the end of its episode."""

    def __init__(self, environment):
        self.environment = environment

    def answer(self, request):
        if isinstance(request, int):
            self.frame, _ = self.environment.reset(seed=request)
            self.ended, reward = False, 0.0
        elif self.ended:
            reward = 0.0
        else:
            self.frame, reward, terminated, truncated, _ = self.environment.step(request)
            self.ended = terminated or truncated
        return self.frame, reward

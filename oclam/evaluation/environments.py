"""Environments in worker processes, which step while the policy looks at the frames of others."""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence

import numpy as np

from oclam.errors import UserError
from oclam.machine import cores, end_with_parent


class Environments:
    """Groups of environments in worker processes: `send` a group's requests, `receive` its answers. A context manager.

    The workers step other groups while one group's answers are used.

    Args:
        groups: of functions that make an environment each; picklable, where this process has used OpenGL.
        workers: processes, by default one a core.
    """

    def __init__(self, groups: Sequence[Sequence[Callable]], workers: int | None = None):
        workers = min(workers or len(cores()), max(map(len, groups)))
        before = np.cumsum([0, *map(len, groups)])  # shared out over all groups: no worker has two more than another
        self._shares = [[range((worker - first) % workers, len(group), workers) for worker in range(workers)]
                        for first, group in zip(before, groups, strict=False)]
        # Forked workers import nothing again, but must not inherit OpenGL, whose threads are not copied.
        context = multiprocessing.get_context("spawn" if "OpenGL" in sys.modules else "fork")
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
            process.kill()  # SIGTERM is lost where it finds an inherited handler just before a read
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

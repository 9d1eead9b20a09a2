"""Times of pieces of work, one beside the other."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


def seconds(work: Mapping[str, Callable[[], object]], rounds: int = 5,
            clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Median seconds of each function; all take turns, so that noise hits all alike, and a first round is not counted.

    Args:
        work: the functions by name.
        rounds: how many times each is measured.
        clock: `time.process_time` to leave out what other processes take.
    """
    taken = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, call in work.items():
            started = clock()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken[name].append(clock() - started)
    return {name: median(values[1:]) for name, values in taken.items()}


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large matrix product."""
    edge = 1024 if device.type == "cpu" else 8192
    a = torch.randn(edge, edge, device=device, dtype=dtype)
    return 2 * edge**3 / seconds({"product": lambda: a @ a})["product"]

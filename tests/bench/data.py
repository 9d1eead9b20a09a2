"""Training batches, (t, t+1, t+k) in stacks of 3: `python -m tests.bench.data` compares ways of making them."""

import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from oclam.datasets import Frames, TripleSampler, stack_index
from oclam.memory import keep_freed_memory

EPISODES, STEPS, BATCH, STACK, OFFSET = 16, 1000, 512, 3, 10


class PerItem(TorchDataset):
    """The usual way: one sample at a time, stacked by DataLoader."""

    def __init__(self, pixels):
        self.pixels = pixels

    def __len__(self):
        return EPISODES * (STEPS - 1)

    def stack(self, episode, t):
        return np.stack([self.pixels[episode, max(t - back, 0)] for back in reversed(range(STACK))])

    def __getitem__(self, item):
        episode, t = divmod(item, STEPS - 1)
        future = min(t + np.random.randint(1, OFFSET + 1), STEPS - 1)
        return self.stack(episode, t), self.stack(episode, t + 1), self.stack(episode, future)


def rates(candidates, synchronise, rounds=9):
    """Batches a second of each, the median of rounds in which all take turns, so that noise hits all alike."""
    seconds = {name: [] for name in candidates}
    for step in range(-1, rounds):
        for name, make in candidates.items():
            start = time.perf_counter()
            make(max(step, 0))
            synchronise()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1 / median(values[1:]) for name, values in seconds.items()}


def main():
    torch.set_num_threads(1)
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (EPISODES, STEPS, 64, 64, 3), dtype=np.uint8)
    rows = torch.from_numpy(pixels).flatten(0, 1)
    sampler = TripleSampler(EPISODES, STEPS, BATCH, OFFSET, seed=0)
    items = iter(DataLoader(PerItem(pixels), batch_size=BATCH, shuffle=True, drop_last=True))
    copied = torch.empty(BATCH * 3 * STACK, *rows.shape[1:], dtype=torch.uint8)
    source = torch.randint_like(copied, 256)

    def triple(frames, step):
        return [frames.gather(stack_index(index, STACK, STEPS)) for index in sampler.batch(step)]

    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        pixels.tofile(path)
        mapped = torch.from_file(str(path), shared=True, size=rows.numel(), dtype=torch.uint8).view(rows.shape)
        candidates = {
            "Dataset.__getitem__ and DataLoader": lambda step: [part.to(device) for part in next(items)],
            "mapped file": lambda step: triple(Frames(mapped, device), step),
            "host memory": lambda step: triple(Frames(rows, device), step),
            "plain copy of the same bytes": lambda step: copied.copy_(source).to(device),
        }
        if device.type == "cuda":
            on_gpu = Frames(rows.to(device), device)
            candidates["GPU memory"] = lambda step: triple(on_gpu, step)
        found = rates(candidates, torch.cuda.synchronize if device.type == "cuda" else lambda: None)
    naive = found["Dataset.__getitem__ and DataLoader"]
    print(f"batch {BATCH}, stack {STACK}, one thread, to {device.type}")
    for name, rate in found.items():
        speed = rate * copied.nbytes / 1e9
        print(f"{name:36s} {rate * BATCH:10,.0f} samples/s {speed:8.2f} GB/s {rate / naive:6.1f} x")


if __name__ == "__main__":
    main()

"""Training batches, (t, t+1, t+k) in stacks of 3: `python -m tests.bench.data` compares ways of making them."""

from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from oclam.datasets import Frames, TripleSampler, stack_index
from oclam.machine import keep_freed_memory
from tests.bench import timing

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

    def triples(frames):
        steps = count()
        return lambda: [frames.gather(stack_index(index, STACK, STEPS)) for index in sampler.batch(next(steps))]

    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        pixels.tofile(path)
        mapped = torch.from_file(str(path), shared=True, size=rows.numel(), dtype=torch.uint8).view(rows.shape)
        candidates = {
            "Dataset.__getitem__ and DataLoader": lambda: [part.to(device) for part in next(items)],
            "mapped file": triples(Frames(mapped, device)),
            "host memory": triples(Frames(rows, device)),
            "plain copy of the same bytes": lambda: copied.copy_(source).to(device),
        }
        if device.type == "cuda":
            candidates["GPU memory"] = triples(Frames(rows.to(device), device))
        found = timing.seconds(candidates, rounds=9)
    naive = found["Dataset.__getitem__ and DataLoader"]
    print(f"batch {BATCH}, stack {STACK}, one thread, to {device.type}")
    for name, seconds in found.items():
        print(f"{name:36s} {BATCH / seconds:10,.0f} samples/s {copied.nbytes / seconds / 1e9:8.2f} GB/s "
              f"{naive / seconds:6.1f} x")


if __name__ == "__main__":
    main()

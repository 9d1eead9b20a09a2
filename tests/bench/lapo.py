"""Training steps of the latent action models: `python -m tests.bench.lapo` compares ways of doing the same step.

The same model and batch, trained by a per-item dataset in a DataLoader and an eager float32 model, and as the
stages do it; the latter once more on one fixed batch, which shows how much of the step is data. On a GPU also the
paper's sizes: time of a step, samples a second, share of the matrix peak, peak memory.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import torch
import zarr
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from oclam.datasets import Frames, FrameStacks, TripleSampler
from oclam.latent_actions.models import ImageLatentActionModel, SlotLatentActionModel
from oclam.latent_actions.observations import FrameObservations, SlotObservations
from oclam.latent_actions.training import train_model
from oclam.machine import keep_freed_memory
from oclam.params import read
from oclam.training import EMULATING
from tests import Unsaved
from tests.bench import timing

EPISODES, STEPS, ACTIONS = 4, 250, 6
COUNT = 20  # steps measured at once
PAPER = SimpleNamespace(latent_dim=8192, frame_stack=3, future_offset=10, encoder_scale=6, residual_blocks=2,
                        batch_size=512)


class PerItem(Dataset):
    """The usual way: one sample at a time, from an array in memory or a Zarr store."""

    def __init__(self, pixels, actions, stack, offset):
        self.pixels, self.actions, self.stack, self.offset = pixels, actions, stack, offset

    def __len__(self):
        return EPISODES * (STEPS - 1)

    def observation(self, episode, t):
        frames = [self.pixels[episode, max(t - back, 0)] for back in reversed(range(self.stack))]
        return torch.from_numpy(np.concatenate(frames, -1)).permute(2, 0, 1).float() / 127.5 - 1

    def __getitem__(self, item):
        episode, t = divmod(item, STEPS - 1)
        future = min(t + np.random.randint(1, self.offset + 1), STEPS - 1)
        return (*(self.observation(episode, at) for at in (t, t + 1, future)), self.actions[episode, t])


class Fixed:
    """An observation that costs nothing to make."""

    def __init__(self, observe, batch_size):
        self.images = observe(torch.arange(batch_size))

    def __call__(self, t):
        return self.images

    def loss_weight(self, t):
        return None


def image_model(sizes, device):
    with torch.device(device):
        return ImageLatentActionModel(3 * sizes.frame_stack, 64, sizes.latent_dim, sizes.encoder_scale,
                                      sizes.residual_blocks)


def per_item(pixels, actions, sizes, device):
    """A function that trains `count` steps the usual way."""
    model, probe = image_model(sizes, device), torch.nn.Linear(sizes.latent_dim, ACTIONS, device=device)
    optimiser, probe_optimiser = torch.optim.Adam(model.parameters()), torch.optim.Adam(probe.parameters())
    items = PerItem(pixels, actions, sizes.frame_stack, sizes.future_offset)
    loader = DataLoader(items, sizes.batch_size, shuffle=True, drop_last=True)

    def steps(count):
        batches = iter(loader)
        for _ in range(count):
            now, target, future, action = (part.to(device) for part in next(batches))
            latent, prediction = model(now, future)
            loss = F.mse_loss(prediction, target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            probe_loss = F.mse_loss(probe(latent.detach()), action)
            probe_optimiser.zero_grad()
            probe_loss.backward()
            probe_optimiser.step()
            loss.item(), probe_loss.item()
    return steps


def staged(model, observe, actions, sizes, compute):
    """A function that trains `count` steps as the stages do."""
    sampler = TripleSampler(EPISODES, STEPS, sizes.batch_size, sizes.future_offset, seed=0)

    def steps(count):
        settings = SimpleNamespace(epochs=count / sampler.steps_per_epoch, warmup_epochs=0, learning_rate=1e-4)
        train_model(model, observe, sampler, torch.from_numpy(actions).flatten(0, 1), settings, compute, Unsaved())
    return steps


def seconds_a_step(candidates):
    found = timing.seconds({name: partial(steps, COUNT) for name, steps in candidates.items()}, rounds=3)
    return {name: seconds / COUNT for name, seconds in found.items()}


def compare(pixels, actions, sizes, device, compute):
    frames = Frames(torch.from_numpy(pixels).flatten(0, 1).to(device), device)
    observe = FrameObservations(FrameStacks(frames, stack=sizes.frame_stack, steps=STEPS))

    def model():
        return image_model(sizes, device).to(memory_format=torch.channels_last)

    with TemporaryDirectory() as folder:
        store = zarr.create_group(Path(folder)).create_array(
            "pixels", shape=pixels.shape, dtype="uint8", chunks=(1, 50, *pixels.shape[2:]))
        store[:] = pixels
        candidates = {
            "per item, from Zarr": per_item(store, actions, sizes, device),
            "per item, from memory": per_item(pixels, actions, sizes, device),
            "oclam": staged(model(), observe, actions, sizes, compute),
            "oclam, one fixed batch": staged(model(), Fixed(observe, sizes.batch_size), actions, sizes, compute),
        }
        if device.type == "cuda" or torch.backends.cpu.get_cpu_capability() not in EMULATING:
            bfloat16 = SimpleNamespace(precision="bfloat16", compile=compute.compile)
            candidates["oclam, bfloat16"] = staged(model(), observe, actions, sizes, bfloat16)
        found = seconds_a_step(candidates)
    print(f"image model, scale {sizes.encoder_scale}, {sizes.residual_blocks} residual blocks, latent "
          f"{sizes.latent_dim}, batch {sizes.batch_size}, {compute.precision}, {device.type}, "
          f"{torch.get_num_threads()} threads")
    ours = found["oclam"]
    for name, seconds in found.items():
        print(f"{name:24s} {1e3 * seconds:9.1f} ms/step {sizes.batch_size / seconds:10,.0f} samples/s "
              f"{seconds / ours:6.2f} x oclam")
    print(f"data takes {max(1 - found['oclam, one fixed batch'] / ours, 0):.0%} of oclam's step\n")


def paper_sizes(device, pixels, actions):
    """Both models at the paper's sizes and batches."""
    peak = timing.matrix_peak(device, torch.bfloat16)
    print(f"{torch.cuda.get_device_name()}: {peak / 1e12:.0f} TFLOP/s in a bfloat16 product")
    frames = Frames(torch.from_numpy(pixels).flatten(0, 1).to(device), device)
    slots = Frames(torch.randn(EPISODES * STEPS, 128, device=device).half(), device)
    compute = SimpleNamespace(precision="bfloat16", compile=True)
    for name, batch, observe, build in (
            ("images", 512, FrameObservations(FrameStacks(frames, stack=3, steps=STEPS)),
             lambda: image_model(PAPER, device)),
            ("slots", 8192, SlotObservations(slots, 0.0, 1.0),
             lambda: SlotLatentActionModel(128, 8192, 1024, 4).to(device))):
        model = build().to(memory_format=torch.channels_last)
        now = observe(torch.arange(batch) % (EPISODES * STEPS))
        with FlopCounterMode(display=False) as counter, torch.autocast("cuda", torch.bfloat16):
            latent, prediction = model(now, now)
            prediction.sum().backward()
        del now, latent, prediction
        torch.cuda.reset_peak_memory_stats()
        sizes = SimpleNamespace(batch_size=batch, future_offset=10)
        seconds = seconds_a_step({name: staged(model, observe, actions, sizes, compute)})[name]
        print(f"{name}, batch {batch}: {1e3 * seconds:.1f} ms/step, {batch / seconds:,.0f} samples/s, "
              f"{counter.get_total_flops() / seconds / peak:.0%} of the matrix peak, "
              f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most")


def main():
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (EPISODES, STEPS, 64, 64, 3), dtype=np.uint8)
    actions = rng.normal(size=(EPISODES, STEPS, ACTIONS)).astype(np.float32)
    params = read()
    compare(pixels, actions, params.lapo, device, params.compute)
    if device.type == "cuda":
        compare(pixels, actions, PAPER, device, SimpleNamespace(precision="bfloat16", compile=True))
        paper_sizes(device, pixels, actions)


if __name__ == "__main__":
    main()

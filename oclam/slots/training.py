"""What the stages ocp and steve share: the training of a model of slots on clips."""

import torch

from oclam.datasets import Frames
from oclam.seeding import torch_rng
from oclam.slots.clips import Clips
from oclam.training import exponential_decay, train, update

__all__ = ["clips_of", "train_slots"]


def clips_of(dataset, observer, settings, *, seed, device, forward):
    """The clips to train on, of the episodes that are not held out.

    Args: dataset, an `oclam.datasets.Dataset`; observer, uint8 (N, H, W, 3) -> the model's inputs (N, ...); settings,
    with the section ocp's keys on clips; forward, the context manager of the forward pass (precision).
    """
    def observe(images):
        with forward():
            return observer(images)

    frames = Frames.load(dataset.pixels, range(dataset.episodes), device)
    return Clips(frames, observe, episodes=dataset.episodes, steps=dataset.steps, length=settings.clip_length,
                 batch_size=settings.batch_size, kept=settings.kept_clips, seed=seed)


def train_slots(model, clips, settings, checkpoint, *, seed, forward, compiled):
    """Train on clips; the checkpoint keeps the trained model.

    Args: model, a `VideoSaur` or `Steve` on its device; clips, an `oclam.slots.clips.Clips`; settings, with the section
    ocp's keys on training; forward, the context manager of the forward pass (precision); compiled, whether to compile
    the model.
    Returns rows of step, loss and the loss's parts.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    losses_of = torch.compile(model) if compiled else model

    def step(i):
        clips_of_step = clips(i)
        noise = torch.randn(settings.batch_size, settings.slots, settings.slot_dim,
                            generator=torch_rng("slot noise", seed, i))
        order = torch.randperm(model.grid**2, generator=torch_rng("decoded patches", seed, i))
        decoded = order[:settings.decoded_patches].sort().values  # all in order when null
        with forward():
            losses = losses_of(*clips_of_step, noise.to(device), decoded.to(device))
        share = exponential_decay(i, settings.decay_steps, settings.warmup_steps)
        update(optimizer, losses["loss"], settings.learning_rate * share, settings.clip_norm)
        return losses

    parts = {"model": model, "optimizer": optimizer}
    rows = train(step, settings.steps, parts, checkpoint, samples=settings.batch_size * settings.clip_length,
                 unit="frames")
    checkpoint.save(parts, step=settings.steps, rows=rows)
    return rows

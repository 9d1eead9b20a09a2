"""Training of object-centric models on clips."""

import math
from collections.abc import Callable

import torch
from torch import distributed

from oclam.checkpoint import Checkpoint
from oclam.datasets import Dataset, Frames
from oclam.seeding import seed_of, torch_rng
from oclam.slots.clips import Clips
from oclam.slots.published_steve import PublishedSteve
from oclam.training import exponential_decay, own_part, train, update

# Of the learning rate, where slots start from clusters. Adam moves a weight by the rate however small its gradient, so
# at the full rate the gradients of a decoder that has learned nothing yet took the slots apart.
SLOT_RATE = 0.1


def clips_of(dataset: Dataset, observer: Callable, settings, *, seed: int, device: torch.device,
             forward: Callable) -> Clips:
    """The clips to train on, of the episodes that are not held out.

    Args:
        observer: uint8 (N, H, W, 3) -> the model's inputs (N, ...).
        settings: with the section ocp's parameters of clips.
        forward: gives the context manager of a forward pass (precision).
    """
    def observe(images):
        with forward():
            return observer(images)

    frames = Frames.load(dataset.pixels, range(dataset.episodes), device)
    return Clips(frames, observe, episodes=dataset.episodes, steps=dataset.steps, length=settings.clip_length,
                 batch_size=settings.batch_size, kept=settings.kept_clips, seed=seed)


def train_slots(model: torch.nn.Module, clips: Clips, settings, checkpoint: Checkpoint, *, seed: int,
                forward: Callable, compiled: bool) -> list[dict]:
    """Train a model on clips: rows of step, loss and the parts of the loss.

    Args:
        model: a `VideoSaur`, `SlotContrast`, `Steve` or `PublishedSteve`, trained in place.
        settings: with the section ocp's parameters of training.
        forward: gives the context manager of a forward pass (precision).
        compiled: whether to compile the model.
    """
    device = next(model.parameters()).device
    published = isinstance(model, PublishedSteve)
    clustered = not (published or model.slots.attention.published)
    optimizer = torch.optim.Adam(model.groups() if published else _groups(model), lr=settings.learning_rate)
    losses_of = torch.compile(model) if compiled else model

    def step(i):
        if i == 0 and clustered:
            first = clips(0, whole=True)[0]
            with forward(), torch.no_grad():
                projected = model.project(first)
            model.slots.start_from_clusters(projected, seed_of("clusters", seed))
            if distributed.is_initialized():  # the last bits of a GPU's sums differ from process to process
                distributed.broadcast(model.slots.init.mean.data, 0)
        clips_of_step = clips(i)
        noise = torch.randn(settings.batch_size, settings.slots, settings.slot_dim,
                            generator=torch_rng("slot noise", seed, i))
        order = torch.randperm(model.grid**2, generator=torch_rng("decoded patches", seed, i))
        decoded = order[:settings.decoded_patches].sort().values  # all in order when null
        if published:
            rates = model.schedule(i, settings.learning_rate, settings.warmup_steps, settings.decay_steps)
        else:
            rate = settings.learning_rate * exponential_decay(i, settings.decay_steps, settings.warmup_steps)
            rates = [SLOT_RATE * rate if clustered else rate, rate]
        with forward():
            losses = losses_of(*clips_of_step, own_part(noise).to(device), decoded.to(device))
        update(optimizer, losses["loss"], rates, settings.clip_norm, math.inf if published else 2.0)
        return losses

    parts = {"model": model, "optimizer": optimizer}
    return train(step, settings.steps, parts, checkpoint, samples=settings.batch_size * settings.clip_length,
                 unit="frames")


def _groups(model):
    """The optimizer's groups: what forms the slots, and the rest."""
    forming = [*model.features.parameters(), *model.slots.parameters()]
    known = set(map(id, forming))
    return [{"params": forming}, {"params": [p for p in model.parameters() if id(p) not in known]}]

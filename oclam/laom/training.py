"""Training of LAOM (arXiv 2502.00379): augmentations, a target encoder that follows slowly, and few true actions."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from oclam.checkpoint import Checkpoint
from oclam.datasets import Prefetch, TripleSampler
from oclam.laom.augmentation import augment
from oclam.laom.models import LaomModel
from oclam.latent_actions.probes import OnlineProbe
from oclam.latent_actions.training import learn, open_frames
from oclam.params import Compute
from oclam.seeding import seed_of, torch_rng
from oclam.training import autocast, average, best_device, linear_decay, own_part, train, update, update_counts


@dataclass(frozen=True)
class Labels:
    """The true actions of few trajectories, for laom-labels.

    Args:
        episodes: of the labelled trajectories.
        units: offset and scale of their actions, as `Dataset.action_units`.
        batch_size: how many triples a step takes from them.
        coefficient: the weight of their error in the loss.
    """

    episodes: list[int]
    units: tuple
    batch_size: int
    coefficient: float


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Move the target's parameters towards the source's by this share of the way: an exponential moving average."""
    for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
        slow.lerp_(fast, rate)


def train_laom(model: nn.Module, observe: Callable, sampler: TripleSampler, actions: torch.Tensor, settings,
               compute: Compute, checkpoint: Checkpoint, labels: Labels | None = None,
               units: tuple = (0.0, 1.0)) -> list[dict]:
    """`oclam.latent_actions.training.train_model` for LAOM, which predicts the target encoder's embedding of t+1.

    With labels, a linear layer also predicts their true actions from the latent actions of augmented triples.

    Returns: rows of step, loss, probe_mse, and state_variance, of the embeddings in a batch: 0 where they collapsed.
    """
    device = next(model.parameters()).device
    actions, latent_dim = actions.to(device), model.sizes["latent_dim"]
    probe, head = OnlineProbe(latent_dim, actions, units), nn.Linear(latent_dim, actions.shape[1], device=device)
    target = deepcopy(model.encoder).requires_grad_(False)
    optimizer = torch.optim.Adam([*model.parameters(), *probe.parameters(), *head.parameters()], fused=True)
    steps, warmup = update_counts(settings, sampler.steps_per_epoch)
    forward = torch.compile(model) if compute.compile else model
    if labels:
        offset, scale = (torch.as_tensor(unit, device=device) for unit in labels.units)
        places = torch.tensor(labels.episodes) * sampler.steps
        few = TripleSampler(len(labels.episodes), sampler.steps, labels.batch_size, sampler.future_offset,
                            f"labels {sampler.seed}")

    def make(i):
        t, after, future = map(own_part, sampler.batch(i))
        indices, owners = [t, after, future], [t]
        if labels:
            now, _, later = (places[index // few.steps] + index % few.steps for index in few.batch(i))
            indices, owners = [*indices, now, later], [t, now]
        images = augment(observe(torch.cat(indices)), settings.augmentation, torch_rng("augment", sampler.seed, i))
        return images.split([len(part) for part in indices]), [actions[owner.to(device)] for owner in owners]

    batch = Prefetch(make)
    if settings.centred:  # what all frames share is most of an embedding; latents would become a constant to predict it
        with torch.no_grad():
            model.centre.copy_(_mean(model.encoder(batch(0)[0][0])))

    def step(i):
        (now, after, future, *labelled), (action, *true) = batch(i)
        with autocast(device, compute.precision):
            latent, prediction, state = forward(now, future)
            wanted = target(after) - model.centre
            few_latents = model.idm(*labelled) if labels else None
        loss = F.mse_loss(prediction.float(), wanted.float())
        if labels:
            loss = loss + labels.coefficient * F.mse_loss(head(few_latents.float()), (true[0] - offset) / scale)
        probe_mse = probe.error(latent, action)
        update(optimizer, loss + probe_mse, settings.learning_rate * linear_decay(i, steps, warmup))
        follow(target, model.encoder, settings.target_rate)
        state = state.detach().float()
        between = (state.mean(0) - _mean(state)).square()  # 0 where one process has the whole batch
        return {"loss": loss, "probe_mse": probe_mse, "state_variance": (state.var(0, correction=0) + between).mean()}

    parts = {"model": model, "target": target, "probe": probe, "head": head, "optimizer": optimizer}
    return train(step, steps, parts, checkpoint, samples=sampler.batch_size)


def _mean(states):
    """The mean (...) over the whole batch, of which each process has an equal part (B, ...)."""
    mean = states.mean(0)
    average([mean])
    return mean


def learn_laom(task: str, seed: int, variant: str, params: SimpleNamespace, labels: Labels | None = None) -> None:
    """Train laom, laom-masks or laom-labels, and write its outputs.

    params: the sections compute and laom; of lapo latent_dim, frame_stack, future_offset, encoder_scale and
    residual_blocks.
    """
    lapo, device = params.lapo, best_device(params.compute.threads)
    dataset, observe, inputs = open_frames(task, seed, variant, lapo.frame_stack, device)
    torch.manual_seed(seed_of("laom", task, seed))
    with device:
        model = LaomModel(3 * lapo.frame_stack, dataset.pixels.shape[2], lapo.latent_dim, lapo.encoder_scale,
                          lapo.residual_blocks, params.laom.hidden_dim, params.laom.expansion)
    model.to(memory_format=torch.channels_last)
    learn(task, seed, variant, params, params.laom, model, observe, dataset, inputs, partial(train_laom, labels=labels))

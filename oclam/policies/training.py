"""Behaviour cloning by regression: an actor on latent or true actions, a decoder on few labelled trajectories."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
import zarr
from torch import nn
from torch.nn import functional as F

from oclam.checkpoint import Checkpoint
from oclam.datasets import Dataset, Frames, FrameSampler, FrameStacks, Prefetch, mean_and_deviation, transition_of
from oclam.params import Compute
from oclam.policies.files import Card
from oclam.policies.networks import Actor, Policy
from oclam.seeding import seed_of
from oclam.training import autocast, linear_decay, own_part, train, update

# An expert's actions have noise and are then clipped to -1..1. Near a limit their mean lies inside it and their median
# on it: squared errors shrink actions, absolute errors do not.
LOSSES = {"squares": F.mse_loss, "absolute": F.l1_loss}


def true_actions(dataset: Dataset, episodes: Sequence[int], device: torch.device) -> Frames:
    """The normalised actions of these episodes, one after the other, (frames, A) on the device."""
    return Frames(torch.from_numpy(dataset.normalised_actions(episodes)).flatten(0, 1).to(device), device)


def latent_targets(latents: zarr.Array, episodes: int, published: bool,
                   device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """The stored latent actions of the first `episodes`, as a function of flat indices of frames: (B,) -> (B, L).

    Nothing in LAPO's loss fixes their mean and scale: on masked frames the mean was 50 deviations from 0. Unless
    `published`, they are returned less their mean and divided by one number, so that their mean variance is 1.

    latents: (E, T - 1, L).
    """
    frames, offset, scale = Frames.load(latents, range(episodes), device), 0.0, 1.0
    if not published:
        mean, std = mean_and_deviation(latents, episodes)
        offset, scale = mean.float().to(device), float(std.square().mean().sqrt())
    return lambda t: (frames.gather(transition_of(t, latents.shape[1] + 1)).float() - offset) / scale


def new_actor(card: Card, published: bool, device: torch.device) -> Actor:
    """An untrained actor; unless `published`, its head is 0, so that it predicts 0 at first.

    A random head's first errors are large, and the updates that reduce them kill units of the ReLU6 before the head
    (reports/measurements.md, What limits cloning).
    """
    torch.manual_seed(seed_of("bc", card.task, card.seed))
    actor = card.actor().to(device)
    if not published:
        nn.init.zeros_(actor.head.weight)
    return actor


def regress(network: nn.Module, inputs: Callable, targets: Callable, sampler: FrameSampler, steps: int,
            learning_rate: float, checkpoint: Checkpoint, compute: Compute, warmup: float = 0,
            loss_of: Callable = F.mse_loss) -> list[dict]:
    """Train the network to predict targets from inputs by Adam, with linear warm-up and decay to 0.

    Args:
        network: trained in place.
        inputs, targets: functions of flat indices (B,), such as `oclam.datasets.FrameStacks`.
        sampler: gives the indices of a step.
        steps, warmup: updates in all, and of the warm-up.
        loss_of: one of `LOSSES`.
    Returns: rows of step and loss.
    """
    network.to(memory_format=torch.channels_last).train()
    device = next(network.parameters()).device
    model = torch.compile(network) if compute.compile else network
    optimizer = torch.optim.Adam(network.parameters(), fused=True)

    def load(i):
        index = own_part(sampler.batch(i))
        return inputs(index), targets(index).float()

    batch = Prefetch(load)

    def step(i):
        x, y = batch(i)
        with autocast(device, compute.precision):
            loss = loss_of(model(x), y)
        update(optimizer, loss, learning_rate * linear_decay(i, steps, warmup))
        return {"loss": loss}

    parts = {"network": network, "optimizer": optimizer}
    return train(step, steps, parts, checkpoint, samples=sampler.batch_size)


@torch.no_grad()
def predict(network: nn.Module, inputs: Callable, count: int, batch_size: int, compute: Compute) -> torch.Tensor:
    """The network's outputs for the flat indices 0..count-1, in order: (count, ...) on the network's device."""
    network.eval()
    device = next(network.parameters()).device
    with autocast(device, compute.precision):
        return torch.cat([network(inputs(index)) for index in torch.arange(count).split(batch_size)])


def updates_of(settings, frames: int) -> int:
    """How many updates train on so many labelled frames: `updates`, or more where `epochs` passes need more."""
    return max(settings.updates, round(settings.epochs * frames / settings.batch_size))


def fine_tune(start: Callable[[], Policy], card: Card, dataset: Dataset, settings, compute: Compute,
              checkpoints: dict[int, Checkpoint], frozen: bool,
              device: torch.device) -> Iterator[tuple[Policy, Card, list[dict]]]:
    """Train one policy for every label budget on the true actions of few trajectories: policy, card, loss rows.

    Args:
        start: gives the policy to begin with.
        card: the policy's description, without a budget.
        settings: the section finetune.
        checkpoints: one for each budget.
        frozen: train the decoder alone, on the actor's outputs for the labelled frames, which are computed once.
    """
    steps = dataset.steps
    labelled = dataset.labelled(max(settings.budgets), card.seed, "finetune.budgets")
    inputs = FrameStacks(Frames.load(dataset.pixels, labelled, device), stack=card.frame_stack, steps=steps)
    if frozen:
        latents = predict(start().actor.to(device), inputs, len(labelled) * steps, settings.batch_size, compute)
        inputs = Frames(latents, device).gather
    for budget in settings.budgets:
        purpose = f"finetune {card.task} {card.seed} {budget}"
        torch.manual_seed(seed_of(purpose))
        policy = start().to(device)
        if settings.decoder_init == "default":
            for layer in list(policy.decoder)[::2]:
                layer.reset_parameters()
        actions = true_actions(dataset, labelled[:budget], device)
        sampler = FrameSampler(budget, steps, settings.batch_size, purpose)
        rows = regress(policy.decoder if frozen else policy, inputs, actions.gather, sampler,
                       updates_of(settings, budget * steps), settings.learning_rate, checkpoints[budget], compute,
                       loss_of=LOSSES[settings.loss])
        policy.rescale(*map(torch.from_numpy, dataset.action_units(labelled[:budget])))
        yield policy, replace(card, budget=budget), rows

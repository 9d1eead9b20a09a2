"""Cloning by regression: an actor on stored latents or true actions, a decoder on few labelled trajectories."""

from dataclasses import replace

import torch
from torch.nn import functional as F

from oclam.datasets import Frames, FrameSampler, FrameStacks, Prefetch
from oclam.errors import UserError
from oclam.memory import keep_freed_memory
from oclam.seeding import seed_of, torch_rng
from oclam.training import autocast, linear_decay, train, update

__all__ = ["draw_labelled", "fine_tune", "predict", "regress", "seeded", "true_actions"]


def true_actions(dataset, episodes, device):
    """The actions of these episodes, one after the other, as rows (frames, A) on the device."""
    return Frames(torch.from_numpy(dataset.actions[list(episodes)]).flatten(0, 1).to(device), device)


def seeded(make, *purpose):
    """make(), with torch's random numbers of this purpose alone."""
    torch.manual_seed(seed_of(*purpose))
    return make()


def draw_labelled(episodes, budgets, seed):
    """Which trajectories are labelled: the first b of the returned list of max(budgets) are those of budget b.

    A larger budget so contains every smaller one, and all variants of one seed see the same. Raises UserError when a
    budget is larger than the dataset.
    """
    if max(budgets) > episodes:
        raise UserError(f"finetune.budgets: {max(budgets)} given, the dataset has {episodes} training trajectories")
    return torch.randperm(episodes, generator=torch_rng("labelled", seed))[:max(budgets)].tolist()


def regress(network, inputs, targets, sampler, steps, learning_rate, checkpoint, compute, warmup=0):
    """Teach the network to predict targets from inputs: mean squared error, Adam, linear warm-up and decay to 0.

    Args: inputs and targets, functions of flat indices (B,) that give what the network takes and gives; sampler, a
    FrameSampler; warmup, steps; compute, the parameters' section. Returns the loss rows of `oclam.training.train`.
    """
    keep_freed_memory()
    network.to(memory_format=torch.channels_last).train()
    device = next(network.parameters()).device
    model = torch.compile(network) if compute.compile else network
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)

    def load(i):
        index = sampler.batch(i)
        return inputs(index), targets(index).float()

    batch = Prefetch(load)

    def step(i):
        x, y = batch(i)
        with autocast(device, compute.precision):
            loss = F.mse_loss(model(x), y)
        update(optimizer, loss, learning_rate * linear_decay(i, steps, warmup))
        return {"loss": loss}

    parts = {"network": network, "optimizer": optimizer}
    rows = train(step, steps, parts, checkpoint, samples=sampler.batch_size)
    checkpoint.save(parts, step=steps, rows=rows)  # a stage of several fits goes on from the last one finished
    return rows


@torch.no_grad()
def predict(network, inputs, count, batch_size, compute):
    """The network's output for the flat indices 0..count-1, in order: (count, ...), kept on the network's device."""
    network.eval()
    device = next(network.parameters()).device
    with autocast(device, compute.precision):
        return torch.cat([network(inputs(index)) for index in torch.arange(count).split(batch_size)])


def fine_tune(start, card, dataset, settings, compute, checkpoints, frozen, device):
    """Train one policy a label budget on the true actions of few trajectories, `settings.updates` steps each.

    Args: start, gives a Policy to begin with; card, its description; settings, the section finetune; checkpoints, one a
    budget; frozen, train the decoder alone: what the actor says about the labelled frames is then worked out once.
    Yields (Policy, Card, loss rows) by budget.
    """
    steps = dataset.steps
    labelled = draw_labelled(dataset.episodes, settings.budgets, f"{card.task} {card.seed}")
    actions = true_actions(dataset, labelled, device)
    inputs = FrameStacks(Frames.load(dataset.pixels, labelled, device), stack=card.frame_stack, steps=steps)
    if frozen:
        latents = predict(start().actor.to(device), inputs, len(actions), settings.batch_size, compute)
        inputs = Frames(latents, device).gather
    for budget in settings.budgets:
        purpose = f"finetune {card.task} {card.seed} {budget}"
        policy = seeded(start, purpose).to(device)
        sampler = FrameSampler(budget, steps, settings.batch_size, purpose)
        rows = regress(policy.decoder if frozen else policy, inputs, actions.gather, sampler, settings.updates,
                   settings.learning_rate, checkpoints[budget], compute)
        yield policy, replace(card, budget=budget), rows

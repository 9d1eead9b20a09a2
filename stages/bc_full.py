"""Behaviour cloning of all true actions, whose return normalises all others: reads a dataset, writes the policy.

The actor is that of the latent variants; its linear head gives the action itself, so there is no decoder.
"""

import torch

from oclam import paths
from oclam.artifacts import atomic, write_csv
from oclam.checkpoint import Checkpoint
from oclam.cli import arguments, run
from oclam.datasets import Frames, FrameSampler, FrameStacks, open_dataset
from oclam.params import load
from oclam.policies.files import Card, save_policy
from oclam.policies.networks import Policy
from oclam.policies.training import LOSSES, new_actor, regress, true_actions
from oclam.training import best_device, update_counts
from oclam.variants import view_of


def main():
    task, seed, variant = arguments("task", "seed", "variant")
    params = load("compute", "bc", "finetune.loss")
    bc, device, view = params.bc, best_device(params.compute.threads), view_of(variant)
    inputs = [paths.dataset(task, view)]
    dataset = open_dataset(inputs[0], task)
    episodes, steps = dataset.with_actions, dataset.steps

    card = Card.of(bc, task, view, variant, seed, image_size=dataset.pixels.shape[2], latent_dim=None,
                   action_dim=dataset.actions.shape[2], budget=0)
    policy = Policy(new_actor(card, bc.published, device))
    images = FrameStacks(Frames.load(dataset.pixels, episodes, device), stack=bc.frame_stack, steps=steps)
    targets = true_actions(dataset, episodes, device)
    sampler = FrameSampler(len(episodes), steps, bc.batch_size, f"bc {task} {seed}")
    checkpoint = Checkpoint(f"bc-full-{task}-{seed}-{variant}", params, inputs)
    updates, warmup = update_counts(bc, sampler.steps_per_epoch)
    rows = regress(policy, images, targets.gather, sampler, steps=updates, learning_rate=bc.learning_rate,
                   warmup=warmup, checkpoint=checkpoint, compute=params.compute, loss_of=LOSSES[params.finetune.loss])
    policy.rescale(*map(torch.from_numpy, dataset.action_units(episodes)))

    with atomic(paths.policies(task, seed, variant)) as folder:
        save_policy(folder, policy, card)
    write_csv(paths.log(paths.actor(task, seed, variant)), rows)
    checkpoint.remove()


if __name__ == "__main__":
    run(main, parallel=True)

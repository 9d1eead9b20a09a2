"""The action decoder from few labelled trajectories: reads a dataset and an actor, writes a policy per label budget
and the training curves."""

from copy import deepcopy
from dataclasses import replace

from oclam import paths
from oclam.artifacts import write_csv
from oclam.checkpoint import Checkpoint
from oclam.cli import arguments, run
from oclam.datasets import open_dataset
from oclam.params import load
from oclam.policies.files import load_actor, save_policies
from oclam.policies.networks import Policy
from oclam.policies.training import fine_tune
from oclam.training import best_device
from oclam.variants import view_of


def main():
    task, seed, variant = arguments("task", "seed", "variant")
    params = load("compute", "finetune")
    settings, frozen, view = params.finetune, not params.finetune.unfreeze, view_of(variant)
    inputs = [paths.dataset(task, view), paths.actor(task, seed, variant)]
    actor, actor_card = load_actor(inputs[1], task=task, view=view, variant=variant, seed=seed)
    dataset = open_dataset(inputs[0], task)
    card = replace(actor_card, hidden_dim=settings.hidden_dim, action_dim=dataset.actions.shape[2])
    checkpoints = {budget: Checkpoint(f"finetune-{task}-{seed}-{variant}-{budget}", params, inputs)
                   for budget in settings.budgets}

    def start():
        return Policy(actor if frozen else deepcopy(actor), card.decoder())

    trained = fine_tune(start, card, dataset, settings, params.compute, checkpoints, frozen,
                        best_device(params.compute.threads))
    rows = save_policies(paths.policies(task, seed, variant), trained, (actor, actor_card) if frozen else None)
    write_csv(paths.log(paths.policies(task, seed, variant)), rows)
    for checkpoint in checkpoints.values():
        checkpoint.remove()


if __name__ == "__main__":
    run(main)

"""Train the slot latent action model on the chosen slots; then label every transition and probe the labels."""

import torch

from oclam import paths
from oclam.artifacts import open_zarr
from oclam.checkpoint import Checkpoint
from oclam.cli import arguments, run
from oclam.datasets import open_dataset
from oclam.latent_actions.models import SlotLatentActionModel
from oclam.latent_actions.observations import SlotObservations
from oclam.latent_actions.training import learn
from oclam.params import load
from oclam.seeding import seed_of
from oclam.training import best_device
from oclam.variants import view_of


def main():
    task, seed, variant = arguments("task", "seed", "variant")
    params = load("compute", "lapo.latent_dim", "lapo.future_offset", "lapo_slots")
    dataset, device = open_dataset(paths.dataset(task, view_of(variant)), task), best_device(params.compute.threads)
    slots = open_zarr(paths.selection(task, seed))["slots"]  # (E, T, D)
    observe = SlotObservations.load(slots, dataset.episodes, device)
    torch.manual_seed(seed_of("lapo", task, seed))
    with device:
        model = SlotLatentActionModel(slots.shape[-1], params.lapo.latent_dim, params.lapo_slots.hidden_dim,
                                      params.lapo_slots.expansion)
    checkpoint = Checkpoint(f"{variant}-{task}-{seed}", params, [dataset.path, paths.selection(task, seed)])
    learn(task, seed, variant, model, observe, dataset, params.lapo_slots, params.lapo.future_offset, params.compute,
          checkpoint)


if __name__ == "__main__":
    run(main, parallel=True)

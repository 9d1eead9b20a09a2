"""Train a latent action model on the chosen slots; then write and probe the latent action of every transition."""

from types import SimpleNamespace

import torch

from oclam import paths
from oclam.artifacts import open_zarr
from oclam.cli import arguments, run
from oclam.datasets import open_dataset
from oclam.laom.models import SLOT_MODELS
from oclam.laom.training import train_laom
from oclam.latent_actions.observations import SlotObservations
from oclam.latent_actions.training import learn, train_model
from oclam.params import load
from oclam.seeding import seed_of
from oclam.training import best_device
from oclam.variants import view_of


def main():
    task, seed, variant = arguments("task", "seed", "variant")
    params = load("compute", "lapo.latent_dim", "lapo.future_offset", "lapo_slots")
    settings = params.lapo_slots
    dataset, device = open_dataset(paths.dataset(task, view_of(variant)), task), best_device(params.compute.threads)
    slots = open_zarr(paths.selection(task, seed))["slots"]  # (E, T, D)
    observe = SlotObservations.load(slots, dataset.episodes, device)
    torch.manual_seed(seed_of("lapo", task, seed))
    with device:
        model = SLOT_MODELS[settings.model](slots.shape[-1], params.lapo.latent_dim, settings.hidden_dim,
                                            settings.expansion)
    if settings.model == "laom":  # slots are centred already, and no image that could be augmented
        settings = SimpleNamespace(**settings.model_dump(), augmentation=0.0, centred=False)
    learn(task, seed, variant, params, settings, model, observe, dataset, [dataset.path, paths.selection(task, seed)],
          trainer=train_laom if params.lapo_slots.model == "laom" else train_model)


if __name__ == "__main__":
    run(main, parallel=True)

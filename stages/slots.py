"""Slots and masks of every frame: reads a distracted dataset and the object-centric models of all restarts, keeps the
model whose best slot's masked frames predict the actions of a few labelled episodes best, and extracts its slots."""

import sys
from functools import partial

from oclam import paths
from oclam.agent.selection import choose_model
from oclam.checkpoint import Checkpoint
from oclam.cli import arguments, run
from oclam.datasets import open_dataset
from oclam.errors import Absent
from oclam.params import load
from oclam.slots.components import write_components
from oclam.slots.extraction import extract_slots, find_masks
from oclam.slots.models import load_weights, make_model, make_observer
from oclam.training import autocast, best_device


def main():
    task, seed = arguments("task", "seed")
    params = load("compute", "restarts", "ocp", "steve.published", "steve.feature_hidden", "steve.decoder_hidden",
                  "steve.decoder_layers", "steve.vocabulary",
                  "slots", "slot_select.labelled_episodes")
    ocp, device = params.ocp, best_device(params.compute.threads)
    weights = [paths.ocp(task, seed, restart) for restart in params.restarts]
    inputs = [paths.dataset(task, "distracted"), paths.encoder, *weights]
    checkpoint, dataset = Checkpoint(f"slots-{task}-{seed}", params, inputs), open_dataset(inputs[0], task)
    observer = make_observer(ocp, paths.encoder, device)
    forward = partial(autocast, device, params.compute.precision)
    models = [load_weights(make_model(ocp, params.steve, observer, dataset.pixels.shape[2]), path).to(device)
              for path in weights]

    best, errors, labelled = 0, [], []
    if len(models) > 1:
        try:
            labelled = dataset.labelled(params.slot_select.labelled_episodes, seed, "slot_select.labelled_episodes")
        except Absent as error:
            print(f"{error} to choose a restart by; restart {params.restarts[0]} is kept", file=sys.stderr)
    if labelled:
        frames, actions = [dataset.pixels[e] for e in labelled], dataset.normalised_actions(labelled)
        masks = find_masks(models, observer, frames, window=ocp.window, forward=forward)
        best, errors = choose_model(masks, frames, actions)
        shown = ", ".join(f"{error:.3f}" for error in errors)
        print(f"Probe error of the best slot's masked frames by restart: {shown}; "
              f"restart {params.restarts[best]} is kept.", file=sys.stderr)
    model, finish = models[best], partial(write_components, pixels=dataset.pixels, training=dataset.episodes)
    extract_slots(model, observer, dataset.pixels, paths.slots(task, seed), checkpoint.folder, slots=ocp.slots,
                  slot_dim=ocp.slot_dim, window=ocp.window, forward=forward,
                  attrs={"model": ocp.model, "window": ocp.window, "grid": model.grid, "seed": seed,
                         "restart": params.restarts[best], "restart_errors": errors, "vectors": params.slots.vectors},
                  finish=finish if params.slots.vectors == "components" else None)
    checkpoint.remove()


if __name__ == "__main__":
    run(main)

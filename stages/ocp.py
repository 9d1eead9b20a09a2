"""Object-centric pretraining and the extraction of slots: reads a distracted dataset and the frozen encoder (and, to
choose among several starts, the labelled trajectories), writes the model's weights, its training's log, and slots and
masks of every frame."""

import sys
from functools import partial

import torch

from oclam import paths
from oclam.agent.selection import choose_model
from oclam.artifacts import save_tensors, write_csv
from oclam.checkpoint import Checkpoint
from oclam.cli import arguments, run
from oclam.datasets import open_dataset
from oclam.encoders.files import load_encoder
from oclam.params import load
from oclam.seeding import seed_of
from oclam.slots.extraction import extract_slots, find_masks
from oclam.slots.steve import Steve, to_unit
from oclam.slots.training import clips_of, fit
from oclam.slots.videosaur import VideoSaur
from oclam.training import autocast, best_device


def main():
    task, seed = arguments("task", "seed")
    params = load("compute", "ocp", "steve.feature_hidden", "steve.decoder_hidden", "steve.decoder_layers")
    ocp, device = params.ocp, best_device()
    inputs = [paths.dataset(task, "distracted"), paths.encoder]
    dataset = open_dataset(inputs[0])
    observer = load_encoder(paths.encoder).to(device) if ocp.model == "videosaur" else to_unit
    forward = partial(autocast, device, params.compute.precision)
    clips = clips_of(dataset, observer, ocp, seed=seed, device=device, forward=forward)

    models, logs, checkpoints = [], [], []
    for start in range(ocp.starts):
        torch.manual_seed(seed_of("ocp", seed, start))
        models.append(build(params, observer, dataset.pixels.shape[2]).to(device))
        checkpoints.append(Checkpoint(f"ocp-{task}-{seed}-{start}", params, inputs))
        logs.append(fit(models[-1], clips, ocp, checkpoints[-1], seed=seed, forward=forward,
                        compiled=params.compute.compile))
    best = choose(models, observer, dataset, params, forward) if ocp.starts > 1 else 0

    model = models[best]
    extract_slots(model, observer, dataset.pixels, paths.slots(task, seed), checkpoints[best].folder, slots=ocp.slots,
                  slot_dim=ocp.slot_dim, grid=model.grid, window=ocp.window, device=device, forward=forward,
                  attrs={"model": ocp.model, "window": ocp.window, "grid": model.grid, "seed": seed, "start": best})
    save_tensors(paths.ocp(task, seed), model.state_dict(), **ocp.model_dump(), start=best)
    write_csv(paths.log(paths.ocp(task, seed)), logs[best])
    for checkpoint in checkpoints:
        checkpoint.remove()


def build(params, observer, size):
    ocp = params.ocp
    if ocp.model == "steve":
        return Steve(size, slots=ocp.slots, slot_dim=ocp.slot_dim, **vars(params.steve))
    return VideoSaur(observer.dim, observer.grid**2, **ocp.model_dump(include={
        "slots", "slot_dim", "feature_hidden", "decoder_hidden", "decoder_layers", "masks", "similarity_weight",
        "similarity_temperature", "reconstruction_weight"}))


def choose(models, observer, dataset, params, forward):
    """The index of the model to keep: as slot-select chooses slots, by labelled trajectories."""
    labelled = range(params.ocp.labelled_episodes)
    frames, actions = [dataset.pixels[e] for e in labelled], [dataset.group["actions"][e] for e in labelled]
    masks = find_masks(models, observer, frames, window=params.ocp.window, forward=forward)
    best, errors = choose_model(masks, frames, actions)
    shown = ", ".join(f"{error:.3f}" for error in errors)
    print(f"Probe error behind the best slot of each start: {shown}; start {best} is kept.", file=sys.stderr)
    return best


if __name__ == "__main__":
    run(main)

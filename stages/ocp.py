"""Object-centric pretraining and the extraction of slots: reads a distracted dataset and the frozen encoder, writes
the model's weights, its training's log, and slots and masks of every frame."""

from functools import partial

import torch

from oclam import paths
from oclam.artifacts import save_tensors, write_csv
from oclam.checkpoint import Checkpoint
from oclam.cli import arguments, run
from oclam.datasets import open_dataset
from oclam.encoders import load_encoder
from oclam.ocp import VideoSaur
from oclam.ocp_training import fit
from oclam.params import load
from oclam.seeding import seed_of
from oclam.slots import extract_slots
from oclam.steve import Steve, to_unit
from oclam.training import autocast, best_device


def main():
    task, seed = arguments("task", "seed")
    params = load("compute", "ocp", "steve.feature_hidden", "steve.decoder_hidden", "steve.decoder_layers")
    ocp, device = params.ocp, best_device()
    inputs = [paths.dataset(task, "distracted"), paths.encoder]
    checkpoint = Checkpoint(f"ocp-{task}-{seed}", params, inputs)
    dataset = open_dataset(inputs[0])
    forward = partial(autocast, device, params.compute.precision)

    torch.manual_seed(seed_of("ocp", seed))
    if ocp.model == "videosaur":
        observer = load_encoder(paths.encoder).to(device)
        options = ocp.model_dump(include={
            "slots", "slot_dim", "feature_hidden", "decoder_hidden", "decoder_layers", "masks", "similarity_weight",
            "similarity_temperature", "reconstruction_weight"})
        model = VideoSaur(observer.dim, observer.grid**2, **options).to(device)
    else:
        observer = to_unit
        model = Steve(dataset.pixels.shape[2], slots=ocp.slots, slot_dim=ocp.slot_dim, **vars(params.steve)).to(device)
    rows = fit(model, observer, dataset, ocp, checkpoint, seed=seed, forward=forward,
               compiled=params.compute.compile)
    extract_slots(model, observer, dataset.pixels, paths.slots(task, seed), checkpoint.folder, slots=ocp.slots,
                  slot_dim=ocp.slot_dim, grid=model.grid, window=ocp.window, device=device, forward=forward,
                  attrs={"model": ocp.model, "window": ocp.window, "grid": model.grid, "seed": seed})
    save_tensors(paths.ocp(task, seed), model.state_dict(), **ocp.model_dump())
    write_csv(paths.log(paths.ocp(task, seed)), rows)
    checkpoint.remove()


if __name__ == "__main__":
    run(main)

"""Object-centric pretraining from one initialisation: reads a distracted dataset and the frozen encoder, writes the
model's weights, its loss and its number of parameters."""

from functools import partial

import torch

from oclam import paths
from oclam.artifacts import save_tensors, write_csv, write_json
from oclam.checkpoint import Checkpoint
from oclam.cli import arguments, run
from oclam.datasets import open_dataset
from oclam.params import load
from oclam.seeding import seed_of
from oclam.slots.models import make_model, make_observer
from oclam.slots.training import clips_of, train_slots
from oclam.training import autocast, best_device, count_parameters


def main():
    task, seed, restart = arguments("task", "seed", "restart")
    params = load("compute", "ocp", "steve.published", "steve.feature_hidden", "steve.decoder_hidden",
                  "steve.decoder_layers", "steve.vocabulary")
    ocp, device = params.ocp, best_device(params.compute.threads)
    inputs = [paths.dataset(task, "distracted"), paths.encoder]
    dataset = open_dataset(inputs[0], task)
    observer = make_observer(ocp, paths.encoder, device)
    forward = partial(autocast, device, params.compute.precision)
    clips = clips_of(dataset, observer, ocp, seed=seed, device=device, forward=forward)

    torch.manual_seed(seed_of("ocp", seed, restart))
    model = make_model(params.ocp, params.steve, observer, dataset.pixels.shape[2]).to(device)
    checkpoint = Checkpoint(f"ocp-{task}-{seed}-{restart}", params, inputs)
    rows = train_slots(model, clips, ocp, checkpoint, seed=seed, forward=forward, compiled=params.compute.compile)

    weights = paths.ocp(task, seed, restart)
    save_tensors(weights, model.state_dict(), **ocp.model_dump(), restart=restart)
    write_csv(paths.log(weights), rows)
    frozen = [observer] if isinstance(observer, torch.nn.Module) else []
    write_json(paths.parameters(weights), count_parameters(model, *frozen))
    checkpoint.remove()


if __name__ == "__main__":
    run(main, parallel=True)

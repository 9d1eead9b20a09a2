"""STEVE beside the model of ocp (paper, appendix A): reads a distracted dataset, writes masks of the moments
that the report shows and, where the agent is segmented, every slot's measures."""

from functools import partial
from types import SimpleNamespace

import torch

from oclam import paths
from oclam.agent.measures import slot_measures
from oclam.agent.previews import moments, shown_episodes, take
from oclam.artifacts import save_tensors
from oclam.checkpoint import Checkpoint
from oclam.cli import arguments, run
from oclam.datasets import open_dataset
from oclam.params import load
from oclam.seeding import seed_of
from oclam.slots.extraction import find_masks
from oclam.slots.steve import make_steve, to_unit
from oclam.slots.training import clips_of, train_slots
from oclam.training import autocast, best_device


def main():
    task, seed = arguments("task", "seed")
    params = load("compute", "steve", "ocp.slots", "ocp.clip_length", "ocp.clip_norm", "ocp.window")
    ocp, steve, source = params.ocp, params.steve, paths.dataset(task, "distracted")
    device = best_device(params.compute.threads)
    checkpoint, dataset = Checkpoint(f"steve-{task}-{seed}", params, [source]), open_dataset(source, task)
    forward = partial(autocast, device, params.compute.precision)
    torch.manual_seed(seed_of("steve", seed))
    model = make_steve(steve, dataset.pixels.shape[2], ocp.slots, steve.slot_dim).to(device)
    # There is no encoder and every token is predicted anyway, so kept clips and fewer patches would save nothing.
    settings = SimpleNamespace(**vars(ocp), **dict(steve), kept_clips=None, decoded_patches=None)
    clips = clips_of(dataset, to_unit, settings, seed=seed, device=device, forward=forward)
    rows = train_slots(model, clips, settings, checkpoint, seed=seed, forward=forward, compiled=params.compute.compile)

    episodes, truth = shown_episodes(dataset), dataset.group.get("segmentation")
    masks, = find_masks([model], to_unit, [dataset.pixels[e] for e in episodes], window=ocp.window, forward=forward)
    measures = {} if truth is None else slot_measures(masks, truth[:], chosen=[])
    places = moments(len(episodes), dataset.steps)
    save_tensors(paths.steve(task, seed), {"masks": take(masks, places)}, log=rows, slots=measures.get("slots", []),
                 best=measures.get("segmentation_choice"), published=steve.published,
                 episodes=[episodes[e] for e, _ in places], steps=[t for _, t in places])
    checkpoint.remove()


if __name__ == "__main__":
    run(main)

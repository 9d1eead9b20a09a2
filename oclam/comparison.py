"""An object-centric model beside that of ocp, trained and measured on what the report shows (paper, appendix A)."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

from oclam import paths
from oclam.agent.measures import slot_measures
from oclam.agent.previews import shown_episodes, shown_frames, take
from oclam.artifacts import save_tensors
from oclam.checkpoint import Checkpoint
from oclam.datasets import open_dataset
from oclam.seeding import seed_of
from oclam.slots.extraction import find_masks
from oclam.slots.training import clips_of, train_slots
from oclam.training import autocast


def train_for_comparison(name: str, task: str, seed: int, params: SimpleNamespace, settings,
                         make: Callable[[int], torch.nn.Module], observer: Callable, device: torch.device,
                         *inputs: Path, model: str) -> None:
    """Write the model's masks of the frames that the report shows and, where the agent is segmented, its measures.

    Args:
        name: of the stage and its artifact.
        params: what the stage loads.
        settings: with the section ocp's parameters of clips and training.
        make: the edge of the frames in pixels -> an untrained model.
        observer: uint8 (N, H, W, 3) -> the model's inputs (N, ...).
        inputs: files beside the dataset that the stage reads.
        model: its name in the report.
    """
    source, forward = paths.dataset(task, "distracted"), partial(autocast, device, params.compute.precision)
    checkpoint, dataset = Checkpoint(f"{name}-{task}-{seed}", params, [source, *inputs]), open_dataset(source, task)
    torch.manual_seed(seed_of(name, seed))
    slots = make(dataset.pixels.shape[2]).to(device)
    clips = clips_of(dataset, observer, settings, seed=seed, device=device, forward=forward)
    rows = train_slots(slots, clips, settings, checkpoint, seed=seed, forward=forward, compiled=params.compute.compile)

    episodes, truth = shown_episodes(dataset), dataset.group.get("segmentation")
    masks, = find_masks([slots], observer, [dataset.pixels[e] for e in episodes], window=params.ocp.window,
                        forward=forward)
    measures = {} if truth is None else slot_measures(masks, truth[:], chosen=[])
    places = shown_frames(len(episodes), dataset.steps)
    save_tensors(paths.compared(task, seed, name), {"masks": take(masks, places)}, log=rows,
                 slots=measures.get("slots", []), best=measures.get("segmentation_choice"),
                 fg_ari=measures.get("fg_ari"), episodes=[episodes[e] for e, _ in places],
                 steps=[t for _, t in places], model=model)
    checkpoint.remove()

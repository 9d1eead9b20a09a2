"""The choice of the agent's slots: reads every slot and a few labelled trajectories, writes the chosen slots with their
mask and masked frames, a table of what every slot predicts, and frames for the report's pictures."""

import sys
from functools import partial

import numpy as np

from oclam import paths
from oclam.agent.measures import agent_scores, slot_measures
from oclam.agent.previews import shown_episodes
from oclam.agent.selection import manual_selection, probe, select_slots
from oclam.agent.store import masked_components, write_preview, write_selection
from oclam.artifacts import open_zarr, write_json
from oclam.checkpoint import Checkpoint
from oclam.cli import arguments, run
from oclam.datasets import open_dataset
from oclam.errors import Absent
from oclam.params import load


def main():
    task, seed = arguments("task", "seed")
    params = load("slot_select")
    select, inputs = params.slot_select, [paths.dataset(task, "distracted"), paths.slots(task, seed)]
    dataset, slots = open_dataset(inputs[0], task), open_zarr(inputs[1])
    checkpoint = Checkpoint(f"slot-select-{task}-{seed}", params, inputs)
    manual = select.manual[task] if select.method == "manual" else None
    try:
        labelled = dataset.labelled(select.labelled_episodes, seed, "slot_select.labelled_episodes")
    except Absent as error:
        if manual is None:
            raise Absent(f"{error} to choose slots by; set slot_select: {{method: manual, manual: {{{task}: [0]}}}}"
                         ) from None
        labelled, found = [], manual_selection(select, manual, slots["masks"].shape[2])
    else:
        frames, masks = [dataset.pixels[e] for e in labelled], [slots["masks"][e] for e in labelled]
        found = select_slots(
            select, manual, frames, masks, vectors=[slots["slots"][e].astype(np.float32) for e in labelled],
            actions=dataset.normalised_actions(labelled),
            learned_from=partial(masked_components, frames, masks, select, slots["slots"].shape[-1]))
    if found["better_than_whole_frame"] is False:
        print(f"WARNING: {found['why']} Look at the masks in the report before you trust what is learned from "
              "these slots, or set slot_select.method: manual.", file=sys.stderr)
    write_selection(paths.selection(task, seed), checkpoint.folder, slots, found["chosen"], select, dataset)
    checkpoint.remove()

    selection, episodes = open_zarr(paths.selection(task, seed)), shown_episodes(dataset)
    masks, segmentation = np.stack([slots["masks"][e] for e in episodes]), dataset.group.get("segmentation")
    table = found | {key: slots.attrs[key] for key in ("model", "restart", "restart_errors")}
    used = select.method == "auto" or slots.attrs["restart_errors"]  # restarts are chosen by labels too
    table["labels"] = select.labelled_episodes if used else 0
    vectors = [selection["slots"][e].astype(np.float32) for e in labelled]
    table["mask"] = {"vector_mse": probe(vectors, dataset.normalised_actions(labelled)).mse} if labelled else {}
    measures = {} if segmentation is None else slot_measures(masks, segmentation[:], found["chosen"])
    if measures:  # imported datasets have no segmentation, or none that shows the agent
        measures["slots"] = [a | b for a, b in zip(table["slots"], measures["slots"], strict=True)]
        inside = np.concatenate([selection["mask"][e] for e in episodes]) > 127
        table |= measures
        table["mask"] |= agent_scores(inside, segmentation[:].reshape(inside.shape) > 0)
    write_preview(paths.slot_preview(task, seed), dataset, segmentation, masks, selection, episodes, found["chosen"])
    write_json(paths.slot_table(task, seed), table)


if __name__ == "__main__":
    run(main)

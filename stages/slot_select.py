"""The choice of slots: reads every slot and the labelled trajectories, writes the chosen slots with their mask, and the
table and pictures' data that tell why."""

import sys

import numpy as np
import torch
import zarr
from torch.nn import functional as F

from oclam import paths
from oclam.agent.measures import agent_scores, slot_measures
from oclam.agent.previews import looked_at, moments, take
from oclam.agent.refinement import refine
from oclam.agent.registration import mask_moments, poses, register
from oclam.agent.selection import behind, choose_slots, combine, probe, probe_behind
from oclam.artifacts import atomic, open_zarr, save_tensors, write_json
from oclam.cli import arguments, run
from oclam.datasets import open_dataset
from oclam.params import load
from oclam.progress import Progress

EPISODES, ANIMATION = 4, 60  # written at a time; frames of the preview that moves


def main():
    task, seed = arguments("task", "seed")
    select = load("slot_select").slot_select
    dataset, slots = open_dataset(paths.dataset(task, "distracted")), open_zarr(paths.slots(task, seed))
    chosen, table = choose(task, select, dataset, slots)
    truth = dataset.group.get("segmentation")  # imported datasets have none
    held_out = looked_at(dataset)
    masks = np.stack([slots["masks"][e] for e in held_out])
    if truth is not None:
        measures = slot_measures(masks, truth[:], chosen)
        measures["slots"] = [a | b for a, b in zip(table["slots"], measures["slots"], strict=True)]
        table |= measures
    if not table["better_than_whole_frame"]:
        print(f"WARNING: {table['why']} Look at the masks before you trust what is learned from these slots.",
              file=sys.stderr)
    write_selection(paths.selection(task, seed), slots, chosen, select, dataset)
    selection = open_zarr(paths.selection(task, seed))
    if truth is not None:
        held = np.concatenate([selection["mask"][e] for e in held_out])
        table["mask"] = agent_scores(held > 127, truth[:].reshape(held.shape) > 0)
    write_preview(paths.slot_preview(task, seed), dataset, truth, masks, selection, held_out, chosen)
    write_json(paths.slot_table(task, seed), {"model": slots.attrs["model"], **table})


def choose(task, select, dataset, slots):
    """Chosen slots, and the table of probes; of the actions only the labelled trajectories are read."""
    labelled = range(select.labelled_episodes)
    views = [behind(dataset.pixels[e], slots["masks"][e]) for e in labelled]
    vectors = [slots["slots"][e].astype(np.float32) for e in labelled]
    actions, count = [dataset.group["actions"][e] for e in labelled], vectors[0].shape[1]
    chosen, probes = choose_slots(views, actions, select.max_slots)
    if select.method == "manual":
        chosen = select.manual[task]

    def row(which):
        seen = probes.get(tuple(which)) or probe_behind(views, actions, which)
        told = probe([combine(v, which, select.combine) for v in vectors], actions)
        return {"probe_mse": seen.mse, "probe_r2": seen.r2, "vector_mse": told.mse}

    whole, found = probe_behind(views, actions, range(count)), row(chosen)
    better = found["probe_mse"] < whole.mse
    names = " and ".join(map(str, chosen))
    why = f"Slot {names}: behind the mask a ridge probe has error {found['probe_mse']:.3f} of the actions' variance "
    why += f"{whole.variance:.3f}, on the whole frame {whole.mse:.3f}"
    why += ", chosen by hand" if select.method == "manual" else ", the lowest among the slots"
    why += "." if better else "; so no slot tells the actions better than the whole frame does."
    return chosen, {
        "chosen": list(chosen), "method": select.method, "combine": select.combine, "why": why,
        "better_than_whole_frame": bool(better), "chosen_probe": found,
        "whole_frame": {"probe_mse": whole.mse, "probe_r2": whole.r2},
        "slots": [{"slot": k, **row([k])} for k in range(count)]}


def write_selection(path, slots, chosen, select, dataset):
    """Of every frame the chosen slots, combined, the mask of what they hold at image size, and what shows behind it."""
    with atomic(path) as temporary:
        group = zarr.open_group(temporary, mode="w", attributes={"chosen": list(chosen), "combine": select.combine})
        write_slots(group, slots, chosen, select, dataset.pixels)
        write_frames(group, dataset, select.registered)


def write_slots(group, slots, chosen, select, pixels):
    episodes, steps, _, dim = slots["slots"].shape
    width, size = dim * (1 if select.combine == "mean" else len(chosen)), pixels.shape[2]
    vectors = group.create_array("slots", shape=(episodes, steps, width), chunks=(EPISODES, steps, width),
                                 dtype="float16")
    image = create_images(group, "mask", (episodes, steps, size, size))
    with Progress(episodes * steps, "writing slots and masks", " frames") as bar:
        for part in parts(episodes):
            vectors[part] = combine(slots["slots"][part], chosen, select.combine)
            masks = slots["masks"][part]
            if select.masks == "refined":
                held = np.isin(masks.argmax(2), chosen)
                image[part] = 255 * np.stack([refine(*episode) for episode in zip(held, pixels[part], strict=True)])
            else:
                image[part] = soft(masks, chosen, select.combine, size)
            bar.update(len(masks) * steps)


def write_frames(group, dataset, registered):
    """What lapo-masks sees: frames times their masks and, where registered, at the angle and size of the mean mask."""
    pixels, masks = dataset.pixels, group["mask"]
    episodes, steps = pixels.shape[:2]
    frames = create_images(group, "frames", pixels.shape)
    if registered:
        lie = torch.cat([torch.stack([mask_moments(film / 255) for film in torch.from_numpy(masks[part])])
                         for part in parts(episodes)])
        reference = lie[:dataset.episodes].mean((0, 1))
    with Progress(episodes * steps, "masking frames", " frames") as bar:
        for part in parts(episodes):
            images = torch.from_numpy(pixels[part] * (masks[part][..., None] / np.float32(255)))
            if registered:
                films = zip(images.movedim(-1, 2), lie[part], strict=True)
                images = torch.stack([register(film, poses(each, reference)) for film, each in films]).movedim(2, -1)
            frames[part] = images.round().byte().numpy()
            bar.update(len(images) * steps)


def create_images(group, name, shape):
    blocks = 100 * -(-shape[1] // 100)
    return group.create_array(name, shape=shape, chunks=(EPISODES, 100, *shape[2:]),
                              shards=(EPISODES, blocks, *shape[2:]), dtype="uint8")


def parts(episodes):
    return [slice(e, min(e + EPISODES, episodes)) for e in range(0, episodes, EPISODES)]


def soft(masks, chosen, how, size):
    """The chosen slots' masks (E, T, K, G, G), 0..255, added (or their mean), bilinearly uint8 (E, T, size, size)."""
    picked = masks[:, :, chosen].astype(np.float32)
    mask = torch.from_numpy(picked.mean(2) if how == "mean" else picked.sum(2))
    return F.interpolate(mask, (size, size), mode="bilinear").round().clamp(0, 255).byte().numpy()


def write_preview(path, dataset, truth, masks, selection, held_out, chosen):
    """Frames, the agent (where truth is not None), every slot's mask, the selection's and what lapo-masks sees: some
    moments over the held-out episodes, and a stretch of the first."""
    shown, film = moments(len(held_out), dataset.steps), [(0, t) for t in range(min(ANIMATION, dataset.steps))]

    def at(places):
        return [(held_out[e], t) for e, t in places]

    save_tensors(path, {
        "frames": take(dataset.pixels, at(shown)), "masks": take(masks, shown),
        "selected": take(selection["mask"], at(shown)), "seen": take(selection["frames"], at(shown)),
        **({} if truth is None else {"segmentation": take(truth, shown)}),
        "animation_frames": take(dataset.pixels, at(film)), "animation_masks": take(masks, film),
        "animation_seen": take(selection["frames"], at(film))},
        chosen=list(chosen), episodes=[e for e, _ in at(shown)], steps=[t for _, t in at(shown)])


if __name__ == "__main__":
    run(main)

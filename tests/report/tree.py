"""A small finished pipeline made of invented results with known numbers, laid out as the stages lay theirs."""

import numpy as np
import torch
from PIL import Image

from oclam import paths
from oclam.artifacts import load_tensors, read_json, save_tensors, write_csv, write_json
from oclam.report.results import FEW
from oclam.variants import ALL_LABELS, LATENT, VARIANTS

TASK, SEEDS, BUDGETS, EPISODES = "cheetah-run", [0, 1], [2, 8], 5
SLOTS, GRID, SIZE = 4, 8, 32
CHOSEN = 2
LABELS = 4  # chose restart and slots
PROBES = dict(zip(LATENT, (0.8, 0.4, 0.2, 0.5, 0.6, 0.3, 0.35, 0.1), strict=True))
FULL_RETURN = {"bc": 200.0, "bc-no-distractors": 400.0}
PARAMETERS = {"ocp (total)": 3000, "ocp (trainable)": 1000, **{variant: 500 + len(variant) for variant in LATENT},
              "bc": 200}
COMPARED = {"steve": ("small STEVE", 0.1), "slotcontrast": ("SlotContrast", 0.3)}  # name shown, IoU of the best slot
RESTARTS, RESTART = [0, 1], 1  # the second one is kept


def mean_return(variant, budget):
    """The mean over all seeds and episodes that the tree holds."""
    return FULL_RETURN[variant] if budget == 0 else 10.0 * budget + 5 * list(VARIANTS).index(variant)


def write(seeds=SEEDS):
    """Write the tree below the working folder."""
    save_tensors(paths.encoder, {"weight": torch.zeros(1)}, source="random")
    write_csv(paths.demonstration_returns(TASK, "distracted"),
              [{"episode": 0, "return": 400.0}, {"episode": 1, "return": 600.0}])
    write_json(paths.duration(f"ocp-{TASK}-0-0"), {"stage": "ocp", "scale": "small", "seconds": 61.0,
                                                  "hardware": "2 x86_64 cores"})
    for seed in seeds:
        _slots(seed)
        for restart in RESTARTS:
            _log(paths.ocp(TASK, seed, restart), 1.0 + restart)
            _count(paths.ocp(TASK, seed, restart), PARAMETERS["ocp (total)"], PARAMETERS["ocp (trainable)"])
        for variant in LATENT:
            _latents(seed, variant)
            _log(paths.lapo(TASK, seed, variant), PROBES[variant])
            _count(paths.lapo(TASK, seed, variant), PARAMETERS[variant])
            _count(paths.actor(TASK, seed, variant), PARAMETERS["bc"])
        for variant in (*LATENT, *ALL_LABELS):
            _log(paths.actor(TASK, seed, variant), 0.3)
        for variant in FEW:
            rows = [{"budget": budget, "step": step, "loss": 0.5 + budget} for budget in BUDGETS for step in (10, 20)]
            write_csv(paths.log(paths.policies(TASK, seed, variant)), rows)
        for variant in VARIANTS:
            _returns(seed, variant, seed - np.mean(seeds))


def scene(count, offset=0):
    """Frames with a bright square that moves, and the masks of four slots: the square, and three bands around it."""
    frames = np.random.default_rng(offset).integers(40, 110, (count, SIZE, SIZE, 3), np.uint8)
    masks = np.zeros((count, SLOTS, GRID, GRID), np.uint8)
    truth = np.zeros((count, SIZE, SIZE), np.uint8)
    for t in range(count):
        column, cell = (t + offset) % (GRID - 2), SIZE // GRID
        masks[t, 0, :3], masks[t, 1, 3:6], masks[t, 3, 6:] = 255, 255, 255
        masks[t, :, 3:5, column : column + 2] = 0
        masks[t, CHOSEN, 3:5, column : column + 2] = 255
        square = (t, slice(3 * cell, 5 * cell), slice(column * cell, (column + 2) * cell))
        frames[square], truth[square] = (230, 180, 60), 1
    return frames, masks, truth


def forget_segmentation(seeds=SEEDS):
    """Leave the slots' results as they are of a dataset without segmentation."""
    measures = {"agent_iou", "agent_recall", "area", "stability", "fg_ari", "mask"}
    for seed in seeds:
        table, (preview, about) = read_json(paths.slot_table(TASK, seed)), load_tensors(paths.slot_preview(TASK, seed))
        rows = [{key: row[key] for key in row.keys() - measures} for row in table["slots"]]
        write_json(paths.slot_table(TASK, seed), {key: table[key] for key in table.keys() - measures} | {"slots": rows})
        del preview["segmentation"]
        save_tensors(paths.slot_preview(TASK, seed), preview, **about)
        for model in COMPARED:
            compared, about = load_tensors(paths.compared(TASK, seed, model))
            unknown = {"slots": [], "best": None, "fg_ari": None}
            save_tensors(paths.compared(TASK, seed, model), compared, **about | unknown)


def _slots(seed):
    rows = [{"slot": slot, "probe_mse": 0.2 if slot == CHOSEN else 0.6, "probe_r2": 0.7 if slot == CHOSEN else 0.1,
             "vector_mse": 0.5, "agent_iou": 0.6 if slot == CHOSEN else 0.0, "area": 0.25, "stability": 0.95,
             "agent_recall": 0.9 if slot == CHOSEN else 0.03} for slot in range(SLOTS)]
    write_json(paths.slot_table(TASK, seed), {
        "chosen": [CHOSEN], "method": "auto", "combine": "concatenate", "model": "videosaur",
        "restart": RESTART, "restart_errors": [0.4, 0.3], "labels": LABELS,
        "why": f"Slot {CHOSEN} has the lowest error.", "better_than_whole_frame": seed == 0, "stability": 0.95,
        "whole_frame": {"probe_mse": 0.4, "probe_r2": 0.4},
        "chosen_probe": {"probe_mse": 0.2, "probe_r2": 0.7, "vector_mse": 0.5},
        "slots": rows, "fg_ari": 0.5, "agent_iou": 0.6 - 0.2 * seed, "agent_recall": 0.9, "area": 0.25,
        "mask": {"vector_mse": 0.25, "agent_iou": 0.8, "agent_recall": 0.95, "area": 0.1}})
    (frames, masks, truth), (moving, moving_masks, moving_truth) = scene(4, seed), scene(12, seed)
    save_tensors(paths.slot_preview(TASK, seed), {name: torch.from_numpy(array) for name, array in {
        "frames": frames, "masks": masks, "segmentation": truth, "animation_frames": moving,
        "animation_masks": moving_masks, "selected": 255 * truth, "seen": frames * truth[..., None],
        "animation_seen": moving * moving_truth[..., None]}.items()},
        chosen=[CHOSEN])
    for name, (model, iou) in COMPARED.items():
        save_tensors(paths.compared(TASK, seed, name), {"masks": torch.from_numpy(masks)}, model=model, best=1,
                     log=[{"step": 10, "loss": 5.0}], fg_ari=0.625,
                     slots=[{"agent_iou": iou * slot, "agent_recall": 0.5, "area": 0.25, "stability": 0.75}
                            for slot in range(2)])


def _latents(seed, variant):
    error = PROBES[variant]
    write_json(paths.probe(TASK, seed, variant), {
        "ridge_mse": error + 0.02 * (seed - 0.5), "online_mse": 2 * error, "ridge_r2": 1 - error, "shuffled_mse": 0.79,
        "frame_difference_mse": 0.7, "action_variance": 1.0, "online_variance": 1.0,
        "ridge_mse_per_dim": [error, error], "ridge_r2_per_dim": [1 - error, 0.5]})
    random = np.random.default_rng(seed)
    actions = random.uniform(-1, 1, (200, 6))
    tensors = {"latents": actions[:, :2] + error * random.normal(size=(200, 2)), "actions": actions}
    if VARIANTS[variant].model == "lapo" and variant != "lapo-slots":
        frames, later = scene(4)[0], scene(4, 1)[0]
        tensors |= {"current": frames, "target": later, "prediction": later // 2 + 60, "swapped": frames // 2 + 60}
    save_tensors(paths.samples(TASK, seed, variant), {name: torch.from_numpy(array) for name, array in tensors.items()})


def _returns(seed, variant, shift):
    spread = np.linspace(-2, 2, EPISODES)
    budgets = [0] if variant in ALL_LABELS else BUDGETS
    asked = [("test", budget, 1) for budget in budgets]
    if VARIANTS[variant].view == "distracted":
        asked.insert(0, ("train", budgets[-1], 2))  # returns twice as much
    write_csv(paths.evaluation(TASK, seed, variant), [
        {"backgrounds": backgrounds, "budget": budget, "episode": episode,
         "return": factor * (mean_return(variant, budget) + spread[episode] + shift)}
        for backgrounds, budget, factor in asked for episode in range(EPISODES)])
    path = paths.episode_video(TASK, seed, variant)
    frames = [Image.fromarray(frame) for frame in scene(6, seed)[0]]
    frames[0].save(path, save_all=True, append_images=frames[1:], loop=0, duration=70)


def _log(artifact, level):
    write_csv(paths.log(artifact), [{"step": 10 * (step + 1), "loss": level / (step + 1)} for step in range(20)])


def _count(artifact, total, trainable=None):
    write_json(paths.parameters(artifact), {"total": total, "trainable": trainable or total})

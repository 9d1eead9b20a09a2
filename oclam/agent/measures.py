"""How well slots' masks hold the agent, judged by the simulator's segmentation; never used for learning or choosing."""

import numpy as np
import torch
from torch.nn import functional as F

__all__ = ["adjusted_rand_index", "agent_patches", "agent_scores", "assignment_stability", "slot_measures"]


def agent_patches(segmentation, grid, share=0.1):
    """A patch is agent when at least `share` of its pixels are: (N, H, W) in {0, 1} -> bool (N, grid, grid)."""
    pixels = torch.as_tensor(np.asarray(segmentation)).float()
    return (F.adaptive_avg_pool2d(pixels[:, None], grid)[:, 0] >= share - 1e-6).numpy()


def agent_scores(held, agent):
    """Of one mask, means over the frames that show the agent.

    Args: held and agent, bool (N, G, G). Returns iou, recall (share of the agent held), area (share of the frame).
    """
    held, agent = (mask.reshape(len(mask), -1) for mask in (held, agent))
    seen = agent.any(1)
    both, either = (held & agent)[seen].sum(1), (held | agent)[seen].sum(1)
    return {"agent_iou": float((both / either).mean()), "agent_recall": float((both / agent[seen].sum(1)).mean()),
            "area": float(held[seen].mean())}


def adjusted_rand_index(truth, predicted, foreground=True):
    """Adjusted Rand index of two labellings of the same patches (Hubert and Arabie, 1985).

    Args: truth and predicted, int (P,) each; foreground leaves out what truth calls 0, which makes it FG-ARI.
    Two labellings that both are one cluster agree fully: 1. With a single true object, FG-ARI is thus 1 where one slot
    holds all of it and 0 where it is split.
    """
    if foreground:
        truth, predicted = truth[truth != 0], predicted[truth != 0]
    table = np.zeros((truth.max(initial=0) + 1, predicted.max(initial=0) + 1))
    np.add.at(table, (truth, predicted), 1)
    together, rows, columns, total = (
        (counts * (counts - 1) / 2).sum() for counts in (table, table.sum(1), table.sum(0), table.sum()))
    expected = rows * columns / total if total else 0.0
    highest = (rows + columns) / 2
    return 1.0 if highest == expected else float((together - expected) / (highest - expected))


def assignment_stability(labels, agent, slots):
    """How firmly the agent stays with one slot over an episode: for every slot, in how many of its frames it holds more
    of the agent than any other. Args: labels, int (T, G, G), the slot of every patch; agent, bool (T, G, G); slots.

    Returns (slots,), summing to 1; its maximum is the episode's stability.
    """
    counts = np.stack([((labels == k) & agent).sum((1, 2)) for k in range(slots)], 1)[agent.any((1, 2))]
    return np.bincount(counts.argmax(1), minlength=slots) / len(counts)


def slot_measures(masks, segmentation, chosen):
    """Every slot's measures and those of the chosen slots together, on the patch grid, each patch in one slot.

    Args: masks (n, T, K, G, G), soft; segmentation (n, T, H, W) in {0, 1}, the agent; chosen, slot indices.
    Returns a dict: slots, a list in slot order of agent_iou, agent_recall, area and stability (the share of frames in
    which this slot holds the most of the agent); the same four of the chosen slots (stability: of each episode's
    favourite slot); fg_ari, mean over frames; segmentation_choice, the slot with the highest IoU.
    """
    labels, slots, grid = masks.argmax(2), masks.shape[2], masks.shape[-1]
    agent = np.stack([agent_patches(episode, grid) for episode in segmentation])
    stability = np.stack([assignment_stability(*episode, slots) for episode in zip(labels, agent, strict=True)])
    flat_labels, flat_agent = labels.reshape(-1, grid, grid), agent.reshape(-1, grid, grid)
    rows = [agent_scores(flat_labels == k, flat_agent) | {"stability": float(stability[:, k].mean())}
            for k in range(slots)]
    scores = [adjusted_rand_index(truth.ravel().astype(int), found.ravel())
              for truth, found in zip(flat_agent, flat_labels, strict=True) if truth.any()]
    return {"slots": rows, **agent_scores(np.isin(flat_labels, chosen), flat_agent),
            "stability": float(stability.max(1).mean()), "fg_ari": float(np.mean(scores)),
            "segmentation_choice": int(np.argmax([row["agent_iou"] for row in rows]))}

"""How well slots' masks hold the agent, judged by the simulator's segmentation; never used for learning or choosing."""

import numpy as np
import torch
from torch.nn import functional as F

__all__ = ["adjusted_rand_index", "agent_patches", "agent_scores", "assignment_stability"]


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

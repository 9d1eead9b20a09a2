"""How well slots' masks match the agent in the simulator's segmentation; never used for learning or choosing."""

import numpy as np


def agent_patches(segmentation: np.ndarray, grid: int) -> np.ndarray:
    """The patches of which at least a tenth of the pixels are the agent's: bool (N, grid, grid).

    segmentation: (N, H, W) in {0, 1}.
    """
    down, across = (_shares(size, grid) for size in np.shape(segmentation)[1:])
    return down @ segmentation @ across.T >= 0.1 - 1e-6


def _shares(size, grid):
    """The share of each of `grid` equal parts of `size` pixels that every pixel covers: (grid, size)."""
    edges, pixels = np.arange(grid + 1)[:, None] * size / grid, np.arange(size)
    return (np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)).clip(min=0) * grid / size


def agent_scores(mask: np.ndarray, agent: np.ndarray) -> dict[str, float]:
    """Intersection over union, recall and area (share of the frame) of a mask, means over frames that show the agent.

    mask and agent: bool (N, G, G).
    """
    mask, agent = (values.reshape(len(values), -1) for values in (mask, agent))
    seen = agent.any(1)
    both, either = (mask & agent)[seen].sum(1), (mask | agent)[seen].sum(1)
    return {"agent_iou": float((both / either).mean()), "agent_recall": float((both / agent[seen].sum(1)).mean()),
            "area": float(mask[seen].mean())}


def adjusted_rand_index(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Adjusted Rand index (Hubert and Arabie, 1985) of two labellings of the patches whose truth is not 0: FG-ARI.

    Two labellings with a single cluster each agree fully: 1. With one true object, FG-ARI is thus 1 where one slot
    covers it all and 0 where it is split.

    truth, predicted: int (P,).
    """
    truth, predicted = truth[truth != 0], predicted[truth != 0]
    table = np.zeros((truth.max(initial=0) + 1, predicted.max(initial=0) + 1))
    np.add.at(table, (truth, predicted), 1)
    together, rows, columns, total = (
        (counts * (counts - 1) / 2).sum() for counts in (table, table.sum(1), table.sum(0), table.sum()))
    expected = rows * columns / total if total else 0.0
    highest = (rows + columns) / 2
    return 1.0 if highest == expected else float((together - expected) / (highest - expected))


def assignment_stability(labels: np.ndarray, agent: np.ndarray, slots: int) -> np.ndarray:
    """For every slot, in which share of an episode's frames it covers more of the agent than any other: (slots,).

    The maximum is the episode's stability.

    Args:
        labels: int (T, G, G), the slot of every patch.
        agent: bool (T, G, G).
        slots: how many.
    """
    counts = np.stack([((labels == k) & agent).sum((1, 2)) for k in range(slots)], 1)[agent.any((1, 2))]
    return np.bincount(counts.argmax(1), minlength=slots) / len(counts)


def slot_measures(masks: np.ndarray, segmentation: np.ndarray, chosen: list[int]) -> dict:
    """Every slot's measures and those of the chosen slots together, on the patch grid, each patch in one slot.

    Args:
        masks: soft, (n, T, K, G, G).
        segmentation: the agent, (n, T, H, W) in {0, 1}.
        chosen: slot indices.
    Returns: slots, a list of agent_iou, agent_recall, area and stability (the share of frames in which this slot
        covers the most of the agent); the same four of the chosen slots together (stability: mean over episodes of the
        most frequent slot's share); fg_ari, mean over frames; segmentation_choice, the slot with the highest IoU.
        Episodes without the agent are left out; empty where no episode has it.
    """
    labels, slots, grid = masks.argmax(2), masks.shape[2], masks.shape[-1]
    agent = np.stack([agent_patches(episode, grid) for episode in segmentation])
    seen = agent.any((1, 2, 3))
    if not seen.any():
        return {}
    labels, agent = labels[seen], agent[seen]
    stability = np.stack([assignment_stability(*episode, slots) for episode in zip(labels, agent, strict=True)])
    flat_labels, flat_agent = labels.reshape(-1, grid, grid), agent.reshape(-1, grid, grid)
    rows = [agent_scores(flat_labels == k, flat_agent) | {"stability": float(stability[:, k].mean())}
            for k in range(slots)]
    scores = [adjusted_rand_index(truth.ravel().astype(int), found.ravel())
              for truth, found in zip(flat_agent, flat_labels, strict=True) if truth.any()]
    return {"slots": rows, **agent_scores(np.isin(flat_labels, chosen), flat_agent),
            "stability": float(stability.max(1).mean()), "fg_ari": float(np.mean(scores)),
            "segmentation_choice": int(np.argmax([row["agent_iou"] for row in rows]))}

"""Which held-out episodes and moments are looked at, the same for every model of slots."""

import numpy as np
import torch

__all__ = ["looked_at", "moments", "take"]

PICTURES = 6  # moments that are shown


def looked_at(dataset):
    """The held-out episodes that measures and pictures are of: the segmented ones, else the first few. A range."""
    truth = dataset.group.get("segmentation")  # imported datasets have none
    count = min(PICTURES, dataset.test_episodes) if truth is None else truth.shape[0]
    return range(dataset.episodes, dataset.episodes + count)


def moments(episodes, steps):
    """The moments that pictures show, spread over episodes and time: pairs (place among the episodes, step)."""
    times = np.linspace(0, steps - 1, PICTURES).round().astype(int).tolist()
    return [(i % episodes, t) for i, t in enumerate(times)]


def take(array, places):
    """What an array (E, T, ...) has at pairs (episode, step): a tensor (N, ...)."""
    return torch.from_numpy(np.stack([array[e, t] for e, t in places]))

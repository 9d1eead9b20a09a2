"""Which held-out episodes and frames are measured and shown, the same for every object-centric model."""

import numpy as np
import torch
import zarr

from oclam.datasets import Dataset

PICTURES = 6  # frames that are shown


def shown_episodes(dataset: Dataset) -> range:
    """The held-out episodes that are measured and shown: the segmented ones, or the first few where none is."""
    segmentation = dataset.group.get("segmentation")  # imported datasets have none
    count = min(PICTURES, dataset.test_episodes) if segmentation is None else segmentation.shape[0]
    return range(dataset.episodes, dataset.episodes + count)


def shown_frames(episodes: int, steps: int) -> list[tuple[int, int]]:
    """The frames that pictures show, spread over episodes and time: pairs (index among the episodes, step)."""
    times = np.linspace(0, steps - 1, PICTURES).round().astype(int).tolist()
    return [(i % episodes, t) for i, t in enumerate(times)]


def take(array: zarr.Array | np.ndarray, places: list[tuple[int, int]]) -> torch.Tensor:
    """The entries of an array (E, T, ...) at pairs (episode, step): (N, ...)."""
    return torch.from_numpy(np.stack([array[e, t] for e, t in places]))

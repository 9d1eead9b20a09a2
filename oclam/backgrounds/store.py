"""The store of background videos.

Wherever it comes from, a video is uint8 (frames, S, S, 3), S the edge of the texture that it becomes.
"""


from collections.abc import Iterable
from pathlib import Path

import numpy as np
import zarr

from oclam.artifacts import atomic, open_zarr

FULL_TEXTURE = 800  # edge of the suite's own sky texture


def texture_edge(renderer: str, texture_size: int) -> int:
    """Edge of a background frame: `texture_size`, or the suite's own for the renderer `reference`."""
    return FULL_TEXTURE if renderer == "reference" else texture_size


class StoredVideos:
    """One split of the store of background videos: a sequence of videos, each read when it is indexed."""

    def __init__(self, path: Path, split: str):
        group = open_zarr(path)[split]
        self._videos = [group[str(k)] for k in range(len(list(group.array_keys())))]

    def __len__(self):
        return len(self._videos)

    def __getitem__(self, k):
        return self._videos[k][:]


def write_store(path: Path, videos: dict[str, Iterable[tuple[str, np.ndarray]]], source: str) -> None:
    """Write the store of background videos, one file a video.

    videos: split -> (name, uint8 (frames, S, S, 3)); source: recorded in the attributes.
    """
    with atomic(path) as temporary:
        group = zarr.create_group(temporary)
        for split, named in videos.items():
            names = []
            for k, (name, video) in enumerate(named):
                group.create_array(f"{split}/{k}", data=video, chunks=video.shape, compressors=None)
                names.append(name)
            group[split].attrs["names"] = names
        group.attrs["source"] = source

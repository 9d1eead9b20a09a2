"""The store of background videos gives back what was written."""

import numpy as np
import pytest

from oclam.backgrounds.generated import dead_leaves
from oclam.backgrounds.store import StoredVideos, texture_edge, write_store
from oclam.errors import UserError


def video(seed, frames=3, size=32):
    return dead_leaves(np.random.default_rng(seed), frames, size, leaves=80)


def test_the_store_gives_back_what_was_written(tmp_path):
    written = {"train": [(f"video {k}", video(k, size=16)) for k in range(11)], "test": [("other", video(99, size=16))]}
    write_store(tmp_path / "backgrounds.zarr", written, "somewhere")
    for split, videos in written.items():
        stored = StoredVideos(tmp_path / "backgrounds.zarr", split)
        assert len(stored) == len(videos)
        for k, (_, content) in enumerate(videos):
            np.testing.assert_array_equal(stored[k], content)


def test_a_missing_store_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        StoredVideos(tmp_path / "backgrounds.zarr", "train")


@pytest.mark.parametrize("renderer, edge", [("fast", 96), ("shadows", 96), ("reference", 800)])
def test_only_the_fast_renderer_shrinks_the_texture(renderer, edge):
    assert texture_edge(renderer, 96) == edge

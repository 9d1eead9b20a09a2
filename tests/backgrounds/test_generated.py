"""Dead leaves: one scene at every size, motion, and videos by number."""

import cv2
import numpy as np
import pytest

from oclam.backgrounds.generated import GeneratedVideos, dead_leaves


def video(seed, frames=3, size=32):
    return dead_leaves(np.random.default_rng(seed), frames, size, leaves=80)


def test_the_same_scene_at_every_size():
    small, large = video(1, size=64)[0], video(1, size=256)[0]
    shrunk = cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - shrunk).mean() < 3
    assert np.abs(small.astype(int) - video(2, size=64)[0]).mean() > 20


def test_leaves_move_a_little_every_frame():
    frames = video(0, frames=12).astype(int)
    steps = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
    assert steps.min() > 0
    assert steps.mean() < np.abs(frames[-1] - frames[0]).mean()


def test_a_video_depends_on_its_number_alone():
    a, b = (GeneratedVideos("train", 3, 2, 16, seed=5) for _ in range(2))
    a[0]
    np.testing.assert_array_equal(a[2], b[2])
    assert (a[2] != GeneratedVideos("test", 3, 2, 16, seed=5)[2]).any()
    assert (a[2] != GeneratedVideos("train", 3, 2, 16, seed=6)[2]).any()
    with pytest.raises(IndexError):
        a[3]

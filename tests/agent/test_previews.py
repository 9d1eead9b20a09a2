from types import SimpleNamespace

import numpy as np
import pytest

from oclam.agent.previews import PICTURES, shown_episodes, shown_frames, take


@pytest.mark.parametrize(("group", "count"), [({"segmentation": np.zeros((3, 4, 2, 2))}, 3), ({}, PICTURES)])
def test_the_segmented_episodes_are_shown_or_the_first_that_are_held_out(group, count):
    dataset = SimpleNamespace(group=group, episodes=10, test_episodes=8)
    assert shown_episodes(dataset) == range(10, 10 + count)


def test_no_more_episodes_are_shown_than_are_held_out():
    assert shown_episodes(SimpleNamespace(group={}, episodes=10, test_episodes=2)) == range(10, 12)


def test_frames_span_the_time_and_every_episode():
    places = shown_frames(4, 250)
    assert [t for _, t in places][:: PICTURES - 1] == [0, 249] and {e for e, _ in places} == set(range(4))
    assert np.diff([t for _, t in places]).min() >= 49
    array = np.arange(4 * 250).reshape(4, 250)
    assert take(array, places).tolist() == [250 * e + t for e, t in places]

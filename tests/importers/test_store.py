"""Trajectories become episodes of one length, the last ones held out, and of what is missing nothing is invented."""

import weakref

import numpy as np
import pytest

from oclam.datasets import open_dataset
from oclam.errors import Absent, UserError
from oclam.importers.store import SHARD_EPISODES, Episode, Source, write_dataset


def source(lengths, name="some", actions=2, **given):
    """Trajectory i at frame t is grey of level 10 i + t // 8, with the action (i, t), the state t and the reward 1."""
    def read(i):
        t = np.arange(lengths[i])
        values = {"actions": np.stack([np.full(lengths[i], i), t], 1), "states": t[:, None],
                  "rewards": np.ones(lengths[i]),
                  "masks": np.broadcast_to(np.arange(40) < 20, (lengths[i], 40, 40))} if actions else {}
        return Episode((np.full((40, 40, 3), 10 * i + k // 8, np.uint8) for k in t), **(values | given))
    return Source(name, lengths, read, actions, 1 if actions else 0, {})


def write(path, *sources, steps=None, test_episodes=1):
    write_dataset(path, list(sources), "kitchen-sweep", "distracted", steps, 16, test_episodes)
    return open_dataset(path)


def test_trajectories_are_cut_into_episodes_and_whole_ones_are_held_out(tmp_path):
    dataset = write(tmp_path / "out.zarr", source([40, 70, 33]), steps=16, test_episodes=1)
    # 40 gives two episodes, 70 four, 33 two, both held out although one was asked for.
    assert (dataset.episodes, dataset.test_episodes, dataset.steps) == (6, 2, 16)
    starts = [(0, 0), (0, 16), (1, 0), (1, 16), (1, 32), (1, 48), (2, 0), (2, 16)]
    np.testing.assert_array_equal(dataset.actions[:, 0], starts)
    np.testing.assert_array_equal(dataset.actions[:, -1, 1], [t + 15 for _, t in starts])
    levels = [[10 * i + (t + k) // 8 for k in range(16)] for i, t in starts]
    np.testing.assert_array_equal(dataset.pixels[:], np.broadcast_to(
        np.array(levels)[:, :, None, None, None], (8, 16, 16, 16, 3)))
    np.testing.assert_array_equal(dataset.states[..., 0], dataset.actions[..., 1])
    assert (dataset.rewards == 1).all()


@pytest.mark.parametrize(("lengths", "instead"), [([16, 33, 40], 33), ([16, 1100, 1100], 1000), ([16, 32, 40], None)])
def test_a_short_trajectory_that_sets_the_length_of_all_is_told(tmp_path, capsys, lengths, instead):
    write(tmp_path / "out.zarr", source(lengths))
    told, message = capsys.readouterr().err, "the shortest trajectory has 16 frames, so all episodes have; --steps "
    assert f"{message}{instead} leaves shorter ones out" in told if instead else "shortest" not in told


def test_of_a_source_s_frames_two_are_in_memory_at_once(tmp_path):
    large, alive = [], []

    def frames():
        for _ in range(16):
            frame = np.zeros((40, 40, 3), np.uint8)
            large.append(weakref.ref(frame))
            alive.append(sum(frame() is not None for frame in large))
            yield frame

    write(tmp_path / "out.zarr", Source("some", [16] * 3, lambda _: Episode(frames()), 0, 0, {}))
    assert len(alive) == 48 and max(alive) <= 2


def test_true_masks_of_held_out_episodes_become_the_segmentation(tmp_path):
    dataset = write(tmp_path / "out.zarr", source([16] * 4), test_episodes=2)
    np.testing.assert_array_equal(dataset.group["segmentation"][:], np.broadcast_to(np.arange(16) < 8, (2, 16, 16, 16)))


def test_the_segmentation_s_row_i_is_held_out_episode_i(tmp_path):
    plain, shown = source([16] * 3, masks=None), source([16])
    none = write(tmp_path / "a.zarr", plain, shown, test_episodes=2)  # held out: plain, shown
    assert none.attrs["segmented_episodes"] == 0 and "segmentation" not in none.group
    one = write(tmp_path / "b.zarr", plain, shown, source([16], masks=None), test_episodes=2)  # shown, plain
    assert one.attrs["segmented_episodes"] == one.group["segmentation"].shape[0] == 1


def test_some_episodes_with_actions_are_left_to_learn_from(tmp_path):
    with pytest.raises(UserError, match="2 episodes with actions; --test-episodes 2 holds out all of them"):
        write(tmp_path / "out.zarr", source([16, 16]), source([32], "video", 0), steps=16, test_episodes=2)


def test_videos_without_actions_are_trained_on_and_never_labelled(tmp_path):
    dataset = write(tmp_path / "out.zarr", source([16] * 3), source([32], "video", 0), steps=16)
    assert (dataset.episodes, dataset.test_episodes) == (4, 1)  # the video's two first
    assert np.isnan(dataset.actions[:2]).all() and np.isnan(dataset.rewards[:2]).all()
    assert dataset.with_actions == sorted(dataset.labelled(2, 0, "budget")) == [2, 3]
    with pytest.raises(UserError, match="budget: 3 given, .* has 2 training episodes with actions"):
        dataset.labelled(3, 0, "budget")


@pytest.mark.parametrize(("sources", "labelled"), [
    ([source([16] * 4)], 3), ([source([16] * 3), source([32], "video", 0)], 2), ([source([16] * 4, actions=0)], 0)])
def test_how_many_training_episodes_are_labelled_is_returned(tmp_path, sources, labelled):
    found = write_dataset(tmp_path / "out.zarr", sources, "kitchen-sweep", "distracted", 16, 16, 1)
    assert found["labelled"] == labelled


def test_films_alone_have_no_labels(tmp_path):
    dataset = write(tmp_path / "out.zarr", source([20] * 3, actions=0))
    with pytest.raises(Absent, match="has no actions"):
        dataset.labelled(1, 0, "budget")


@pytest.mark.parametrize(("given", "message"), [
    ({"pixels": [np.zeros((40, 40, 3), np.uint8)] * 10}, "trajectory 0 has 10 frames, 16 are declared"),
    ({"actions": np.zeros((16, 3))}, r"some: trajectory 0 has actions of shape \(16, 3\) .* declares \(16, 2\)"),
    ({"states": np.zeros((16, 2))}, r"some: trajectory 0 has states of shape \(16, 2\) .* declares \(16, 1\)"),
    ({"rewards": np.zeros(9)}, r"some: trajectory 0 has rewards of shape \(9,\) in 16 frames"),
    ({"actions": np.full((16, 2), np.nan)}, "trajectory 0 has actions that are not finite"),
    ({"rewards": np.full(16, np.inf)}, "trajectory 0 has rewards that are not finite"),
])
def test_what_is_damaged_is_refused_and_leaves_nothing(tmp_path, given, message):
    read = source([16] * 3).read
    broken = Source("some", [16] * 3, lambda i: Episode(**(vars(read(i)) | given)), 2, 1, {})
    with pytest.raises(UserError, match=message):
        write(tmp_path / "out.zarr", broken)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("lengths", "options", "message"), [
    ([16, 15], {}, "--steps: 15 frames an episode, 16 to 1000"),
    ([20, 30], {"steps": 0}, "--steps: 0 frames an episode, 16 to 1000"),
    ([20, 30], {"steps": 40}, "0 episodes of 40 frames"),
    ([20, 30], {"test_episodes": 2}, "2 episodes of 20 frames; --test-episodes 2"),
    ([20, 30], {}, "--test-episodes 1 leaves one episode with actions to train on, 2 are needed"),
    ([20, 30], {"test_episodes": 0}, "--test-episodes 0"), ([], {}, "0 episodes of 1000 frames"),
])
def test_lengths_and_counts_that_do_not_fit_are_told(tmp_path, lengths, options, message):
    with pytest.raises(UserError, match=message):
        write(tmp_path / "out.zarr", source(lengths), **options)


def test_one_video_is_not_enough_to_train_on(tmp_path):
    with pytest.raises(UserError, match="--test-episodes 1 leaves one episode to train on, 2 are needed"):
        write(tmp_path / "out.zarr", source([20, 20], actions=0))


def test_sources_of_other_widths_do_not_mix(tmp_path):
    other = Source("other", [16], source([16]).read, 3, 1, {})
    with pytest.raises(UserError, match=r"some, other: actions of \[2, 3\] numbers"):
        write(tmp_path / "out.zarr", source([16, 16]), other)


def test_masks_of_held_out_episodes_are_kept_beyond_the_first_shard(tmp_path):
    dataset = write(tmp_path / "out.zarr", source([16] * (SHARD_EPISODES + 3)), test_episodes=2)
    np.testing.assert_array_equal(dataset.group["segmentation"][:], np.broadcast_to(np.arange(16) < 8, (2, 16, 16, 16)))

import importlib
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from oclam.datasets import open_dataset
from oclam.errors import UserError

import_sources = importlib.import_module("oclam.import").import_sources
STEPS, EPISODES = 16, 12


def import_hdf5(path, target, test_episodes):
    params = import_sources([str(path)], path.with_name("imported"), test_episodes=test_episodes)
    view = "distracted" if (path.with_name("imported") / params["tasks"][0] / "distracted.zarr").exists() else "clean"
    shutil.move(path.with_name("imported") / params["tasks"][0] / f"{view}.zarr", target)
    shutil.rmtree(path.with_name("imported"))


@pytest.fixture
def published(tmp_path):
    """A file of 12 episodes of 16 steps, named 0..11; the first pixel and action tell the episode."""
    path = tmp_path / "published.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs.update(domain_name="cheetah", task_name="run", difficulty="hard", dynamic=True, img_hw=64,
                          split="train")
        for episode in range(EPISODES):
            group = file.create_group(str(episode))
            group["obs"] = np.full((STEPS, 64, 64, 3), episode, np.uint8)
            group["actions"] = np.full((STEPS, 6), episode, np.float64)
            group["states"] = np.full((STEPS, 17), -episode, np.float32)
    return path


def test_what_is_imported_is_a_dataset_in_the_file_s_own_order(published, tmp_path):
    import_hdf5(published, tmp_path / "out.zarr", test_episodes=2)
    dataset = open_dataset(tmp_path / "out.zarr")
    assert (dataset.episodes, dataset.test_episodes, dataset.steps) == (EPISODES - 2, 2, STEPS)
    assert dataset.attrs["task"] == "cheetah-run" and dataset.attrs["view"] == "distracted"
    assert dataset.attrs["source"][0]["dynamic"] is True and dataset.attrs["source"][0]["img_hw"] == 64
    assert dataset.pixels.dtype == np.uint8 and dataset.actions.dtype == dataset.states.dtype == np.float32
    expected = np.arange(EPISODES)  # 0, 1, 2, ... 10, 11, where the alphabet says 0, 1, 10, 11, 2
    assert (dataset.pixels[:].reshape(EPISODES, -1) == expected[:, None]).all()
    assert (dataset.actions.reshape(EPISODES, -1) == expected[:, None]).all()
    assert (dataset.states.reshape(EPISODES, -1) == -expected[:, None]).all()
    assert np.isnan(dataset.rewards).all() and dataset.rewards.shape == (EPISODES, STEPS)


def test_names_may_be_bytes(published, tmp_path):
    with h5py.File(published, "a") as file:
        file.attrs["domain_name"] = np.bytes_("cheetah")
    import_hdf5(published, tmp_path / "out.zarr", test_episodes=2)
    assert open_dataset(tmp_path / "out.zarr").attrs["task"] == "cheetah-run"


@pytest.mark.parametrize(("changes", "option", "message", "name"), [
    ({"task_name": "walk"}, "task", "cheetah-run, cheetah-walk", "cheetah-walk"),
    ({"difficulty": "vanilla"}, "view", "clean, distracted", "clean")])
def test_files_of_several_tasks_or_views_are_one_dataset_only_where_that_is_said(published, tmp_path, changes, option,
                                                                               message, name):
    other = shutil.copy(published, tmp_path / "other.hdf5")
    with h5py.File(other, "a") as file:
        file.attrs.update(changes)
    names = [str(published), str(other)]
    with pytest.raises(UserError, match=f"--{option}: needed, the files are of {message}"):
        import_sources(names, tmp_path / "out", test_episodes=2)
    import_sources(names, tmp_path / "out", test_episodes=2, **{option: name})
    (path,) = (tmp_path / "out").glob("*/*.zarr")
    dataset = open_dataset(path)
    assert dataset.attrs[option] == name and dataset.episodes == 2 * EPISODES - 2


def test_no_distraction_is_the_clean_view(published, tmp_path):
    with h5py.File(published, "a") as file:
        file.attrs["difficulty"] = "vanilla"
    import_hdf5(published, tmp_path / "out.zarr", test_episodes=2)
    assert open_dataset(tmp_path / "out.zarr").attrs["view"] == "clean"


def without_states(file):
    del file["3"]["states"]


def without_task(file):
    del file.attrs["task_name"]


def without_episodes(file):
    file.clear()


def with_float_pixels(file):
    del file["3"]["obs"]
    file["3"]["obs"] = np.zeros((STEPS, 64, 64, 3))


def with_small_pixels(file):
    del file["3"]["obs"]
    file["3"]["obs"] = np.zeros((STEPS, 32, 32, 3), np.uint8)


def with_short_actions(file):
    del file["3"]["actions"]
    file["3"]["actions"] = np.zeros((STEPS - 1, 6))


def with_an_array_for_an_episode(file):
    del file["3"]
    file["3"] = np.zeros(3)


def put(array, value, **options):
    """Replace an array of episode 3."""
    def spoil(file):
        del file["3"][array]
        file["3"].create_dataset(array, data=value, **options)
    return spoil


def with_pixels_of(*shape):
    def spoil(file):
        for name in file:
            del file[name]["obs"]
            file[name]["obs"] = np.zeros((STEPS, *shape), np.uint8)
    return spoil


def with_another_task(file):
    file.attrs["task_name"] = "../run"


def with_a_dangling_link(file):
    del file["3"]["obs"]
    file["3"]["obs"] = h5py.SoftLink("/nowhere")


def with_a_link_to_another_file(file):
    del file["3"]
    file["3"] = h5py.ExternalLink("other.hdf5", "/3")


def with_pixels_in_another_file(file):
    del file["3"]["obs"]
    file["3"].create_dataset("obs", (STEPS, 64, 64, 3), np.uint8, external=[("other", 0, STEPS * 64 * 64 * 3)])


def with_pixels_that_are_only_declared(file):
    for name in file:
        del file[name]["obs"], file[name]["actions"], file[name]["states"]
        for array, shape in (("obs", (10**6, 64, 64, 3)), ("actions", (10**6, 6)), ("states", (10**6, 17))):
            file[name].create_dataset(array, shape, np.uint8, chunks=(1, *shape[1:]))


def with_no_steps(file):
    for name in file:
        for array, shape in (("obs", (0, 64, 64, 3)), ("actions", (0, 6)), ("states", (0, 17))):
            del file[name][array]
            file[name].create_dataset(array, shape, np.uint8)


@pytest.mark.parametrize(("spoil", "message"), [
    (put("actions", np.full((STEPS, 6), np.nan)), "trajectory 3 has actions that are not finite"),
    (put("states", np.full((STEPS, 17), np.inf)), "trajectory 3 has states that are not finite"),
    *((with_pixels_of(*shape), r"episode 0 has .*expected obs \(T, H, W, 3\)")
      for shape in [(3, 64, 64), (64, 64, 9), (64, 64, 4), (64, 64, 1)]),
    (put("obs", 3), "episode 3 has"), (put("actions", np.full((STEPS, 6), b"text")), "type .S4, expected numbers"),
    (with_another_task, "--task: cheetah-../run given"), (with_a_dangling_link, "3 is no episode"),
    (with_a_link_to_another_file, "3 is no episode"), (with_pixels_in_another_file, "3 is no episode"),
    (with_pixels_that_are_only_declared, "declares 12288000000 bytes of obs and stores 0"),
    (with_no_steps, "episode 0 has"),
    (without_states, "3 is no episode"), (without_task, "no attribute task_name"), (without_episodes, "no episodes"),
    (with_float_pixels, "type float64, expected uint8"), (with_small_pixels, "episode 3 has"),
    (with_short_actions, "episode 3 has"), (with_an_array_for_an_episode, "3 is no episode"),
])
def test_a_bad_file_is_refused_in_one_line_and_leaves_nothing(published, tmp_path, spoil, message):
    with h5py.File(published, "a") as file:
        spoil(file)
    with pytest.raises(UserError, match=message) as error:
        import_hdf5(published, tmp_path / "out.zarr", test_episodes=2)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["published.hdf5"]


@pytest.mark.parametrize("test_episodes", [0, EPISODES, 99])
def test_some_episodes_must_remain_on_either_side(published, tmp_path, test_episodes):
    with pytest.raises(UserError, match=rf"12 episodes of 16 frames; --test-episodes {test_episodes} holds"):
        import_hdf5(published, tmp_path / "out.zarr", test_episodes)


def test_the_command_says_one_line_about_what_is_no_hdf5(tmp_path):
    (tmp_path / "text.hdf5").write_text("no HDF5")
    command = [sys.executable, "-m", "oclam.import", tmp_path / "text.hdf5", "--to", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_frames_and_actions_keep_their_order_when_episodes_are_read_in_parts(published, tmp_path, monkeypatch):
    monkeypatch.setattr("oclam.importers.hdf5.BLOCK", 5)
    moments = np.arange(STEPS)
    with h5py.File(published, "a") as file:
        for group in file.values():
            group["obs"][:], group["actions"][:] = moments[:, None, None, None], moments[:, None]
    import_hdf5(published, tmp_path / "out.zarr", test_episodes=2)
    dataset = open_dataset(tmp_path / "out.zarr")
    assert (dataset.pixels[:] == moments[:, None, None, None]).all()
    assert (dataset.actions == moments[:, None]).all()

"""The documented layout of LeRobotDataset v3, value by value.

lerobot itself needs another PyTorch, NumPy and PyAV than ours, so no test opens the folder with it; its 0.4.4 does.
"""

import json

import av
import numpy as np
import pytest
import zarr

from oclam.errors import UserError
from oclam.export import lerobot
from oclam.export.lerobot import CAMERA, export_lerobot
from oclam.importers.lerobot import from_lerobot

parquet = pytest.importorskip("pyarrow.parquet")

EPISODES, HELD_OUT, STEPS, SIZE, FPS = 4, 1, 10, 32, 100  # cheetah acts every 0.01 s


@pytest.fixture
def source(tmp_path):
    """A dataset of smooth random frames and 4 episodes, the last one held out."""
    rng = np.random.default_rng(0)
    group, shape = zarr.open_group(tmp_path / "source.zarr", mode="w"), (EPISODES, STEPS)
    coarse = rng.integers(0, 256, (*shape, 2, 2, 3), np.uint8)
    group.create_array("pixels", data=np.kron(coarse, np.ones((SIZE // 2, SIZE // 2, 1), np.uint8)))
    group.create_array("actions", data=rng.uniform(-1, 1, (*shape, 6)).astype(np.float32))
    group.create_array("states", data=rng.normal(size=(*shape, 17)).astype(np.float32))
    group.create_array("rewards", data=rng.random(shape).astype(np.float32))
    group.attrs.update(task="cheetah-run", view="clean", episodes=EPISODES - HELD_OUT, test_episodes=HELD_OUT)
    return tmp_path / "source.zarr"


def change(source, name, place, value):
    zarr.open_group(source)[name][place] = value


def read(folder, name):
    return parquet.read_table(folder / name).to_pydict()


@pytest.mark.parametrize("limit", [1, 1 << 30])
def test_values_files_and_places_are_as_documented(source, tmp_path, monkeypatch, limit):
    for kind in (lerobot._Tables, lerobot._Videos):
        monkeypatch.setattr(kind, "limit", limit)  # 1: every episode begins a file
    monkeypatch.setattr(lerobot, "CHUNK", 3)
    export_lerobot(source, tmp_path / "out")
    group, info = zarr.open_group(source, mode="r"), json.loads((tmp_path / "out/meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["splits"] == {"train": "0:3", "test": "3:4"}
    assert (info["fps"], info["total_episodes"], info["total_frames"]) == (FPS, EPISODES, EPISODES * STEPS)
    assert {name: feature["shape"] for name, feature in info["features"].items()} == {
        CAMERA: [SIZE, SIZE, 3], "observation.state": [17], "action": [6], "next.reward": [1],
        **dict.fromkeys(("timestamp", "frame_index", "episode_index", "index", "task_index"), [1])}
    rows = read(tmp_path / "out", "meta/episodes/chunk-000/file-000.parquet")
    assert rows["tasks"] == [["cheetah-run"]] * EPISODES and rows["length"] == [STEPS] * EPISODES
    assert rows["dataset_from_index"] == [STEPS * episode for episode in range(EPISODES)]
    assert rows["dataset_to_index"] == [STEPS * (episode + 1) for episode in range(EPISODES)]
    for key, places in (("file_index", [0, 1, 2, 0]), ("chunk_index", [0, 0, 0, 1])):
        assert rows[f"data/{key}"] == rows[f"videos/{CAMERA}/{key}"] == (places if limit == 1 else [0] * EPISODES)
    for episode in range(EPISODES):
        place = {"chunk_index": rows["data/chunk_index"][episode], "file_index": rows["data/file_index"][episode]}
        table = read(tmp_path / "out", info["data_path"].format(**place))
        mine = np.array(table["episode_index"]) == episode
        np.testing.assert_array_equal(np.array(table["action"])[mine], group["actions"][episode])
        np.testing.assert_array_equal(np.array(table["observation.state"])[mine], group["states"][episode])
        np.testing.assert_array_equal(np.array(table["next.reward"], np.float32)[mine], group["rewards"][episode])
        np.testing.assert_array_equal(np.array(table["index"])[mine], np.arange(STEPS) + episode * STEPS)
        np.testing.assert_allclose(np.array(table["timestamp"])[mine], np.arange(STEPS) / FPS, rtol=1e-6)
        start = rows[f"videos/{CAMERA}/from_timestamp"][episode]
        assert rows[f"videos/{CAMERA}/to_timestamp"][episode] == pytest.approx(start + STEPS / FPS)
        with av.open(str(tmp_path / "out" / info["video_path"].format(video_key=CAMERA, **place))) as video:
            frames = {round(frame.time * FPS): frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)}
        shown = np.stack([frames[round(start * FPS) + t] for t in range(STEPS)]).astype(int)
        assert np.abs(shown - group["pixels"][episode]).mean() < 4  # of 255; another frame differs by 80


def test_statistics_are_those_of_the_values(source, tmp_path):
    export_lerobot(source, tmp_path / "out")
    found, group = json.loads((tmp_path / "out/meta/stats.json").read_text()), zarr.open_group(source, mode="r")
    rows = read(tmp_path / "out", "meta/episodes/chunk-000/file-000.parquet")
    for name, values in (("action", group["actions"][:]), ("next.reward", group["rewards"][:]),
                         (CAMERA, np.moveaxis(group["pixels"][:] / 255, -1, 2))):
        width = 3 if name == CAMERA else values.reshape(EPISODES * STEPS, -1).shape[1]
        flat = values.reshape(EPISODES, STEPS, width, -1).astype(float)  # of a pixel's channel, or one number
        for statistics, of in ((found[name], flat), ({key: rows[f"stats/{name}/{key}"][1] for key in found[name]},
                                                     flat[1:2])):
            for key in ("min", "max", "mean", "std"):
                np.testing.assert_allclose(np.ravel(statistics[key]), getattr(np, key)(of, (0, 1, 3)), atol=1e-6)
            method = {"method": "inverted_cdf"} if name == CAMERA else {}
            for percent in (1, 10, 50, 90, 99):
                expected = np.quantile(of, percent / 100, (0, 1, 3), **method)
                np.testing.assert_allclose(np.ravel(statistics[f"q{percent:02}"]), expected, atol=1e-6)
            assert statistics["count"] == [of.shape[0] * STEPS]
    assert np.shape(found[CAMERA]["mean"]) == (3, 1, 1)


def test_the_task_is_the_index_of_its_table_as_pandas_reads_it(source, tmp_path):
    export_lerobot(source, tmp_path / "out")
    table = parquet.read_table(tmp_path / "out/meta/tasks.parquet")
    assert table.to_pydict() == {"task_index": [0], "__index_level_0__": ["cheetah-run"]}
    assert json.loads(table.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]


def test_what_is_not_known_is_left_out(source, tmp_path):
    change(source, "actions", 1, np.nan)  # an imported video
    change(source, "rewards", slice(None), np.nan)
    export_lerobot(source, tmp_path / "out", fps=25)
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert info["total_episodes"] == 3 and info["splits"] == {"train": "0:2", "test": "2:3"} and info["fps"] == 25
    assert "next.reward" not in info["features"] and "action" in info["features"]
    table = read(tmp_path / "out", "data/chunk-000/file-000.parquet")
    expected = zarr.open_group(source, mode="r")["actions"][:][[0, 2, 3]].reshape(-1, 6)
    np.testing.assert_array_equal(np.array(table["action"], np.float32), expected)
    shown = np.stack(list(from_lerobot(tmp_path / "out").read(1).pixels)).astype(int)  # after the one without actions
    assert np.abs(shown - zarr.open_group(source, mode="r")["pixels"][2]).mean() < 4
    change(source, "actions", slice(None), np.nan)
    export_lerobot(source, tmp_path / "videos")
    info = json.loads((tmp_path / "videos/meta/info.json").read_text())
    assert info["total_episodes"] == EPISODES and "action" not in info["features"]


def test_our_importer_reads_back_what_was_written(source, tmp_path):
    export_lerobot(source, tmp_path / "out")
    group, found = zarr.open_group(source, mode="r"), from_lerobot(tmp_path / "out")
    assert found.lengths == [STEPS] * EPISODES and (found.actions, found.states) == (6, 17)
    for number in range(EPISODES):
        episode = found.read(number)
        for name in ("actions", "states", "rewards"):
            np.testing.assert_array_equal(getattr(episode, name), group[name][number])
        assert np.abs(np.stack(list(episode.pixels)).astype(int) - group["pixels"][number]).mean() < 4


def test_numbers_of_width_one_are_no_lists(source, tmp_path):
    group = zarr.open_group(source)
    group.create_array("actions", data=group["actions"][..., :1], overwrite=True)
    export_lerobot(source, tmp_path / "out")
    assert np.ndim(read(tmp_path / "out", "data/chunk-000/file-000.parquet")["action"]) == 1


def test_a_rate_that_nobody_knows_and_a_folder_that_is_there_are_one_line(source, tmp_path):
    with pytest.raises(UserError, match="already there"):
        export_lerobot(source, tmp_path)
    group = zarr.open_group(source)
    group.attrs.update(task="kitchen-sweep")
    with pytest.raises(UserError, match="--fps: needed"):
        export_lerobot(source, tmp_path / "out")
    for fps in (15, 29.97):
        group.attrs.update(source=[{"name": "a", "fps": fps}])
        export_lerobot(source, tmp_path / f"{fps}")
        assert json.loads((tmp_path / f"{fps}/meta/info.json").read_text())["fps"] == fps

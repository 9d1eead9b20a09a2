"""What each format holds arrives in order; what is missing or damaged is one line."""

import importlib
import json
import shutil
from itertools import accumulate
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import yaml

from oclam.datasets import open_dataset
from oclam.errors import UserError
from oclam.importers.parquet import Table, picture
from oclam.params import read
from tests import ROOT

pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs the extra pyarrow")
from pyarrow import parquet  # noqa: E402

command = importlib.import_module("oclam.import")
LENGTHS = [18, 25, 20]
LEVEL = 30  # grey levels between trajectories, 3 between frames: wider than a video's rounding


def grey(i, t):
    return np.full((32, 48, 3), LEVEL * i + 3 * t, np.uint8)


def png(image):
    return {"bytes": cv2.imencode(".png", image[..., ::-1])[1].tobytes(), "path": None}


def write_video(path, pictures):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10, options={"crf": "8"})
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "yuv420p"
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())


def table(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, row_group_size=7)


def steps(*trajectories):
    """The columns of some trajectories: index, frame, action (i, t), state t."""
    pairs = [(i, t) for i in trajectories for t in range(LENGTHS[i])]
    return pairs, {"action": [[float(i), float(t)] for i, t in pairs], "state": [[float(t)] for _, t in pairs]}


def write_parquet(folder, **change):
    for name, part in (("a", [0, 1]), ("b", [2])):
        pairs, columns = steps(*part)
        columns |= {"observation": [png(grey(i, t)) for i, t in pairs], "reward": [float(t) for _, t in pairs],
                    "mask": [png(np.uint8(255 * (grey(i, t) >= 0)) * (np.arange(48) < 24)[:, None]) for i, t in pairs],
                    "terminated": [False] * len(pairs), "truncated": [t == LENGTHS[i] - 1 for i, t in pairs]} | change
        table(folder / f"{name}.parquet", {key: value for key, value in columns.items() if value is not None})


def write_lerobot(folder, stray=0, **change):
    """Two data files and videos: trajectories 0 and 1, with `stray` frames between, in the first, 2 in the second."""
    starts = [0, *accumulate(LENGTHS)]
    key = "observation.images.front"
    info = {"codebase_version": "v3.0", "fps": 10, "features": {
        "action": {"dtype": "float32", "shape": [2]}, "observation.state": {"dtype": "float32", "shape": [1]},
        key: {"dtype": "video", "shape": [32, 48, 3]}},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"} | change
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info))
    for number, part in enumerate(([0, 1], [2])):
        pairs, columns = steps(*part)
        table(folder / f"data/chunk-000/file-{number:03d}.parquet", {
            "action": columns["action"], "observation.state": columns["state"],
            "episode_index": [i for i, _ in pairs], "next.reward": [float(t) for _, t in pairs]})
        frames = [grey(i, t) for i, t in pairs]
        write_video(folder / f"videos/{key}/chunk-000/file-{number:03d}.mp4",
                    [*frames[:LENGTHS[0]], *[grey(0, 0)] * stray, *frames[LENGTHS[0]:]])
    times = [0.0, 1.7999 + stray / 10, 0.0]  # rounded down, as found in real data: times rate would be one frame early
    table(folder / "meta/episodes/chunk-000/file-000.parquet", {
        "episode_index": [0, 1, 2], "length": LENGTHS, "dataset_from_index": starts[:3],
        "dataset_to_index": starts[1:], f"videos/{key}/chunk_index": [0, 0, 0], f"videos/{key}/file_index": [0, 0, 1],
        f"videos/{key}/from_timestamp": times})


def write_videos(folder):
    for i, length in enumerate(LENGTHS):
        write_video(folder / f"{i}.mp4", [grey(i, t) for t in range(length)])


def imported(tmp_path, source, **options):
    params = command.import_sources([str(source)], tmp_path / "out", "kitchen-sweep", test_episodes=1, **options)
    dataset = open_dataset(tmp_path / "out/kitchen-sweep/distracted.zarr", "kitchen-sweep")
    segmentation = dataset.group.get("segmentation")
    assert params["collect"] == {"source": "files", "path": str(tmp_path / "out"), "episodes": 2, "test_episodes": 1,
                                 "segmented_episodes": 0 if segmentation is None else 1, "steps": 18}
    expected = np.array([[LEVEL * i + 3 * t for t in range(18)] for i in range(3)])
    shown = dataset.pixels[:].astype(float)
    assert np.abs(shown - expected[:, :, None, None, None]).max() <= 1.4  # half the step between frames
    return dataset


@pytest.mark.parametrize("write", [write_parquet, write_lerobot])
def test_frames_actions_states_and_rewards_arrive_together(tmp_path, write):
    write(tmp_path / "in")
    dataset = imported(tmp_path, tmp_path / "in")
    expected = np.array([[[i, t] for t in range(18)] for i in range(3)])
    np.testing.assert_array_equal(dataset.actions, expected)
    np.testing.assert_array_equal(dataset.states[..., 0], expected[..., 1])
    np.testing.assert_array_equal(dataset.rewards, expected[..., 1])


def test_frames_of_a_video_that_are_of_no_trajectory_are_left_out(tmp_path):
    write_lerobot(tmp_path / "in", stray=3)
    imported(tmp_path, tmp_path / "in")


def test_a_lerobot_dataset_without_the_places_of_its_videos_is_one_line(tmp_path):
    write_lerobot(tmp_path / "in")
    path = tmp_path / "in/meta/episodes/chunk-000/file-000.parquet"
    kept = Table([path])
    table(path, {name: list(kept.values(name, 0, 3)) for name in kept.names if "file_index" not in name})
    with pytest.raises(UserError, match="in/meta/episodes: no Parquet files with .*front/file_index"):
        imported(tmp_path, tmp_path / "in")


def test_a_terminated_trajectory_ends_where_the_episode_number_stays(tmp_path):
    pairs, columns = steps(0, 1, 2)
    table(tmp_path / "in/a.parquet", columns | {
        "observation": [grey(i, t).tolist() for i, t in pairs], "episode": [0] * len(pairs),
        "terminated": [t == LENGTHS[i] - 1 for i, t in pairs]})
    imported(tmp_path, tmp_path / "in")


def test_masks_of_parquet_are_the_held_out_segmentation(tmp_path):
    write_parquet(tmp_path / "in")
    masks = imported(tmp_path, tmp_path / "in").group["segmentation"][:]
    np.testing.assert_array_equal(masks, np.broadcast_to(np.arange(64) < 32, (1, 18, 64, 64)))


def test_nested_lists_are_pictures_and_an_episode_column_ends_trajectories(tmp_path):
    for name, part in (("a", [0, 1]), ("b", [2])):
        pairs, columns = steps(*part)
        table(tmp_path / f"in/{name}.parquet", columns | {
            "observation": [grey(i, t).tolist() for i, t in pairs], "episode": [i for i, _ in pairs]})
    dataset = imported(tmp_path, tmp_path / "in")
    assert np.isnan(dataset.rewards).all()


@pytest.mark.parametrize("first", [20240101001, "a"])  # float32 holds no such number
def test_neighbouring_episode_numbers_and_names_stay_apart(tmp_path, first):
    pairs, columns = steps(0, 1, 2)
    names = [first, first + 1, first + 2] if isinstance(first, int) else ["a", "b", "c"]
    table(tmp_path / "in/a.parquet", columns | {
        "observation": [grey(i, t).tolist() for i, t in pairs], "episode": [names[i] for i, _ in pairs]})
    imported(tmp_path, tmp_path / "in")


@pytest.mark.parametrize("write", [write_parquet, write_lerobot])
def test_files_are_read_in_natural_order(tmp_path, write):
    write(tmp_path / "in")
    folder = tmp_path / ("in" if write is write_parquet else "in/data/chunk-000")
    for number, path in zip((2, 10), sorted(folder.glob("*.parquet")), strict=True):
        path.rename(folder / f"part.{number}.parquet")
    imported(tmp_path, tmp_path / "in")


def test_a_row_group_is_decoded_once_for_rows_in_order(tmp_path, monkeypatch):
    values = {"action": list(range(40)), "state": list(range(40, 80))}
    table(tmp_path / "a.parquet", values)
    read, counted = parquet.ParquetFile.read_row_group, []
    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", lambda *given: (counted.append(1), read(*given))[1])
    rows = Table([tmp_path / "a.parquet"])
    for first in range(0, 40, 2):
        for name in values:
            assert list(rows.values(name, first, first + 2)) == values[name][first:first + 2]
    assert len(counted) == 2 * 6  # columns of 40 rows in groups of 7


def test_videos_have_frames_alone(tmp_path):
    write_videos(tmp_path / "in")
    dataset = imported(tmp_path, tmp_path / "in")
    assert np.isnan(dataset.actions).all() and dataset.actions.shape == (3, 18, 1)


def test_parquet_whose_actions_have_another_name_says_that_it_has_none(tmp_path, capsys):
    write_parquet(tmp_path / "in", action=None)
    assert np.isnan(imported(tmp_path, tmp_path / "in").actions).all()
    assert "in: imported without actions, no column action among mask, " in capsys.readouterr().err


@pytest.mark.parametrize(("change", "message"), [
    ({"observation": None}, "no column observation among"),
    ({"terminated": None, "truncated": None}, "no column terminated, truncated or episode among"),
])
def test_parquet_without_a_needed_column_is_refused(tmp_path, change, message):
    write_parquet(tmp_path / "in", **change)
    with pytest.raises(UserError, match=message):
        imported(tmp_path, tmp_path / "in")


@pytest.mark.parametrize(("observation", "action", "message"), [
    (b"no picture", [0.0], "row 1: no picture"), ([[0.5]], [0.0], "row 0: no picture"), ([[300]], [0.0], "no picture"),
    ([[0, 0]], None, "column action has values that are missing"),
])
def test_parquet_with_values_of_another_kind_is_refused(tmp_path, observation, action, message):
    good = cv2.imencode(".png", grey(0, 0))[1].tobytes()
    observations = [good, observation] * 30 if isinstance(observation, bytes) else [observation] * 60
    table(tmp_path / "in/a.parquet", {"observation": observations, "action": [[0.0], action] * 30,
                                      "episode": [0] * 20 + [1] * 20 + [2] * 20})
    with pytest.raises(UserError, match=message):
        imported(tmp_path, tmp_path / "in")


def test_parquet_without_rows_is_one_line(tmp_path):
    table(tmp_path / "in/a.parquet", {"observation": [], "action": [], "episode": []})
    with pytest.raises(UserError, match="in: its Parquet files have no rows"):
        imported(tmp_path, tmp_path / "in")


def test_no_source_is_imported_twice(tmp_path):
    write_parquet(tmp_path / "in")
    for other in ("in", "in/a.parquet", "in/../in"):
        with pytest.raises(UserError, match="one is in the other, so episodes that are trained on would be held out"):
            command.import_sources([str(tmp_path / "in"), str(tmp_path / other)], tmp_path / "out", "kitchen-sweep")


def test_a_damaged_parquet_file_is_named(tmp_path):
    write_parquet(tmp_path / "in")
    path = tmp_path / "in/b.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="b.parquet: damaged or not Parquet"):
        imported(tmp_path, tmp_path / "in")


def test_a_film_that_lacks_frames_is_named(tmp_path):
    write_lerobot(tmp_path / "in")
    write_video(tmp_path / "in/videos/observation.images.front/chunk-000/file-001.mp4", [grey(2, t) for t in range(9)])
    with pytest.raises(UserError, match="in: trajectory 2 has 9 frames, 20 are declared"):
        imported(tmp_path, tmp_path / "in")


@pytest.mark.parametrize("part", ["data", "meta/episodes"])
def test_a_part_that_is_not_there_is_named(tmp_path, part):
    write_lerobot(tmp_path / "in")
    shutil.rmtree(tmp_path / "in" / part)
    with pytest.raises(UserError, match=f"in/{part}: no Parquet files with .*episode_index"):
        imported(tmp_path, tmp_path / "in")


def test_another_version_and_an_unknown_camera_are_refused(tmp_path):
    write_lerobot(tmp_path / "old", codebase_version="v2.1")
    with pytest.raises(UserError, match="LeRobotDataset v2.1, only v3 is read"):
        imported(tmp_path, tmp_path / "old")
    write_lerobot(tmp_path / "in")
    with pytest.raises(UserError, match="--camera: top given, .* has observation.images.front"):
        imported(tmp_path, tmp_path / "in", camera="top")


@pytest.mark.parametrize(("source", "task", "message"), [
    ("nowhere", "a-b", "nowhere: no such file, folder or hub dataset"), ("in", None, "--task: nothing given"),
    ("in", "../a-b", "--task: ../a-b given"), ("empty", "a-b", "neither a LeRobot dataset, nor Parquet files, nor"),
])
def test_a_source_that_is_not_there_and_a_task_that_is_none_are_told(tmp_path, source, task, message):
    write_videos(tmp_path / "in")
    (tmp_path / "empty").mkdir()
    path = source if source == "nowhere" else str(tmp_path / source)
    with pytest.raises(UserError, match=message):
        command.import_sources([path], tmp_path / "out", task)


@pytest.mark.parametrize("earlier", [None, "mine: 1\n", ""])  # "": a shell's redirection makes it before the command
def test_the_command_writes_a_scale_or_prints_it_and_never_overwrites(tmp_path, capsys, monkeypatch, earlier):
    write_videos(tmp_path / "in")
    write_video(tmp_path / "in/3.mp4", [grey(0, t) for t in range(18)])
    monkeypatch.chdir(tmp_path)
    scale = tmp_path / "params/imported.yaml"
    scale.parent.mkdir()
    if earlier is not None:
        scale.write_text(earlier)
    monkeypatch.setattr("sys.argv", ["import", str(tmp_path / "in"), "--to", str(tmp_path / "out"), "--task", "a-b",
                                     "--test-episodes", "2", "--image-size", "16", "--view", "clean"])
    command.main()
    told, note = capsys.readouterr()
    assert f"params/imported.yaml: {'written' if earlier is None else 'already there'}" in note
    printed = yaml.safe_load(scale.read_text() if earlier is None else told)
    assert told == "" if earlier is None else scale.read_text() == earlier
    assert printed["tasks"] == ["a-b"] and printed["env"] == {"image_size": 16} and printed["base"] == "../params.yaml"
    with pytest.raises(UserError, match="clean.zarr: already there"):
        command.main()
    monkeypatch.setattr("sys.argv", ["import", str(tmp_path / "in"), "--test-episodes", "1"])
    with pytest.raises(UserError, match="--test-episodes: 1 given, probes need 2 or more"):
        command.main()


@pytest.mark.parametrize(("lengths", "budgets", "chosen_by"), [([40] * 4, [1], 2), ([800, 40, 40], [1, 8], 8)])
def test_the_scale_of_few_videos_can_be_read_and_takes_slot_0(tmp_path, monkeypatch, lengths, budgets, chosen_by):
    """The first trajectories are trained on, in episodes of 40; the last two are held out."""
    for i, length in enumerate(lengths):
        write_video(tmp_path / f"in/{i}.mp4", [grey(i, t % 20) for t in range(length)])
    (tmp_path / "params").mkdir()
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    scale = command.import_sources(["in"], Path("data/demonstrations"), "a-b", steps=40, test_episodes=2)
    command.SCALE.write_text(yaml.safe_dump(scale))
    params = read(command.SCALE)
    assert params.finetune.budgets == budgets and params.slot_select.labelled_episodes == chosen_by
    assert params.slot_select.method == "manual" and params.slot_select.manual == {"a-b": [0]}


def test_the_scale_asks_for_no_more_labels_than_trajectories_with_actions_give(tmp_path):
    write_parquet(tmp_path / "in")
    for i in range(9):
        write_video(tmp_path / f"videos/{i}.mp4", [grey(0, t) for t in range(18)])
    scale = command.import_sources([str(tmp_path / name) for name in ("in", "videos")], tmp_path / "out", "a-b",
                                   steps=18, test_episodes=1)
    assert scale["collect"]["episodes"] == 11
    assert scale["finetune"] == {"budgets": [1]} and scale["slot_select"] == {"labelled_episodes": 2}


def test_the_import_knows_how_many_labels_params_yaml_asks_for():
    small = read(ROOT / "params.yaml")
    assert command.BUDGETS == tuple(small.finetune.budgets) and command.SELECTION == small.slot_select.labelled_episodes


@pytest.mark.parametrize("size", ["8", "60", "1032", "0", "-16"])
def test_an_image_size_that_no_model_takes_is_refused_at_once(tmp_path, monkeypatch, size):
    monkeypatch.setattr("sys.argv", ["import", str(tmp_path / "nowhere"), "--image-size", size])
    with pytest.raises(UserError, match=f"--image-size: {size} given, a multiple of 8 from 16 to 1024 is needed"):
        command.main()


def test_colours_arrive_as_they_were_in_files_and_in_lists():
    image = np.random.default_rng(0).integers(256, size=(4, 6, 3), dtype=np.uint8)
    for value in (png(image), png(image)["bytes"], image.tolist()):
        np.testing.assert_array_equal(picture(value, "here"), image)


def test_of_several_cameras_the_named_one_is_read_also_where_its_pictures_stand_in_the_rows(tmp_path):
    write_lerobot(tmp_path / "in")
    path = tmp_path / "in/meta/info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"features": info["features"] | {"wrist": {"dtype": "image"}}}))
    for path, part in zip(sorted((tmp_path / "in/data").rglob("*.parquet")), ([0, 1], [2]), strict=True):
        kept = Table([path])
        table(path, {name: list(kept.values(name, 0, kept.rows)) for name in kept.names} | {
            "wrist": [png(255 - grey(i, t)) for i, t in steps(*part)[0]]})
    command.import_sources([str(tmp_path / "in")], tmp_path / "out", "a-b", test_episodes=1, camera="wrist")
    expected = 255 - np.array([[LEVEL * i + 3 * t for t in range(18)] for i in range(3)])
    shown = open_dataset(tmp_path / "out/a-b/distracted.zarr").pixels[:]
    np.testing.assert_array_equal(shown, np.broadcast_to(expected[:, :, None, None, None], shown.shape))


def test_rows_that_reach_into_another_trajectory_are_refused(tmp_path):
    write_lerobot(tmp_path / "in")
    path = tmp_path / "in/meta/episodes/chunk-000/file-000.parquet"
    kept = Table([path])
    columns = {name: list(kept.values(name, 0, 3)) for name in kept.names}
    columns["dataset_from_index"][1] -= 1  # all rows but the first are trajectory 1's
    columns["dataset_to_index"][1] -= 1
    table(path, columns)
    with pytest.raises(UserError, match="in: rows 17 to 42 are not all of episode 1, as meta/episodes says"):
        imported(tmp_path, tmp_path / "in")

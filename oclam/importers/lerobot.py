"""LeRobotDataset v3: a folder with meta/info.json, Parquet in meta/episodes and data, and videos of many episodes."""

from itertools import islice
from pathlib import Path

import numpy as np

from oclam.artifacts import read_json
from oclam.backgrounds.footage import decoded, natural_order
from oclam.errors import UserError
from oclam.importers.parquet import Table, picture
from oclam.importers.store import Episode, Source

PLACE = ("chunk_index", "file_index", "from_timestamp")  # of an episode in the videos of a camera


def from_lerobot(folder: Path, camera: str | None = None) -> Source:
    """The episodes of a LeRobot dataset: `action`, `observation.state`, `next.reward` and the pictures of one camera.

    Raises UserError for another version, an unknown camera or, without `camera`, several, and for what is missing or
    damaged.
    """
    info = read_json(folder / "meta/info.json")
    if not str(info["codebase_version"]).startswith("v3."):
        raise UserError(f"{folder}: LeRobotDataset {info['codebase_version']}, only v3 is read; convert it with "
                        "LeRobot")
    cameras = [name for name, feature in info["features"].items() if feature["dtype"] in ("video", "image")]
    if (camera or len(cameras) != 1) and camera not in cameras:
        raise UserError(f"--camera: {camera} given, {folder} has {', '.join(cameras) or 'no camera'}")
    camera = camera or cameras[0]
    filmed = info["features"][camera]["dtype"] == "video"
    episodes = _episodes(folder, [camera] if filmed else [])
    table = _table(folder / "data", {"episode_index"})
    videos = _Videos(folder, info, camera, episodes) if filmed else None

    def read(index):
        row = episodes[index]
        first, stop = row["dataset_from_index"], row["dataset_to_index"]
        if (table.numbers("episode_index", first, stop) != row["episode_index"]).any():
            raise UserError(f"{folder}: rows {first} to {stop} are not all of episode {row['episode_index']}, as "
                            "meta/episodes says; get it again")
        pixels = videos.frames(index) if videos else (
            picture(value, f"{folder}: row {number}") for number, value in
            enumerate(table.values(camera, first, stop), first))
        rewards = table.numbers("next.reward", first, stop)
        return Episode(pixels, table.numbers("action", first, stop), table.numbers("observation.state", first, stop),
                       None if rewards is None else rewards[:, 0])

    widths = [int(np.prod(info["features"][name]["shape"])) if name in info["features"] else 0
              for name in ("action", "observation.state")]
    return Source(folder.name, [row["length"] for row in episodes], read, *widths,
                  {"camera": camera, "fps": info["fps"]})


def _episodes(folder, videos):
    """The rows of meta/episodes by their index, with the places of these videos."""
    needed = {"episode_index", "length", "dataset_from_index", "dataset_to_index"} | {
        f"videos/{video}/{key}" for video in videos for key in PLACE}
    table = _table(folder / "meta/episodes", needed)
    columns = [table.values(name, 0, table.rows) for name in needed]
    return sorted((dict(zip(needed, row, strict=True)) for row in zip(*columns, strict=True)),
                  key=lambda row: row["episode_index"])


def _table(folder, needed):
    table = Table(sorted(folder.rglob("*.parquet"), key=natural_order))
    if not needed <= table.names:
        raise UserError(f"{folder}: no Parquet files with {', '.join(sorted(needed))}")
    return table


class _Videos:
    """The frames of every episode; each video is decoded once where episodes are read in order."""

    def __init__(self, folder, info, camera, episodes):
        self.files, self.begins, self.lengths = [], [], [row["length"] for row in episodes]
        self.path, self.position, self.stream = None, 0, None
        for row in episodes:
            chunk, number, start = (row[f"videos/{camera}/{key}"] for key in PLACE)
            name = info["video_path"].format(video_key=camera, chunk_index=chunk, file_index=number)
            self.files.append(folder / name)
            self.begins.append(round(start * info["fps"]))  # not the sum of lengths: a video may hold other frames too

    def frames(self, index):
        """Yield the frames of an episode."""
        if self.files[index] != self.path or self.begins[index] < self.position:
            self.path, self.position, self.stream = self.files[index], 0, decoded(self.files[index])
        for _ in islice(self.stream, self.begins[index] - self.position):
            pass
        self.position = self.begins[index]
        for frame in islice(self.stream, self.lengths[index]):
            self.position += 1
            yield frame

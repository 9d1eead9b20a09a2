"""Datasets in LeRobot's format v3: Parquet and videos of many episodes each, and what describes them under meta."""

import json
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from oclam.artifacts import atomic, write_json
from oclam.datasets import Dataset, open_dataset
from oclam.errors import UserError
from oclam.progress import Progress
from oclam.suite import TASKS, load_task

CAMERA = "observation.images.camera"
CHUNK = 1000  # files of a folder
DATA_MB, VIDEO_MB = 100, 200  # of a file, after which the next one begins
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
CODEC, CODEC_OPTIONS = "libx264", {"crf": "10", "g": "2", "bf": "0"}  # small losses; any frame is found fast
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
CARD = """\
---
license: apache-2.0
task_categories: [robotics]
tags: [LeRobot, oclam]
configs:
- config_name: default
  data_files: data/*/*.parquet
---

# {task}, {view}

{episodes} episodes of {steps} steps in the format LeRobotDataset v3, exported by oclam. The split `test` are the
{held_out} that its training holds out. The frames are encoded with small losses.
"""


def export_lerobot(source: Path, target: Path, fps: int | None = None) -> None:
    """Write a dataset of the pipeline to the new folder `target` as LeRobotDataset v3.

    The columns are observation.state, action, next.reward and LeRobot's own. What is not known of every episode is left
    out; where only some episodes have actions, those are written.

    Args:
        fps: frames a second; None for the task's own or the imported data's.
    Raises UserError for a missing or damaged dataset, an existing target, an unknown rate, and without pyarrow.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise UserError("writing Parquet needs pyarrow; pip install pyarrow") from None
    if target.exists():
        raise UserError(f"{target}: already there; remove it or name another folder")
    dataset = open_dataset(source)
    fps, (episodes, columns) = fps or _fps(dataset), _columns(dataset)
    columns |= _indices(len(episodes), dataset.steps, fps)
    held_out = int(np.sum(episodes >= dataset.episodes))
    with atomic(target) as folder:
        rows, levels = [], np.zeros((3, 256), np.int64)
        with closing(_Videos(folder, fps)) as videos, closing(_Tables(folder, parquet)) as tables, \
                Progress(len(episodes), "exporting", " episodes") as bar:
            for number, episode in enumerate(episodes):
                frames, values = dataset.pixels[episode], {name: array[number] for name, array in columns.items()}
                found = np.stack([np.bincount(frames[..., c].ravel(), minlength=256) for c in range(3)])
                levels += found
                statistics = {f"stats/{name}/{key}": value for name, of in _statistics(values, found).items()
                              for key, value in of.items()}
                rows.append({"episode_index": number, "tasks": [dataset.attrs["task"]], "length": dataset.steps}
                            | tables.add(pyarrow.table({name: _column(of) for name, of in values.items()}))
                            | videos.add(frames) | statistics | {"meta/episodes/chunk_index": 0,
                                                                "meta/episodes/file_index": 0})
                bar.update()
        write_json(folder / "meta/stats.json",
                   _statistics({name: np.concatenate(array) for name, array in columns.items()}, levels))
        write_json(folder / "meta/info.json", _info(dataset, columns, held_out, fps))
        path = folder / "meta/episodes" / f"{FILE.format(chunk_index=0, file_index=0)}.parquet"
        path.parent.mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        parquet.write_table(_tasks(dataset.attrs["task"]), folder / "meta/tasks.parquet")
        (folder / "README.md").write_text(CARD.format(
            task=dataset.attrs["task"], view=dataset.attrs["view"], episodes=len(episodes), steps=dataset.steps,
            held_out=held_out), encoding="utf-8")


def _fps(dataset):
    source = dataset.attrs.get("source")
    imported = {part["fps"] for part in source if "fps" in part} if isinstance(source, list) else set()
    if len(imported) == 1:
        return imported.pop()
    if dataset.attrs["task"] in TASKS:
        return round(1 / load_task(dataset.attrs["task"]).control_timestep())
    raise UserError(f"--fps: needed, {dataset.path} does not say how many frames a second it has")


def _columns(dataset: Dataset) -> tuple[np.ndarray, dict]:
    """The episodes to write, and {column: array (episodes, T, ...)} of what is known of all of them."""
    known = np.isfinite(dataset.actions).all((1, 2))
    episodes = np.flatnonzero(known if known.any() else ~known)
    columns = {"observation.state": dataset.states, "action": dataset.actions, "next.reward": dataset.rewards}
    columns = {name: array[episodes] for name, array in columns.items()}
    return episodes, {name: array for name, array in columns.items() if np.isfinite(array).all()}


def _indices(episodes, steps, fps):
    """LeRobot's own columns, (E, T) each."""
    episode, step = np.mgrid[:episodes, :steps]
    return {"timestamp": (step / fps).astype(np.float32), "frame_index": step, "episode_index": episode,
            "index": episode * steps + step, "task_index": np.zeros_like(step)}


def _column(values):
    """An episode's numbers (T,) or (T, width) as a column; of width 1, numbers instead of lists."""
    import pyarrow

    flat = pyarrow.array(values.ravel())
    return flat if len(flat) == len(values) else pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _statistics(values, levels):
    """LeRobot's statistics of every column (N, ...), and of the pixels in 0..1, whose 256 levels (3, 256) counts."""
    found = {}
    for name, rows in values.items():
        rows = rows.reshape(len(rows), -1)
        quantiles = zip(QUANTILES, np.quantile(rows, list(QUANTILES.values()), axis=0), strict=True)
        found[name] = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0, dtype=float),
                       "std": rows.std(0, dtype=float), "count": np.array([len(rows)]), **dict(quantiles)}
    level, total = np.arange(256) / 255, levels.sum(1, keepdims=True)

    def quantile(share):
        return level[(levels.cumsum(1) >= share * total).argmax(1)]

    mean = levels @ level / total[:, 0]
    pixels = {"min": quantile(1e-12), "max": quantile(1), "mean": mean,
              "std": np.sqrt(np.maximum(levels @ level**2 / total[:, 0] - mean**2, 0)),
              **{name: quantile(share) for name, share in QUANTILES.items()}}
    found[CAMERA] = {name: value.reshape(3, 1, 1) for name, value in pixels.items()}
    found[CAMERA]["count"] = found["index"]["count"]
    return {name: {key: value.tolist() for key, value in of.items()} for name, of in found.items()}


def _info(dataset, columns, held_out, fps):
    size, episodes = dataset.pixels.shape[2], len(columns["index"])
    camera = {"height": size, "width": size, "codec": "h264", "pix_fmt": "yuv420p", "is_depth_map": False, "fps": fps,
              "channels": 3}
    features = {CAMERA: {"dtype": "video", "shape": [size, size, 3], "names": ["height", "width", "channels"],
                         "info": {**{f"video.{key}": value for key, value in camera.items()}, "has_audio": False}}}
    features |= {name: {"dtype": str(array.dtype), "shape": list(array.shape[2:]) or [1], "names": None}
                 for name, array in columns.items()}
    splits = {"train": f"0:{episodes - held_out}"} | (
        {"test": f"{episodes - held_out}:{episodes}"} if held_out else {})
    return {"codebase_version": "v3.0", "robot_type": dataset.attrs["task"].split("-")[0], "total_episodes": episodes,
            "total_frames": episodes * dataset.steps, "total_tasks": 1, "chunks_size": CHUNK, "fps": fps,
            "data_files_size_in_mb": DATA_MB, "video_files_size_in_mb": VIDEO_MB, "splits": splits,
            "data_path": f"data/{FILE}.parquet", "video_path": f"videos/{{video_key}}/{FILE}.mp4",
            "features": features}


def _tasks(task):
    """The one task as pandas writes a table whose index are the tasks; LeRobot reads it as such."""
    import pyarrow

    index = {"name": None, "field_name": "__index_level_0__", "pandas_type": "unicode", "numpy_type": "object",
             "metadata": None}
    column = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64",
              "metadata": None}
    about = {"index_columns": ["__index_level_0__"], "columns": [column, index], "pandas_version": "2.0.0",
             "column_indexes": [index | {"field_name": None, "metadata": {"encoding": "UTF-8"}}]}
    table = pyarrow.table({"task_index": [0], "__index_level_0__": [task]})
    return table.replace_schema_metadata({"pandas": json.dumps(about)})


class _Files:
    """Files of many episodes each; a file that has grown to `limit` bytes is followed by the next one."""

    kind: str
    ending: str
    limit: int

    def __init__(self, folder):
        self.folder, self.number, self.file = folder / self.kind, -1, None

    def place(self):
        """The current file's entries of meta/episodes."""
        chunk, number = divmod(self.number, CHUNK)
        return {f"{self.kind}/chunk_index": chunk, f"{self.kind}/file_index": number}

    def path(self):
        chunk, number = divmod(self.number, CHUNK)
        return self.folder / f"{FILE.format(chunk_index=chunk, file_index=number)}{self.ending}"

    def begin(self):
        """Whether there is no file with space left, so that another one begins."""
        if self.file and self.path().stat().st_size >= self.limit:
            self.close()
        if self.file:
            return False
        self.number += 1
        self.path().parent.mkdir(parents=True, exist_ok=True)
        return True

    def close(self):
        if self.file:
            self.file.close()
        self.file = None


class _Tables(_Files):
    """The rows of the data; `add` gives an episode's entries of meta/episodes."""

    kind, ending, limit, rows = "data", ".parquet", DATA_MB << 20, 0

    def __init__(self, folder, parquet):
        super().__init__(folder)
        self.parquet = parquet

    def add(self, table):
        if self.begin():
            self.file = self.parquet.ParquetWriter(self.path(), table.schema)
        self.file.write_table(table)
        self.rows += len(table)
        return self.place() | {"dataset_from_index": self.rows - len(table), "dataset_to_index": self.rows}


class _Videos(_Files):
    """The videos; `add` gives an episode's entries of meta/episodes."""

    kind, ending, limit = f"videos/{CAMERA}", ".mp4", VIDEO_MB << 20

    def __init__(self, folder, fps):
        super().__init__(folder)
        self.fps = fps

    def add(self, frames):
        if self.begin():
            self.file, self.count = av.open(str(self.path()), "w", format="mp4"), 0
            rate = Fraction(self.fps).limit_denominator(1001)  # an imported rate may be 30.0 or 29.97
            self.stream = self.file.add_stream(CODEC, rate=rate, options=CODEC_OPTIONS)
            self.stream.height, self.stream.width, self.stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            self.file.mux(self.stream.encode(av.VideoFrame.from_ndarray(frame)))
        start, self.count = self.count, self.count + len(frames)
        return self.place() | {f"{self.kind}/from_timestamp": start / self.fps,
                               f"{self.kind}/to_timestamp": self.count / self.fps}

    def close(self):
        if self.file:
            self.file.mux(self.stream.encode())
        super().close()

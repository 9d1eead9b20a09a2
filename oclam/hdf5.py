"""Import the authors' published datasets: `python -m oclam.hdf5 FILE.hdf5 data/cheetah-run/distracted.zarr`.

Such a file has one group an episode, with `obs` (T, 64, 64, 3) uint8, `actions` (T, A) and `states` (T, S), and the
attributes domain_name, task_name, difficulty, dynamic, img_hw and split. `dvc commit -f collect@TASK` then makes the
imported store the pipeline's own.
"""

import argparse
import re
import sys
from pathlib import Path

import h5py
import numpy as np
import zarr

from oclam.artifacts import atomic
from oclam.errors import UserError
from oclam.progress import Progress

__all__ = ["import_hdf5"]

ATTRIBUTES = ("domain_name", "task_name", "difficulty", "dynamic", "img_hw", "split")
ARRAYS = {"obs": "pixels", "actions": "actions", "states": "states"}  # their names and ours
DEFLATE = 1032  # the most that HDF5's usual compression can save: what declares more is not there
SHARD_EPISODES = 10  # written at once, so that memory stays at ten episodes


def import_hdf5(source: Path | str, target: Path | str, test_episodes: int) -> None:
    """Write a dataset with the episodes of an HDF5 file in natural order, the last `test_episodes` held out.

    Rewards are not published and become NaN; there is no segmentation. The attribute `actions` is `raw` where an
    action lies beyond -1..1, as in the published files (unbounded means), otherwise `bounded`. No other file is read.
    Raises UserError when the file has another layout, links, actions or states that are not finite, its episodes differ
    in shape, too few remain to train on, or `target` exists.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise UserError(f"{target}: already there; remove it or name another store")
    try:
        file = h5py.File(source)
    except OSError as error:
        raise UserError(f"{source}: cannot be read as HDF5 ({error})") from None
    with file:
        attributes, names, shapes = _checked(source, file)
        if not 1 <= test_episodes < len(names):
            raise UserError(f"--test-episodes: {test_episodes} given, {source} allows 1..{len(names) - 1}")
        with atomic(target) as temporary:
            group = zarr.create_group(temporary)
            largest = _copy(file, names, shapes, group)
            group.attrs.update(
                actions="raw" if largest > 1 else "bounded",
                task=f"{attributes['domain_name']}-{attributes['task_name']}",
                view="clean" if attributes["difficulty"] in ("vanilla", "none", "") else "distracted",
                episodes=len(names) - test_episodes, test_episodes=test_episodes, segmented_episodes=0,
                source={"file": source.name, **attributes})


def _checked(source, file):
    """Attributes that JSON can hold, episodes in natural order, and the shape of every array."""
    missing = [name for name in ATTRIBUTES if name not in file.attrs]
    if missing:
        raise UserError(f"{source}: no attribute {', '.join(missing)}; expected are {', '.join(ATTRIBUTES)}")
    names = sorted(file, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    if not names:
        raise UserError(f"{source}: no episodes, expected one group for each")
    attributes = {name: _plain(file.attrs[name]) for name in ATTRIBUTES}
    task = f"{attributes['domain_name']}-{attributes['task_name']}"
    if not re.fullmatch(r"\w+-\w+", task):
        raise UserError(f"{source}: task {task!r}, expected domain_name and task_name of letters, digits and _")
    shapes = None
    for name in names:
        if not _is_stored(file, name, h5py.Group) or not all(_is_stored(file[name], array, h5py.Dataset)
                                                             for array in ARRAYS):
            raise UserError(f"{source}: {name} is no episode, expected a group of {', '.join(ARRAYS)}")
        found = {array: file[name][array].shape for array in ARRAYS}
        shapes = shapes or found
        steps = (shapes["obs"] or (0,))[0]
        if found != shapes or steps < 2 or shapes["obs"][1:] != (64, 64, 3) or any(shape[0] != steps or len(shape) < 2
                                                                     for shape in shapes.values()):
            raise UserError(f"{source}: episode {name} has {found}, expected obs (T, 64, 64, 3), actions (T, A) and "
                            f"states (T, S), the same in every episode (the first one has {shapes})")
        for array in ARRAYS:
            kind = file[name][array].dtype
            if kind != np.uint8 if array == "obs" else kind.kind not in "fiu":
                raise UserError(f"{source}: episode {name} has {array} of type {kind}, expected "
                                + ("uint8" if array == "obs" else "numbers"))
            declared, stored = file[name][array].nbytes, file[name][array].id.get_storage_size()
            if declared > DEFLATE * stored:
                raise UserError(f"{source}: episode {name} declares {declared} bytes of {array} and stores {stored}; "
                                "the file is incomplete")
    return attributes, names, shapes


def _is_stored(group, name, kind):
    """Whether the group has this member in the file itself: no soft or external link, no storage in other files."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink) or not isinstance(group[name], kind):
        return False
    return kind is h5py.Group or not (group[name].external or group[name].is_virtual)


def _plain(value):
    """An attribute as JSON can hold it."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _copy(file, names, shapes, group):
    """Write all arrays; the largest absolute value of an action is returned."""
    for array, shape in shapes.items():
        dtype = np.uint8 if array == "obs" else np.float32
        chunks = (1, min(shape[0], 100), *shape[1:]) if array == "obs" else (1, *shape)
        shards = (SHARD_EPISODES, -(-shape[0] // chunks[1]) * chunks[1], *shape[1:])
        group.create_array(ARRAYS[array], shape=(len(names), *shape), dtype=dtype, chunks=chunks, shards=shards)
    group.create_array("rewards", shape=(len(names), shapes["obs"][0]), dtype=np.float32, fill_value=np.nan)
    largest = 0.0
    with Progress(len(names), "importing", " episodes") as bar:
        for first in range(0, len(names), SHARD_EPISODES):
            shard = names[first:first + SHARD_EPISODES]
            for array, ours in ARRAYS.items():
                values = np.stack([file[name][array][:] for name in shard])
                if not np.isfinite(values).all():
                    bad = shard[int(np.argmin(np.isfinite(values).reshape(len(shard), -1).all(1)))]
                    raise UserError(f"{file.filename}: episode {bad} has {array} that are not finite")
                if array == "actions":
                    largest = max(largest, float(np.abs(values).max()))
                group[ours][first:first + len(shard)] = values
            bar.update(len(shard))
    return largest


def main():
    parser = argparse.ArgumentParser(prog="python -m oclam.hdf5", description=__doc__.splitlines()[0])
    parser.add_argument("source", metavar="FILE.hdf5")
    parser.add_argument("target", metavar="OUT.zarr")
    parser.add_argument("--test-episodes", type=int, default=50, metavar="N", help="held out at the end (default 50)")
    arguments = parser.parse_args()
    import_hdf5(arguments.source, arguments.target, arguments.test_episodes)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")

"""An imported dataset becomes the pipeline's own."""

import os
import shutil
from pathlib import Path

import numpy as np
import zarr

from oclam.artifacts import atomic, contents
from oclam.datasets import open_dataset
from oclam.errors import Absent, UserError
from oclam.params import Collect


def refuse_foreign(path: Path, folder: Path) -> None:
    """Raise UserError when there is a dataset at `path` that no stage wrote; `folder` is where it should be."""
    try:
        attributes = zarr.open_group(path, mode="r").attrs if path.is_dir() else {"versions"}
    except (ValueError, KeyError, OSError):  # damaged: collected again
        return
    if not {"versions", "adopted"} & set(attributes):
        raise UserError(f"{path}: no stage wrote this dataset; move it to {folder / path.parent.name / path.name} and "
                        "set collect.source: files, or remove it")


def adopt_dataset(folder: Path, path: Path, task: str, view: str, params: Collect,
                  image_size: int) -> list[float] | None:
    """Copy `<folder>/<task>/<view>.zarr` to `path`; returns every episode's return, None without rewards.

    params: the section collect, whose counts and steps must be the dataset's, as image_size must. Raises Absent when
    there is no clean dataset; UserError when there is no distracted one, and for one that is damaged, does not fit or
    has values that are not finite.
    """
    source = folder / task / f"{view}.zarr"
    if not source.exists():
        if view == "clean":
            raise Absent(f"{source} is not there: nothing is learned from clean frames")
        raise UserError(f"{source}: no such dataset; `python -m oclam.import` writes it, or collect.source: simulator")
    contents(folder)  # refuses links to folders, as that of a dataset
    dataset = open_dataset(source, task)
    segmentation = dataset.group.get("segmentation")
    found = {"collect.episodes": dataset.episodes, "collect.test_episodes": dataset.test_episodes,
             "collect.steps": dataset.steps, "env.image_size": dataset.pixels.shape[2],
             "collect.segmented_episodes": 0 if segmentation is None else segmentation.shape[0]}
    given = {key: getattr(params, key.partition(".")[2], image_size) for key in found}
    wrong = [f"{key}: {given[key]} given, {value} in {source}" for key, value in found.items() if given[key] != value]
    if wrong:
        raise UserError("; ".join(wrong) + "; set them in params.yaml to the dataset's values")
    if dataset.attrs["view"] != view:
        raise UserError(f"{source}: a dataset of the {dataset.attrs['view']} view; it belongs in "
                        f"{source.with_name(dataset.attrs['view'])}.zarr")
    for name in ("actions", "rewards"):  # of an episode all or none may be missing
        finite = np.isfinite(getattr(dataset, name))
        finite = finite.reshape(len(finite), -1)
        if (bad := finite.any(1) != finite.all(1)).any():
            raise UserError(f"{source}: episode {int(bad.argmax())} has {name} that are not finite")
    with atomic(path) as temporary:
        shutil.copytree(source, temporary, copy_function=shutil.copyfile)  # without the modes of files
        for copy, *_ in os.walk(temporary):  # a folder's mode is copied, and may be read-only
            os.chmod(copy, os.stat(copy).st_mode | 0o700)
        zarr.open_group(temporary).attrs["adopted"] = str(source)
    rewards = dataset.rewards.sum(1, dtype=np.float64)
    return rewards.tolist() if np.isfinite(rewards).all() else None

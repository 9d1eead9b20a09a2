"""Import demonstrations: `python -m oclam.import SOURCE`, then `make repro SCALE=imported`.

A source is an HDF5 file of the authors, a folder or hub dataset in LeRobot's format v3 or of Parquet files, or a folder
of videos, which have no actions. Several become one dataset.
"""

import argparse
import re
import sys
from itertools import combinations
from pathlib import Path

import yaml

from oclam.artifacts import atomic
from oclam.cli import one_line_errors
from oclam.errors import UserError, one_line
from oclam.importers.hdf5 import from_hdf5
from oclam.importers.lerobot import from_lerobot
from oclam.importers.parquet import from_parquet
from oclam.importers.store import write_dataset
from oclam.importers.videos import from_videos

SCALE = Path("params/imported.yaml")
BUDGETS, SELECTION = (1, 8, 32), 8  # labelled trajectories that params.yaml asks for, to fine-tune and to choose slots


def import_sources(names: list[str], folder: Path, task: str | None = None, view: str | None = None,
                   steps: int | None = None, test_episodes: int = 50, image_size: int = 64,
                   camera: str | None = None) -> dict:
    """Write the dataset `<folder>/<task>/<view>.zarr`; returns the parameters of a scale that uses it.

    Args:
        names: of files, folders and hub datasets.
        task: needed where no source names it or several do; a task of the suite is also evaluated.
        view: None for distracted, or what the sources say; needed where they differ.
        steps, test_episodes, image_size: as in `write_dataset`.
        camera: of a LeRobot dataset that has several.
    Raises UserError for a source that is missing, damaged or of another kind, and when the dataset is there already.
    """
    sources, tasks, views, places = [], set(), set(), [_local(name) for name in names]
    for one, other in combinations(places, 2):
        if one.resolve().is_relative_to(other.resolve()) or other.resolve().is_relative_to(one.resolve()):
            raise UserError(f"{one} and {other}: one is in the other, so episodes that are trained on would be held "
                            "out; name every source once")
    for path in places:
        if path.is_file():
            source, its_task, its_view = from_hdf5(path)
            tasks.add(its_task)
            views.add(its_view)
        elif (path / "meta/info.json").exists():
            source = from_lerobot(path, camera)
        elif next(path.rglob("*.parquet"), None):
            source = from_parquet(path)
        else:
            source = from_videos(path)
        sources.append(source)
    task = task or _only("--task", tasks)
    view = view or _only("--view", views) or "distracted"
    if not re.fullmatch(r"\w+-\w+", task):
        raise UserError(f"--task: {task or 'nothing'} given, expected domain-task, as in cheetah-run or kitchen-sweep")
    target = folder / task / f"{view}.zarr"
    if target.exists():
        raise UserError(f"{target}: already there; remove it, or name another folder with --to")
    found = write_dataset(target, sources, task, view, steps, image_size, test_episodes)
    print(f"{target}: {found['episodes']} episodes to train on, {found['test_episodes']} held out, of {found['steps']} "
          "steps", file=sys.stderr)
    counts = {key: found[key] for key in ("episodes", "test_episodes", "segmented_episodes", "steps")}
    params = {"base": "../params.yaml", "scale": "imported", "tasks": [task], "env": {"image_size": image_size},
              "collect": {"source": "files", "path": str(folder), **counts}}
    few = found["labelled"] or found["episodes"]
    if few < max(BUDGETS):
        params["finetune"] = {"budgets": [budget for budget in BUDGETS if budget <= few]}
    if few < SELECTION:
        params["slot_select"] = {"labelled_episodes": few}
    if not found["labelled"]:
        params["slot_select"] = params.get("slot_select", {}) | {"method": "manual", "manual": {task: [0]}}
    return params


def _only(option, found):
    """The one name among those found in the sources, "" where there is none."""
    if len(found) > 1:
        raise UserError(f"{option}: needed, the files are of {', '.join(sorted(found))}")
    return "".join(found)


def _local(name):
    """The path of a source, downloaded where it is the hub's."""
    path = Path(name)
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"{name}: no such file, folder or hub dataset")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{name}: no such file or folder here, and cannot be downloaded from the hub "
                        f"({one_line(error)})") from None


def main():
    parser = argparse.ArgumentParser(prog="python -m oclam.import", description=__doc__.partition("\n")[0],
                                     epilog=f"The new dataset's parameters go to {SCALE}; where that is there, or no "
                                     "folder for it, they are printed.")
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="HDF5 file, LeRobot or Parquet folder, folder of "
                        "videos, or a hub dataset such as lerobot/pusht")
    parser.add_argument("--to", type=Path, default=Path("data/demonstrations"), metavar="FOLDER",
                        help="where the dataset is written (default data/demonstrations)")
    parser.add_argument("--task", metavar="DOMAIN-TASK", help="needed where no source names it")
    parser.add_argument("--view", choices=("distracted", "clean"), help="clean: the same episodes without distractors")
    parser.add_argument("--steps", type=int, metavar="N", help="frames of an episode, into which trajectories are cut "
                        "(default: the shortest trajectory's, at most 1000)")
    parser.add_argument("--test-episodes", type=int, default=50, metavar="N", help="held out at the end (default 50)")
    parser.add_argument("--image-size", type=int, default=64, metavar="N", help="edge of a frame (default 64)")
    parser.add_argument("--camera", metavar="NAME", help="of a LeRobot dataset with several")
    given = parser.parse_args()
    if given.test_episodes < 2:
        raise UserError(f"--test-episodes: {given.test_episodes} given, probes need 2 or more")
    if given.image_size % 8 or not 16 <= given.image_size <= 1024:  # as env.image_size
        raise UserError(f"--image-size: {given.image_size} given, a multiple of 8 from 16 to 1024 is needed")
    params = import_sources(given.sources, given.to, given.task, given.view, given.steps, given.test_episodes,
                            given.image_size, given.camera)
    text = yaml.safe_dump(params, sort_keys=False)
    if SCALE.exists() or not SCALE.parent.is_dir():  # somebody may have edited it, or this is no clone
        if SCALE.exists():
            print(f"{SCALE}: already there, and stays as it is; the new dataset's parameters:", file=sys.stderr)
        print(text, end="")
    else:
        with atomic(SCALE) as temporary:
            temporary.write_text(text)
        print(f"{SCALE}: written; `make repro SCALE={SCALE.stem}` runs it", file=sys.stderr)
        if "manual" in params.get("slot_select", {}):
            print("No actions are known to choose slots by, so it takes slot 0: look at the slots in the report, then "
                  "name the agent's in slot_select.manual", file=sys.stderr)


if __name__ == "__main__":
    one_line_errors(main)

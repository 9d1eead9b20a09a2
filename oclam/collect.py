"""Demonstrations: whole episodes in one Zarr store, shard by shard, each written by one worker.

A shard depends on its episodes' seeds alone, so the store is the same for any number of workers. Every finished shard
has a record with the SHA-256 of its files, from which a killed collection resumes.
"""

import hashlib
import json
import multiprocessing
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import zarr

from oclam import suite
from oclam.artifacts import digest, move_store, write_json
from oclam.envs import make, rendering
from oclam.errors import UserError
from oclam.machine import cores, end_with_parent
from oclam.params import Collect, Env
from oclam.progress import Progress
from oclam.seeding import numpy_rng, seed_of

ARRAYS = "pixels", "actions", "states", "rewards"
BLOCK = 125  # frames of a chunk of pixels, the least that is read


@dataclass(frozen=True)
class Collection:
    """What to collect.

    Args:
        task, view: such as cheetah-run and distracted.
        params, env: the sections collect and env.
        policy: (S,) float32 -> (A,) float32, picklable.
        backgrounds: the store of background videos, or None.
    """

    task: str
    view: str
    params: Collect
    env: Env
    policy: Callable
    backgrounds: Path | None

    @property
    def episodes(self) -> int:
        """How many episodes there are, the held-out ones last."""
        return self.params.episodes + self.params.test_episodes

    @property
    def shards(self) -> int:
        return -(-self.episodes // self.params.shard_episodes)

    @property
    def settings(self) -> dict:
        """The parameters of the environment that this view depends on."""
        return self.env.model_dump(include=None if self.view == "distracted" else {"image_size", "renderer"})

    def members(self, shard: int) -> range:
        """The episodes of a shard."""
        return range(shard * self.params.shard_episodes,
                     min((shard + 1) * self.params.shard_episodes, self.episodes))

    def seed(self, episode: int) -> int:
        """The seed of an episode, the same in both views."""
        return seed_of("collect", self.task, self.params.seed, episode)

    def split(self, episode: int) -> str:
        """The split of background videos that an episode uses."""
        return "train" if episode < self.params.episodes else "test"

    def segmented(self, episode: int) -> int | None:
        """An episode's row in the segmentation array, None for episodes without segmentation."""
        row = episode - self.params.episodes
        return row if 0 <= row < self.params.segmented_episodes else None


def collect(plan: Collection, folder: Path, path: Path, workers: int | None = None) -> list[float]:
    """Collect all episodes into the Zarr store `path`; gives every episode's return.

    folder: for unfinished work, from which a later call resumes; workers: processes, by default one a core. Raises
    UserError for parameters that do not fit together, and when a worker dies.
    """
    rendering.choose()  # once, for all workers
    store, records = Path(folder) / "store.zarr", Path(folder) / "shards"
    if not _restored(store, records / "created"):
        if store.exists():
            print(f"{path.name}: damaged before it was finished; all is collected again", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        _create(plan, store)
        _record(store, records / "created")
    for shard, reason in damaged(store, records).items():
        print(f"{path.name}: {reason}, shard {shard} is collected again", flush=True)
        (records / f"{shard}.json").unlink()
    todo = [shard for shard in range(plan.shards) if not (records / f"{shard}.json").exists()]
    steps = plan.params.steps
    done = sum(len(plan.members(shard)) for shard in range(plan.shards) if shard not in todo)
    with Progress(plan.episodes * steps, f"collect {plan.task} {plan.view}", " frames", initial=done * steps) as bar:
        workers = min(workers or len(cores()), len(todo))
        if workers:
            with _processes(workers, _start, (plan, store, records)) as pool:
                for future in as_completed([pool.submit(_make_shard, shard) for shard in todo]):
                    bar.update(len(plan.members(future.result())) * steps)
    return _finish(plan, store, records, path)


@contextmanager
def _processes(workers, *start):
    """New Python processes, which end at once when the block fails or one of them dies."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), *start)
    try:
        yield pool
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise UserError("collect: a worker process died, perhaps for lack of memory; `dvc repro` resumes, and "
                            "`taskset -c 0 dvc repro` uses one worker") from None
        raise
    pool.shutdown()


def _record(store, record):
    """Keep the metadata of a new store, with their checksum."""
    files = {file.relative_to(store).as_posix(): file.read_text() for file in store.rglob("zarr.json")}
    write_json(record, {"files": files, "sha256": _digest(files)})


def _restored(store, record):
    """Restore the store's metadata from the file `record`; returns whether that worked: not without a store."""
    try:
        kept = json.loads(record.read_text())
        if not store.exists() or kept["sha256"] != _digest(kept["files"]):
            return False
    except (FileNotFoundError, KeyError, ValueError):
        return False
    for name, text in kept["files"].items():
        (store / name).parent.mkdir(parents=True, exist_ok=True)  # whose shards are then missing, and collected again
        (store / name).write_text(text, encoding="utf-8")
    return True


def _digest(files):
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def damaged(store: Path, records: Path) -> dict[int, str]:
    """The recorded shards whose files differ from their checksums, each with the file and what is wrong."""
    found = {}
    for record in records.glob("*.json"):
        try:
            files = json.loads(record.read_text())["files"]
        except (ValueError, KeyError):
            found[int(record.stem)] = f"{record.name} is damaged"
            continue
        for name, checksum in files.items():
            file = store / name
            if not file.exists():
                found[int(record.stem)] = f"{name} is gone"
            elif digest(file) != checksum:
                found[int(record.stem)] = f"{name} is truncated or altered"
    return dict(sorted(found.items()))


def _create(plan, store):
    action_size, state_size = suite.sizes(suite.load_task(plan.task))
    n, t, size = plan.episodes, plan.params.steps, plan.env.image_size
    of_shard, block = plan.params.shard_episodes, min(BLOCK, plan.params.steps)
    group = zarr.create_group(store)
    zstd = zarr.codecs.ZstdCodec(level=1)
    blocks = -(-t // block) * block
    group.create_array("pixels", shape=(n, t, size, size, 3), chunks=(1, block, size, size, 3),
                       shards=(of_shard, blocks, size, size, 3), dtype="uint8", compressors=zstd)
    for name, width in (("actions", (action_size,)), ("states", (state_size,)), ("rewards", ())):
        group.create_array(name, shape=(n, t, *width), chunks=(of_shard, t, *width), dtype="float32", compressors=zstd)
    group.create_array("segmentation", shape=(plan.params.segmented_episodes, t, size, size),
                       chunks=(1, t, size, size), dtype="uint8", compressors=zstd)


def _start(plan, store, records):
    """Let this worker process end with its parent, by kill -9 too, and collect for this plan."""
    global _worker
    end_with_parent(signal.SIGKILL)
    _worker = _Worker(plan, store, records)


def _make_shard(shard):
    return _worker.make_shard(shard)


class _Worker:
    """A process with one environment for each split, which collects one shard after the other."""

    def __init__(self, plan, store, records):
        self.plan, self.store, self.records = plan, store, records
        self.group, self.environments = zarr.open_group(store, mode="r+"), {}

    def make_shard(self, shard):
        """Collect and write a shard's episodes, then its record."""
        plan, group, members = self.plan, self.group, self.plan.members(shard)
        arrays = {name: np.zeros((len(members), *group[name].shape[1:]), group[name].dtype) for name in ARRAYS}
        files = [f"{name}/c/{'/'.join(['0' if i else str(shard) for i in range(group[name].ndim)])}"
                 for name in ARRAYS]
        for name in files:  # remains of a killed worker or a damaged disk
            (self.store / name).unlink(missing_ok=True)
        for row, episode in enumerate(members):
            masks = self.run(episode, {name: array[row] for name, array in arrays.items()})
            if masks is not None:
                group["segmentation"][plan.segmented(episode)] = masks
                files.append(f"segmentation/c/{plan.segmented(episode)}/0/0/0")
        for name, array in arrays.items():
            group[name][members.start:members.stop] = array
        write_json(self.records / f"{shard}.json", {
            "files": {name: digest(self.store / name) for name in files if (self.store / name).exists()},
            "returns": arrays["rewards"].sum(1, dtype=np.float64).tolist()})
        return shard

    def run(self, episode, out):
        """Collect one episode into `out`, views of the shard; returns the agent's masks (T, H, W), None if not kept."""
        plan, split = self.plan, self.plan.split(episode)
        if split not in self.environments:
            self.environments[split] = make(plan.task, plan.view, plan.env, plan.backgrounds, split)
        env, segmented = self.environments[split], plan.segmented(episode) is not None
        masks = np.empty((plan.params.steps, *out["pixels"].shape[1:3]), np.uint8) if segmented else None
        pixels, info = env.reset(seed=plan.seed(episode), options={"segmentation": segmented})
        noise = plan.params.action_noise * numpy_rng("action noise", plan.seed(episode)).standard_normal(
            out["actions"].shape)
        for t in range(plan.params.steps):
            out["pixels"][t], out["states"][t] = pixels, info["state"]
            if segmented:
                masks[t] = info["segmentation"]
            out["actions"][t] = np.clip(plan.policy(info["state"]) + noise[t], -1, 1)
            pixels, out["rewards"][t], _, _, info = env.step(out["actions"][t])
        return masks


def _finish(plan, store, records, path):
    written = [json.loads((records / f"{shard}.json").read_text()) for shard in range(plan.shards)]
    known = {name for record in written for name in record["files"]}
    for file in store.rglob("*"):
        if file.is_file() and file.name != "zarr.json" and file.relative_to(store).as_posix() not in known:
            file.unlink()  # half-written by a killed worker
    returns = [value for record in written for value in record["returns"]]
    zarr.open_group(store, mode="r+").attrs.update(
        task=plan.task, view=plan.view, episodes=plan.params.episodes, test_episodes=plan.params.test_episodes,
        segmented_episodes=plan.params.segmented_episodes, seeds=[plan.seed(e) for e in range(plan.episodes)],
        renderer=plan.env.renderer, env=plan.settings, returns=returns,
        versions={name: version(name) for name in ("mujoco", "dm-control", "distracting-control", "numpy", "zarr")})
    move_store(store, path)
    return returns

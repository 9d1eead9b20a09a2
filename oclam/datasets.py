"""Collected datasets: frames in GPU memory, host memory or a mapped file, and random batches of t, t+1 and t+k.

A frame is named by its flat index, episode * steps + t. The Zarr store is read once, in order; a training step's frames
are then gathered by one index operation.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
import zarr

from oclam.artifacts import digest, once, open_zarr
from oclam.checkpoint import FOLDER
from oclam.errors import Absent, UserError
from oclam.machine import available_memory
from oclam.progress import Progress
from oclam.seeding import torch_rng


@dataclass(frozen=True)
class Dataset:
    """One task's episodes in one view; the last `test_episodes` are held out.

    pixels, uint8 (E, T, H, W, 3), stay in the store; actions (E, T, A), states (E, T, S) and rewards (E, T), all
    float32, are read at their first use. E = episodes + test_episodes, T = steps.
    """

    path: Path
    group: zarr.Group
    attrs: dict
    episodes: int
    test_episodes: int
    steps: int

    @property
    def pixels(self) -> zarr.Array:
        return self.group["pixels"]

    def labelled(self, count: int, seed: int, parameter: str) -> list[int]:
        """The `count` training episodes whose actions may be used, wherever labels are few.

        They are the first of a random order that depends on task, `seed` and the number of episodes with actions alone:
        a larger count contains the smaller ones, and all uses of labels get the same episodes. `parameter` is named in
        the UserError for too few; raises Absent without any actions.
        """
        episodes = self.with_actions
        if count > len(episodes):
            raise UserError(f"{parameter}: {count} given, {self.path} has {len(episodes)} training episodes with "
                            "actions")
        generator = torch_rng("labelled", f"{self.attrs['task']} {seed}")
        return [episodes[i] for i in torch.randperm(len(episodes), generator=generator)[:count].tolist()]

    @cached_property
    def with_actions(self) -> Sequence[int]:
        """The training episodes whose actions are known; imported videos have none, NaN. Raises Absent for none."""
        known = np.isfinite(self.actions[:self.episodes]).all((1, 2))
        if not known.any():
            raise Absent(f"{self.path} has no actions")
        return range(self.episodes) if known.all() else np.flatnonzero(known).tolist()

    @cached_property
    def actions(self) -> np.ndarray:
        return self.group["actions"][:]

    def action_units(self, episodes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Offset and scale, float32 (A,) each: what learns from these episodes predicts (action - offset) / scale.

        0 and 1 for the simulator's actions in [-1, 1]; for imported ones, which may be of any size, mean and standard
        deviation over those episodes whose actions are known.
        """
        actions = self.actions[list(episodes)].astype(np.float64)
        known = actions[np.isfinite(actions).all((1, 2))]
        if "adopted" not in self.attrs or not len(known):
            return np.zeros(actions.shape[2], np.float32), np.ones(actions.shape[2], np.float32)
        offset, scale = known.mean((0, 1)).astype(np.float32), known.std((0, 1)).astype(np.float32)
        return offset, np.where(scale > 1e-6, scale, np.float32(1))

    def normalised_actions(self, episodes: Sequence[int]) -> np.ndarray:
        """The actions of these episodes, (action - offset) / scale: float32 (episodes, T, A)."""
        offset, scale = self.action_units(episodes)
        return (self.actions[list(episodes)] - offset) / scale

    @cached_property
    def states(self) -> np.ndarray:
        return self.group["states"][:]

    @cached_property
    def rewards(self) -> np.ndarray:
        return self.group["rewards"][:]


def open_dataset(path: Path, task: str | None = None) -> Dataset:
    """The dataset that collect or `oclam.import` wrote.

    Raises UserError when it is missing or damaged, has other arrays than a dataset, or is of another task than `task`.
    """
    group = open_zarr(path)
    attrs = dict(group.attrs)
    missing = [name for name in ("pixels", "actions", "states", "rewards") if name not in group]
    missing += [name for name in ("task", "view", "episodes", "test_episodes") if name not in attrs]
    again = "import it again, or delete it if a stage made it and run `dvc repro`"
    if missing:
        raise UserError(f"{path}: no {', '.join(missing)}; not a dataset, or an old one; {again}")
    episodes, test_episodes, shape = attrs["episodes"], attrs["test_episodes"], group["pixels"].shape
    shapes = {name: group[name].shape for name in ("pixels", "actions", "states", "rewards")}
    if any(found[:2] != (episodes + test_episodes, shape[1]) for found in shapes.values()):
        raise UserError(f"{path}: {shapes} do not agree with {episodes} + {test_episodes} episodes; {again}")
    if task not in (None, attrs["task"]):
        raise UserError(f"{path}: a dataset of {attrs['task']}, {task} expected")
    pixels = group["pixels"]
    if pixels.dtype != np.uint8 or len(shape) != 5 or shape[2] != shape[3] or shape[4] != 3:
        raise UserError(f"{path}: pixels {shape} of type {pixels.dtype}, expected uint8 (episodes, steps, S, S, 3) in "
                        "RGB, 0 to 255")
    if [len(shapes[name]) for name in ("actions", "states", "rewards")] != [3, 3, 2]:
        raise UserError(f"{path}: {shapes}, expected actions and states (episodes, steps, width), rewards (episodes, "
                        "steps)")
    return Dataset(Path(path), group, attrs, episodes, test_episodes, shape[1])


class Frames:
    """Rows of any shape and type, one a frame, on a GPU, in host memory or in a memory-mapped file.

    rows: (N, *row_shape); device: of the gathered rows.
    """

    def __init__(self, rows: torch.Tensor, device: torch.device | str):
        self.device, self.dtype, self.row_shape = torch.device(device), rows.dtype, rows.shape[1:]
        # Rows are copied as the widest integers that divide them: a GPU copies int64 several times faster than uint8.
        width = rows[0].numel() * rows.element_size()
        word = next(kind for kind in (torch.int64, torch.int32, torch.int16, torch.uint8) if width % kind.itemsize == 0)
        self._rows = rows.reshape(len(rows), -1).view(word)

    def __len__(self):
        return len(self._rows)

    @classmethod
    def load(cls, array: zarr.Array, episodes: range | list[int], device: torch.device | str) -> "Frames":
        """The rows of episodes of a Zarr array (E, T, ...), in order.

        They are kept on the GPU when they fit in 80% of its free memory, else in host memory when they fit in half of
        what is available (or this stage's share of that where `oclam.slices` runs several), else in a file under
        `.resume` that is written once and mapped; which one is printed. At most one decoded episode is in memory
        besides.
        """
        device = torch.device(device)
        shape = (len(episodes) * array.shape[1], *array.shape[2:])
        size, dtype = int(np.prod(shape)) * array.dtype.itemsize, torch.from_numpy(np.empty(0, array.dtype)).dtype
        on_gpu = device.type == "cuda" and size <= 0.8 * torch.cuda.mem_get_info(device)[0]
        message = f"{array.name[1:]}: {size / 1e9:.3g} GB"
        # Others load as much as this process: of one training (oclam.parallel), stages side by side (oclam.slices).
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) * int(os.environ.get("OCLAM_JOBS", 1))
        if not on_gpu and size > 0.5 * available_memory() / processes:
            mapped = range(array.shape[0]) if isinstance(episodes, range) else episodes  # all ranges share one file
            path, start = _mapped_file(array, mapped), mapped.index(episodes[0])
            print(f"{message}, more than memory allows: mapped from {path}", file=sys.stderr)
            numbers = len(mapped) * int(np.prod(array.shape[1:]))
            rows = torch.from_file(str(path), shared=True, size=numbers, dtype=dtype)
            return cls(rows.view(-1, *shape[1:])[start * array.shape[1]:][:shape[0]], device)
        print(f"{message} in {'GPU' if on_gpu else 'host'} memory", file=sys.stderr)
        rows = torch.empty(shape, dtype=dtype, device=device if on_gpu else "cpu")
        for i, episode in enumerate(_read(array, episodes)):
            rows[i * len(episode):(i + 1) * len(episode)] = torch.from_numpy(episode)
        return cls(rows, device)

    def gather(self, index: torch.Tensor) -> torch.Tensor:
        """The rows of flat indices (...): (..., *row_shape) on `device`; to a GPU they pass through pinned memory."""
        shape, index = (*index.shape, *self.row_shape), index.flatten().to(self._rows.device)
        pinned = self._rows.device.type != self.device.type  # the types, because "cuda" is not equal to "cuda:0"
        rows = torch.empty(len(index), self._rows.shape[1], dtype=self._rows.dtype, pin_memory=True) if pinned else None
        rows = torch.index_select(self._rows, 0, index, out=rows)
        return rows.view(self.dtype).view(shape).to(self.device, non_blocking=True)


def mean_and_deviation(array: zarr.Array, episodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (1e-4 at least), float64 (D,) each, over the first episodes of an array (E, T, D)."""
    each = (array[episode].astype(float) for episode in range(episodes))
    mean, square = sum(np.stack([rows.mean(0), (rows**2).mean(0)]) for rows in each) / episodes
    return torch.from_numpy(mean), torch.from_numpy(np.sqrt(np.maximum(square - mean**2, 1e-8)))


def _read(array, episodes):
    with Progress(len(episodes), f"reading {array.name[1:]}", " episodes") as bar:
        for episode in episodes:
            yield array[episode]
            bar.update()


def _mapped_file(array, episodes):
    """The rows as one flat file, written once; the file of the array's earlier content is removed."""
    source = Path(array.store.root) / array.path
    place = hashlib.sha256(repr((os.fspath(source.absolute()), episodes)).encode()).hexdigest()[:16]
    path = FOLDER / f"frames-{place}-{digest(array.store.root)[:16]}"
    for old in set(FOLDER.glob(f"frames-{place}-*")) - {path}:
        old.unlink(missing_ok=True)  # another process that maps the array may be faster
    return once(path, lambda file: file.writelines(np.ascontiguousarray(rows).data for rows in _read(array, episodes)))


def stack_index(t: torch.Tensor, stack: int, steps: int) -> torch.Tensor:
    """Flat indices of the `stack` frames that end at `t` (...), oldest first: (..., stack).

    Before an episode's start its first frame is repeated.
    """
    start = (t - t % steps).unsqueeze(-1)
    return torch.maximum(t.unsqueeze(-1) + torch.arange(1 - stack, 1, device=t.device), start)


class FrameSampler:
    """Every frame that has a next one, once an epoch, in an order that depends on the seed alone.

    Args:
        episodes: how many.
        steps: of an episode; t is in 0..steps-2.
        batch_size: any; a batch may continue in the next epoch.
        seed: of the order.
    """

    def __init__(self, episodes: int, steps: int, batch_size: int, seed: int | str):
        self.steps, self.batch_size, self.seed = steps, batch_size, seed
        self.samples = episodes * (steps - 1)
        self.steps_per_epoch = -(-self.samples // batch_size)
        self._order = lru_cache(1)(
            lambda epoch: torch.randperm(self.samples, generator=torch_rng("order", seed, epoch)))

    def batch(self, step: int) -> torch.Tensor:
        """Flat indices (B,) of the frames of a training step."""
        places = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = places // self.samples, places % self.samples
        sample = torch.cat([self._order(epoch)[places[epochs == epoch]] for epoch in epochs.unique().tolist()])
        return frame_of(sample, self.steps)


class TripleSampler(FrameSampler):
    """Current, next and future frame: t as in FrameSampler, t + 1, and t + k with k uniform in 1..future_offset.

    t + k is limited to the episode's end.
    """

    def __init__(self, episodes: int, steps: int, batch_size: int, future_offset: int, seed: int | str):
        super().__init__(episodes, steps, batch_size, seed)
        self.future_offset = future_offset

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Flat indices t, t + 1 and t + k, each (B,), of a training step."""
        t = super().batch(step)
        k = torch.randint(1, self.future_offset + 1, t.shape, generator=torch_rng("future", self.seed, step))
        return t, t + 1, torch.minimum(t + k, t - t % self.steps + self.steps - 1)


class Prefetch:
    """`Prefetch(make)(step)` is make(step), computed in a thread during the step before.

    make must depend on the step alone, so that a resumed training sees the same batches.
    """

    def __init__(self, make: Callable):
        self._make, self._ahead = make, {}
        self._pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))  # training uses the cores

    def __call__(self, step: int):
        batch = self._ahead.get(step) or self._pool.submit(self._make, step)
        self._ahead = {step + 1: self._pool.submit(self._make, step + 1)}
        return batch.result()


class FrameStacks:
    """Stacked frames as a network's input: flat indices (B,) -> float32 (B, stack * C, H, W) in [-1, 1].

    Args:
        frames: uint8 rows (H, W, C).
        stack: how many frames, the last of which has the index.
        steps: of an episode; its first frame is repeated before its start.
    """

    def __init__(self, frames: Frames, *, stack: int, steps: int):
        self.frames, self.stack, self.steps = frames, stack, steps

    def __call__(self, index: torch.Tensor) -> torch.Tensor:
        return to_image(self.frames.gather(stack_index(index, self.stack, self.steps)))


def frame_of(transition: torch.Tensor, steps: int) -> torch.Tensor:
    """Flat indices of the frames at which transitions begin; an episode has `steps` frames, `steps` - 1 transitions."""
    return transition + transition // (steps - 1)


def transition_of(frame: torch.Tensor, steps: int) -> torch.Tensor:
    """Flat indices of the transitions that begin at frames, none of which is an episode's last one."""
    return frame - frame // steps


def to_image(frames: torch.Tensor) -> torch.Tensor:
    """Stacked uint8 frames as a network's input: (..., stack, H, W, C) -> float32 (..., stack * C, H, W) in [-1, 1]."""
    return frames.movedim(-1, -3).flatten(-4, -3).to(torch.float32).div_(127.5).sub_(1)

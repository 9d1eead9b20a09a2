"""Write the episodes of any source as one dataset."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import zarr

from oclam.artifacts import atomic
from oclam.backgrounds.footage import square
from oclam.errors import UserError
from oclam.progress import Progress

SHARD_EPISODES = 10  # written at once, so that memory stays at ten episodes
BLOCK = 100  # frames of a chunk of pixels
LEAST, MOST = 16, 1000  # steps of an episode that collect.steps allows


@dataclass(frozen=True)
class Episode:
    """What one trajectory holds, None for what its source lacks.

    pixels: yields uint8 frames (H, W, 3), RGB, in order; actions: (T, A), the action taken at each frame; states:
    (T, S); rewards: (T,), of each action; masks: the agent, bool (T, H, W).
    """

    pixels: Iterable[np.ndarray]
    actions: np.ndarray | None = None
    states: np.ndarray | None = None
    rewards: np.ndarray | None = None
    masks: np.ndarray | None = None


@dataclass(frozen=True)
class Source:
    """Trajectories of one file or folder.

    name: for messages; lengths: of every trajectory, in frames; read: gives the trajectory with an index, and is called
    in order; actions, states: how wide these are, 0 where there are none; about: worth keeping, as JSON can hold it.
    """

    name: str
    lengths: list[int]
    read: Callable[[int], Episode]
    actions: int
    states: int
    about: dict


def write_dataset(path: Path, sources: list[Source], task: str, view: str, steps: int | None, image_size: int,
                  test_episodes: int) -> dict:
    """Write the episodes of all sources to `path`. Returns the dataset's attributes, and `labelled`: how many training
    episodes have actions.

    Every recording is cut into episodes of `steps` frames; what remains at its end is left out. Frames become square
    as background videos do. All episodes of the last recordings, of sources with actions if there is one, are held
    out: `test_episodes`, or a few more where a recording gives several. Actions, states and rewards that are missing
    are NaN.

    Args:
        view: distracted or clean.
        steps: None takes the shortest trajectory's length, at most 1000.
        image_size: edge of a frame in the dataset, in pixels.
    Raises UserError when no episode (none with actions, where there are any) is left to train on or to hold out, or
    values are not finite or of another width.
    """
    sources = sorted(sources, key=lambda source: source.actions > 0)  # those with actions last, since they are held out
    if steps is None:
        lengths = [length for source in sources for length in source.lengths]
        steps, typical = min([MOST, *lengths]), min(MOST, int(np.median(lengths or [0])))
        if 2 * steps < typical:
            print(f"the shortest trajectory has {steps} frames, so all episodes have; --steps {typical} leaves shorter "
                  "ones out", file=sys.stderr)
    if not LEAST <= steps <= MOST:
        raise UserError(f"--steps: {steps} frames an episode, {LEAST} to {MOST} are allowed; longer ones are cut, "
                        "shorter ones left out")
    pieces = [(source, index, part) for source in sources for index, length in enumerate(source.lengths)
              for part in range(length // steps)]
    held_out = _held_out(pieces, test_episodes)
    names, labelled = ", ".join(source.name for source in sources), sum(source.actions > 0 for source, *_ in pieces)
    if not 0 < held_out < len(pieces):
        raise UserError(f"{names}: {len(pieces)} episodes of {steps} frames; --test-episodes {test_episodes} holds out "
                        "too many or none")
    if 0 < labelled <= held_out:
        raise UserError(f"{names}: {labelled} episodes with actions; --test-episodes {test_episodes} holds out all of "
                        "them, and some are needed to learn from")
    if len(pieces) - held_out < 2 or labelled - held_out == 1:
        which = "episode with actions" if labelled else "episode"
        raise UserError(f"{names}: --test-episodes {test_episodes} leaves one {which} to train on, 2 are needed; lower "
                        "it or --steps")
    if left := sum(length for source in sources for length in source.lengths) - steps * len(pieces):
        print(f"{left} frames do not fill episodes of {steps} and are left out", file=sys.stderr)
    with atomic(path) as temporary:
        group = zarr.create_group(temporary)
        shape, trained = (len(pieces), steps), len(pieces) - held_out
        arrays = {"pixels": _array(group, "pixels", (*shape, image_size, image_size, 3), np.uint8),
                  "actions": _array(group, "actions", (*shape, _width(sources, "actions")), np.float32),
                  "states": _array(group, "states", (*shape, _width(sources, "states")), np.float32),
                  "rewards": _array(group, "rewards", shape, np.float32)}
        masks, episodes = [], _episodes(pieces, steps, image_size)
        with Progress(len(pieces), "importing", " episodes") as bar:
            for first in range(0, len(pieces), SHARD_EPISODES):
                shard = list(islice(episodes, SHARD_EPISODES))
                arrays["pixels"][first:first + len(shard)] = np.stack([episode.pixels for episode in shard])
                for name in ("actions", "states", "rewards"):
                    values = [getattr(episode, name) for episode in shard]
                    missing = np.full(arrays[name].shape[1:], np.nan, np.float32)
                    arrays[name][first:first + len(shard)] = np.stack(
                        [missing if value is None else value for value in values])
                for place, episode in enumerate(shard, first):
                    if place - trained == len(masks) and episode.masks is not None:  # row i is held-out episode i
                        masks.append(episode.masks)
                bar.update(len(shard))
        if masks:
            group.create_array("segmentation", data=np.stack(masks), chunks=(1, steps, image_size, image_size))
        group.attrs.update(attributes := {
            "task": task, "view": view, "episodes": trained, "test_episodes": held_out, "steps": steps,
            "segmented_episodes": len(masks),
            "source": [{"name": source.name, **source.about} for source in sources]})
    return attributes | {"labelled": labelled and labelled - held_out}


def _held_out(pieces, wanted):
    """The number of pieces at the end that holds whole trajectories and at least `wanted` pieces."""
    count = min(wanted, len(pieces))
    while 0 < count < len(pieces) and pieces[-count][:2] == pieces[-count - 1][:2]:
        count += 1
    return count


def _width(sources, name):
    widths = {getattr(source, name) for source in sources} - {0}
    if len(widths) > 1:
        raise UserError(f"{', '.join(source.name for source in sources)}: {name} of {sorted(widths)} numbers; import "
                        "them one by one")
    return max(widths, default=1)


def _array(group, name, shape, dtype):
    chunks = (1, min(shape[1], BLOCK) if name == "pixels" else shape[1], *shape[2:])
    shards = (SHARD_EPISODES, -(-shape[1] // chunks[1]) * chunks[1], *shape[2:])
    return group.create_array(name, shape=shape, dtype=dtype, chunks=chunks, shards=shards)


def _episodes(pieces, steps, size) -> Iterator[Episode]:
    """Every piece, its frames as a list; each frame and mask shrinks to (size, size) when it is read."""
    for source, index, part in pieces:
        if part == 0:
            whole = source.read(index)
            frames = iter(whole.pixels)
        pixels = [square(frame, size) for frame in islice(frames, steps)]
        rows = slice(part * steps, (part + 1) * steps)
        if len(pixels) < steps:
            raise UserError(f"{source.name}: trajectory {index} has {part * steps + len(pixels)} frames, "
                            f"{source.lengths[index]} are declared; get it again")
        shapes = {"actions": (steps, source.actions), "states": (steps, source.states), "rewards": (steps,)}
        values = {}
        for name, shape in shapes.items():
            if (value := getattr(whole, name)) is not None:
                values[name] = np.asarray(value[rows], np.float32)
                if values[name].shape != shape:
                    raise UserError(f"{source.name}: trajectory {index} has {name} of shape {values[name].shape} in "
                                    f"{steps} frames, the source declares {shape}; correct or remove it")
                if not np.isfinite(values[name]).all():
                    raise UserError(f"{source.name}: trajectory {index} has {name} that are not finite")
        yield Episode(pixels, **values, masks=None if whole.masks is None else _shrunk(whole.masks[rows], size))


def _shrunk(masks, size):
    """Masks bool (T, H, W) as the agent's share of each pixel, above a half: uint8 (T, size, size) in {0, 1}."""
    return np.stack([square(np.uint8(mask) * 255, size) > 127 for mask in masks]).astype(np.uint8)

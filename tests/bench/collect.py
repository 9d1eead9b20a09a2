"""Distracted frames a second and resets: the package distracting-control at its defaults against ours, and two workers.

`python -m tests.bench.collect`; one core each, by CPU time, so that a busy machine changes the ratios little.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import cv2
import numpy as np

from oclam.backgrounds.footage import square
from oclam.backgrounds.generated import dead_leaves
from oclam.backgrounds.store import write_store
from oclam.collect import Collection, collect
from oclam.envs import DEFAULT, make
from oclam.params import Collect
from tests.bench import timing
from tests.bench.package import TASK

VIDEOS, FRAMES, STEPS = 2, 60, 500


def ours(store, mode):
    """CPU seconds of our "step" and "reset"."""
    env = make("-".join(TASK), "distracted", DEFAULT.model_copy(update={"renderer": mode}), store)
    action, seeds = np.zeros(env.action_space.shape), count()
    reset = timing.seconds({"reset": lambda: env.reset(seed=next(seeds))}, clock=time.process_time)
    return timing.seconds({"step": lambda: env.step(action)}, 25 if mode == "reference" else 100,
                          time.process_time) | reset


@dataclass(frozen=True)
class Still:
    """A policy that does nothing."""

    def __call__(self, state):
        return np.zeros(6, np.float32)


def collected(store, workers, folder):
    """Wall seconds of a collection, the same for any number of workers but for its length."""
    seconds = []
    for steps in (50, 50 + STEPS):  # the difference is free of starting processes
        params = Collect(source="simulator", path="unused", episodes=3, test_episodes=2, segmented_episodes=1,
                         steps=steps, action_noise=0, shard_episodes=1, seed=0)
        plan = Collection("-".join(TASK), "distracted", params, DEFAULT, Still(), store)
        started = time.perf_counter()
        collect(plan, folder / "work", folder / "out.zarr", workers)
        seconds.append(time.perf_counter() - started)
        shutil.rmtree(folder / "work")
    return seconds[1] - seconds[0]


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        videos = [dead_leaves(np.random.default_rng(k), FRAMES, 256) for k in range(VIDEOS)]
        for k, video in enumerate(videos):  # as DAVIS has it: JPEG, 480 x 854
            (folder / "footage" / str(k)).mkdir(parents=True)
            for t, frame in enumerate(video):
                cv2.imwrite(str(folder / "footage" / str(k) / f"{t:05}.jpg"), cv2.resize(frame, (854, 480)))
        stores = {"fast": folder / "128.zarr", "reference": folder / "800.zarr"}
        for store, size in zip(stores.values(), (128, 800), strict=True):
            resized = [(str(k), np.stack([square(frame, size) for frame in video])) for k, video in enumerate(videos)]
            write_store(store, {"train": resized, "test": resized}, "bench")
        answer = subprocess.run([sys.executable, "-m", "tests.bench.package", folder / "footage"], check=True,
                                stdout=subprocess.PIPE)
        package = json.loads(answer.stdout)
        rows = {"package distracting-control": package} | {f"ours, {mode}": ours(stores[mode], mode) for mode in stores}
        print(f"{'':30}{'frames/s':>10}{'ratio':>8}{'reset':>10}{'ratio':>8}   (the task's own reset "
              f"{package['task reset'] * 1e3:.1f} ms)")
        for name, row in rows.items():
            print(f"{name:30}{1 / row['step']:10.0f}{package['step'] / row['step']:8.1f}{row['reset'] * 1e3:7.0f} ms"
                  f"{package['reset'] / row['reset']:8.1f}")
        one, two = (collected(stores["fast"], workers, folder) for workers in (1, 2))
        print(f"collection, two workers against one: {one / two:.2f} times the frames/s ({os.cpu_count()} cores, "
              f"load {os.getloadavg()[0]:.0f})")


if __name__ == "__main__":
    main()

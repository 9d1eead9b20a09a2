"""Collection: the same bytes for any number of workers and however often killed; damage is found and mended."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import zarr

from oclam import artifacts, collect, envs
from oclam.backgrounds.generated import dead_leaves
from oclam.backgrounds.store import write_store
from oclam.collect import Collection, damaged
from oclam.errors import UserError
from oclam.params import Collect
from tests import contents


@dataclass(frozen=True)
class Wave:
    """A policy that needs no file: a wave of the state."""

    size: int

    def __call__(self, state):
        return np.sin(3 * state[:self.size])


def plan_of(backgrounds, view="distracted", **changes):
    params = {"source": "simulator", "path": "unused", "episodes": 3, "test_episodes": 2, "segmented_episodes": 1,
              "steps": 16, "action_noise": 0.0, "shard_episodes": 2, "seed": 0}
    env = envs.DEFAULT.model_copy(update={"image_size": 32, "texture_size": 32})
    return Collection("cheetah-run", view, Collect(**params | changes), env, Wave(6), backgrounds)


@pytest.fixture(scope="module")
def backgrounds(tmp_path_factory):
    path = tmp_path_factory.mktemp("backgrounds") / "backgrounds.zarr"
    write_store(path, {split: [(str(k), dead_leaves(np.random.default_rng([split == "test", k]), 4, 32, leaves=50))
                               for k in range(2)] for split in ("train", "test")}, "test")
    return path


@pytest.fixture(scope="module")
def undisturbed(backgrounds, tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "distracted.zarr"
    collect.collect(plan_of(backgrounds), path.parent / "work", path, workers=2)
    return path


def test_noisy_actions_are_the_policy_s_plus_the_episode_s_own_noise(undisturbed, tmp_path):
    actions = {}
    for noise in (0.0, 0.1):
        collect.collect(plan_of(None, "clean", action_noise=noise), tmp_path / "work", tmp_path / f"{noise}.zarr")
        group = zarr.open_group(tmp_path / f"{noise}.zarr", mode="r")
        actions[noise], states = group["actions"][:], group["states"][:]
        added = actions[noise] - np.sin(3 * states[..., :6])
        inside = np.abs(actions[noise]) < 1
        assert np.allclose(added[inside].std(), noise, rtol=0.15) and abs(added[inside].mean()) < 0.02
        for a, b in combinations(range(5), 2):
            assert np.abs((added[a] - added[b])[inside[a] & inside[b]]).max() >= noise
    np.testing.assert_array_equal(actions[0.0], zarr.open_group(undisturbed, mode="r")["actions"][:])


def test_records_what_the_environment_shows(backgrounds, undisturbed):
    plan, group = plan_of(backgrounds), zarr.open_group(undisturbed, mode="r")
    assert {name: array.shape for name, array in group.arrays()} == {
        "pixels": (5, 16, 32, 32, 3), "actions": (5, 16, 6), "states": (5, 16, 17), "rewards": (5, 16),
        "segmentation": (1, 16, 32, 32)}
    env = envs.make(plan.task, plan.view, plan.env, backgrounds, "test")
    pixels, info = env.reset(seed=group.attrs["seeds"][3], options={"segmentation": True})
    for t in range(16):
        np.testing.assert_array_equal(group["pixels"][3, t], pixels)
        np.testing.assert_array_equal(group["states"][3, t], info["state"])
        np.testing.assert_array_equal(group["segmentation"][0, t], info["segmentation"])
        np.testing.assert_array_equal(group["actions"][3, t], Wave(6)(info["state"]))
        pixels, reward, _, _, info = env.step(group["actions"][3, t])
        assert group["rewards"][3, t] == np.float32(reward)
    env.close()
    np.testing.assert_allclose(group.attrs["returns"], group["rewards"][:].sum(1), rtol=1e-6)
    assert len(set(group.attrs["seeds"])) == 5


def test_one_worker_writes_the_same_bytes(backgrounds, undisturbed, tmp_path):
    collect.collect(plan_of(backgrounds), tmp_path / "work", tmp_path / "one.zarr", workers=1)
    assert contents(tmp_path / "one.zarr") == contents(undisturbed)


@dataclass(frozen=True)
class Deadly(Wave):
    """A policy whose process is killed, as for lack of memory."""

    def __call__(self, state):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_worker_is_one_line_and_the_rest_is_collected_afterwards(backgrounds, undisturbed, tmp_path):
    plan = plan_of(backgrounds)
    with pytest.raises(UserError, match="a worker process died.*`dvc repro` resumes"):
        collect.collect(replace(plan, policy=Deadly(6)), tmp_path / "work", tmp_path / "one.zarr", workers=2)
    collect.collect(plan, tmp_path / "work", tmp_path / "one.zarr", workers=2)
    assert contents(tmp_path / "one.zarr") == contents(undisturbed)


KILLED = """
import pickle, sys
from pathlib import Path
from oclam.collect import collect
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    collect(pickle.loads((folder / "plan").read_bytes()), folder / "work", folder / "killed.zarr", workers=2)
"""


@dataclass(frozen=True)
class Waiting(Wave):
    """A policy that says that it is asked, and then does not answer."""

    def __call__(self, state):
        os.write(1, b"asked\n")  # in one piece, for there are two of them
        time.sleep(600)


def test_workers_end_with_their_killed_parent(tmp_path):
    """They hold its standard output, which ends with the last of them."""
    (tmp_path / "plan").write_bytes(pickle.dumps(replace(plan_of(None, "clean"), policy=Waiting(6))))
    (tmp_path / "run.py").write_text(KILLED)
    process = subprocess.Popen([sys.executable, tmp_path / "run.py", tmp_path], start_new_session=True,
                               env=dict(os.environ, PYTHONPATH=f"{Path.cwd()}"), stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"asked\n"
    process.kill()
    try:
        process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def test_a_kill_while_checksums_are_computed_loses_no_shard(undisturbed, backgrounds, tmp_path, monkeypatch):
    plan, work, path = plan_of(backgrounds), tmp_path / "work", tmp_path / "distracted.zarr"

    def end(_):
        raise SystemExit(143)

    with monkeypatch.context() as context, pytest.raises(SystemExit):
        context.setattr(artifacts, "checksums", end)
        collect.collect(plan, work, path, workers=1)
    kept = {record: record.stat().st_mtime_ns for record in (work / "shards").glob("*.json")}
    collect.collect(plan, work, path, workers=1)
    assert kept == {record: record.stat().st_mtime_ns for record in kept} and contents(path) == contents(undisturbed)


def test_a_killed_collection_resumes_to_the_same_bytes(backgrounds, undisturbed, tmp_path):
    """kill -9 at two moments: as soon as a shard is on disk, and a random while later, by which all may be done."""
    (tmp_path / "plan").write_bytes(pickle.dumps(plan_of(backgrounds)))
    (tmp_path / "run.py").write_text(KILLED)
    environment = dict(os.environ, PYTHONPATH=f"{Path.cwd()}")
    records, kills = tmp_path / "work" / "shards", 0
    end = time.monotonic() + np.random.default_rng().uniform(0, 15)
    for patience in (lambda: any(records.glob("*.json")), lambda: time.monotonic() > end):
        process = subprocess.Popen([sys.executable, tmp_path / "run.py", tmp_path], env=environment,
                                   start_new_session=True, stderr=subprocess.DEVNULL)
        while process.poll() is None and not patience():
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills
    kept = {}  # of what has gone to its place all is collected again
    if not (tmp_path / "killed.zarr").exists():
        kept = {record.name: record.stat().st_mtime_ns for record in records.glob("*.json")}
        assert kept
        (tmp_path / "work" / "store.zarr" / "pixels" / "half.0123.partial").write_bytes(b"half")
    collect.collect(plan_of(backgrounds), tmp_path / "work", tmp_path / "killed.zarr", workers=1)
    assert contents(tmp_path / "killed.zarr") == contents(undisturbed)
    assert all((records / name).stat().st_mtime_ns == moment for name, moment in kept.items())


@pytest.mark.parametrize("damage, word", [
    (lambda file: file.write_bytes(file.read_bytes()[:-5]), "truncated or altered"),
    (lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]), "truncated or altered"),
    (lambda file: file.unlink(), "gone"),
])
def test_damage_to_a_shard_is_found_and_named(tmp_path, damage, word):
    store, records = tmp_path / "store", tmp_path / "shards"
    store.mkdir()
    records.mkdir()
    for shard in range(3):
        (store / f"{shard}").write_bytes(bytes(range(100)))
        files = {f"{shard}": artifacts.digest(store / f"{shard}")}
        (records / f"{shard}.json").write_text(json.dumps({"files": files}))
    assert damaged(store, records) == {}
    damage(store / "1")
    assert list(damaged(store, records)) == [1] and word in damaged(store, records)[1]


@pytest.mark.parametrize(("name", "line"), [
    ("store.zarr/pixels/c/1/0/0/0/0", "pixels/c/1/0/0/0/0 is truncated or altered, shard 1 is collected again"),
    ("store.zarr/states/zarr.json", ""), ("store.zarr/zarr.json", ""),
    ("store.zarr/pixels", "shard 1 is collected again"),
    ("shards/created", "mended.zarr: damaged before it was finished; all is collected again")])
def test_a_damaged_shard_is_remade(backgrounds, undisturbed, tmp_path, monkeypatch, capsys, name, line):
    """Stop just before the end, damage a shard or the metadata, go on."""
    plan = plan_of(backgrounds)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(collect, "_finish", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        collect.collect(plan, tmp_path / "work", tmp_path / "mended.zarr", workers=1)
    file = tmp_path / "work" / name
    shutil.rmtree(file) if file.is_dir() else file.write_bytes(file.read_bytes()[:40])
    collect.collect(plan, tmp_path / "work", tmp_path / "mended.zarr", workers=1)
    assert line in capsys.readouterr().out
    assert contents(tmp_path / "mended.zarr") == contents(undisturbed)


def test_the_clean_view_depends_on_no_distractor(backgrounds, tmp_path):
    one = plan_of(None, "clean", episodes=1)
    changed = {"texture_size": 16, "background": False, "background_dynamic": False, "color": False, "color_scale": 0.9,
               "color_dynamic": False, "camera": False, "camera_scale": 0.9, "camera_dynamic": False,
               "humanoid_camera": "front"}
    other = replace(one, env=one.env.model_copy(update=changed))
    assert set(changed) | set(one.settings) == set(type(one.env).model_fields)
    for name, plan in (("one", one), ("other", other)):
        collect.collect(plan, tmp_path / name, tmp_path / f"{name}.zarr", workers=1)
    assert contents(tmp_path / "one.zarr") == contents(tmp_path / "other.zarr")
    assert [one.seed(e) for e in range(2)] == [plan_of(backgrounds).seed(e) for e in range(2)]


@pytest.mark.parametrize("episodes, shard_episodes", [(3, 2), (4, 2), (1, 8)])
def test_every_episode_is_in_one_shard(episodes, shard_episodes):
    plan = plan_of(None, episodes=episodes, shard_episodes=shard_episodes)
    assert [e for shard in range(plan.shards) for e in plan.members(shard)] == list(range(episodes + 2))
    assert [plan.split(e) for e in range(episodes + 2)] == ["train"] * episodes + ["test"] * 2
    assert [e for e in range(episodes + 2) if plan.segmented(e) is not None] == [episodes]


def test_seeds_are_the_task_s_the_collection_s_and_the_episode_s_own():
    plans = plan_of(None), plan_of(None, seed=1), replace(plan_of(None), task="walker-run")
    assert len({plan.seed(episode) for plan in plans for episode in range(5)}) == 15

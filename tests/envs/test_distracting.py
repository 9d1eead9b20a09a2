"""An episode is its seed: the same pixels in any process and order; the Gymnasium interface; the simulator's masks."""

import copy
import hashlib
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from oclam import envs
from oclam.backgrounds.generated import dead_leaves
from oclam.backgrounds.store import write_store
from oclam.errors import UserError

SMALL = envs.DEFAULT.model_copy(update={"texture_size": 32})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("backgrounds") / "backgrounds.zarr"
    videos = {split: [(str(k), dead_leaves(np.random.default_rng([split == "test", k]), 6, 32, leaves=60))
                      for k in range(3)] for split in ("train", "test")}
    write_store(path, videos, "test")
    return path


@pytest.fixture
def make(store):
    made = []

    def make(task="cheetah-run", view="distracted", params=SMALL, split="train", **changes):
        made.append(envs.make(task, view, params.model_copy(update=changes), store, split))
        return made[-1]

    yield make
    for env in made:
        env.close()


def episode(env, seed, steps=8, **options):
    """Everything observed in one episode under actions that depend on nothing but the seed."""
    rng = np.random.default_rng(seed)
    pixels, info = env.reset(seed=seed, options=options)
    rows = [(pixels, info["state"], 0.0)]
    for _ in range(steps):
        pixels, reward, _, _, info = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
        rows.append((pixels, info["state"], reward))
    return [np.stack(column) for column in zip(*rows, strict=True)]


def fingerprint(arguments):
    """What another process sees of some episodes, in the order given."""
    store, task, seeds = arguments
    env = envs.make(task, "distracted", SMALL, store)
    return {seed: hashlib.sha256(b"".join(column.tobytes() for column in episode(env, seed))).hexdigest()
            for seed in seeds}


def test_the_seed_decides_everything_in_any_process_and_order(store):
    tasks = ("cheetah-run", "finger-turn_hard")  # the second changes its model at every reset
    here = [fingerprint((store, task, [1, 2, 3])) for task in tasks]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        there = list(pool.map(fingerprint, [(store, task, [3, 1, 3]) for task in tasks]))
    for mine, other in zip(here, there, strict=True):
        assert other == {seed: mine[seed] for seed in (1, 3)}
        assert len(set(mine.values())) == 3


def test_an_episode_is_the_same_beside_an_environment_with_another_camera(make):
    back, front = (make("humanoid-walk", humanoid_camera=side, image_size=16) for side in ("back", "front"))

    def run(disturb):
        frames = [back.reset(seed=5)[0]]
        if disturb:
            front.reset(seed=1)
        return np.stack(frames + [back.step(np.zeros(21))[0] for _ in range(5)])

    assert np.array_equal(run(False), run(True))


def test_views_share_the_physics(make):
    distracted, clean = (episode(make("walker-run", view), 5) for view in ("distracted", "clean"))
    np.testing.assert_array_equal(distracted[1], clean[1])
    np.testing.assert_array_equal(distracted[2], clean[2])
    assert (distracted[0] != clean[0]).any()


def test_episodes_without_a_seed_differ_yet_follow_from_the_first(make):
    env = make()
    env.reset(seed=1)
    first = [env.reset()[0] for _ in range(2)]
    env.reset(seed=1)
    again = [env.reset()[0] for _ in range(2)]
    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).any()


@pytest.mark.parametrize("switch", ["background", "color", "camera"])
def test_every_distractor_has_its_switch(make, switch):
    off = {name: False for name in ("background", "color", "camera")}
    clean, none = episode(make(view="clean"), 1)[0], episode(make(**off), 1)[0]
    one = episode(make(**{**off, switch: True}), 1)[0]
    np.testing.assert_array_equal(clean, none)
    assert (one != none).any()


@pytest.mark.parametrize("switch", ["background", "color", "camera"])
def test_a_static_distractor_stands_still(make, switch):
    off = {name: False for name in ("background", "color", "camera")}
    still, moving = (make(**{**off, switch: True, f"{switch}_dynamic": dynamic}) for dynamic in (False, True))
    for env, moves in ((still, False), (moving, True)):
        env.reset(seed=3)
        model, data = env._physics.model.ptr, env._physics.data.ptr
        seen = []
        for _ in range(4):
            env.step(np.zeros(env.action_space.shape))
            seen.append({"background": model.tex_data[:32 * 32 * 3].copy(), "color": model.mat_rgba.copy(),
                         "camera": data.cam_xpos[0] - data.subtree_com[1]}[switch])
        assert any(not np.allclose(seen[0], other, atol=1e-9) for other in seen) == moves


def test_splits_show_different_videos(make):
    train, test = (episode(make(split=split), 4)[0] for split in ("train", "test"))
    assert (train != test).any()


def test_scale_zero_changes_nothing(make):
    off = {"background": False, "color_scale": 0.0, "camera_scale": 0.0}
    clean, zero = episode(make(view="clean"), 2)[0], episode(make(**off), 2)[0]
    # The package aims the camera again, which is the same direction up to rounding.
    assert np.abs(clean.astype(int) - zero).mean() < 0.5


def test_gymnasium_accepts_the_environment(store):
    env = gymnasium.make("oclam/cheetah-run-v0", params=SMALL, backgrounds=store)
    check_env(env.unwrapped)
    assert env.observation_space.shape == (64, 64, 3)
    env.close()


def test_every_key_of_the_section_env_is_an_argument_of_make(store, make):
    changes = {"image_size": 32, "background": False, "color_scale": 0.3}
    env = gymnasium.make("oclam/cheetah-run-v0", params=SMALL, backgrounds=store, render_mode="rgb_array", **changes)
    pixels, _ = env.reset(seed=3)
    assert env.observation_space.shape == (32, 32, 3)
    np.testing.assert_array_equal(pixels, make(**changes).reset(seed=3)[0])
    np.testing.assert_array_equal(pixels, env.render())
    env.close()
    assert make().render() is None  # without a render_mode


@pytest.mark.parametrize("options", [{"vectorization_mode": "sync"},
                                     {"vectorization_mode": "async", "vector_kwargs": {"context": "spawn"}}])
def test_a_vector_of_environments_sees_what_single_ones_see(store, make, options):
    vector = gymnasium.make_vec("oclam/cheetah-run-v0", num_envs=2, params=SMALL, backgrounds=store, **options)
    actions = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)
    seen = [vector.reset(seed=[5, 6])[0], vector.step(actions)[0]]
    single = make()
    for k in range(2):
        expected = [single.reset(seed=5 + k)[0], single.step(actions[k])[0]]
        np.testing.assert_array_equal([frames[k] for frames in seen], expected)
    vector.close()


def test_an_action_out_of_range_is_clipped_and_one_that_is_none_refused(make):
    env = make("humanoid-walk", "clean", image_size=16)  # whose reward counts what the motors are asked for
    ends = []
    for action in (7 * np.ones(21), np.ones(21), np.full(21, np.inf)):
        env.reset(seed=4)
        _, reward, _, _, info = env.step(action)
        ends.append([reward, *info["state"]])
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[2], ends[1])
    for action in (np.full(21, np.nan), np.zeros(20), None):
        with pytest.raises(gymnasium.error.InvalidAction, match=r"numbers of shape \(21,\) are needed"):
            env.step(action)


def test_a_seed_of_numpy_is_the_number(make):
    env = make("cheetah-run", "clean", image_size=16)
    states = [env.reset(seed=seed)[1]["state"] for seed in (4, np.int64(4), np.uint8(4), 5)]
    assert [(states[0] == state).all() for state in states] == [True, True, True, False]


def test_every_task_of_the_suite_is_registered_and_the_default_needs_no_store():
    assert {f"oclam/{task}-v0" for task in envs.TASKS} <= set(gymnasium.registry)
    env = gymnasium.make("oclam/dog-fetch-v0", params=SMALL.model_copy(update={"background": False}))
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()


def test_an_episode_is_truncated_at_the_suites_length(make):
    env = make("cheetah-run", "clean", image_size=16)
    env.reset(seed=0)
    env._env._step_limit = 3
    assert [env.step(np.zeros(6))[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]


def test_masks_are_the_agents_pixels(make):
    env = make("cheetah-run", "clean")
    pixels, info = env.reset(seed=0, options={"segmentation": True})
    mask = info["segmentation"]
    model = env._physics.model
    model.mat_rgba[model.geom_matid[model.geom_bodyid > 0], :3] = 1, 0, 1  # paint the agent magenta
    painted = env._renderer.pixels(env._physics.data.ptr)
    changed = (painted.astype(int) - pixels).__abs__().max(-1) > 40
    assert 0.02 < mask.mean() < 0.2
    np.testing.assert_array_equal(mask, changed)
    assert "segmentation" not in env.reset(seed=0)[1]


@pytest.mark.parametrize("task", ["dog-run", "dog-fetch", "quadruped-run"])
def test_masks_cover_agents_of_many_parts_and_skins(make, task):
    env = make(task, "clean")
    mask = env.reset(seed=0, options={"segmentation": True})[1]["segmentation"]
    assert 150 < mask.sum() < 1500


def test_an_environment_that_was_not_reset_says_so_and_none_is_copied():
    env = envs.DistractingEnv(view="clean", image_size=16, render_mode="rgb_array")
    for act in (lambda: env.step(np.zeros(6)), env.render):
        with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
            act()
    env.reset(seed=0)
    env._env._step_limit = 1
    env.step(np.zeros(6))
    with pytest.raises(gymnasium.error.ResetNeeded, match="the episode is over"):
        env.step(np.zeros(6))
    for duplicate in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            duplicate(env)
    env.close()


def test_masks_do_not_disturb_the_pixels(make):
    env = make()
    np.testing.assert_array_equal(episode(env, 1, segmentation=True)[0], episode(env, 1)[0])


@pytest.mark.parametrize("changes, line", [
    ({"task": "cheetah-fly"}, "^tasks: 'cheetah-fly' given"), ({"view": "dirty"}, "^view: 'dirty' given"),
    ({"render_mode": "human"}, "^render_mode: 'human' given"), ({"camera_scale": 2}, "^camera_scale: 2 given"),
    ({"zoom": 2}, "^zoom: unknown parameter; allowed here are image_size, renderer")])
def test_unknown_names_are_one_line(changes, line):
    with pytest.raises(UserError, match=line):
        envs.DistractingEnv(**changes)


def test_without_a_store_each_split_has_videos_of_its_own():
    train, test = (envs.DistractingEnv(params=SMALL, split=split, image_size=16) for split in ("train", "test"))
    assert (train._background._videos[0] != test._background._videos[0]).any()
    train.close()
    test.close()

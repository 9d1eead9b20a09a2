"""The backend's choice, and pictures against the suite's own renderer."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from gymnasium.error import ClosedEnvironmentError

from oclam import envs, suite
from oclam.envs import rendering
from oclam.errors import UserError


@pytest.fixture
def unchosen():
    """As if this process had not chosen yet."""
    rendering.choose.cache_clear()
    yield
    rendering.choose.cache_clear()


OTHERS = """
import sys
import numpy as np
import oclam.envs
import mujoco
from dm_control import suite
env = suite.load("walker", "run", task_kwargs={"random": 0})
env.reset()
renderer = mujoco.Renderer(suite.load("walker", "run").physics.model.ptr, 64, 64)
option = mujoco.MjvOption()
option.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = 0
ours = oclam.envs.make("cheetah-run", "clean", oclam.envs.DEFAULT)  # left open, as dm_control's
views = []
for action in (1, -1, 1):
    ours.reset(seed=0)
    env.step(np.full(6, action))
    renderer.update_scene(env.physics.data.ptr, camera=0, scene_option=option)
    views.append([env.physics.render(64, 64, camera_id=0), renderer.render()])
np.save(sys.argv[1], views)
renderer.close()
"""


def test_reference_is_the_suites_own_picture_and_mujocos_drawn_beside_ours(tmp_path):
    """Neither of them could draw in a process that had imported oclam.envs."""
    answer = subprocess.run([sys.executable, "-c", OTHERS, tmp_path / "frames.npy"], check=True, capture_output=True,
                            text=True)
    assert answer.stderr.count("\n") == 1  # the renderer's name
    env = suite.load_task("walker-run")
    renderer = rendering.Renderer(env.physics.model.ptr, 64, 0, "reference")
    env.reset()
    ours = np.stack([env.step(np.full(6, a)) and renderer.pixels(env.physics.data.ptr) for a in (1, -1, 1)])
    for others in np.moveaxis(np.load(tmp_path / "frames.npy"), 1, 0):
        np.testing.assert_array_equal(ours, others)
    renderer.close()


def test_a_terrain_of_this_episode_is_drawn():
    env = envs.make("quadruped-escape", "clean", envs.DEFAULT)
    first, second = (env.reset(seed=seed)[0] for seed in (0, 1))
    env._physics.model.hfield_data[:] = 0
    env._renderer.upload_terrain()
    flat = env._renderer.pixels(env._physics.data.ptr)
    assert (first != second).mean() > 0.1 and (second != flat).mean() > 0.1
    env.close()


def test_another_thread_and_a_closed_environment_are_refused_in_one_line():
    env = envs.make("cheetah-run", "clean", envs.DEFAULT)
    before = env.reset(seed=0)[0]
    with ThreadPoolExecutor(1) as thread:
        for call in (env.reset, env.close):
            with pytest.raises(UserError, match="make one in each thread"):
                thread.submit(call).result()
        there = thread.submit(lambda: envs.make("cheetah-run", "clean", envs.DEFAULT).reset(seed=0)[0]).result()
    np.testing.assert_array_equal(there, before)
    np.testing.assert_array_equal(env.reset(seed=0)[0], before)
    env.close()
    with pytest.raises(ClosedEnvironmentError, match="make another one"):
        env.reset()


def test_shadows_are_those_of_the_reference_and_fast_differs_from_it_by_light_alone():
    pictures = {}
    for mode in ("fast", "shadows", "reference"):
        env = envs.make("walker-run", "clean", envs.DEFAULT.model_copy(update={"renderer": mode}))
        pictures[mode] = env.reset(seed=0)[0].astype(int)
        env.close()
    difference = np.abs(pictures["fast"] - pictures["reference"])
    assert 0 < difference.mean() < 8
    assert np.median(difference) <= 1
    assert np.abs(pictures["shadows"] - pictures["reference"]).mean() < 0.5 * difference.mean()


def test_renderers_of_other_sizes_and_qualities_share_a_context_and_draw_as_if_alone():
    def make(size, mode):
        return envs.make("walker-run", "clean", envs.DEFAULT.model_copy(update={"image_size": size, "renderer": mode}))

    def pictures(environment, step):
        return environment.reset(seed=1)[0] if step == 0 else environment.step(np.full(6, 0.5))[0]

    kinds, alone = ((16, "fast"), (64, "reference"), (32, "shadows")), []
    for kind in kinds:
        environment = make(*kind)
        alone.append([pictures(environment, step) for step in range(3)])
        environment.close()
    together = [make(*kind) for kind in kinds]
    assert len({id(environment._renderer._gl) for environment in together}) == 1
    for step in range(3):
        for environment, expected in zip(together, alone, strict=True):
            np.testing.assert_array_equal(pictures(environment, step), expected[step])
    for environment in together:
        environment.close()


def test_a_forked_process_draws_in_a_context_of_its_own():
    environment = envs.make("cheetah-run", "clean", envs.DEFAULT)
    assert vars(rendering._own)
    if not (child := os.fork()):
        os._exit(len(vars(rendering._own)))
    assert os.waitpid(child, 0)[1] == 0 and vars(rendering._own)
    environment.close()


def test_a_dropped_renderer_leaves_others_alone():
    env = suite.load_task("hopper-hop")
    env.reset()
    model, data = env.physics.model.ptr, env.physics.data.ptr
    old, kept = (rendering.Renderer(model, 32, 0, "fast") for _ in range(2))
    before = kept.pixels(data)
    del old
    np.testing.assert_array_equal(kept.pixels(data), before)
    kept.close()
    kept.close()


@pytest.mark.parametrize("backend", ["osmesa", "egl"])
def test_an_environment_left_open_ends_quietly(monkeypatch, backend):
    """EGL's display once ended before its contexts, which printed two traces when a script forgot env.close()."""
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)  # this process's
    monkeypatch.setenv("MUJOCO_GL", backend)
    if not rendering._probe(backend):
        pytest.skip(f"{backend} does not work here")
    code = "from oclam import envs; env = envs.make('cartpole-swingup', 'clean', envs.DEFAULT); env.reset(seed=0)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stderr.startswith(f"rendering with {backend}") and answer.stderr.count("\n") == 1


@pytest.mark.parametrize("works, gpu, chosen", [
    ({"osmesa": "llvmpipe", "egl": "llvmpipe"}, False, "osmesa"),
    ({"egl": "llvmpipe"}, False, "egl"),
    ({"osmesa": "llvmpipe", "egl": "NVIDIA H100"}, True, "egl"),
    ({"osmesa": "llvmpipe"}, True, "osmesa"),
])
def test_chooses_the_gpu_then_what_works(unchosen, monkeypatch, capsys, works, gpu, chosen):
    monkeypatch.setattr(rendering, "_probe", works.get)
    monkeypatch.setattr(rendering.Path, "exists", lambda path: gpu)
    for name in ("PYOPENGL_PLATFORM", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MUJOCO_GL", "")
    assert rendering.choose() == chosen == os.environ["MUJOCO_GL"]
    assert f"{chosen} on {works[chosen]}" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["egl", "EGL"])
def test_keeps_the_users_choice(unchosen, monkeypatch, given):
    monkeypatch.setattr(rendering, "_probe", {"osmesa": "llvmpipe", "egl": "llvmpipe"}.get)
    monkeypatch.setenv("MUJOCO_GL", given)
    assert rendering.choose() == "egl"


def test_a_child_process_takes_its_parents_choice_without_another_search(unchosen, monkeypatch):
    monkeypatch.setattr(rendering, "_probe", lambda backend: pytest.fail("searched again"))
    monkeypatch.setattr(rendering.multiprocessing, "parent_process", object)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert rendering.choose() == "osmesa"


@pytest.mark.parametrize(("visible", "given", "device", "chosen"), [
    ("2,3", None, "2", "egl"), ("2", "0", "0", "egl"), ("", None, None, "osmesa"), (None, None, None, "egl")])
def test_a_process_renders_on_its_own_gpu_or_on_none(unchosen, monkeypatch, visible, given, device, chosen):
    monkeypatch.setattr(rendering, "_probe", {"osmesa": "llvmpipe", "egl": "NVIDIA H100"}.get)
    monkeypatch.setattr(rendering.Path, "exists", lambda path: True)
    for name, value in (("MUJOCO_GL", ""), ("PYOPENGL_PLATFORM", ""), ("CUDA_VISIBLE_DEVICES", visible),
                        ("MUJOCO_EGL_DEVICE_ID", given)):
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    try:
        assert rendering.choose() == chosen and os.environ.get("MUJOCO_EGL_DEVICE_ID") == device
    finally:
        os.environ.pop("MUJOCO_EGL_DEVICE_ID", None)


def test_an_egl_device_that_cannot_render_is_named(unchosen, monkeypatch):
    monkeypatch.setattr(rendering, "_probe", lambda backend: None)
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "3")
    with pytest.raises(UserError, match="^MUJOCO_EGL_DEVICE_ID: 3 given"):
        rendering.choose()


@pytest.mark.parametrize("given, said", [("", "osmesa and egl cannot render here; install"),
                                         ("egl", "egl cannot render here; unset it or install")])
def test_no_renderer_is_one_line_with_the_package(unchosen, monkeypatch, given, said):
    """Also where the user's own choice fails, which once gave the trace of whatever OpenGL had stumbled over."""
    monkeypatch.setattr(rendering, "_probe", {"osmesa": "llvmpipe"}.get if given else lambda backend: None)
    monkeypatch.setattr(rendering.Path, "exists", lambda path: False)
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    monkeypatch.setenv("MUJOCO_GL", given)
    with pytest.raises(UserError, match=f"MUJOCO_GL: {said} Debian's libosmesa6"):
        envs.make("hopper-hop", "clean", envs.DEFAULT)


def test_importing_environments_loads_no_opengl():
    code = "import sys, oclam.envs; print('OpenGL' in sys.modules, 'torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False False"

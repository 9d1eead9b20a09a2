"""The backend's choice, and pictures against the suite's own renderer."""

import os
import subprocess
import sys

import numpy as np
import pytest

from oclam import envs, suite
from oclam.envs import rendering
from oclam.errors import UserError


@pytest.fixture
def unchosen():
    """As if this process had not chosen yet."""
    rendering.choose.cache_clear()
    yield
    rendering.choose.cache_clear()


SUITES_OWN = """
import sys
import numpy as np
from dm_control import suite
env = suite.load("walker", "run", task_kwargs={"random": 0})
env.reset()
view = lambda: env.physics.render(64, 64, camera_id=0)
np.save(sys.argv[1], np.stack([env.step(np.full(6, a)) and view() for a in (1, -1, 1)]))
"""


def test_reference_is_the_suites_own_picture(tmp_path):
    renderer_of = dict(os.environ, MUJOCO_GL=os.environ["MUJOCO_GL"])
    subprocess.run([sys.executable, "-c", SUITES_OWN, tmp_path / "frames.npy"], check=True, env=renderer_of,
                   capture_output=True)
    env = suite.load_task("walker-run")
    renderer = rendering.Renderer(env.physics.model.ptr, 64, 0, "reference")
    env.reset()
    ours = np.stack([env.step(np.full(6, a)) and renderer.pixels(env.physics.data.ptr) for a in (1, -1, 1)])
    np.testing.assert_array_equal(ours, np.load(tmp_path / "frames.npy"))
    renderer.close()


def test_shadows_are_those_of_the_reference_and_fast_differs_from_it_by_light_alone():
    pictures = {}
    for mode in ("fast", "shadows", "reference"):
        env = envs.make("walker-run", "clean", envs.PAPER.model_copy(update={"renderer": mode}))
        pictures[mode] = env.reset(seed=0)[0].astype(int)
        env.close()
    difference = np.abs(pictures["fast"] - pictures["reference"])
    assert 0 < difference.mean() < 8
    assert np.median(difference) <= 1
    assert np.abs(pictures["shadows"] - pictures["reference"]).mean() < 0.5 * difference.mean()


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
    code = "from oclam import envs; env = envs.make('cartpole-swingup', 'clean', envs.PAPER); env.reset(seed=0)"
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
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    monkeypatch.setenv("MUJOCO_GL", "")
    assert rendering.choose() == chosen == os.environ["MUJOCO_GL"]
    assert f"{chosen} on {works[chosen]}" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["egl", "EGL"])
def test_keeps_the_users_choice(unchosen, monkeypatch, given):
    monkeypatch.setattr(rendering, "_probe", {"osmesa": "llvmpipe", "egl": "llvmpipe"}.get)
    monkeypatch.setenv("MUJOCO_GL", given)
    assert rendering.choose() == "egl"


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
        envs.make("hopper-hop", "clean", envs.PAPER)


def test_importing_environments_loads_no_opengl():
    code = "import sys, oclam.envs; print('OpenGL' in sys.modules, 'torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False False"

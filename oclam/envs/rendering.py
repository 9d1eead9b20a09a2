"""Rendering without a screen: the OpenGL backend of this machine, and pictures and masks of MuJoCo models.

A GPU renders by EGL, a machine without one by OSMesa or Mesa's EGL. OpenGL is loaded by the first `Renderer` of a
process, never by an import, so a process that has only imported this module may still fork.
"""

import atexit
import ctypes
import importlib.util
import multiprocessing
import os
import subprocess
import sys
import threading
import weakref
from functools import cache
from pathlib import Path

import numpy as np
from gymnasium.error import ClosedEnvironmentError

from oclam.errors import UserError
from oclam.suite import dm_render, gl_context, mujoco

PROBE = """
import sys
from importlib import import_module
context = import_module(f"mujoco.{sys.argv[1]}").GLContext(64, 64)
context.make_current()
from OpenGL import GL
print(GL.glGetString(GL.GL_RENDERER).decode())
"""


@cache
def choose() -> str:
    """The name of an OpenGL backend that works here, which MUJOCO_GL is set to; searched once a process.

    A backend set by the user is the only one tried; child processes inherit the choice. Raises UserError if none works.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")  # which EGL does not know
    if visible and visible.partition(",")[0].isdecimal():
        os.environ.setdefault("MUJOCO_EGL_DEVICE_ID", visible.partition(",")[0])
    given = (os.environ.get("MUJOCO_GL") or os.environ.get("PYOPENGL_PLATFORM") or "").lower()
    if given and multiprocessing.parent_process():
        return given
    tried = (given,) if given else _by_preference()
    for backend in tried:
        if renderer := _probe(backend):
            os.environ["MUJOCO_GL"] = backend
            os.environ.setdefault("LP_NUM_THREADS", "0")  # llvmpipe: one process a core beats threads in each
            print(f"rendering with {backend} on {renderer}", file=sys.stderr)
            return backend
    if device := os.environ.get("MUJOCO_EGL_DEVICE_ID"):
        raise UserError(f"MUJOCO_EGL_DEVICE_ID: {device} given, with which {' and '.join(tried)} cannot render here; "
                        "unset it or name another device")
    raise UserError(f"MUJOCO_GL: {' and '.join(tried)} cannot render here; {'unset it or ' if given else ''}install "
                    "Debian's libosmesa6, or libegl1 with libgl1-mesa-dri (a GPU's driver brings its own EGL)")


def _by_preference():
    """On the GPU where there is one, unless this process may not use any."""
    none = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    nodes = () if none else ("/dev/nvidiactl", "/dev/dri/renderD128", "/dev/kfd")
    gpu = any(Path(node).exists() for node in nodes)
    return ("egl", "osmesa") if gpu else ("osmesa", "egl")


def _probe(backend):
    """The renderer's name, or None; asked in another process because a backend that failed cannot be unloaded."""
    answer = subprocess.run([sys.executable, "-c", PROBE, backend], capture_output=True, text=True)
    return answer.stdout.strip() if answer.returncode == 0 else None


def _backend(package):
    """The module in which `package` has the chosen backend's contexts; the first call of a process loads OpenGL."""
    backend = choose()
    triton = importlib.util.find_spec("triton")
    if triton and "OpenGL" not in sys.modules:  # its own LLVM crashes when loaded after Mesa's, as timm would do
        for library in Path(triton.origin).parent.glob("_C/libtriton*.so"):
            ctypes.CDLL(library)
    return importlib.import_module(package.format(backend))


def _mujoco_context(width, height):
    return _backend("mujoco.{}").GLContext(width, height)


_own = threading.local()  # .context: a weak reference to this thread's OpenGL context
os.register_at_fork(after_in_child=lambda: vars(_own).clear())  # a child makes its own


def _shared_context():
    """The OpenGL context of all renderers of this thread, freed with the last of them.

    In one of its own, each would compile Mesa's shaders again, and switching costs a fifth of a frame.
    """
    context = getattr(_own, "context", lambda: None)()
    if context is None:
        context = _mujoco_context(1, 1)  # they draw off screen, in buffers of their own
        _own.context = weakref.ref(context)
    return context


def _suite_context(max_width, max_height):
    module = _backend("dm_control._render.pyopengl.{}_renderer")
    if choose() == "osmesa":
        return module.OSMesaContext(max_width, max_height)
    atexit.unregister(module.EGL.eglTerminate)  # it would end the display under renderers that are still open

    class Context(module.EGLContext):
        """The suite's context, which does not switch if it was the suite's last; here other renderers switch too."""

        def make_current(self):
            last = dm_render.base._CURRENT_CONTEXT_FOR_THREAD.pop(self.thread, None)
            dm_render.base._CURRENT_THREAD_FOR_CONTEXT.pop(last, None)
            return super().make_current()

    return Context(max_width, max_height)


# oclam.suite imports both packages without OpenGL. Here they get contexts that load it at the first picture: other
# renderers in this process need one, and so does quadruped-escape, which asks for the suite's.
if not hasattr(gl_context, "GLContext"):
    mujoco.GLContext = gl_context.GLContext = _mujoco_context
if dm_render.BACKEND in dm_render.constants.NO_RENDERER:
    dm_render.Renderer = _suite_context


class Renderer:
    """Square pictures of one camera of a MuJoCo model, drawn in the thread that made it.

    Args:
        model: mujoco.MjModel.
        size: edge in pixels.
        camera: its index.
        mode: "reference" for the suite's quality, "shadows" without reflections and multisampling and with coarser
            shadows, "fast" without any.
    Raises UserError when no OpenGL works here, and in another thread.
    """

    _gl = None

    def __init__(self, model: mujoco.MjModel, size: int, camera: int, mode: str):
        self._model = model
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        if mode != "reference":
            model.vis.quality.offsamples, model.vis.quality.shadowsize = 0, 1024 if mode == "shadows" else 0
        self._thread, gl = threading.get_ident(), _shared_context()
        gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        self._gl = gl  # from here on there is something to free
        alive = weakref.ref(self)  # freed before mujoco.egl's own exit, which ends the display under it
        atexit.register(lambda: alive() and alive().close())
        self._scene = mujoco.MjvScene(model, maxgeom=10_000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = mode != "fast"
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = mode == "reference"
        self._option, self._rectangle = mujoco.MjvOption(), mujoco.MjrRect(0, 0, size, size)
        self._option.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        self._buffer = np.empty((size, size, 3), np.uint8)

    def _make_current(self):
        if not self._gl:
            raise ClosedEnvironmentError("the environment is closed; make another one")
        if threading.get_ident() != self._thread:  # where EGL refuses with a trace of its own
            raise UserError("an environment draws in the thread that made it only; make one in each thread")
        self._gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)

    def upload(self, texture: int) -> None:
        """Send a changed texture of the model, by its number, to the renderer."""
        self._make_current()
        mujoco.mjr_uploadTexture(self._model, self._context, texture)

    def upload_terrain(self) -> None:
        """Send the model's height fields, which a task may draw again in each episode, to the renderer."""
        for field in range(self._model.nhfield):
            self._make_current()
            mujoco.mjr_uploadHField(self._model, self._context, field)

    def pixels(self, data: mujoco.MjData) -> np.ndarray:
        """The camera's picture: uint8 (size, size, 3)."""
        self._make_current()
        mujoco.mjv_updateScene(self._model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL,
                               self._scene)
        mujoco.mjr_render(self._rectangle, self._scene, self._context)
        mujoco.mjr_readPixels(self._buffer, None, self._rectangle, self._context)
        return self._buffer[::-1].copy()

    def segment(self, data: mujoco.MjData) -> np.ndarray:
        """The mask of all that can move: uint8 (size, size), 1 where the visible geom's body is not the world."""
        flag = mujoco.mjtRndFlag
        flags, segment, colour = self._scene.flags, flag.mjRND_SEGMENT, flag.mjRND_IDCOLOR
        flags[segment] = flags[colour] = 1
        red, green, blue = np.moveaxis(self.pixels(data).astype(np.int64), -1, 0)
        flags[segment] = flags[colour] = 0
        moves = np.zeros(self._scene.ngeom + 1, np.uint8)  # by segment number; 0 is the sky
        for geom in self._scene.geoms[:self._scene.ngeom]:
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                moves[geom.segid + 1] = self._model.geom_bodyid[geom.objid] > 0
            elif geom.objtype == mujoco.mjtObj.mjOBJ_SKIN:  # the dog's, which is drawn over its geoms
                moves[geom.segid + 1] = 1
        return moves[red + (green << 8) + (blue << 16)]

    def close(self) -> None:
        """Free what this renderer has in OpenGL, whichever context is current."""
        if self._gl:
            self._make_current()
            self._context.free()
            self._gl = None

    def __del__(self):
        if self._gl and threading.get_ident() == self._thread:  # in another thread it cannot be freed
            self.close()

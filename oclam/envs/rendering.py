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
import weakref
from functools import cache
from pathlib import Path

import numpy as np

from oclam.errors import UserError
from oclam.suite import mujoco

__all__ = ["Renderer", "choose"]

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
    gpu = any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dri/renderD128", "/dev/kfd"))
    return ("egl", "osmesa") if gpu else ("osmesa", "egl")


def _probe(backend):
    """The renderer's name, or None; asked in another process because a backend that failed cannot be unloaded."""
    answer = subprocess.run([sys.executable, "-c", PROBE, backend], capture_output=True, text=True)
    return answer.stdout.strip() if answer.returncode == 0 else None


def _context(size):
    backend = choose()
    triton = importlib.util.find_spec("triton")
    if triton and "OpenGL" not in sys.modules:  # its own LLVM crashes when loaded after Mesa's, as timm would do
        for library in Path(triton.origin).parent.glob("_C/libtriton*.so"):
            ctypes.CDLL(library)
    return importlib.import_module(f"mujoco.{backend}").GLContext(size, size)


class Renderer:
    """Square pictures of one camera of a MuJoCo model.

    Args:
        model: mujoco.MjModel.
        size: edge in pixels.
        camera: its index.
        mode: "reference" for the suite's quality, "shadows" without reflections and multisampling and with coarser
            shadows, "fast" without any.
    Raises UserError when no OpenGL works here.
    """

    _gl = None

    def __init__(self, model: mujoco.MjModel, size: int, camera: int, mode: str):
        self._model = model
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        if mode != "reference":
            model.vis.quality.offsamples, model.vis.quality.shadowsize = 0, 1024 if mode == "shadows" else 0
        gl = _context(size)
        gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        self._gl = gl  # from here on there is something to free
        alive = weakref.ref(self)  # freed before mujoco.egl's own exit, which ends the display under it
        atexit.register(lambda: alive() and alive().close())
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=10_000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = mode != "fast"
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = mode == "reference"
        self._option, self._rectangle = mujoco.MjvOption(), mujoco.MjrRect(0, 0, size, size)
        self._option.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        self._buffer = np.empty((size, size, 3), np.uint8)

    def upload(self, texture: int) -> None:
        """Send a changed texture of the model, by its number, to the renderer."""
        self._gl.make_current()
        mujoco.mjr_uploadTexture(self._model, self._context, texture)

    def pixels(self, data: mujoco.MjData) -> np.ndarray:
        """The camera's picture: uint8 (size, size, 3)."""
        self._gl.make_current()
        mujoco.mjv_updateScene(self._model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL,
                               self._scene)
        mujoco.mjr_render(self._rectangle, self._scene, self._context)
        mujoco.mjr_readPixels(self._buffer, None, self._rectangle, self._context)
        return self._buffer[::-1].copy()

    def segment(self, data: mujoco.MjData) -> np.ndarray:
        """The mask of all that can move: uint8 (size, size), 1 where the visible geom's body is not the world."""
        flags, segment, colour = self._scene.flags, *(getattr(mujoco.mjtRndFlag, f"mjRND_{name}")
                                                      for name in ("SEGMENT", "IDCOLOR"))
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
        """Free this renderer's OpenGL context, whichever context is current."""
        if self._gl:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None

    __del__ = close

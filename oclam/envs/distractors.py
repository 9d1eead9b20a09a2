"""The distractors of the Distracting Control Suite (arXiv 2101.02722), drawn from the episode's own seed.

Camera and colour are wrappers of the package distracting-control; its background is slow and fails on today's MuJoCo,
so the background is our own.
"""

import io
from collections.abc import Sequence
from contextlib import redirect_stderr

import mujoco
import numpy as np

with redirect_stderr(io.StringIO()):  # gym, which the package imports, prints on every import that it is not maintained
    from distracting_control import camera as package_camera
    from distracting_control.camera import DistractingCameraEnv
    from distracting_control.color import DistractingColorEnv
    from distracting_control.suite_utils import get_background_kwargs, get_camera_kwargs, get_color_kwargs

from oclam.errors import UserError
from oclam.params import Env

# The package has fixed cameras and those that track a centre of mass; the suite's other cameras follow the agent too.
package_camera.CAMERA_MODES[1:] = ["trackcom"] * 4


# In the authors' environment hopper's floor hides the video; the package lets 70% of it through.
FLOOR_ALPHA = {"hopper": 1.0}
_PACKAGE_CART2SPHERE = package_camera.cart2sphere


def _continuous_cart2sphere(cart):
    """The package's spherical coordinates, with a horizontal angle that does not jump at the agent's back."""
    radius, horizontal, vertical = _PACKAGE_CART2SPHERE(cart)
    return np.array([radius, horizontal - 2 * np.pi * (horizontal > np.pi / 2), vertical])


class _Camera(DistractingCameraEnv):
    """The package's moving camera.

    The package limits the horizontal angle to -pi..0. humanoid's camera is near pi, which the limit moves to the
    agent's front in every episode; front=False keeps it at the back, where the suite has it.
    """

    def __init__(self, env, camera, front, **kwargs):
        super().__init__(env, camera, **kwargs)
        self._front = front

    def setup_camera(self):
        self._choose_angles()
        super().setup_camera()

    def _apply(self):
        self._choose_angles()
        super()._apply()

    def _choose_angles(self):
        # The package reads this function from its module, which all environments share, so each sets its own.
        package_camera.cart2sphere = _PACKAGE_CART2SPHERE if self._front else _continuous_cart2sphere


def distract(env, domain: str, camera: int, params: Env) -> tuple:
    """A dm_control environment with moving camera and colours, and its wrappers by name, which `reseed` takes.

    camera: its index; params: the section env.
    """
    wrappers = {}
    if params.camera:
        env = _Camera(env, camera, params.humanoid_camera == "front",
                      **get_camera_kwargs(domain, params.camera_scale, params.camera_dynamic))
        wrappers["camera"] = env
    if params.color:
        env = DistractingColorEnv(env, **get_color_kwargs(params.color_scale, params.color_dynamic))
        wrappers["color"] = env
    return env, wrappers


def reseed(wrapper, seed: int) -> None:
    """Restart the random numbers of a wrapper of the package, or of a dm_control task, from `seed`.

    The package seeds them once, at construction, so without this no episode could be made twice.
    """
    name = "_random" if hasattr(wrapper, "_random") else "_random_state"
    setattr(wrapper, name, np.random.RandomState(seed))


class Background:
    """The video in the background: one random video an episode, one frame a step, forwards and backwards.

    Args:
        physics: of dm_control.
        domain: decides how transparent the floor is.
        videos: a sequence of uint8 (frames, S, S, 3).
        dynamic: whether the video moves.
    """

    def __init__(self, physics, domain: str, videos: Sequence[np.ndarray], dynamic: bool):
        self._model, self._videos, self._dynamic = physics.model.ptr, videos, dynamic
        self.texture = int(np.flatnonzero(self._model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX)[0])
        self._room = int(self._model.tex_width[self.texture]) * int(self._model.tex_height[self.texture]) * 3
        alpha = get_background_kwargs(domain, None, dynamic, None)["ground_plane_alpha"]
        physics.named.model.mat_rgba["grid", "a"] = FLOOR_ALPHA.get(domain, alpha)
        self.resize(videos[0].shape[1])

    def resize(self, edge: int) -> None:
        """Make the sky a square texture of `edge` pixels, one picture on all six faces of the cube."""
        if edge * edge * 3 > self._room:
            raise UserError(f"env.texture_size: {edge} given, the suite's sky has room for {int((self._room / 3)**.5)}")
        self._model.tex_width[self.texture] = self._model.tex_height[self.texture] = edge
        address = self._model.tex_adr[self.texture]
        self._texels = self._model.tex_data[address:address + edge * edge * 3]

    def reset(self, seed: int) -> None:
        """Draw the episode's video, its first frame and direction, and show it."""
        rng = np.random.RandomState(seed)
        self._video = self._videos[rng.choice(len(self._videos))]
        self._frame, self._direction = rng.choice(len(self._video)), rng.choice([-1, 1])
        self._show()

    def step(self) -> bool:
        """Show the next frame; whether the texture changed."""
        if self._dynamic:
            self._frame, self._direction = ping_pong(self._frame, self._direction, len(self._video))
            self._show()
        return self._dynamic

    def _show(self):
        self._texels[:] = self._video[self._frame].ravel()


def ping_pong(frame: int, direction: int, frames: int) -> tuple[int, int]:
    """The next frame and direction in a video that plays forwards and backwards, turning as the package does."""
    frame += direction
    if frame <= 0:
        return 0, 1
    if frame >= frames:
        return frames - 1, -1
    return frame, direction

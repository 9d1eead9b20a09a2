"""The distractors of the Distracting Control Suite (arXiv 2101.02722), every draw from the episode's own seed.

Camera and colour are the package distracting-control's wrappers; the background, which it makes slowly and cannot make
on today's MuJoCo, is ours.
"""

import io
from contextlib import redirect_stderr

import mujoco
import numpy as np

with redirect_stderr(io.StringIO()):  # gym, which the package only registers with, announces its end on every import
    from distracting_control import camera as package_camera
    from distracting_control.camera import DistractingCameraEnv
    from distracting_control.color import DistractingColorEnv
    from distracting_control.suite_utils import get_background_kwargs, get_camera_kwargs, get_color_kwargs

from oclam.errors import UserError

__all__ = ["Background", "distract", "reseed"]

# The package knows fixed cameras and those that track a centre of mass; the suite's others move with the agent too.
package_camera.CAMERA_MODES[1:] = ["trackcom"] * 4


def _cart2sphere(cart, original=package_camera.cart2sphere):
    """The package's spherical coordinates, but without a jump of the angle behind the agent.

    It limits the angle to -pi..0; humanoid's camera is at pi or -pi, so half of all episodes were seen from its front.
    """
    radius, horizontal, vertical = original(cart)
    return np.array([radius, horizontal - 2 * np.pi * (horizontal > np.pi / 2), vertical])


package_camera.cart2sphere = _cart2sphere


def distract(env, domain, camera, params):
    """Wrap a dm_control environment into what changes its camera and colours.

    Args: camera, its index; params, `oclam.params.Env`. Returns the environment and the wrappers to `reseed`, by name.
    """
    wrappers = {}
    if params.camera:
        env = DistractingCameraEnv(env, camera, **get_camera_kwargs(domain, params.camera_scale, params.camera_dynamic))
        wrappers["camera"] = env
    if params.color:
        env = DistractingColorEnv(env, **get_color_kwargs(params.color_scale, params.color_dynamic))
        wrappers["color"] = env
    return env, wrappers


def reseed(wrapper, seed):
    """Make all that a wrapper of the package (or a dm_control task) draws from now on depend on `seed` alone.

    The package draws its seed once, at construction, which is why it cannot make an episode twice.
    """
    name = "_random" if hasattr(wrapper, "_random") else "_random_state"
    setattr(wrapper, name, np.random.RandomState(seed))


class Background:
    """The video behind the scene: one random video an episode, one frame a step, forth and back.

    Args: physics, dm_control's; domain, decides how far the floor hides the video; renderer, told when the texture
    changed; videos, a sequence of uint8 (frames, S, S, 3); dynamic, whether the video moves.
    """

    def __init__(self, physics, domain, videos, dynamic):
        self._model, self._videos, self._dynamic = physics.model.ptr, videos, dynamic
        self.texture = int(np.flatnonzero(self._model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX)[0])
        self._room = int(self._model.tex_width[self.texture]) * int(self._model.tex_height[self.texture]) * 3
        alpha = get_background_kwargs(domain, None, dynamic, None)["ground_plane_alpha"]
        physics.named.model.mat_rgba["grid", "a"] = alpha
        self.resize(videos[0].shape[1])

    def resize(self, edge):
        """Declare the sky a cube with one picture on all six faces: a square texture of `edge` pixels."""
        if edge * edge * 3 > self._room:
            raise UserError(f"env.texture_size: {edge} given, the suite's sky has room for {int((self._room / 3)**.5)}")
        self._model.tex_width[self.texture] = self._model.tex_height[self.texture] = edge
        address = self._model.tex_adr[self.texture]
        self._texels = self._model.tex_data[address:address + edge * edge * 3]

    def reset(self, seed):
        """Pick the episode's video, its first frame and direction, and show it."""
        rng = np.random.RandomState(seed)
        self._video = self._videos[rng.choice(len(self._videos))]
        self._frame, self._direction = rng.choice(len(self._video)), rng.choice([-1, 1])
        self._show()

    def step(self):
        """Show the next frame. Returns whether the texture changed."""
        if self._dynamic:
            self._frame, self._direction = ping_pong(self._frame, self._direction, len(self._video))
            self._show()
        return self._dynamic

    def _show(self):
        self._texels[:] = self._video[self._frame].ravel()


def ping_pong(frame, direction, frames):
    """One step forth and back through a video, turning at its ends as the package does. Returns (frame, direction)."""
    frame += direction
    if frame <= 0:
        return 0, 1
    if frame >= frames:
        return frames - 1, -1
    return frame, direction

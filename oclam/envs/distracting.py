"""One task of dm_control's suite with the paper's distractors, as a Gymnasium environment."""

from pathlib import Path

import gymnasium
import numpy as np
from pydantic import ValidationError

from oclam import suite
from oclam.backgrounds.generated import GeneratedVideos
from oclam.backgrounds.store import StoredVideos, texture_edge
from oclam.envs import rendering
from oclam.envs.distractors import Background, distract, reseed
from oclam.errors import UserError
from oclam.params import DEFAULT_ENV, Env, explain


class DistractingEnv(gymnasium.Env):
    """One task, observed as pixels: uint8 (size, size, 3).

    `info["state"]` is dm_control's observation, float32 (S,), in the suite's own order; after
    `reset(options={"segmentation": True})`, `info["segmentation"]` is the simulator's mask of the agent, uint8
    (size, size) in {0, 1}.

    Args:
        task: such as "cheetah-run".
        view: "distracted" or "clean".
        params: the section env.
        backgrounds: the store of background videos, or None for generated ones.
        split: of the background videos, "train" or "test".
        render_mode: None, or "rgb_array" where `render` is to return the last observation.
        changes: keys of the section env that differ from `params`, such as image_size=128 or camera=False.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, task: str = "cheetah-run", view: str = "distracted", params: Env = DEFAULT_ENV,
                 backgrounds: Path | None = None, split: str = "train", render_mode: str | None = None,
                 **changes):
        if view not in ("distracted", "clean"):
            raise UserError(f"view: {view!r} given, allowed are distracted and clean")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UserError(f"render_mode: {render_mode!r} given, allowed are None and 'rgb_array'")
        try:
            params = Env.model_validate({**params.model_dump(), **changes})
        except ValidationError as error:
            raise UserError(explain(error.errors()[0], Env)) from None
        self.task, self.render_mode = task, render_mode
        self._env = suite.load_task(task)
        domain, _ = suite.TASKS[task]
        # As the package does; the first two of dog-fetch show the ball and what the dog sees.
        camera = 2 if domain == "quadruped" or task == "dog-fetch" else 0
        self._task, self._physics = self._env.task, self._env.physics
        self._wrappers, self._background, self._pixels, self._over = {}, None, None, True
        if view == "distracted":
            if params.background:
                videos = StoredVideos(backgrounds, split) if backgrounds else _default_videos(split, params)
                self._background = Background(self._physics, domain, videos, params.background_dynamic)
            self._env, self._wrappers = distract(self._env, domain, camera, params)
        self._renderer = rendering.Renderer(self._physics.model.ptr, params.image_size, camera, params.renderer)
        actions = self._env.action_spec()
        self._lowest, self._highest = actions.minimum, actions.maximum
        self.action_space = gymnasium.spaces.Box(actions.minimum.astype(np.float32), actions.maximum.astype(np.float32))
        self.observation_space = gymnasium.spaces.Box(0, 255, (params.image_size, params.image_size, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Start the episode of `seed`; options {"segmentation": True} ask for the agent's mask."""
        super().reset(seed=int(seed) if isinstance(seed, np.integer) else seed)
        draws = ("physics", "background", "camera", "color")
        seeds = dict(zip(draws, self.np_random.integers(2**32, size=len(draws)).tolist(), strict=True))
        reseed(self._task, seeds["physics"])
        for name, wrapper in self._wrappers.items():
            reseed(wrapper, seeds[name])
        self._segmented = bool(options and options.get("segmentation"))
        time_step, self._over = self._env.reset(), False
        self._renderer.upload_terrain()
        if self._background:
            self._background.reset(seeds["background"])
            self._renderer.upload(self._background.texture)
        return self._observe(time_step)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Act for one control step; actions out of range are clipped. The episode ends at the suite's own length.

        Raises gymnasium.error.ResetNeeded before the first reset and after an episode's end, InvalidAction for an
        action of another shape or with NaN.
        """
        if self._over:
            raise gymnasium.error.ResetNeeded("the episode is over, or none was started; call reset()")
        action = np.asarray(action, np.float64)
        if action.shape != self.action_space.shape or np.isnan(action).any():
            raise gymnasium.error.InvalidAction(f"{np.ravel(action)} of shape {action.shape} given, finite "
                                                f"numbers of shape {self.action_space.shape} are needed")
        time_step = self._env.step(np.clip(action, self._lowest, self._highest))
        if self._background and self._background.step():
            self._renderer.upload(self._background.texture)
        self._over = time_step.last()
        terminated = self._over and time_step.discount == 0
        pixels, info = self._observe(time_step)
        return pixels, float(time_step.reward), terminated, self._over and not terminated, info

    def _observe(self, time_step):
        data = self._physics.data.ptr
        self._pixels = self._renderer.pixels(data)
        info = {"state": suite.flatten(time_step.observation)}
        if self._segmented:
            info["segmentation"] = self._renderer.segment(data)
        return self._pixels.copy(), info

    def render(self) -> np.ndarray | None:
        """The last observation, or None where no render_mode was given."""
        if self.render_mode is None:
            return None
        if self._pixels is None:
            raise gymnasium.error.ResetNeeded("there is no observation yet; call reset()")
        return self._pixels.copy()

    def __reduce__(self):
        raise TypeError("an environment has an OpenGL context: it cannot be copied or pickled; make another one")

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()


def _default_videos(split, params):
    edge = texture_edge(params.renderer, params.texture_size)
    return GeneratedVideos(split, count=20 if split == "train" else 10, frames=60, size=edge, seed=0)


def make(task: str, view: str, params: Env, backgrounds: Path | None = None, split: str = "train") -> DistractingEnv:
    """The environment as the pipeline uses it; the arguments are those of `DistractingEnv`."""
    return DistractingEnv(task, view, params, backgrounds, split)

"""The tasks of dm_control's suite, loaded without OpenGL, and their observations as vectors."""

import logging
import os
from collections.abc import Mapping
from contextlib import contextmanager

import numpy as np

from oclam.errors import UserError

__all__ = ["TASKS", "dm_render", "flatten", "gl_context", "load_task", "mujoco", "sizes"]


@contextmanager
def _without_opengl():
    """Set MUJOCO_GL=disabled inside: mujoco and dm_control load and warn about the OpenGL it names when imported."""
    given = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disabled"
    try:
        yield
    finally:
        del os.environ["MUJOCO_GL"]
        if given:
            os.environ["MUJOCO_GL"] = given


with _without_opengl():
    import mujoco
    from dm_control import _render as dm_render
    from dm_control import suite
    from mujoco.rendering.classic import gl_context

# The suite's own models use what MuJoCo calls deprecated; users cannot change that and every process would repeat it.
logging.getLogger("absl").addFilter(lambda record: "is deprecated" not in record.getMessage())

TASKS = {f"{domain}-{name}": (domain, name) for domain, name in suite.ALL_TASKS}


def load_task(task: str, seed: int = 0):
    """The dm_control environment of a task such as cheetah-run, whose random numbers begin at `seed`.

    Raises UserError for a task that the suite does not have.
    """
    if task not in TASKS:
        raise UserError(f"tasks: {task!r} given, the suite has {', '.join(TASKS)}")
    return suite.load(*TASKS[task], task_kwargs={"random": seed})


def flatten(observation: Mapping) -> np.ndarray:
    """A dm_control observation as one float32 vector (S,), in the suite's own order."""
    return np.concatenate([np.ravel(value) for value in observation.values()]).astype(np.float32)


def sizes(environment) -> tuple[int, int]:
    """How many numbers an action and a state of a dm_control environment have."""
    states = sum(int(np.prod(spec.shape)) for spec in environment.observation_spec().values())
    return environment.action_spec().shape[0], states

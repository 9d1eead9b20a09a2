"""dm_control's tasks with the paper's distractors, as Gymnasium environments.

`import oclam.envs`, then `gymnasium.make("oclam/cheetah-run-v0")`, and likewise for every task of the suite. An episode
depends on its seed alone: `reset(seed=...)` decides physics, camera, colours and background, in any process.
"""

from contextlib import suppress

import gymnasium

from oclam.envs import rendering
from oclam.envs.distracting import DistractingEnv, make
from oclam.errors import UserError
from oclam.params import DEFAULT_ENV as DEFAULT
from oclam.suite import TASKS

__all__ = ["DEFAULT", "DistractingEnv", "make"]

for _task in TASKS:
    gymnasium.register(f"oclam/{_task}-v0", "oclam.envs:DistractingEnv", kwargs={"task": _task})
with suppress(UserError):  # the error is raised again when an environment is made
    rendering.choose()  # here, so that child processes inherit the choice

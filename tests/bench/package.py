"""How fast the package distracting-control is, in a process whose dm_control is bound to its own OpenGL.

`python -m tests.bench.package FOLDER` prints CPU seconds as JSON: its step, its reset, the task's own reset. One alias
makes it run on today's MuJoCo. tests.bench.collect compares.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from tests.bench import timing

TASK = "cheetah", "run"


def main():
    from distracting_control import suite
    from dm_control import suite as plain
    from dm_control.mujoco.wrapper import core

    core.MjModel.tex_rgb = property(lambda model: model._model.tex_data)
    footage = Path(sys.argv[1])
    env = suite.load(*TASK, difficulty="easy", dynamic=True, background_dataset_path=str(footage),
                     background_dataset_videos=sorted(path.name for path in footage.iterdir()) * 2,
                     distraction_types=("background", "camera", "color"),
                     render_kwargs={"width": 64, "height": 64, "camera_id": 0})
    action = np.zeros(env.action_spec().shape)
    resets = timing.seconds({"reset": env.reset, "task reset": plain.load(*TASK).reset}, clock=time.process_time)
    print(json.dumps(timing.seconds({"step": lambda: env.step(action)}, 25, time.process_time) | resets))


if __name__ == "__main__":
    main()

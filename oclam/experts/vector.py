"""Many environments of one dm_control task in one process, stepped as a batch."""

import numpy as np
from dm_control.utils import rewards
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from oclam.suite import flatten, load_task, mujoco, sizes

EPISODE = 1000  # control steps; no task of the four ends sooner


def _cheetah_run(data, _):
    reward = rewards.tolerance(data.sensor("torso_subtreelinvel")[:, 0], (10, np.inf), margin=10, value_at_margin=0,
                               sigmoid="linear")
    return [data.qpos[:, 1:], data.qvel], reward


def _walker_run(data, _):
    height, upright = data.position("torso")[:, 2], data.orientation("torso")[:, 8]
    stand = (3 * rewards.tolerance(height, (1.2, np.inf), margin=0.6) + (1 + upright) / 2) / 4
    move = rewards.tolerance(data.sensor("torso_subtreelinvel")[:, 0], (8, np.inf), margin=4, value_at_margin=0.5,
                             sigmoid="linear")
    return [data.xmat[:, 1:, [0, 2]], height, data.qvel], stand * (5 * move + 1) / 6


def _hopper_hop(data, _):
    height = data.xipos[:, data.body("torso"), 2] - data.xipos[:, data.body("foot"), 2]
    hop = rewards.tolerance(data.sensor("torso_subtreelinvel")[:, 0], (2, np.inf), margin=1, value_at_margin=0.5,
                            sigmoid="linear")
    touch = np.log1p(np.concatenate([data.sensor("touch_toe"), data.sensor("touch_heel")], 1))
    return [data.qpos[:, 1:], data.qvel, touch], rewards.tolerance(height, (0.6, 2)) * hop


def _humanoid_walk(data, action):
    frame, torso = data.orientation("torso").reshape(-1, 3, 3), data.position("torso")
    limbs = [data.position(f"{side}_{limb}") - torso for side in ("left", "right") for limb in ("hand", "foot")]
    height, velocity = data.position("head")[:, 2], data.sensor("torso_subtreelinvel")
    stand = rewards.tolerance(height, (1.4, np.inf), margin=0.35) * rewards.tolerance(
        frame[:, 2, 2], (0.9, np.inf), sigmoid="linear", margin=1.9, value_at_margin=0)
    control = rewards.tolerance(action, margin=1, value_at_margin=0, sigmoid="quadratic").mean(1)
    move = rewards.tolerance(np.linalg.norm(velocity[:, :2], axis=1), (1, np.inf), margin=1, value_at_margin=0,
                             sigmoid="linear")
    observation = [data.qpos[:, 7:], height, np.stack(limbs, 1) @ frame, frame[:, 2], velocity, data.qvel]
    return observation, (4 + control) / 5 * stand * (5 * move + 1) / 6


BATCHED = {"cheetah-run": _cheetah_run, "walker-run": _walker_run, "hopper-hop": _hopper_hop,
           "humanoid-walk": _humanoid_walk}


class _Batch:
    """MuJoCo's arrays of several simulations of one model, the simulation first, by body and sensor name."""

    def __init__(self, physics):
        self.model, self.views = physics[0].model.ptr, [one.data.ptr for one in physics]

    def __getattr__(self, name):  # read once a step: the simulations change
        self.__dict__[name] = value = np.stack([getattr(view, name) for view in self.views])
        return value

    def body(self, name):
        return self.model.body(name).id

    def position(self, name):
        return self.xpos[:, self.body(name)]

    def orientation(self, name):
        return self.xmat[:, self.body(name)]

    def sensor(self, name):
        sensor = self.model.sensor(name)
        return self.sensordata[:, sensor.adr[0]:sensor.adr[0] + sensor.dim[0]]


class BatchedTask(VecEnv):
    """Environments of one task: observations float32 (number, S), actions (number, A) in [-1, 1].

    Episodes end by time alone ("TimeLimit.truncated"). A task that is not in `BATCHED` is observed one environment
    after the other, with the same result.

    Args:
        task: such as cheetah-run.
        number: how many environments.
        seed: of their episodes, which start as dm_control's own.
        stagger: the first episodes end one after another, so that a rollout has every phase of an episode.
        steps: of an episode.
    """

    def __init__(self, task: str, number: int, seed: int, stagger: bool = True, steps: int = EPISODE):
        self.task, self.number, self.stagger, self.steps = task, number, stagger, steps
        self.environments = [load_task(task, seed) for _ in range(number)]
        self.physics = [environment.physics for environment in self.environments]
        self.substeps = round(self.environments[0].control_timestep() / self.physics[0].timestep())
        actions, states = sizes(self.environments[0])
        super().__init__(number, spaces.Box(-np.inf, np.inf, (states,), np.float32), spaces.Box(-1.0, 1.0, (actions,)))
        self.restart(seed)

    def restart(self, seed: int) -> None:
        """Restart the random numbers, so that the next episodes depend on `seed` alone."""
        for k, environment in enumerate(self.environments):
            environment.task.random.seed((seed + k) % 2**32)

    def reset(self) -> np.ndarray:
        self.elapsed = np.arange(self.number) * (self.steps // self.number) * self.stagger
        return np.stack([flatten(environment.reset().observation) for environment in self.environments])

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> tuple:
        for physics, action in zip(self.physics, self.actions, strict=True):
            model, data = physics.model.ptr, physics.data.ptr
            data.ctrl[:] = action
            mujoco.mj_step2(model, data)  # as dm_control does: positions belong to the state that is seen
            if self.substeps > 1:
                mujoco.mj_step(model, data, self.substeps - 1)
            mujoco.mj_step1(model, data)
        observation, reward = self._observe()
        self.elapsed += 1
        done, infos = self.elapsed >= self.steps, [{} for _ in self.environments]
        for k in np.flatnonzero(done):
            infos[k] = {"terminal_observation": observation[k].copy(), "TimeLimit.truncated": True}
            observation[k], self.elapsed[k] = flatten(self.environments[k].reset().observation), 0
        return observation, reward, done, infos

    def _observe(self):
        if self.task in BATCHED:
            parts, reward = BATCHED[self.task](_Batch(self.physics), np.asarray(self.actions))
            parts = [part.reshape(self.number, -1) for part in parts]
            return np.concatenate(parts, 1).astype(np.float32), reward.astype(np.float32)
        pairs = [(flatten(environment.task.get_observation(environment.physics)),
                  environment.task.get_reward(environment.physics)) for environment in self.environments]
        return np.stack([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs], np.float32)

    def close(self) -> None:
        pass

    def get_attr(self, attr_name, indices=None):
        return [getattr(self, attr_name, None)] * self.number

    def set_attr(self, attr_name, value, indices=None):
        setattr(self, attr_name, value)

    def env_method(self, method_name, *args, indices=None, **kwargs):
        raise NotImplementedError(method_name)

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.number

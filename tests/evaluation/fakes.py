"""Environments without pictures of anything, whose processes import no PyTorch."""

import os
import signal

import gymnasium
import numpy as np

from oclam.errors import UserError


class Noise(gymnasium.Env):
    """Frames of noise that the last action stirs; the reward is the action's sum plus a share of the seed."""

    def __init__(self, length=1000):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.time, self.shift = seed, 0, 0
        return self._frame(), {}

    def step(self, action):
        self.time += 1
        self.shift = int(100 * np.abs(action).sum())
        reward = float(action.sum()) + (self.seed % 7)
        return self._frame(), reward, False, self.time >= self.length, {"process": os.getpid()}

    def _frame(self):
        return (self.np_random.integers(0, 200, (16, 16, 3)) + self.shift % 56).astype(np.uint8)


class Falling(Noise):
    """Its episodes end by a fall, not by the clock."""

    def step(self, action):
        frame, reward, _, ended, info = super().step(action)
        return frame, reward, ended, False, info


class Deadly(Noise):
    """Its process is killed at the third step, as for lack of memory."""

    def step(self, action):
        if self.time == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def broken():
    raise UserError("no OpenGL renderer works here")

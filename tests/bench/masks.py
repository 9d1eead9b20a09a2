"""slot-select's work on a frame: patches to pixels, against counting colours again in every window, and registration.

`python -m tests.bench.masks`
"""

import numpy as np
import torch

from oclam.agent.refinement import SPAN, inside_share, refine
from oclam.backgrounds.generated import dead_leaves
from oclam.slots.registration import mask_moments, poses, register
from tests.bench import timing

FRAMES, SIZE, PATCH, AGAIN = 250, 64, 4, 20


def scene():
    """A bar that turns before a video of dead leaves: frames, its pixels, the patches that it touches."""
    frames = dead_leaves(np.random.default_rng(0), FRAMES, SIZE)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    angle = np.sin(np.arange(FRAMES) / 5)[:, None, None]
    agent = (abs(x * np.cos(angle) + y * np.sin(angle)) < 20) & (abs(y * np.cos(angle) - x * np.sin(angle)) < 2)
    frames[agent] = [250, 160, 60]
    return frames, agent, agent.reshape(FRAMES, SIZE // PATCH, PATCH, SIZE // PATCH, PATCH).any((2, 4))


def main():
    frames, agent, patches = scene()
    found = refine(patches, frames)
    inside, near = torch.from_numpy(agent), torch.ones(agent.shape, dtype=torch.bool)
    images = torch.from_numpy(frames).movedim(-1, 1)

    def again():
        for t in range(FRAMES // 2, FRAMES // 2 + AGAIN):
            window = slice(t - SPAN, t + SPAN + 1)
            inside_share(inside[window], near[window], images[window])

    def registered():
        measured = mask_moments(inside)
        register(images.float(), poses(measured, measured.mean(0)))

    taken = timing.seconds({"refine": lambda: refine(patches, frames), "share": lambda: inside_share(
        inside, near, images), "again": again, "register": registered}, rounds=3)
    a_frame = {name: 1000 * seconds / (AGAIN if name == "again" else FRAMES) for name, seconds in taken.items()}
    print(f"patches to pixels: {a_frame['refine']:.2f} ms a frame, of them counting colours twice "
          f"{2 * a_frame['share']:.2f}; counting again in every window takes {a_frame['again'] / a_frame['share']:.0f} "
          "times as long")
    print(f"registration: {a_frame['register']:.2f} ms a frame")
    print(f"IoU with the bar's pixels: {(agent & found).sum() / (agent | found).sum():.2f}")


if __name__ == "__main__":
    main()

"""Generated background videos: moving dead leaves."""

from functools import lru_cache

import cv2
import numpy as np

SUPERSAMPLING = 2
LENS = 0.006  # standard deviation of the camera's blur, share of the edge: no real video is sharper than its lens


def dead_leaves(rng: np.random.Generator, frames: int, size: int, leaves: int = 300) -> np.ndarray:
    """A video of moving dead leaves (Lee, Mumford & Huang 2001): uint8 (frames, size, size, 3).

    Leaves of power-law sizes cover each other; colours cluster, each leaf has its own grating and its own path, and
    nearer leaves (drawn later) move faster. The same `rng` gives the same scene at every size.
    """
    edge = size * SUPERSAMPLING
    radius = np.clip(0.025 * (1 - rng.random(leaves)) ** -0.6, 0.025, 0.3)  # shares of the edge
    radius[:40] = rng.uniform(0.25, 0.45, 40)  # large leaves behind all others; what they leave open is leaf 0's
    corners = rng.choice([3, 4, 5, 24], leaves)[:, None]  # vertices of the outline; 24 make an ellipse
    vertices = _unit(2 * np.pi * (np.arange(24) * corners // 24) / corners)
    vertices *= (radius - 0.5 / edge)[:, None, None]  # OpenCV paints what an outline touches, half a pixel too far
    vertices[..., 1] *= rng.uniform(0.5, 1, leaves)[:, None]
    tilt, turn = rng.uniform(0, 2 * np.pi, leaves), 0.02 * rng.standard_normal(leaves)
    nearness = np.linspace(0.3, 1, leaves)[:, None]
    start, velocity = rng.uniform(0, 2, (leaves, 2)), 0.006 * nearness * rng.standard_normal((leaves, 2))
    camera = np.cumsum(rng.uniform(0.002, 0.007) * _unit(rng.uniform(0, 2 * np.pi)) +
                       0.002 * rng.standard_normal((frames, 2)), axis=0)
    grey, hue = rng.uniform(40, 215, (6, 1)), 30 * rng.standard_normal((6, 3))
    colour = (grey + hue)[rng.integers(6, size=leaves)] + 20 * rng.standard_normal((leaves, 3))
    wave = rng.uniform(10, 60, leaves)[:, None] * _unit(rng.uniform(0, 2 * np.pi, leaves))
    phase, contrast = rng.uniform(0, 2 * np.pi, leaves), rng.uniform(0, 30, leaves)

    video = np.empty((frames, size, size, 3), np.uint8)
    ruler = (np.arange(edge, dtype=np.float32) + 0.5) / edge
    colour, contrast, wave = (array.astype(np.float32) for array in (colour, contrast, wave))
    for t in range(frames):
        centre = (start + velocity * t - nearness * camera[t]) % 2 - 0.5  # wraps around on 2 x 2 images
        rotation = np.exp(1j * (tilt + turn * t))[:, None]
        outline = (vertices[..., 0] + 1j * vertices[..., 1]) * rotation + centre[:, :1] + 1j * centre[:, 1:]
        outline = np.round((np.stack([outline.real, outline.imag], -1) * edge - 0.5) * 256).astype(np.int32)
        owner = np.zeros((edge, edge), np.int32)
        for leaf in range(leaves):
            cv2.fillPoly(owner, outline[leaf:leaf + 1], leaf, shift=8)
        shift = (phase - (wave * centre).sum(-1)).astype(np.float32)
        grating = np.sin(wave[:, 0][owner] * ruler + wave[:, 1][owner] * ruler[:, None] + shift[owner])
        picture = cv2.GaussianBlur(colour[owner] + (grating * contrast[owner])[..., None], (0, 0), LENS * edge)
        video[t] = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA).round().clip(0, 255)
    return video


def _unit(angle):
    return np.stack([np.cos(angle), np.sin(angle)], -1)


class GeneratedVideos:
    """A sequence of dead leaves videos, each generated when it is first indexed and then kept.

    Args:
        split: "train" or "test".
        count: how many videos.
        frames, size: of each.
        seed: of the sequence; video k does not depend on which were indexed before.
    """

    def __init__(self, split: str, count: int, frames: int, size: int, seed: int):
        self._count = count
        split = ("train", "test").index(split)
        self._make = lru_cache(maxsize=None)(
            lambda k: dead_leaves(np.random.default_rng([seed, split, k]), frames, size))

    def __len__(self):
        return self._count

    def __getitem__(self, k):
        if not 0 <= k < self._count:
            raise IndexError(k)
        return self._make(k)

"""Slot vectors that keep shape and position: principal components (PCA) of each slot's mask and masked colours.

Slot attention's own vector is a weighted mean of features: it has no positions, and the slot's size is divided out
(arXiv 2407.04170). Here a slot's mask and masked colours are cropped in the slot's own frame of reference, its
position, angle and scale (invariant slot attention, arXiv 2302.04973), and projected on their principal components over
the training episodes: a linear autoencoder, without labels. The last four numbers are position, angle and scale.
Stage slot-select replaces the chosen slots' vectors by principal components of the masked frames.
"""

from collections.abc import Iterator
from math import gcd

import torch
import zarr
from torch.nn import functional as F

from oclam.progress import Progress
from oclam.slots.registration import SPAN, mask_moments, poses, register

CROP = 16  # edge of a slot's crop in pixels
TRANSFORM = 4  # numbers of a slot's transform: x, y, angle, scale
SAMPLE, TIMES = 2000, 16  # frames that the principal components are computed from; different times of an episode there
MASK_WEIGHT = 0.5  # of the mask beside each colour
GREY = 0.4  # colours are relative to it


def sample(episodes: int, steps: int) -> torch.Tensor:
    """About SAMPLE evenly spaced flat indices of frames, which fall on TIMES or more different times of an episode."""
    stride = max(episodes * steps // SAMPLE, 1)
    while steps // gcd(stride, steps) < min(TIMES, steps):
        stride += 1
    return torch.arange(0, episodes * steps, stride)


def hard_masks(masks: torch.Tensor) -> torch.Tensor:
    """For every slot, the patches where its mask is the highest: masks (T, K, G, G) -> float (T, K, G, G)."""
    return (masks.argmax(1, keepdim=True) == torch.arange(masks.shape[1])[:, None, None]).float()


def slot_transforms(masks: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Position (x, y), angle and scale of every slot in an episode, averaged over nearby frames: (T, K, 4).

    The average follows camera and body, so that crops still show how limbs move. The image is 2 wide, its centre
    is (0, 0); a slot that is empty in all of them has (0, 0, 0, 1).

    Args:
        masks: uint8 (T, K, G, G), soft.
        reference: (K, 3), mean moments of the slots' masks: angle 0 and scale 1 by definition.
    """
    hard = hard_masks(masks)
    axis = torch.arange(masks.shape[-1]) * 2 / masks.shape[-1] - 1 + 1 / masks.shape[-1]
    area = hard.sum((2, 3))
    centres = torch.stack([(hard.sum(2) * axis).sum(2), (hard.sum(3) * axis).sum(2)]) / area.clamp(min=1)  # (2, T, K)
    seen = torch.cat([centres, (area > 0).float()[None]]).permute(2, 0, 1)  # (K, 3, T)
    seen = F.avg_pool1d(seen, 2 * SPAN + 1, 1, SPAN, count_include_pad=False).permute(2, 0, 1)
    centres = seen[..., :2] / seen[..., 2:].clamp(min=1e-6)  # over the frames where the slot is not empty
    turned = [poses(mask_moments(hard[:, k]), reference[k]) for k in range(masks.shape[1])]
    return torch.cat([centres, torch.stack(turned, 1).float()], -1)


def aligned_crops(frames: torch.Tensor, masks: torch.Tensor, transforms: torch.Tensor) -> torch.Tensor:
    """One slot's mask and masked colours in its own frame of reference: (T, 4 x CROP x CROP).

    Args:
        frames: uint8 (T, H, W, 3).
        masks: the slot's, uint8 (T, G, G).
        transforms: the slot's, (T, 4).
    """
    images = frames.movedim(-1, 1).float() / 255
    mask = F.interpolate(masks[:, None].float() / 255, images.shape[2:], mode="bilinear")
    masked = torch.cat([MASK_WEIGHT * mask, mask * (images - GREY)], 1)
    return F.avg_pool2d(register(masked, transforms[:, 2:], transforms[:, :2], 2 * CROP), 2).flatten(1)


class Components:
    """Principal components of the rows of a sample, with fixed signs.

    Args: sample, (N, F); count, how many; columns beyond min(N, F) are 0.
    """

    def __init__(self, sample: torch.Tensor, count: int):
        sample = sample.double()
        self.mean = sample.mean(0)
        directions = torch.linalg.svd(sample - self.mean, full_matrices=False).Vh[:count]
        largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        basis = F.pad((directions * largest.sign()).T, (0, count - len(directions)))
        self.mean, self.basis = self.mean.float(), basis.float()

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Coordinates (..., count) of rows (..., F)."""
        return (rows - self.mean) @ self.basis


def write_components(store: zarr.Group, pixels: zarr.Array, training: int) -> None:
    """Overwrite the slot vectors in a store by the components of each slot's crop and its transform.

    Args:
        store: slots (E, T, K, D), written here; masks (E, T, K, G, G), read.
        pixels: uint8 (E, T, H, W, 3).
        training: how many of the first episodes determine the components and the reference poses.
    """
    episodes, steps, slots, width = store["slots"].shape
    reference = torch.zeros(slots, 3, dtype=torch.float64)
    for episode in range(training):
        hard = hard_masks(torch.from_numpy(store["masks"][episode]))
        reference += torch.stack([mask_moments(hard[:, k]).mean(0) for k in range(slots)]) / training
    sampled = sample(training, steps)
    owners, times = sampled // steps, sampled % steps
    crops = [[crop for crop, _ in _described(store, pixels, episode, reference, times[owners == episode])]
             for episode in owners.unique().tolist()]
    components = [Components(torch.cat(of_slot), width - TRANSFORM) for of_slot in zip(*crops, strict=True)]
    with Progress(episodes * steps, "slots' components", " frames") as bar:
        for episode in range(episodes):
            described = _described(store, pixels, episode, reference, torch.arange(steps))
            vectors = [torch.cat([of_slot(crop), transform], 1)
                       for of_slot, (crop, transform) in zip(components, described, strict=True)]
            store["slots"][episode] = torch.stack(vectors, 1).half().numpy()
            bar.update(steps)


def _described(store, pixels, episode, reference, index) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Crop and transform of every slot at the steps `index` of an episode."""
    masks = torch.from_numpy(store["masks"][episode])
    frames, transforms = torch.from_numpy(pixels[episode])[index], slot_transforms(masks, reference)[index]
    for k in range(masks.shape[1]):
        yield aligned_crops(frames, masks[index, k], transforms[:, k]), transforms[:, k]

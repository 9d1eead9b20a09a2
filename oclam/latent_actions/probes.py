"""Action probes: how well latent actions predict true actions linearly.

The paper's probe is trained beside the model. The other is a ridge regression: the first half of the held-out
trajectories chooses its penalty, the second half measures its error.
"""

import numpy as np
import torch
import zarr
from torch import nn
from torch.nn import functional as F

from oclam.ridge import PENALTIES, Moments
from oclam.seeding import numpy_rng

FLOOR_EPISODES = 100  # of training, enough for the 768 inputs of the frame-difference probe


class OnlineProbe(nn.Linear):
    """The paper's online probe: offset + scale x a linear map from detached latents to actions.

    Args:
        latent_dim: L.
        actions: (N, A), all that are trained on; NaN where not known.
        units: offset and scale (A,), as `Dataset.action_units`.
    """

    def __init__(self, latent_dim: int, actions: torch.Tensor, units: tuple):
        super().__init__(latent_dim, actions.shape[1], device=actions.device)
        self.offset, self.scale = (torch.as_tensor(unit, device=actions.device) for unit in units)
        self.known_share = actions.isfinite().sum() / actions.numel()

    def error(self, latent: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Squared errors of a batch's known actions (B, A), summed and divided by the number expected.

        So the mean over all batches is the mean squared error over all known actions; of a batch without any it is 0.
        latent: (B, L).
        """
        prediction = self.offset + self.scale * self(latent.detach().float())
        known = torch.where(action.isfinite(), action, prediction.detach())
        return F.mse_loss(prediction, known) / self.known_share.clamp(min=1e-9)


def splits(episodes: int, test_episodes: int) -> tuple[range, range, range]:
    """The episodes that fit the probe, that choose its penalty, and that it is measured on."""
    middle = episodes + test_episodes // 2
    return range(episodes), range(episodes, middle), range(middle, episodes + test_episodes)


def probe(fit: Moments, choose: Moments, report: Moments, targets: slice = slice(None)) -> dict:
    """Ridge regression from the moments of three splits, measured on the target columns `targets`.

    Returns plain numbers: penalty, mse and r2 (means over target dimensions), mse_per_dim, r2_per_dim, variance. A
    dimension that does not vary has R2 0.
    """
    ridges = {penalty: fit.fit(penalty) for penalty in PENALTIES}
    penalty = min(PENALTIES, key=lambda p: choose.mse(ridges[p])[targets].mean())
    mse, variance = report.mse(ridges[penalty])[targets], report.variance[targets]
    r2 = 1 - np.divide(mse, variance, out=np.ones_like(mse), where=variance > 0)
    return {"penalty": penalty, "mse": mse.mean().item(), "r2": r2.mean().item(), "mse_per_dim": mse.tolist(),
            "r2_per_dim": r2.tolist(), "variance": variance.mean().item()}


def probe_latents(latents: zarr.Array, actions: np.ndarray, episodes: int, seed: int, device: torch.device) -> dict:
    """The ridge probe's entries of probe.json, and those of its control: the same latents with shuffled actions.

    Args:
        latents: (E, T-1, L).
        actions: (E, T, A); training episodes without known actions, NaN, are left out.
        episodes: how many of the first episodes were trained on.
        seed: of the shuffling, which mixes all transitions of a split.
    """
    width = actions.shape[-1]
    true = actions[:, :latents.shape[1]]

    def blocks(split):
        known = _known(split, actions)
        flat = true[known].reshape(-1, width)
        shuffled = numpy_rng("probe", seed, split.start).permutation(flat).reshape(len(known), -1, width)
        for i, episode in enumerate(known):
            yield latents[episode], np.concatenate([true[episode], shuffled[i]], 1)

    parts = [Moments.over(blocks(split), device) for split in splits(episodes, len(actions) - episodes)]
    ridge, control = probe(*parts, slice(width)), probe(*parts, slice(width, None))
    return {**{f"ridge_{key}": ridge[key] for key in ("penalty", "mse", "r2", "mse_per_dim", "r2_per_dim")},
            "shuffled_mse": control["mse"], "shuffled_r2": control["r2"], "action_variance": ridge["variance"]}


def _known(split, actions):
    """The episodes of a split whose actions are known."""
    return [episode for episode in split if np.isfinite(actions[episode]).all()]


def frame_differences(frames: np.ndarray) -> torch.Tensor:
    """Difference of consecutive frames, averaged to 16 x 16: uint8 (T, H, W, 3) -> float32 (T-1, 768)."""
    frames = torch.as_tensor(frames).permute(0, 3, 1, 2).float() / 255
    return F.adaptive_avg_pool2d(frames, 16).diff(dim=0).flatten(1)


def probe_frames(pixels: zarr.Array, actions: np.ndarray, episodes: int, device: torch.device) -> dict:
    """The same probe on differences of frames, without any learning, fitted on at most 100 trajectories."""
    fit, *held_out = splits(episodes, len(actions) - episodes)
    parts = [Moments.over(((frame_differences(pixels[e]), actions[e, :-1]) for e in split), device)
             for split in (_known(fit, actions)[:FLOOR_EPISODES], *held_out)]
    floor = probe(*parts)
    return {"frame_difference_mse": floor["mse"], "frame_difference_r2": floor["r2"]}

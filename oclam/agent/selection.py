"""Which slots are the agent's: those behind whose masks the frames tell the actions, on a few labelled trajectories.

The paper chooses by eye and leaves an automatic choice as future work. What a slot's own vector tells is no criterion:
it holds little of a pose, and attention reads it full even where a slot holds no patch.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch.nn import functional as F

from oclam.ridge import Moments, best_ridge

__all__ = ["Probe", "behind", "choose_model", "choose_slots", "combine", "probe", "probe_behind"]

SIGHT = 8  # pixels a side: enough to see limbs move, few enough to fit on thousands of labelled frames


@dataclass(frozen=True)
class Probe:
    """Cross-validated error of a ridge from [v_t, v_t+1] to the action a_t.

    errors (trajectories,): the held-out error of each, mean over action dimensions; variance of the actions.
    """

    errors: np.ndarray
    variance: float

    @property
    def mse(self):
        return float(self.errors.mean())

    @property
    def r2(self):
        return 1 - self.mse / self.variance

    def gain_over(self, other):
        """How much lower this error is than the other's, in standard errors of the difference over trajectories."""
        difference = other.errors - self.errors
        return float(difference.mean() / (difference.std(ddof=1) / len(difference) ** 0.5 + 1e-12))


def behind(frames, masks):
    """What shows behind every slot's mask, coarsely.

    A patch belongs to the slot whose mask is the highest there. Frames uint8 (T, H, W, 3), soft masks (T, K, G, G) ->
    float32 (T, K, 3 x SIGHT x SIGHT) in [0, 1]. What shows behind several slots is their sum, behind all the frame.
    """
    slots = torch.arange(masks.shape[1])[:, None, None]
    held = (torch.from_numpy(masks.argmax(1))[:, None] == slots).float()
    images = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    large = F.interpolate(held, images.shape[2:]).split(1, 1)
    return torch.stack([F.adaptive_avg_pool2d(images * mask, SIGHT).flatten(1) for mask in large], 1).numpy()


def combine(slots, chosen, how):
    """Slots (..., K, D) -> (..., len(chosen) x D) for `concatenate`, (..., D) for `mean`."""
    picked = slots[..., list(chosen), :]
    return picked.mean(-2) if how == "mean" else picked.reshape(*picked.shape[:-2], -1)


def probe(vectors, actions):
    """Leave-one-trajectory-out ridge probe.

    Args: vectors, a list of (T, D), one a trajectory; actions, as many (T, A), a_t taken at frame t.
    """
    groups = [Moments.of(np.concatenate([v[:-1], v[1:]], 1), a[:-1]) for v, a in zip(vectors, actions, strict=True)]
    _, errors = best_ridge(groups)
    return Probe(errors.mean(1), float(sum(groups).variance.mean()))


def probe_behind(views, actions, chosen):
    """The probe of what shows behind these slots' masks; views, a list of what `behind` gives, one a trajectory."""
    return probe([view[:, list(chosen)].sum(1) for view in views], actions)


def choose_slots(views, actions, max_slots, margin=1.0):
    """The slots behind whose masks the frames tell the actions best, and no more of them than needed.

    Starting from the best single slot, the best set of one slot more is taken when its error is lower by more than
    `margin` standard errors over trajectories.
    Args: as of `probe_behind`; max_slots. Returns (chosen slots, probes by set of slots).
    """
    probes, leader = {}, None
    for size in range(1, max_slots + 1):
        sets = list(combinations(range(views[0].shape[1]), size))
        probes |= {chosen: probe_behind(views, actions, chosen) for chosen in sets}
        best = min(sets, key=lambda chosen: probes[chosen].mse)
        if leader is None or probes[best].gain_over(probes[leader]) > margin:
            leader = best
        else:
            break
    return list(leader), probes


def choose_model(masks, frames, actions):
    """Which of some models, trained from different initialisations, has the slot that shows the agent best.

    Args: masks, of every model (models, n, T, K, G, G), soft; frames uint8 (T, H, W, 3) and actions (T, A), of the n
    labelled trajectories. Returns (index of the model, the error behind each one's best slot).
    """
    errors = []
    for found in masks:
        views = [behind(*trajectory) for trajectory in zip(frames, found, strict=True)]
        (best,), probes = choose_slots(views, actions, 1)
        errors.append(probes[best,].mse)
    return int(np.argmin(errors)), errors

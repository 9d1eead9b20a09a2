"""Which slots are the agent's: those from which a linear map tells the actions, on a few labelled trajectories.

The paper chooses by eye and leaves an automatic choice as future work.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from oclam.ridge import Moments, best_ridge

__all__ = ["Probe", "choose_slots", "combine", "holders", "probe"]


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


def holders(masks):
    """Slots that hold a patch or more of the average frame: soft masks, a list of (T, K, G, G) -> indices.

    Any other slot may tell the actions, since attention reads a full slot from the smallest share of a patch, but it
    has no mask to learn from.
    """
    labels = np.concatenate([m.argmax(1) for m in masks])  # (T, G, G)
    return [k for k in range(masks[0].shape[1]) if (labels == k).sum() >= len(labels)]


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


def choose_slots(slots, actions, max_slots, how, candidates, margin=1.0):
    """The slots that predict the actions best, and no more of them than needed.

    Starting from the best single slot, the best set of one slot more is taken when its error is lower by more than
    `margin` standard errors over trajectories.
    Args: slots, a list of (T, K, D); actions, as many (T, A); max_slots; how, `concatenate` or `mean`; candidates, the
    slots that may be chosen. Returns (chosen slots, probes by set of slots).
    """
    probes = {}
    for size in range(1, min(max_slots, len(candidates)) + 1):
        sets = list(combinations(range(slots[0].shape[1]), size))
        probes |= {chosen: probe([combine(s, chosen, how) for s in slots], actions) for chosen in sets}
        best = min((chosen for chosen in sets if set(chosen) <= set(candidates)), key=lambda chosen: probes[chosen].mse)
        if size == 1:
            leader = best
        elif probes[best].gain_over(probes[leader]) > margin:
            leader = best
        else:
            break
    return list(leader), probes

"""Which slots are the agent's: those whose masked frames predict the actions of a few labelled trajectories best.

The paper chooses by eye and leaves an automatic choice as future work. What a slot's own vector predicts is no
criterion: attention gives a vector even to a slot that has no patch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
import torch
from torch.nn import functional as F

from oclam.params import SlotSelect
from oclam.ridge import Moments, best_ridge
from oclam.slots.components import hard_masks

THUMBNAIL = 8  # edge of a masked view in pixels: enough to see limbs move, few enough to fit on thousands of frames
MARGIN = 1.0  # standard errors over trajectories by which a further slot must lower the error


@dataclass(frozen=True)
class Probe:
    """Cross-validated error of a ridge from [v_t, v_t+1] to the action a_t.

    errors (trajectories,): on each left-out trajectory, mean over action dimensions; variance: of the actions.
    """

    errors: np.ndarray
    variance: float

    @property
    def mse(self) -> float:
        return float(self.errors.mean())

    @property
    def r2(self) -> float:
        return 1 - self.mse / self.variance if self.variance > 1e-12 else 0.0

    def gain_over(self, other: "Probe") -> float:
        """How much lower this error is than the other's, in standard errors of the difference over trajectories."""
        difference = other.errors - self.errors
        return float(difference.mean() / (difference.std(ddof=1) / len(difference) ** 0.5 + 1e-12))


def masked_thumbnails(frames: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Frames masked by each slot, reduced to THUMBNAIL x THUMBNAIL pixels: float32 (T, K, channels x pixels), 0 to 1.

    A patch belongs to the slot whose mask is the highest there. The view of several slots is the sum of theirs, that of
    all slots the whole frame.

    Args:
        frames: uint8 (T, H, W, 3).
        masks: soft, (T, K, G, G).
    """
    inside = hard_masks(torch.from_numpy(masks))
    images = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    large = F.interpolate(inside, images.shape[2:]).split(1, 1)
    return torch.stack([F.adaptive_avg_pool2d(images * mask, THUMBNAIL).flatten(1) for mask in large], 1).numpy()


def combine(slots: np.ndarray, chosen: Iterable[int], how: str) -> np.ndarray:
    """Slots (..., K, D) -> (..., len(chosen) x D) where `how` is `concatenate`, (..., D) where it is `mean`."""
    picked = slots[..., list(chosen), :]
    return picked.mean(-2) if how == "mean" else picked.reshape(*picked.shape[:-2], -1)


def probe(vectors: Sequence[np.ndarray], actions: Sequence[np.ndarray]) -> Probe:
    """Leave-one-trajectory-out ridge probe.

    Args:
        vectors: (T, D) of every trajectory.
        actions: (T, A) of every trajectory, a_t taken at frame t.
    """
    groups = [Moments.of(np.concatenate([v[:-1], v[1:]], 1), a[:-1]) for v, a in zip(vectors, actions, strict=True)]
    _, errors = best_ridge(groups)
    return Probe(errors.mean(1), float(sum(groups).variance.mean()))


def probe_masked(thumbnails: Sequence[np.ndarray], actions: Sequence[np.ndarray], chosen: Iterable[int]) -> Probe:
    """The probe of frames masked by these slots; thumbnails, as `masked_thumbnails` gives them, of every trajectory."""
    return probe([view[:, list(chosen)].sum(1) for view in thumbnails], actions)


def choose_slots(thumbnails: Sequence[np.ndarray], actions: Sequence[np.ndarray], max_slots: int,
                 learned_from: Callable[[tuple[int, ...]], Sequence[np.ndarray]] | None = None,
                 ) -> tuple[list[int], dict[tuple[int, ...], Probe]]:
    """The slots whose masked frames predict the actions best, and the probes of all sets of slots that were tried.

    The best set of k + 1 slots replaces the best of k where its error is lower by more than MARGIN, both from
    thumbnails and from the vectors of `learned_from`. In thumbnails alone a slot of background can help, since it shows
    how the camera moves.

    learned_from: a set of slots -> `oclam.agent.store.masked_components` of every trajectory, (T, D) each.
    """
    probes, leader = {}, None
    judged = cache(lambda chosen: probe(learned_from(chosen), actions))
    for size in range(1, max_slots + 1):
        sets = list(combinations(range(thumbnails[0].shape[1]), size))
        probes |= {chosen: probe_masked(thumbnails, actions, chosen) for chosen in sets}
        best = min(sets, key=lambda chosen: probes[chosen].mse)
        if leader and not (probes[best].gain_over(probes[leader]) > MARGIN and (
                learned_from is None or judged(best).gain_over(judged(leader)) > MARGIN)):
            break
        leader = best
    return list(leader), probes


def choose_model(masks: Sequence[np.ndarray], frames: Sequence[np.ndarray],
                 actions: Sequence[np.ndarray]) -> tuple[int, list[float]]:
    """The index of the model whose best slot's masked frames predict the actions best, and that error of every model.

    Args:
        masks: soft masks of every model, (models, n, T, K, G, G).
        frames: uint8 (T, H, W, 3) of the n labelled trajectories.
        actions: (T, A) of the n labelled trajectories.
    """
    errors = []
    for of_model in masks:
        thumbnails = [masked_thumbnails(*trajectory) for trajectory in zip(frames, of_model, strict=True)]
        _, probes = choose_slots(thumbnails, actions, 1)
        errors.append(min(found.mse for found in probes.values()))
    return int(np.argmin(errors)), errors


def manual_selection(select: SlotSelect, manual: Sequence[int], slots: int) -> dict:
    """The table of `select_slots` for slots chosen by hand, of `slots`, without the probes of labelled trajectories."""
    return {
        "chosen": list(manual), "method": select.method, "combine": select.combine,
        "why": f"Chosen by hand: slot {' and '.join(map(str, manual))}; no actions are known to judge the choice by.",
        "better_than_whole_frame": None, "chosen_probe": {}, "whole_frame": {},
        "slots": [{"slot": k} for k in range(slots)]}


def select_slots(select: SlotSelect, manual: Sequence[int] | None, frames: Sequence[np.ndarray],
                 masks: Sequence[np.ndarray], vectors: Sequence[np.ndarray], actions: Sequence[np.ndarray],
                 learned_from: Callable[[tuple[int, ...]], Sequence[np.ndarray]]) -> dict:
    """The slots that the section slot_select asks for, `chosen`, with probes on the labelled trajectories: slots.json.

    Args:
        manual: the slots chosen by hand, or None for the automatic choice.
        frames, masks, vectors, actions: of every labelled trajectory: uint8 (T, H, W, 3), (T, K, G, G), (T, K, D) and
            (T, A).
        learned_from: as in `choose_slots`.
    """
    thumbnails = [masked_thumbnails(*trajectory) for trajectory in zip(frames, masks, strict=True)]
    chosen, probes = choose_slots(thumbnails, actions, 1 if manual else select.max_slots, learned_from)
    chosen, slots = list(manual or chosen), thumbnails[0].shape[1]

    def row(which):
        masked = probes.get(tuple(which)) or probe_masked(thumbnails, actions, which)
        vector = probe([combine(v, which, select.combine) for v in vectors], actions)
        return {"probe_mse": masked.mse, "probe_r2": masked.r2, "vector_mse": vector.mse}

    whole, together = probe_masked(thumbnails, actions, range(slots)), row(chosen)
    better = together["probe_mse"] < whole.mse
    why = (f"Chosen {'by hand' if manual else 'by error'}: slot {' and '.join(map(str, chosen))}. "
           f"A ridge probe on the masked frames has error {together['probe_mse']:.3f}, on whole frames "
           f"{whole.mse:.3f}; the variance of the actions is {whole.variance:.3f}.")
    if not better:
        why += " No slot predicts the actions better than the whole frame does."
    return {
        "chosen": chosen, "method": select.method, "combine": select.combine, "why": why,
        "better_than_whole_frame": better, "chosen_probe": together,
        "whole_frame": {"probe_mse": whole.mse, "probe_r2": whole.r2},
        "slots": [{"slot": k, **row([k])} for k in range(slots)]}

"""The variants that the pipeline compares: one row each, and everything that lists variants reads this table.

The paper's numbers are of "Object-Centric Latent Action Learning" (arXiv 2502.09680v1): means of 3 seeds with the
spread it prints, 5,000 episodes, 25 evaluation episodes.
"""

from dataclasses import dataclass, field
from typing import Literal

from oclam.errors import UserError

TASKS = ("cheetah-run", "walker-run", "hopper-hop", "humanoid-walk")
# Variance of the actions in the published datasets, mean over dimensions: divide probe errors by it to compare them.
ACTION_VARIANCE = dict(zip(TASKS, (35.2, 44.5, 24.8, 0.42), strict=True))


@dataclass(frozen=True)
class Paper:
    """What the paper reports of a variant; empty where it does not have it.

    Args:
        probe: Table 1, mean squared error of the online action probe, (mean, spread) by task.
        normalised: Table 2, 100 x return / return of bc with all labels, (mean, spread) by task.
        returns: Table 3, return by task.
        parameters: Table 4.
        seconds: Table 5, on one H100.
    """

    probe: dict = field(default_factory=dict)
    normalised: dict = field(default_factory=dict)
    returns: dict = field(default_factory=dict)
    parameters: int | None = None
    seconds: int | None = None


@dataclass(frozen=True)
class Variant:
    """One row of the comparison.

    Args:
        name: as in dvc.yaml, in paths and in every table.
        view: the frames that it learns from and is evaluated on.
        observes: what its latent action model sees; None for what learns no latent actions. `weighted frames` are
            frames with a mask-weighted loss.
        labels: how many trajectories with true actions its policy uses, `few` or `all`.
        color, marker: in every figure.
        paper: what the paper reports of it.
        model: lapo reconstructs what it observes, laom (arXiv 2502.00379) predicts its embeddings.
        supervised: its latent action model learns from the labels of finetune's largest budget too.
        extra: the switch in section `extras` that leaves it out, where there is one.
    """

    name: str
    view: Literal["distracted", "clean"]
    observes: Literal["frames", "masked frames", "weighted frames", "slots"] | None
    labels: Literal["few", "all"]
    color: str
    marker: str
    paper: Paper = Paper()
    model: Literal["lapo", "laom"] = "lapo"
    supervised: bool = False
    extra: str | None = None

    @property
    def on_slots(self) -> bool:
        """Whether it observes the chosen slots or their masks, so that the labels that chose them count as used."""
        return self.observes not in (None, "frames")


def _by_task(*values):
    return dict(zip(TASKS, values, strict=True))


# Colours are Okabe and Ito's and Paul Tol's, which people with colour blindness can tell apart. The order is that of
# every table.
VARIANTS = {row.name: row for row in (
    Variant("lapo", "distracted", "frames", "few", "#D55E00", "o", Paper(
        probe=_by_task((11.2, 6.9), (7.0, 3.2), (11.2, 4.9), (0.20, 0.04)),
        normalised=_by_task((23.0, 6.0), (4.0, 0.7), (3.2, 1.5), (0.8, 0.4)), parameters=211_847_849, seconds=27_480)),
    Variant("lapo-masks", "distracted", "masked frames", "few", "#56B4E9", "s", Paper(
        probe=_by_task((2.8, 1.0), (4.5, 1.7), (3.5, 1.2), (0.18, 0.04)),
        normalised=_by_task((39.0, 1.0), (7.4, 2.8), (10.8, 0.6), (5.9, 0.7)), parameters=211_847_849,
        seconds=27_480)),
    Variant("lapo-slots", "distracted", "slots", "few", "#0072B2", "D", Paper(
        probe=_by_task((3.1, 0.9), (5.3, 2.2), (4.4, 1.8), (0.16, 0.04)),
        normalised=_by_task((50.0, 1.0), (8.4, 3.0), (16.0, 3.0), (6.0, 0.2)), parameters=89_186_432, seconds=8_940)),
    # After MaskLAM, arXiv 2602.02259.
    Variant("lapo-focus", "distracted", "weighted frames", "few", "#009E73", "^", extra="lapo_focus"),
    Variant("laom", "distracted", "frames", "few", "#D6C400", "<", model="laom", extra="laom"),
    Variant("laom-labels", "distracted", "frames", "few", "#332288", ">", model="laom", supervised=True,
            extra="laom_labels"),
    Variant("laom-masks", "distracted", "masked frames", "few", "#882255", "*", model="laom", extra="laom"),
    Variant("lapo-no-distractors", "clean", "frames", "few", "#8A6D00", "v", Paper(
        probe=_by_task((1.0, 0.6), (2.7, 1.3), (1.9, 1.2), (0.13, 0.03)),
        normalised=_by_task((69.0, 14.0), (22.0, 19.0), (25.0, 9.0), (3.8, 3.1)))),
    Variant("bc", "distracted", None, "all", "#222222", "P", Paper(
        returns=_by_task(823, 749, 253, 428), parameters=107_541_504)),
    Variant("bc-no-distractors", "clean", None, "all", "#777777", "p", Paper(
        returns=_by_task(840, 735, 300, 601))),
    Variant("scratch", "distracted", None, "few", "#CC79A7", "X"),
)}
PAPER_OCP = Paper(parameters=92_149_776, seconds=23_700)  # of object-centric pretraining, with the frozen encoder
LATENT = tuple(name for name, row in VARIANTS.items() if row.observes)  # those that learn latent actions
# Those that clone true actions (stages bc-full and bc-full-clean); returns are divided by theirs.
ALL_LABELS = tuple(name for name, row in VARIANTS.items() if row.labels == "all")


def view_of(variant: str) -> str:
    """The frames that a variant learns from and is evaluated on: `distracted` or `clean`.

    Raises UserError for an unknown variant.
    """
    if variant not in VARIANTS:
        raise UserError(f"variant: {variant!r} given, allowed are {', '.join(VARIANTS)}")
    return VARIANTS[variant].view


def normaliser(variant: str) -> str:
    """Name of the variant that clones all true actions in the view of `variant`: its return is normalised to 100."""
    return next(name for name in ALL_LABELS if view_of(name) == view_of(variant))

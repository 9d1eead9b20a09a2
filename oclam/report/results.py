"""Every number of the report, read from the small files under `data/results`, and the paper's beside them.

Tables are lists of dicts that share their keys; None stands for what was not measured.
"""

import math
from dataclasses import dataclass

import numpy as np

from oclam import paths
from oclam.artifacts import load_tensors, read_csv, read_json
from oclam.params import FULL_VARIANTS, VARIANTS, view_of
from oclam.report.statistics import summary

__all__ = ["LATENT_VARIANTS", "PAPER_DURATIONS", "PAPER_FULL", "PAPER_PARAMETERS", "PAPER_PROBES", "PAPER_RETURNS",
           "Results", "gather", "metrics", "normaliser", "select"]

LATENT_VARIANTS = ("lapo", "lapo-masks", "lapo-slots", "lapo-focus", "lapo-no-distractors")  # the order of every table
_SLOT_MEASURES = ("agent_iou", "agent_recall", "area", "stability")
_PAPER_VARIANTS = ("lapo", "lapo-masks", "lapo-slots", "lapo-no-distractors")

# "Object-Centric Latent Action Learning", arXiv 2502.09680v1; mean of 3 seeds, 5,000 episodes, 25 evaluation episodes.
PAPER_PROBES = {  # Table 1: mean squared error of the action probe, (mean, spread)
    task: dict(zip(_PAPER_VARIANTS, values, strict=True)) for task, values in {
        "cheetah-run": ((11.2, 6.9), (2.8, 1.0), (3.1, 0.9), (1.0, 0.6)),
        "walker-run": ((7.0, 3.2), (4.5, 1.7), (5.3, 2.2), (2.7, 1.3)),
        "hopper-hop": ((11.2, 4.9), (3.5, 1.2), (4.4, 1.8), (1.9, 1.2)),
        "humanoid-walk": ((0.20, 0.04), (0.18, 0.04), (0.16, 0.04), (0.13, 0.03)),
    }.items()
}
PAPER_RETURNS = {  # Table 2: 100 x return / return of bc with all labels, (mean, spread)
    task: dict(zip(_PAPER_VARIANTS, values, strict=True)) for task, values in {
        "cheetah-run": ((23.0, 6.0), (39.0, 1.0), (50.0, 1.0), (69.0, 14.0)),
        "walker-run": ((4.0, 0.7), (7.4, 2.8), (8.4, 3.0), (22.0, 19.0)),
        "hopper-hop": ((3.2, 1.5), (10.8, 0.6), (16.0, 3.0), (25.0, 9.0)),
        "humanoid-walk": ((0.8, 0.4), (5.9, 0.7), (6.0, 0.2), (3.8, 3.1)),
    }.items()
}
PAPER_FULL = {  # Table 3: returns
    "cheetah-run": {"expert": 838, "bc-no-distractors": 840, "bc": 823},
    "walker-run": {"expert": 740, "bc-no-distractors": 735, "bc": 749},
    "hopper-hop": {"expert": 307, "bc-no-distractors": 300, "bc": 253},
    "humanoid-walk": {"expert": 617, "bc-no-distractors": 601, "bc": 428},
}
PAPER_PARAMETERS = {  # Table 4
    "ocp (total)": 92_149_776, "ocp (trainable)": 6_343_440, "lapo": 211_847_849, "lapo-masks": 211_847_849,
    "lapo-slots": 89_186_432, "bc": 107_541_504,
}
PAPER_DURATIONS = {  # Table 5: seconds on one H100
    "ocp": 23_700, "lapo": 27_480, "lapo-masks": 27_480, "lapo-slots": 8_940, "bc + finetune": 10_920,
}


@dataclass(frozen=True)
class Results:
    """All tables, and the scale that stands beside every number."""

    scale: str
    tasks: list
    seeds: list
    episodes: int  # evaluation episodes of a policy
    probes: list  # task, seed, variant; errors of the action probes
    dimensions: list  # task, seed, variant, dimension of the action; the ridge probe's error there
    returns: list  # task, variant, budget; statistics over seeds and episodes, and as a share of the normaliser
    losses: list  # task, seed, stage, variant, step, loss
    slots: list  # task, seed, slot; its measures
    selections: list  # task, seed; what was chosen and why
    steve: list  # task, seed, slot; the measures of STEVE's best slot where the agent is segmented
    durations: list  # stage, variant, runs; seconds and hardware, or None where a stage was not run here
    experts: dict  # task -> mean return of the demonstrations
    encoder: dict  # metadata of the frozen encoder
    parameters: dict  # model -> count, as in the paper's Table 4

    @property
    def stamp(self):
        """What no number may appear without."""
        return f"{self.scale.capitalize()} scale, {_count(len(self.seeds), 'seed')}, {_count(self.episodes, 'episode')}"


def gather(scale, tasks, seeds, parameters):
    """Read every result of a finished pipeline. `parameters` holds Table 4's counts. Returns Results.

    Raises UserError for a missing or damaged file; only durations may be missing, as of stages restored from a cache.
    """
    returns = [row for task in tasks for row in _returns(task, seeds)]
    unmeasured = dict.fromkeys(_SLOT_MEASURES)  # in a dataset without the simulator's segmentation
    tables = [(task, seed, read_json(paths.slot_table(task, seed))) for task in tasks for seed in seeds]
    return Results(
        scale, list(tasks), list(seeds), max(row["episodes"] for row in returns),
        probes=[_probe(task, seed, variant) for task in tasks for seed in seeds for variant in LATENT_VARIANTS],
        dimensions=[row for task in tasks for seed in seeds for variant in LATENT_VARIANTS
                    for row in _dimensions(task, seed, variant)],
        returns=returns,
        losses=[row for task in tasks for seed in seeds for row in _losses(task, seed)],
        slots=[{"task": task, "seed": seed, **unmeasured, **row, "chosen": row["slot"] in table["chosen"]}
               for task, seed, table in tables for row in table["slots"]],
        selections=[{"task": task, "seed": seed, **unmeasured, "fg_ari": None, "mask": {}, **table}
                    for task, seed, table in tables],
        steve=[row for task in tasks for seed in seeds for row in _best_of_steve(task, seed)],
        durations=_durations(tasks, seeds),
        experts={task: _mean(read_csv(paths.demonstrations(task, "distracted")), "return") for task in tasks},
        encoder=load_tensors(paths.encoder)[1],
        parameters=parameters,
    )


def normaliser(variant):
    """Behaviour cloning on all true actions in the view that `variant` sees: 100 in every normalised return."""
    return "bc" if view_of(variant) == "distracted" else "bc-no-distractors"


def metrics(results):
    """The small nested dict for `dvc metrics`: means over seeds, rounded, the same keys in every run.

    probe: ridge mean squared error; return: with all labels; normalised: 100 x return / return of bc with all labels,
    at the largest budget; slots: of the chosen ones together, against the simulator's segmentation.
    """
    largest = max(row["budget"] for row in results.returns)
    tree = {"probe": {}, "normalised": {}, "return": {}, "slots": {}}
    for task in results.tasks:
        tree["probe"][task] = {variant: _mean(select(results.probes, task=task, variant=variant), "ridge_mse")
                               for variant in LATENT_VARIANTS}
        tree["normalised"][task] = {row["variant"]: _round(row["normalised"])
                                    for row in select(results.returns, task=task, budget=largest)}
        full = select(results.returns, task=task, budget=0)
        tree["return"][task] = {"expert": _round(results.experts[task]),
                                **{row["variant"]: _round(row["mean"]) for row in full}}
        tree["slots"][task] = {key: _mean(select(results.selections, task=task), key)
                               for key in (*_SLOT_MEASURES, "fg_ari")}
    return tree


def select(rows, **wanted):
    """The rows whose columns have the wanted values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _probe(task, seed, variant):
    table = read_json(paths.probe(task, seed, variant))
    scalars = {key: value for key, value in table.items() if not isinstance(value, list)}
    return {"task": task, "seed": seed, "variant": variant, **scalars}


def _dimensions(task, seed, variant):
    table = read_json(paths.probe(task, seed, variant))
    return [{"task": task, "seed": seed, "variant": variant, "dimension": dimension, "ridge_mse": error, "ridge_r2": r2}
            for dimension, (error, r2)
            in enumerate(zip(table["ridge_mse_per_dim"], table["ridge_r2_per_dim"], strict=True))]


def _best_of_steve(task, seed):
    about = load_tensors(paths.steve(task, seed))[1]
    if about["slots"]:
        yield {"task": task, "seed": seed, "slot": about["best"], **about["slots"][about["best"]]}


def _returns(task, seeds):
    episodes = {}  # (variant, budget) -> seed -> returns
    for variant in VARIANTS:
        for seed in seeds:
            for row in read_csv(paths.evaluation(task, seed, variant)):
                episodes.setdefault((variant, row["budget"]), {}).setdefault(seed, []).append(row["return"])
    table = {key: np.array([by_seed[seed] for seed in seeds]) for key, by_seed in episodes.items()}
    rows = []
    for (variant, budget), returns in table.items():
        full = table[normaliser(variant), 0].mean()
        statistics = {key: value if math.isfinite(value) else None for key, value in summary(returns).items()}
        shares = {"normalised" if key == "mean" else f"normalised_{key}":
                  None if value is None or full <= 0 else 100 * value / full for key, value in statistics.items()}
        rows.append({"task": task, "variant": variant, "budget": budget, "seeds": returns.shape[0],
                     "episodes": returns.shape[1], **statistics, **shares})
    return rows


def _losses(task, seed):
    logs = [("ocp", "ocp", paths.ocp(task, seed))]
    logs += [("lapo", variant, paths.lapo(task, seed, variant)) for variant in LATENT_VARIANTS]
    logs += [("bc", variant, paths.actor(task, seed, variant)) for variant in (*LATENT_VARIANTS, *FULL_VARIANTS)]
    logs = [(stage, variant, read_csv(paths.log(artifact))) for stage, variant, artifact in logs]
    logs.insert(1, ("ocp", "steve", load_tensors(paths.steve(task, seed))[1]["log"]))
    return [{"task": task, "seed": seed, "stage": stage, "variant": variant, "step": row["step"], "loss": row["loss"]}
            for stage, variant, rows in logs for row in rows]


def _durations(tasks, seeds):
    each = [f"{task}-{seed}" for task in tasks for seed in seeds]
    stages = [("backgrounds", None, [""]), ("encoder", None, [""]), ("expert", None, tasks)]
    stages += [("collect", view, [f"{task}-{view}" for task in tasks]) for view in ("distracted", "clean")]
    stages += [("ocp", None, each), ("slot-select", None, each), ("steve", None, each)]
    stages += [(stage, None, each) for stage in ("lapo-slots", "lapo-focus", "scratch")]
    for stage, variants in (("lapo", ("lapo", "lapo-masks", "lapo-no-distractors")), ("bc", LATENT_VARIANTS),
                            ("bc-full", FULL_VARIANTS), ("finetune", LATENT_VARIANTS), ("eval", VARIANTS)):
        stages += [(stage, variant, [f"{run}-{variant}" for run in each]) for variant in variants]
    rows = []
    for stage, variant, runs in stages:
        files = [paths.duration("-".join(filter(None, [stage, run]))) for run in runs]
        found = [read_json(file) for file in files if file.exists()]
        seconds = sum(row["seconds"] for row in found)
        rows.append({"stage": stage, "variant": variant, "runs": len(found), "of": len(runs),
                     "seconds": seconds if found else None, "mean": seconds / len(found) if found else None,
                     "hardware": ", ".join(sorted({row["hardware"] for row in found}))})
    return rows


def _mean(rows, key):
    values = [row[key] for row in rows]
    return None if None in values else _round(np.mean(values))


def _round(value):
    """Four significant digits, which is more than any of these numbers carries."""
    return None if value is None else float(f"{value:.4g}")


def _count(number, noun):
    return f"{number} {noun}{'' if number == 1 else 's'}"

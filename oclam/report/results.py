"""Every number of the report, read from the small files under `data/results`.

Tables are lists of dicts with the same keys; None stands for what was not measured. What is absent
(`oclam.errors.Absent`), such as clean variants without a clean dataset, has no rows.
"""

import math
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from oclam import paths
from oclam.artifacts import is_absent, load_tensors, read_csv, read_json
from oclam.errors import UserError
from oclam.report.statistics import average, improvement, improvement_interval, recovery, summary
from oclam.variants import ALL_LABELS, LATENT, VARIANTS, normaliser

_PROBED = ("probe_mse", "probe_r2", "vector_mse")
_SLOT_MEASURES = ("agent_iou", "agent_recall", "area", "stability")
CLEAN = "lapo-no-distractors"
OCP_MODELS = {"videosaur": "VideoSAUR", "steve": "ocp (STEVE)", "slotcontrast": "ocp (SlotContrast)"}
COMPARED = ("steve", "slotcontrast")  # stages that train a model beside that of ocp
RECOVERING = tuple(name for name in LATENT if name not in ("lapo", CLEAN))
FEW = tuple(name for name, row in VARIANTS.items() if row.labels == "few")


@dataclass(frozen=True)
class Results:
    """All tables, and the scale that is named beside every number."""

    scale: str
    tasks: list
    seeds: list
    largest: int  # of the label budgets
    probes: list  # task, seed, variant; errors of the action probes
    dimensions: list  # task, seed, variant, dimension of the action; the ridge probe's error there
    returns: list  # task, variant, budget, labels used; statistics over seeds and episodes, also as shares
    episodes: list  # task, seed, variant, backgrounds, budget, episode; its return
    generalisation: list  # task, variant, budget, labels used; statistics on training and on unseen backgrounds
    losses: list  # task, seed, stage, variant, step, loss
    slots: list  # task, seed, slot; its measures
    selections: list  # task, seed; what was chosen and why
    compared: list  # task, seed, model, slot; its best slot's measures where the agent is segmented, and its FG-ARI
    masks: dict = field(compare=False)  # task -> {compared model: the first seed's masks of the frames that are shown}
    durations: list  # stage, variant, runs; seconds (None where a stage was not run here) and hardware
    experts: dict  # task -> mean return of the demonstrations, None where they have no rewards
    encoder: dict  # metadata of the frozen encoder
    parameters: dict  # model -> count, as in the paper's Table 4

    @property
    def stamp(self) -> str:
        """Scale, seeds and episodes, which are shown with every number."""
        episodes = max((row["episodes"] for row in self.returns), default=0)  # of a policy
        return f"{self.scale.capitalize()} scale, {_count(len(self.seeds), 'seed')}, {_count(episodes, 'episode')}"

    @property
    def models(self) -> list[dict]:
        """A row for each task, seed and slot model: ocp's by its chosen slots, those beside it by their best slot.

        Measures on patches and FG-ARI of every model; of ocp's the rest too, as None of the others: those of the mask
        (mask_*) by pixels, and the probe errors that slots and restart were chosen by.
        """
        rows = []
        for row in self.selections:
            names = {key: row[key] for key in ("task", "seed")}
            errors = [f"{error:.4g}" for error in row["restart_errors"]]
            own = {**names, "model": OCP_MODELS[row["model"]], "slot": _named(row["chosen"]),
                   **{key: row[key] for key in (*_SLOT_MEASURES, "fg_ari")},
                   **{f"mask_{key}": row["mask"].get(key)
                      for key in ("agent_iou", "agent_recall", "area", "vector_mse")},
                   **{key: row["chosen_probe"].get(key) for key in _PROBED},
                   "whole_frame_mse": row["whole_frame"].get("probe_mse"), "labels": row["labels"],
                   "restart": row["restart"], "restart_errors": " ".join(errors)}
            rows += [own, *({**dict.fromkeys(own), **other, "slot": _named([other["slot"]])}
                            for other in select(self.compared, **names))]
        return rows


def gather(scale: str, tasks: list[str], seeds: list[int], restarts: list[int], budgets: list[int]) -> Results:
    """Every result of a finished pipeline with these parameters (budgets: finetune's), as Results.

    Raises UserError for a missing or damaged file, except for durations of stages that DVC restored from its cache.
    """
    unmeasured = dict.fromkeys(_SLOT_MEASURES)  # in a dataset without the simulator's segmentation
    pairs = [(task, seed) for task in tasks for seed in seeds]
    tables = {pair: read_json(path) for pair in pairs if not is_absent(path := paths.slot_table(*pair))}
    probed = [(*pair, variant, read_json(path)) for pair in pairs for variant in LATENT
              if not is_absent(path := paths.probe(*pair, variant))]
    compared = {pair: {name: load_tensors(path) for name in COMPARED
                       if not is_absent(path := paths.compared(*pair, name))} for pair in pairs}
    episodes = {task: {variant: {seed: read_csv(paths.evaluation(task, seed, variant)) for seed in seeds}
                       for variant in VARIANTS if not is_absent(paths.evaluation(task, seeds[0], variant))}
                for task in tasks}
    returns = {task: {variant: _evaluated(task, variant, found) for variant, found in acted.items()}
               for task, acted in episodes.items()}
    used = partial(labels_used, selection=max((table["labels"] for table in tables.values()), default=0),
                   largest=max(budgets))
    kept = {pair: tables[pair]["restart"] if pair in tables else restarts[0] for pair in pairs}
    return Results(
        scale, list(tasks), list(seeds), max(budgets),
        probes=[_probe(*names, used) for names in probed],
        dimensions=[row for names in probed for row in _dimensions(*names)],
        returns=[row for task in tasks for row in _returns(task, returns[task], used)],
        episodes=[{"task": task, "seed": seed, "variant": variant, **row} for task, seed in pairs
                  for variant, found in episodes[task].items() for row in found[seed]],
        generalisation=[row for task in tasks for row in _generalisation(task, returns[task], used)],
        losses=[row for pair in pairs for row in _losses(*pair, kept[pair], compared[pair], max(budgets))],
        slots=[{"task": task, "seed": seed, **dict.fromkeys(_PROBED), **unmeasured, **row,
                "chosen": row["slot"] in table["chosen"]}
               for (task, seed), table in tables.items() for row in table["slots"]],
        selections=[{"task": task, "seed": seed, **unmeasured, "fg_ari": None, "mask": {}, **table}
                    for (task, seed), table in tables.items()],
        compared=[row for pair in pairs for row in _compared(*pair, compared[pair])],
        masks={task: {about["model"]: tensors["masks"].numpy() for tensors, about in compared[task, seeds[0]].values()}
               for task in tasks},
        durations=_durations(scale, tasks, seeds, restarts, compared),
        experts={task: None if is_absent(path := paths.demonstration_returns(task, "distracted")) else
                 average([row["return"] for row in read_csv(path)]) for task in tasks},
        encoder=load_tensors(paths.encoder)[1],
        parameters=_parameters(tasks[0], seeds[0], kept[tasks[0], seeds[0]]),
    )


def metrics(results: Results) -> dict:
    """The nested dict for `dvc metrics`: means over seeds, rounded.

    probe: ridge mean squared error; return: with all labels; normalised: 100 x return / return of bc with all labels,
    at the largest budget; recovery: of probe errors and of returns at the largest budget;
    slots: of the chosen ones together, against the simulator's segmentation.
    In probe and recovery None stands for an absent variant.
    """
    tree = {"probe": {}, "normalised": {}, "return": {}, "recovery": {}, "slots": {}}
    for task in results.tasks:
        tree["probe"][task] = {variant: _mean(select(results.probes, task=task, variant=variant), "ridge_mse")
                               for variant in LATENT}
        largest = {row["variant"]: row for row in select(results.returns, task=task, budget=results.largest)}
        tree["normalised"][task] = {variant: _round(row["normalised"]) for variant, row in largest.items()}
        full = select(results.returns, task=task, budget=0)
        tree["return"][task] = {"expert": _round(results.experts[task]),
                                **{row["variant"]: _round(row["mean"]) for row in full}}
        means = {variant: row["mean"] for variant, row in largest.items()}
        tree["recovery"][task] = {
            name: {variant: _round(recovery(*(values.get(key) for key in (variant, "lapo", CLEAN)), errors))
                   for variant in RECOVERING}
            for name, values, errors in (("probe", tree["probe"][task], True), ("return", means, False))}
        tree["slots"][task] = {key: _mean(select(results.selections, task=task), key)
                               for key in (*_SLOT_MEASURES, "fg_ari")}
    return tree


def select(rows: list[dict], **wanted) -> list[dict]:
    """The rows whose columns have the wanted values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def labels_used(variant: str, budget: int, selection: int, largest: int) -> int | None:
    """How many labelled trajectories stand behind a policy; None for all of them.

    All are the first of one order (`Dataset.labelled`), so the larger number contains the smaller. What
    clones all labels has budget 0, and None here.

    Args:
        budget: trajectories that fine-tuned the policy.
        selection: those that chose restarts and slots.
        largest: of the budgets, from which `laom-labels` learns its latent actions.
    """
    row = VARIANTS[variant]
    if row.labels == "all":
        return None
    return max(budget, selection if row.on_slots else 0, largest if row.supervised else 0)


def _probe(task, seed, variant, table, used):
    scalars = {key: value for key, value in table.items() if not isinstance(value, list)}
    return {"task": task, "seed": seed, "variant": variant, "labels": used(variant, 0), "state_variance_kept": None,
            **scalars}


def _dimensions(task, seed, variant, table):
    return [{"task": task, "seed": seed, "variant": variant, "dimension": dimension, "ridge_mse": error, "ridge_r2": r2}
            for dimension, (error, r2)
            in enumerate(zip(table["ridge_mse_per_dim"], table["ridge_r2_per_dim"], strict=True))]


def _compared(task, seed, models):
    for _, about in models.values():
        if about["slots"]:
            yield {"task": task, "seed": seed, "model": about["model"], "slot": about["best"],
                   "fg_ari": about["fg_ari"], **about["slots"][about["best"]]}


def _returns(task, policies, used):
    table = {}  # (variant, budget) -> returns (seeds, episodes)
    for variant, evaluated in policies.items():
        asked, _ = list(evaluated)[-1]  # the other backgrounds stand first
        table |= {(variant, budget): returns for (backgrounds, budget), returns in evaluated.items()
                  if backgrounds == asked}
    rows = []
    for (variant, budget), returns in table.items():
        full = table[normaliser(variant), 0].mean()
        statistics = {key: value if math.isfinite(value) else None for key, value in summary(returns).items()}
        shares = {"normalised" if key == "mean" else f"normalised_{key}":
                  None if value is None or full <= 0 else 100 * value / full for key, value in statistics.items()}
        rows.append({"task": task, "variant": variant, "budget": budget,
                     "labels": used(variant, budget), "seeds": returns.shape[0],
                     "episodes": returns.shape[1], "by_seed": " ".join(f"{mean:.1f}" for mean in returns.mean(1)),
                     **statistics, **shares, **_improvement(returns, table.get(("lapo", budget)), variant)})
    return rows


def _evaluated(task, variant, tables):
    """{(backgrounds, budget): returns (seeds, episodes)}, in the order of the tables, {seed: rows}."""
    asked = dict.fromkeys((row["backgrounds"], row["budget"]) for rows in tables.values() for row in rows)
    episodes = {row["episode"] for rows in tables.values() for row in rows}
    for seed, rows in tables.items():
        if len(rows) != len(asked) * len(episodes):
            path = paths.evaluation(task, seed, variant)
            raise UserError(f"{path}: {len(rows)} rows of {len(asked)} evaluations x {len(episodes)} episodes; delete "
                            f"{path} and run `dvc repro`")
    return {key: np.array([[row["return"] for row in rows if (row["backgrounds"], row["budget"]) == key]
                           for rows in tables.values()]) for key in asked}


def _generalisation(task, policies, used):
    for variant, evaluated in policies.items():
        budget = max(budget for _, budget in evaluated)
        both = {backgrounds: evaluated.get((backgrounds, budget)) for backgrounds in ("train", "test")}
        if all(returns is not None for returns in both.values()):  # else there are no background videos
            yield {"task": task, "variant": variant, "budget": budget, "labels": used(variant, budget),
                   **{f"{backgrounds}_{key}": value for backgrounds, returns in both.items()
                      for key, value in summary(returns).items() if key in ("mean", "stderr")}}


def _improvement(returns, lapo, variant):
    """The probability of improvement over lapo, None where there is no lapo, or it is the variant; and its interval,
    for which one episode is not enough."""
    if lapo is None or variant == "lapo":
        return dict.fromkeys(("improvement", "improvement_low", "improvement_high"))
    low, high = improvement_interval(returns, lapo) if returns.size > 1 else (None, None)
    chance = float(improvement(returns.ravel(), lapo.ravel()))
    return {"improvement": chance, "improvement_low": low, "improvement_high": high}


def _losses(task, seed, restart, compared, largest):
    logs = [("ocp", "ocp", paths.ocp(task, seed, restart))]
    logs += [("lapo", variant, paths.lapo(task, seed, variant)) for variant in LATENT]
    logs += [("bc", variant, paths.actor(task, seed, variant)) for variant in (*LATENT, *ALL_LABELS)]
    logs = [(stage, variant, read_csv(path)) for stage, variant, artifact in logs
            if not is_absent(path := paths.log(artifact))]
    logs += [("finetune", variant, select(read_csv(path), budget=largest)) for variant in FEW
             if not is_absent(path := paths.log(paths.policies(task, seed, variant)))]
    logs[1:1] = [("ocp", name, about["log"]) for name, (_, about) in compared.items()]
    return [{"task": task, "seed": seed, "stage": stage, "variant": variant, "step": row["step"], "loss": row["loss"]}
            for stage, variant, rows in logs for row in rows]


def _parameters(task, seed, restart):
    ocp = read_json(paths.parameters(paths.ocp(task, seed, restart)))
    counts = {variant: None if is_absent(path := paths.parameters(paths.lapo(task, seed, variant))) else
              read_json(path)["total"] for variant in LATENT}
    actor = read_json(paths.parameters(paths.actor(task, seed, LATENT[0])))["total"]
    return {"ocp (total)": ocp["total"], "ocp (trainable)": ocp["trainable"], **counts, "bc": actor}


def _durations(scale, tasks, seeds, restarts, compared):
    pairs = [(task, seed) for task in tasks for seed in seeds]
    absent = {name for name in (*LATENT, *ALL_LABELS)
              if all(is_absent(paths.log(paths.actor(*pair, name))) for pair in pairs)}
    latent, cloned, acted = ([name for name in names if name not in absent] for names in (LATENT, ALL_LABELS, VARIANTS))
    models = dict.fromkeys(name for found in compared.values() for name in found)
    each = [f"{task}-{seed}" for task, seed in pairs]
    stages = [("backgrounds", None, [""]), ("encoder", None, [""]), ("expert", None, tasks)]
    stages += [("collect", view, [f"{task}-{view}" for task in tasks]) for view in ("distracted", "clean")]
    stages += [("ocp", None, [f"{run}-{restart}" for run in each for restart in restarts])]
    stages += [(stage, None, each) for stage in ("slots", "slot-select", *models, "scratch")]
    for stage, variants in (("lapo", latent), ("bc", latent), ("bc-full", cloned), ("finetune", latent),
                            ("eval", acted)):
        stages += [(stage, variant, [f"{run}-{variant}" for run in each]) for variant in variants]
    rows = []
    for stage, variant, runs in stages:
        # Scripts of stage lapo: lapo, laom, and those that a variant has for itself.
        scripts = {VARIANTS[variant].model, variant} if stage == "lapo" else {stage}
        files = [paths.duration("-".join(filter(None, [script, run]))) for run in runs for script in scripts]
        found = [row for row in (read_json(file) for file in files if file.exists()) if row.get("scale") == scale]
        seconds = sum(row["seconds"] for row in found)
        rows.append({"stage": stage, "variant": variant, "runs": len(found), "of": len(runs),
                     "seconds": seconds if found else None, "mean": seconds / len(found) if found else None,
                     "hardware": ", ".join(sorted({row["hardware"] for row in found}))})
    return rows


def _mean(rows, key):
    return _round(average([row[key] for row in rows]))


def _named(slots):
    return f"slot {' and '.join(map(str, slots))}"  # always a word, as a column of CSV must be


def _round(value):
    """Four significant digits, more than any of these numbers is exact to."""
    return None if value is None else float(f"{value:.4g}")


def _count(number, noun):
    return f"{number} {noun}{'' if number == 1 else 's'}"

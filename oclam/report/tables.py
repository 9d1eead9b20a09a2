"""The report's tables as text: this run's numbers, their ratio to lapo, and the paper's beside them."""

import math
from dataclasses import dataclass

import numpy as np

from oclam.report.results import (
    LATENT_VARIANTS,
    PAPER_DURATIONS,
    PAPER_FULL,
    PAPER_PARAMETERS,
    PAPER_PROBES,
    PAPER_RETURNS,
    normaliser,
    select,
)

__all__ = ["Cell", "Table", "number", "tables", "warnings"]


@dataclass(frozen=True)
class Cell:
    """One entry: this run's value, its ratio to lapo and the paper's, each as text."""

    value: str
    ratio: str = ""
    paper: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A captioned table of a section; `rows` are (heading, cells), as many cells as `columns` or none at all."""

    section: str
    title: str
    note: str
    columns: tuple
    rows: list


def tables(results):
    """Every table of the report, in order. Returns Tables."""
    return [_probes(results), *_dimensions(results), _returns(results), _statistics(results), _full(results),
            *_slots(results), _parameters(results), _paper_durations(results), _durations(results)]


def warnings(results):
    """What a reader must know before believing a number: one sentence each."""
    found = []
    if results.encoder.get("source") == "random":
        found.append("The encoder has random weights: slots, and what is built on them, say nothing of the method.")
    for row in results.selections:
        if not row["better_than_whole_frame"]:
            found.append(f"{row['task']}, seed {row['seed']}: no slot predicts actions better than the whole frame; do "
                         "not expect what is built on the chosen slots to beat lapo.")
    for row in results.probes:
        if row["ridge_mse"] >= row["shuffled_mse"]:
            found.append(f"{row['task']}, seed {row['seed']}, {row['variant']}: the probe is no better than on "
                         "shuffled latents; these latent actions hold nothing of the true ones.")
    for task in results.tasks:
        share = select(results.returns, task=task, variant="bc-no-distractors")[0]["mean"] / results.experts[task]
        if share < 0.6:
            found.append(f"{task}: behaviour cloning on all true actions without distractors reaches {share:.0%} of "
                         "the expert's return; normalised returns below it mean little.")
    return found


def number(value, spread=None):
    """Three significant digits (integers whole), a dash for None; `spread` follows a ± to as many decimals."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    decimals = max(2 - math.floor(math.log10(abs(value))), 0) if value else 0
    return f"{value:,.{decimals}f}" + ("" if spread is None else f" ± {spread:.{decimals}f}")


def _probes(results):
    rows = []
    for task in results.tasks:
        rows.append((task, []))
        for key, heading in (("online_mse", "online probe"), ("ridge_mse", "ridge probe")):
            values = {variant: [row[key] for row in select(results.probes, task=task, variant=variant)]
                      for variant in LATENT_VARIANTS}
            paper = PAPER_PROBES.get(task, {}) if key == "online_mse" else {}
            rows.append((heading, _beside(values, {}, paper, lower=True)))
        for key, heading in (("ridge_r2", "ridge, R²"), ("shuffled_mse", "shuffled latents"),
                             ("frame_difference_mse", "frame differences")):
            means = [np.mean([row[key] for row in select(results.probes, task=task, variant=variant)])
                     for variant in LATENT_VARIANTS]
            rows.append((heading, [Cell(number(mean)) for mean in means]))
    variance = number(np.mean([row["action_variance"] for row in results.probes]))
    note = ("Mean squared error of true actions predicted linearly from latent actions, on held-out trajectories; "
            "lower is better, × tells how many times lower than lapo's. The online probe, trained beside the model, "
            f"is the paper's; the ridge probe is stricter. To compare: the mean action alone gives {variance}, and the "
            "last rows are ridges on latents in another order and on differences of the view's frames.")
    return Table("probes", "Table 1. Action probes", note, LATENT_VARIANTS, rows)


def _dimensions(results):
    note = "Share of each true action's variance that the ridge probe explains: 1 is all of it, 0 none."
    for task in results.tasks:
        of_task, rows = select(results.dimensions, task=task), []
        dimensions = sorted({row["dimension"] for row in of_task})
        for variant in LATENT_VARIANTS:
            means = [np.mean([row["ridge_r2"] for row in select(of_task, variant=variant, dimension=dimension)])
                     for dimension in dimensions]
            rows.append((variant, [Cell(number(mean)) for mean in means]))
        columns = tuple(f"action {dimension + 1}" for dimension in dimensions)
        yield Table("probes", f"R² by action dimension, {task}", note, columns, rows)


def _returns(results):
    variants, budgets = (*LATENT_VARIANTS, "scratch"), sorted({row["budget"] for row in results.returns} - {0})
    rows = []
    for task in results.tasks:
        rows.append((task, []))
        for budget in budgets:
            found = {row["variant"]: row for row in select(results.returns, task=task, budget=budget)}
            values = {variant: [found[variant]["normalised"]] for variant in variants}
            spreads = {variant: found[variant]["normalised_stderr"] for variant in variants}
            paper = PAPER_RETURNS.get(task, {}) if budget == budgets[-1] else {}
            rows.append((f"{budget} labelled", _beside(values, spreads, paper, lower=False)))
    note = ("100 × return / return of bc with all labels in the same view; higher is better, × is the ratio to "
            "lapo, ± the standard error. The paper fine-tunes on 32 to 128 trajectories and prints one number, put "
            "here beside the largest budget. scratch is the control: the same labels without latent pretraining.")
    return Table("returns", "Table 2. Normalised return after fine-tuning", note, variants, rows)


def _statistics(results):
    rows = []
    for task in results.tasks:
        rows.append((task, []))
        for row in select(results.returns, task=task):
            labels = f"{row['budget']} labelled" if row["budget"] else "all labels"
            rows.append((f"{row['variant']}, {labels}", [
                Cell(number(row["mean"], row["stderr"])), Cell(number(row["iqm"])),
                Cell(f"{number(row['low'])} to {number(row['high'])}"), Cell(number(row["normalised"])),
                Cell(f"{row['seeds']} × {row['episodes']}")]))
    note = ("Undiscounted return of an episode: mean and standard error, interquartile mean with its 95% bootstrap "
            "interval (arXiv 2108.13264).")
    columns = ("mean", "IQM", "95% interval", "normalised", "seeds × episodes")
    return Table("returns", "Returns of every policy", note, columns, rows)


def _full(results):
    names, rows = ("bc-no-distractors", "bc"), []
    for task in results.tasks:
        expert, paper = results.experts[task], PAPER_FULL.get(task, {})
        cells = [Cell(number(float(expert)), paper=_paper(paper.get("expert")))]
        for name in names:
            row = select(results.returns, task=task, variant=name, budget=0)[0]
            cells.append(Cell(number(row["mean"], row["stderr"]), f"{row['mean'] / expert:.0%} of expert",
                              _paper(paper.get(name))))
        rows.append((task, cells))
    note = "Return of an episode: what Table 2 divides by. The expert acts in the videos."
    return Table("returns", "Table 3. Behaviour cloning on all true actions", note, ("expert", *names), rows)


def _slots(results):
    columns = {"probe_mse": "error behind mask", "probe_r2": "R²", "vector_mse": "error of vector",
               "agent_iou": "IoU with agent", "agent_recall": "recall", "area": "area", "stability": "stability"}
    for choice in results.selections:
        found = select(results.slots, task=choice["task"], seed=choice["seed"])
        lowest = min(row["probe_mse"] for row in found)
        rows = [(f"slot {row['slot']}" + (", chosen" if row["chosen"] else ""),
                 [Cell(number(row[key]), best=key == "probe_mse" and row[key] == lowest) for key in columns])
                for row in found]
        together = {**choice, **choice["chosen_probe"]}
        rows.append(("chosen, together", [Cell(number(together[key])) for key in columns]))
        rows.append(("their mask, by pixels", [Cell(number(choice["mask"].get(key))) for key in columns]))
        rows.append(("whole frame", [Cell(number(choice["whole_frame"].get(key))) for key in columns]))
        best = select(results.steve, task=choice["task"], seed=choice["seed"])
        rows += [(f"STEVE, slot {row['slot']}, its best", [Cell(number(row.get(key))) for key in columns])
                 for row in best]
        note = (f"{choice['why']} Model: {choice['model']}. Probes predict true actions on the small labelled budget "
                "only. ")
        if choice["fg_ari"] is None:
            note += "There is no segmentation in this dataset to judge the choice by."
        else:
            note += (f"FG-ARI {number(choice['fg_ari'])}. It, IoU, recall, area and stability come from the "
                     "simulator's segmentation on the patch grid, the mask's (what lapo-masks sees) on pixels; they "
                     "judge the choice and never make it. STEVE's best slot is the one with the highest IoU.")
        yield Table("slots", f"Choice of slots, {choice['task']}, seed {choice['seed']}", note, tuple(columns.values()),
                    rows)


def _parameters(results):
    rows = [(name, [Cell(number(results.parameters[name])), Cell(number(count))])
            for name, count in PAPER_PARAMETERS.items()]
    note = "The paper's parameter file gives the paper's counts; smaller scales have the same models at smaller sizes."
    return Table("cost", "Table 4. Parameters", note, ("this run", "paper"), rows)


def _paper_durations(results):
    measured = [row for row in results.durations if row["mean"] is not None]
    rows = []
    for name, seconds in PAPER_DURATIONS.items():
        parts = [[row for row in measured if part == (row["variant"] if row["stage"] == "lapo" else row["stage"])]
                 for part in name.split(" + ")]
        ours = sum(np.mean([row["mean"] for row in part]) for part in parts) if all(parts) else None
        hardware = ", ".join(sorted({row["hardware"] for part in parts for row in part})) or "–"
        rows.append((name, [Cell(_time(ours)), Cell(hardware), Cell(_time(seconds))]))
    note = ("Wall-clock of one run of the stage: one task, one seed, one variant. A dash stands for what was not "
            "run on this machine but came from DVC's cache.")
    return Table("cost", "Table 5. Durations", note, ("this run", "hardware", "paper, one H100"), rows)


def _durations(results):
    rows = [(row["stage"] + (f", {row['variant']}" if row["variant"] else ""),
             [Cell(_time(row["mean"])), Cell(_time(row["seconds"])), Cell(f"{row['runs']} of {row['of']}"),
              Cell(row["hardware"] or "–")]) for row in results.durations]
    total = sum(row["seconds"] or 0 for row in results.durations)
    rows.append(("all stages", [Cell(""), Cell(_time(total)), Cell(""), Cell("")]))
    return Table("cost", "Wall-clock of every stage", "", ("mean of a run", "in all", "runs", "hardware"), rows)


def _beside(values, spreads, paper, *, lower):
    """Cells of one row from each variant's values over seeds; the best variant that sees distractors is marked."""
    means = {name: None if None in entries else float(np.mean(entries)) for name, entries in values.items()}
    rivals = [mean for name, mean in means.items() if mean is not None and normaliser(name) == "bc"]
    best = (min if lower else max)(rivals, default=None)
    cells = []
    for name, mean in means.items():
        quoted, ratios = paper.get(name), name != "lapo"
        cells.append(Cell(
            number(mean, spreads.get(name, _standard_error(values[name]))),
            _ratio(mean, means["lapo"], lower) if ratios else "",
            _paper(*quoted, _ratio(quoted[0], paper["lapo"][0], lower) if ratios else "") if quoted else "",
            mean is not None and mean == best and normaliser(name) == "bc"))
    return cells


def _standard_error(values):
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def _ratio(value, lapo, lower):
    over, under = (lapo, value) if lower else (value, lapo)
    return f"×{float(f'{over / under:.2g}'):g}" if over is not None and under else ""


def _paper(value, spread=None, ratio=""):
    if value is None:
        return ""
    return f"paper {value:g}" + ("" if spread is None else f" ± {spread:g}") + f" {ratio}".rstrip()


def _time(seconds):
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} m" if hours else f"{minutes} m {rest} s" if minutes else f"{number(float(seconds))} s"

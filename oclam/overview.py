"""Markdown tables over the tasks of published runs: `python -m oclam.overview reports/study-cpu-*`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from oclam.artifacts import read_csv, read_json
from oclam.cli import one_line_errors
from oclam.report.results import CLEAN, RECOVERING, select
from oclam.report.statistics import recovery
from oclam.report.tables import PAPER_EXPERT, paper_r2
from oclam.variants import ACTION_VARIANCE, ALL_LABELS, LATENT, VARIANTS, normaliser

PAPER_BUDGETS = range(32, 129)  # of the label budgets whose mean return the paper reports
FEW = tuple(name for name, row in VARIANTS.items() if row.labels == "few")


def overview(runs: Sequence[Path | str]) -> str:
    """Three tables with a row for each variant: R² of the ridge probe and returns by task, returns by label budget.

    Returns are in % of the demonstrations'; ± is returns.csv's standard error, of seeds where there are several, else
    of episodes. Probe errors are compared by the mean of the tasks' ratios, as their units differ; returns by the ratio
    of means over tasks, as in the paper. Recovery (arXiv 2502.09680v3) is of means over tasks, of errors divided by
    lapo's or of returns in %. A dash stands for what was not measured or has no divisor.

    runs: folders of `make publish`, each with other tasks. Raises UserError for a missing or damaged table.
    """
    probes, returns = ([row for run in runs for row in read_csv(Path(run) / name)]
                       for name in ("probes.csv", "returns.csv"))
    experts = {task: values["expert"] for run in runs
               for task, values in read_json(Path(run) / "metrics.json")["return"].items()}
    tasks = sorted(experts, key=lambda task: ([*ACTION_VARIANCE, task].index(task), task))  # the paper's first
    return "\n".join([_probes(probes, tasks), _returns(returns, tasks, experts), _by_budget(returns, tasks, experts)])


def _probes(rows, tasks):
    errors, variances = (_grid(rows, key, LATENT, tasks) for key in ("ridge_mse", "action_variance"))
    papers = {name: np.array([VARIANTS[name].paper.probe.get(task, [np.nan])[0] for task in tasks]) for name in LATENT}
    ours, theirs = ({name: row / np.where(table["lapo"] > 0, table["lapo"], np.nan) for name, row in table.items()}
                    for table in (errors, papers))

    def cells(name):
        r2 = 1 - errors[name] / np.where(variances[name] > 0, variances[name], np.nan)
        return [_cell(value, ".2f", paper=paper_r2(task, name)) for value, task in zip(r2, tasks, strict=True)]

    return _table(["R² (paper)", *tasks, "times better than lapo (paper)", "recovery (paper)"],
                  {name: cells(name) + _compared(name, ours, theirs, lower=True) for name in _present(errors)})


def _returns(rows, tasks, experts):
    names = (*FEW, *ALL_LABELS)
    asked = [row for row in rows if row["budget"] in PAPER_BUDGETS or row["budget"] == 0]
    ours, spreads = (_shares(asked, key, names, tasks, experts) for key in ("mean", "stderr"))
    theirs = {name: np.array([_paper_share(name, task) for task in tasks]) for name in names}

    def cells(name):
        columns = zip(_and_mean(ours[name]), [*spreads[name], _of_mean(spreads[name])], _and_mean(theirs[name]),
                      strict=True)
        return [_cell(value, ".1f", spread, paper) for value, spread, paper in columns]

    heads = ["% of the demonstrations' return (paper)", *tasks, "mean", "times lapo's (paper)", "recovery (paper)"]
    return _table(heads, {name: cells(name) + _compared(name, ours, theirs, lower=False) for name in _present(ours)})


def _by_budget(rows, tasks, experts):
    budgets = sorted({row["budget"] for row in rows} - {0})
    ours, spreads = ([_shares(select(rows, budget=budget), key, FEW, tasks, experts) for budget in budgets]
                     for key in ("mean", "stderr"))
    return _table(["labelled trajectories", *map(str, budgets)], {
        name: [_cell(values[name].mean(), ".1f", _of_mean(errors[name]))
               for values, errors in zip(ours, spreads, strict=True)]
        for name in _present(ours[0])})


def _grid(rows, key, names, tasks):
    """{variant: means of a column (tasks,), NaN where there is none}."""
    found = {(name, task): [row[key] for row in select(rows, variant=name, task=task) if row[key] is not None]
             for name in names for task in tasks}
    return {name: np.array([np.mean(found[name, task]) if found[name, task] else np.nan for task in tasks])
            for name in names}


def _shares(rows, key, names, tasks, experts):
    divisors = np.array([experts[task] or np.nan for task in tasks], float)
    return {name: 100 * row / divisors for name, row in _grid(rows, key, names, tasks).items()}


def _paper_share(name, task):
    """The paper's return in % of its expert's (Tables 2 and 3), NaN where it has none."""
    paper, whole = VARIANTS[name].paper, VARIANTS[normaliser(name)].paper.returns.get(task, np.nan)
    share = 100 if name in ALL_LABELS else paper.normalised.get(task, [np.nan])[0]
    return share * whole / PAPER_EXPERT.get(task, np.nan)


def _and_mean(values):
    return [*values, values.mean()]


def _of_mean(spreads):
    """The standard error of the mean over tasks."""
    return np.sqrt(np.square(spreads).sum()) / len(spreads)


def _present(grid):
    return [name for name, row in grid.items() if not np.isnan(row).all()]


def _compared(name, ours, theirs, lower):
    """Cells: how many times better than lapo, and recovery, each with the paper's."""
    pairs = []
    for table in (ours, theirs):
        known = ~np.isnan(table[name]) & ~np.isnan(table["lapo"])
        value, lapo, clean = (table[row][known] for row in (name, "lapo", CLEAN))
        times = share = None
        if known.any() and lapo.mean() > 0 and value.all():
            times = (lapo / value).mean() if lower else value.mean() / lapo.mean()
        if known.any() and name in RECOVERING and not np.isnan(clean).any():
            share = recovery(value.mean(), lapo.mean(), clean.mean(), lower)
        pairs.append((times, share))
    (times, share), (paper_times, paper_share) = pairs
    return [_cell(times, ".2g", paper=paper_times if name != "lapo" else None), _cell(share, ".0%", paper=paper_share)]


def _cell(value, form, spread=np.nan, paper=None):
    if value is None or np.isnan(value):
        return "–"
    text = format(value, form) + ("" if np.isnan(spread) else f" ± {spread:{form}}")
    return text + ("" if paper is None or np.isnan(paper) else f" ({paper:{form}})")


def _table(heads, lines):
    head, *rows = (f"| {' | '.join(row)} |" for row in [heads, *([name, *cells] for name, cells in lines.items())])
    return "\n".join([head, "|---" * len(heads) + "|", *rows]) + "\n"


def main():
    parser = argparse.ArgumentParser(prog="python -m oclam.overview", description="README's tables over tasks.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a published run, as reports/study-cpu-*")
    print(overview(parser.parse_args().runs))


if __name__ == "__main__":
    one_line_errors(main)

"""Markdown tables over the tasks of published runs: `python -m oclam.overview reports/study-cpu-*`."""

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from oclam.artifacts import read_csv, read_json
from oclam.cli import one_line_errors
from oclam.errors import Absent, UserError
from oclam.params import read
from oclam.report.results import CLEAN, FEW, RECOVERING, select
from oclam.report.statistics import recovery
from oclam.report.tables import PAPER_EXPERT, paper_r2
from oclam.variants import ACTION_VARIANCE, ALL_LABELS, LATENT, VARIANTS, normaliser

PAPER_BUDGETS = range(32, 129)  # of the label budgets whose mean return the paper reports
PAPER_SCALE = 0.1  # of its colour and camera changes; harder runs stand without its numbers


def overview(runs: Sequence[Path | str]) -> list[str]:
    """Three tables with a row for each variant: R² of the ridge probe and returns by task, returns by label budget.

    Returns are in % of the demonstrations', the paper's in % of its expert's; ± is returns.csv's standard error (of
    several budgets the mean, of a mean over tasks by their squares). Probe errors are compared by the mean of the
    tasks' ratios, as their units differ; returns by the ratio of means over tasks. Recovery (arXiv 2502.09680v3)
    compares means over tasks: of returns in %, and of errors divided by lapo's of the task. A dash stands for what was
    not measured, or has no divisor: none within two standard errors of 0. Runs with harder distractors than the
    paper's stand without its numbers.

    runs: folders of `make publish`, each with other tasks; what a run could not measure has no rows. Raises UserError
    for a missing or damaged table, and for two runs of one task.
    """
    probes, returns = ([row for run in runs for row in rows_of(Path(run) / name)]
                       for name in ("probes.csv", "returns.csv"))
    found = [(task, values["expert"]) for run in runs
             for task, values in read_json(Path(run) / "metrics.json")["return"].items()]
    if len(experts := dict(found)) < len(found):
        raise UserError(f"{', '.join(map(str, runs))}: two runs have the same task; name one of each")
    tasks = sorted(experts, key=lambda task: ([*ACTION_VARIANCE, task].index(task), task))  # the paper's first
    as_paper = all(max(env.color * env.color_scale, env.camera * env.camera_scale) <= PAPER_SCALE
                   for env in (read(Path(run) / "params.yaml").env for run in runs))
    tables = [_probes(probes, tasks), _returns(returns, tasks, experts), _by_budget(returns, tasks, experts)]
    return tables if as_paper else [re.sub(r" \([^)]*\)", "", text) for text in tables]  # only its numbers stand there


def rows_of(path: Path) -> list[dict]:
    """The rows of a published table; none where a run could not measure it."""
    try:
        return read_csv(path)
    except Absent:
        return []


def _probes(rows, tasks):
    errors, variances = (_grid(rows, key, LATENT, tasks) for key in ("ridge_mse", "action_variance"))
    papers = {name: np.array([VARIANTS[name].paper.probe.get(task, [np.nan])[0] for task in tasks]) for name in LATENT}
    ours, theirs = ({name: row / np.where(table["lapo"] > 0, table["lapo"], np.nan) for name, row in table.items()}
                    for table in (errors, papers))

    def cells(name):
        r2 = 1 - errors[name] / np.where(variances[name] > 0, variances[name], np.nan)
        return [_cell(value, ".2f", paper=paper_r2(task, name)) for value, task in zip(r2, tasks, strict=True)]

    return markdown(["R² (paper)", *tasks, "times better than lapo (paper)", "recovery (paper)"],
                    {name: cells(name) + _compared(name, ours, theirs) for name in _present(errors)})


def _returns(rows, tasks, experts):
    names = (*FEW, *ALL_LABELS)
    asked = [row for row in rows if row["budget"] in (0, *PAPER_BUDGETS)]
    ours, spreads = (_shares(asked, key, names, tasks, experts) for key in ("mean", "stderr"))
    theirs = {name: np.array([_paper_share(name, task) for task in tasks]) for name in names}
    mean = ["mean"] * (len(tasks) > 1)

    def cells(name):
        value, spread, paper = ours[name], spreads[name], theirs[name]
        columns = [*zip(value, spread, paper, strict=True), (value.mean(), _of_mean(spread), paper.mean())]
        return [_cell(each, ".1f", *others) for each, *others in columns[:len(tasks) + len(mean)]]

    heads = ["% of the demonstrations' return (paper)", *tasks, *mean, "times lapo's (paper)", "recovery (paper)"]
    return markdown(heads, {name: cells(name) + _compared(name, ours, theirs, spreads["lapo"])
                            for name in _present(ours)})


def _by_budget(rows, tasks, experts):
    budgets = sorted({row["budget"] for row in rows} - {0})
    grids = [[_shares(select(rows, budget=budget), key, FEW, tasks, experts) for key in ("mean", "stderr")]
             for budget in budgets]
    return markdown(["labelled trajectories", *map(str, budgets)], {
        name: [_cell(means[name].mean(), ".1f", _of_mean(errors[name])) for means, errors in grids]
        for name in FEW if select(rows, variant=name)})


def _grid(rows, key, names, tasks):
    """{variant: means of a column (tasks,), NaN where there is none}."""
    def mean(name, task):
        found = [row[key] for row in select(rows, variant=name, task=task) if row[key] is not None]
        return np.mean(found) if found else np.nan

    return {name: np.array([mean(name, task) for task in tasks]) for name in names}


def _shares(rows, key, names, tasks, experts):
    divisors = np.array([experts[task] or np.nan for task in tasks], float)
    return {name: 100 * row / divisors for name, row in _grid(rows, key, names, tasks).items()}


def _paper_share(name, task):
    """The paper's return in % of its expert's (Tables 2 and 3), NaN where it has none."""
    paper, whole = VARIANTS[name].paper, VARIANTS[normaliser(name)].paper.returns.get(task, np.nan)
    share = 100 if name in ALL_LABELS else paper.normalised.get(task, [np.nan])[0]
    return share * whole / PAPER_EXPERT.get(task, np.nan)


def _of_mean(spreads):
    """The standard error of the mean over tasks."""
    return np.sqrt(np.square(spreads).sum()) / len(spreads)


def _present(grid):
    return [name for name, row in grid.items() if not np.isnan(row).all()]


def _compared(name, ours, theirs, spreads=None):
    """Cells: how many times better than lapo, and recovery, each with the paper's; `spreads`: of lapo's returns."""
    times, share = _against_lapo(name, ours, spreads)
    paper_times, paper_share = _against_lapo(name, theirs, None if spreads is None else np.zeros_like(spreads))
    times, paper_times = (value and float(f"{value:.2g}") for value in (times, paper_times))  # 120 instead of 1.2e+02
    return [_cell(times, "g", paper=None if name == "lapo" else paper_times), _cell(share, ".0%", paper=paper_share)]


def _against_lapo(name, table, spreads):
    """The two numbers, over the tasks where both this variant and lapo are known; None for what has no divisor.

    spreads: standard errors of lapo's returns; None where the table holds errors, of which less is better.
    """
    known = ~np.isnan(table[name] + table["lapo"])
    if not known.any():
        return None, None
    value, lapo, clean = (table[row][known] for row in (name, "lapo", CLEAN))
    if spreads is None:
        times = (lapo / value).mean() if value.all() else None
    else:
        times = value.mean() / lapo.mean() if lapo.mean() > 2 * _of_mean(np.nan_to_num(spreads[known])) else None
    recovers = name in RECOVERING and not np.isnan(clean).any()
    return times, recovery(value.mean(), lapo.mean(), clean.mean(), spreads is None) if recovers else None


def _cell(value, form, spread=np.nan, paper=None):
    if value is None or np.isnan(value):
        return "–"
    text = format(value, form) + ("" if np.isnan(spread) else f" ± {spread:{form}}")
    return text + ("" if paper is None or np.isnan(paper) else f" ({paper:{form}})")


def markdown(heads: Sequence[str], lines: dict[str, Iterable[str]]) -> str:
    """A table: the column headings, then a line of each heading with its cells."""
    head, *rows = (f"| {' | '.join(row)} |" for row in [heads, *([name, *cells] for name, cells in lines.items())])
    return "\n".join([head, "|---" * len(heads) + "|", *rows]) + "\n"


def main():
    parser = argparse.ArgumentParser(prog="python -m oclam.overview", description="README's tables over tasks.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a published run, as reports/study-cpu-*")
    print(*overview(parser.parse_args().runs), sep="\n")


if __name__ == "__main__":
    one_line_errors(main)

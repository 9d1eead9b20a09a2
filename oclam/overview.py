"""Markdown tables over the tasks of published runs: `python -m oclam.overview reports/study-cpu-*`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from oclam.artifacts import read_csv
from oclam.cli import one_line_errors
from oclam.report.results import CLEAN, RECOVERING, select
from oclam.report.statistics import recovery
from oclam.report.tables import number, paper_r2
from oclam.variants import ACTION_VARIANCE, LATENT, VARIANTS, normaliser

PAPER_BUDGETS = range(32, 129)  # of the label budgets whose mean return the paper reports


def overview(runs: Sequence[Path | str]) -> str:
    """Two tables, a row for each variant and a column for each task: R² of the ridge probe, and returns.

    The last two columns: how many times better than lapo, mean over tasks; and recovery (arXiv 2502.09680v3), computed
    from means over tasks of errors or returns divided by lapo's: one task's is unstable where distractors cost little.
    Tasks where lapo's is 0 are left out of both.

    runs: folders of `make publish`, each with other tasks. Raises UserError for a missing or damaged table.
    """
    probes, returns = ([row for run in runs for row in read_csv(Path(run) / name)]
                       for name in ("probes.csv", "returns.csv"))
    return f"{_probes(probes)}\n{_returns(returns)}"


def _probes(rows):
    errors = _means(rows, "ridge_mse")
    variances = _means(rows, "action_variance")

    def cell(variant, task):
        paper = paper_r2(task, variant)
        variance = variances[task][variant]
        ours = f"{1 - errors[task][variant] / variance:.2f}" if variance else "–"
        return ours + ("" if paper is None else f" ({paper:.2f})")

    paper = {name: {task: error for task, (error, _) in VARIANTS[name].paper.probe.items()} for name in LATENT}
    return _table("R² (paper)", paper, cell, errors, lower=True)


def _returns(rows):
    means = _means([row for row in rows if row["budget"] in PAPER_BUDGETS], "mean")
    full = _means(select(rows, budget=0), "mean")

    def cell(variant, task):
        paper = VARIANTS[variant].paper.normalised.get(task)
        whole = full[task][normaliser(variant)]
        share = f"{means[task][variant] / whole:.0%}" if whole else "–"
        return f"{number(means[task][variant])}: {share}" + (f" ({paper[0]:.0f}%)" if paper else "")

    few = [name for name, row in VARIANTS.items() if row.labels == "few"]
    paper = {name: {task: share * VARIANTS[normaliser(name)].paper.returns[task]
                    for task, (share, _) in VARIANTS[name].paper.normalised.items()} for name in few}
    return _table("return: share of bc's (paper)", paper, cell, means, lower=False)


def _means(rows, key):
    """{task: {variant: mean of a column}}, the paper's tasks first."""
    tasks = sorted({row["task"] for row in rows}, key=lambda task: ([*ACTION_VARIANCE, task].index(task), task))
    return {task: {name: float(np.mean([row[key] for row in found])) for name in VARIANTS
                   if (found := select(rows, task=task, variant=name))} for task in tasks}


def _table(corner, paper, cell, means, lower):
    """One table of the paper's {variant: {task: value}} and our {task: {variant: value}}; `lower`: less is better."""
    heads = [corner, *means, "times better than lapo (paper)", "recovery"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for variant in (name for name in paper if any(name in values for values in means.values())):
        there = [values for values in means.values() if variant in values and values.get("lapo")]
        ratios, clean = ([values.get(name, np.nan) / values["lapo"] for values in there] for name in (variant, CLEAN))
        papers = [paper[variant][task] / paper["lapo"][task] for task in means if task in paper[variant]]
        better = _better(ratios, lower) + (f" ({_better(papers, lower)})" if papers and variant != "lapo" else "")
        known = variant in RECOVERING and there and not np.isnan(clean).any()
        share = recovery(np.mean(ratios), 1, np.mean(clean), lower) if known else None
        cells = [cell(variant, task) if variant in values else "–" for task, values in means.items()]
        lines.append(f"| {' | '.join([variant, *cells, better, '–' if share is None else f'{share:.0%}'])} |")
    return "\n".join(lines) + "\n"


def _better(ratios, lower):
    if not ratios or (lower and 0 in ratios):
        return "–"
    return f"{np.mean([1 / ratio if lower else ratio for ratio in ratios]):.2g}"


def main():
    parser = argparse.ArgumentParser(prog="python -m oclam.overview", description="README's tables over tasks.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a published run, as reports/study-cpu-*")
    print(overview(parser.parse_args().runs))


if __name__ == "__main__":
    one_line_errors(main)

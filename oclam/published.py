"""The page of a published run: `python -m oclam.published reports/NAME` writes its README.md.

GitHub shows it beside the run's files; the report's own page holds videos and is not in Git.
"""

import argparse
from pathlib import Path

from oclam.artifacts import atomic, read_csv, read_json
from oclam.cli import one_line_errors
from oclam.overview import PAPER_BUDGETS, markdown, overview, rows_of
from oclam.params import read
from oclam.report.gallery import PICTURES
from oclam.variants import VARIANTS

LINKS = ("[Parameters](params.yaml), [commit](commit), [what was found](../measurements.md), "
         "[terms](../../README.md#the-pipeline), [columns of the CSV files](../README.md).")
VIDEOS = {"test": "on backgrounds that no training saw", "train": "on the backgrounds of training"}


def published(run: Path | str) -> str:
    """The page as Markdown: `oclam.overview`'s tables of this run alone, and its pictures, linked by relative paths.

    run: a folder of `make publish`. Raises UserError that names a missing or damaged file.
    """
    run = Path(run)
    params, demonstrations = read(run / "params.yaml"), read_json(run / "metrics.json")["return"]
    tasks = list(demonstrations)
    probes, returns, by_budget = overview([run])
    budgets = [str(budget) for budget in params.finetune.budgets if budget in PAPER_BUDGETS]
    labels = f"Mean of {' and '.join(budgets)} labelled trajectories" if budgets else "All labels"
    videos = VIDEOS[params.eval.backgrounds] if params.env.background else "without background videos"
    spread = "of seeds" if len(params.seeds) > 1 else "of one policy's episodes"
    wholes = [f"{whole['expert']:.0f} on {task}" for task, whole in demonstrations.items() if whole["expert"]]
    tables = [
        ("How much of the true actions the latent actions hold", "R² = 1 - error / variance of a ridge regression on "
         "held-out trajectories; the paper's is of its own probe, on training batches.", probes),
        ("What policies return, in % of the demonstrations'", f"{labels}, {videos}; ± is the standard "
         f"error {spread}. The demonstrations return {', '.join(wholes)}.", returns),
        ("The same by number of labelled trajectories", _labels_before(run), by_budget),
        ("P(> lapo) by number of labelled trajectories", "The chance that a random episode returns more than a random "
         "one of lapo's, and its 95% interval by bootstrap over seeds and episodes; bold where it does not contain "
         "50%. Intervals are of these policies, not of new seeds.", _improvements(run, tasks))]
    paper = ("Numbers in brackets are the paper's, of 5,000 episodes of 1,000 steps with colour 0.1 and camera 0.1, on "
             "its training videos. ") if "(paper)" in probes + returns else ""
    return "\n".join([
        f"# {run.name}: {', '.join(tasks)}\n", f"{_setting(run, params)} {paper}{LINKS}\n",
        *(f"## {heading}\n\n{caption}\n\n{table}" for heading, caption, table in tables if table.count("\n") > 2),
        *(section for kind in PICTURES for section in _pictures(run, kind, tasks))])


def _improvements(run, tasks):
    """P(> lapo) in % with its interval, a line for each variant and task, as Markdown."""
    rows = [row for row in rows_of(run / "returns.csv") if row["budget"] and row["improvement_low"] is not None]
    budgets, lines = sorted({row["budget"] for row in rows}), {}
    for row in rows:
        heading = row["variant"] if len(tasks) == 1 else f"{row['variant']}, {row['task']}"
        low, high = row["improvement_low"], row["improvement_high"]
        bold = "" if low <= 0.5 <= high else "**"
        cell = f"{bold}{row['improvement']:.0%} ({low:.0%} to {high:.0%}){bold}"
        lines.setdefault(heading, dict.fromkeys(budgets, "–"))[row["budget"]] = cell
    return markdown(["labelled trajectories", *map(str, budgets)],
                    {heading: cells.values() for heading, cells in lines.items()})


def _setting(run, params):
    env = params.env
    seeds = f"seed {params.seeds[0]}" if len(params.seeds) == 1 else \
        f"seeds {', '.join(map(str, params.seeds))} (pictures: {params.seeds[0]})"
    distractors = [word for word, there in (("video", env.background), (f"colour {env.color_scale:g}", env.color),
                                            (f"camera {env.camera_scale:g}", env.camera)) if there] or ["none"]
    if params.collect.source == "files":
        distractors = ["those of the data"]
    hours = sum(row["seconds"] or 0 for row in read_csv(run / "durations.csv")) / 3600
    return (f"Scale {params.scale}, {seeds}, {params.collect.episodes} episodes of {params.collect.steps} steps, "
            f"distractors: {', '.join(distractors)}; policies act in {params.eval.episodes} episodes. Its stages' "
            f"times add up to {hours:.1f} hours, in {params.compute.precision}.")


def _labels_before(run):
    """Which variants have used labels before fine-tuning, as sentences."""
    before = {}  # number of labels -> variants
    for row in rows_of(run / "probes.csv"):
        before.setdefault(row["labels"], {})[row["variant"]] = None
    used = "; ".join(f"{', '.join(names)} had used {labels}" for labels, names in before.items() if labels)
    return "These are for fine-tuning." + (f" Before it {used}." if used else "")


def _pictures(run, kind, tasks):
    """The section of one kind of pictures, videos as links; of one task in the variants' order. Nothing without any."""
    def named(path):
        label = path.stem.removeprefix(f"{kind}-")
        return label.removeprefix(tasks[0]).removesuffix(tasks[0]).strip("-") if len(tasks) == 1 else label

    order = {name: place for place, name in enumerate(VARIANTS)}
    found = sorted(run.glob(f"figures/{kind}-*"), key=lambda path: (order.get(named(path), -1), path.name))
    if found:
        _, heading, caption = PICTURES[kind]
        yield f"## {heading}\n\n{caption}\n"
    for path in found:
        label, link = named(path), path.relative_to(run).as_posix()
        if path.suffix == ".mp4":
            yield f"[{label or 'video'}]({link})\n"
        else:
            yield (f"**{label}**\n\n" if label else "") + f"![{path.stem}]({link})\n"


def main():
    parser = argparse.ArgumentParser(prog="python -m oclam.published", description="Writes README.md of a run.")
    parser.add_argument("run", type=Path, help="folder of make publish, as reports/study-cpu-walker-run")
    run = parser.parse_args().run
    page = published(run)
    with atomic(run / "README.md") as file:
        file.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    one_line_errors(main)

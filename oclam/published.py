"""The page of a published run: `python -m oclam.published reports/NAME` writes its README.md.

GitHub shows it beside the run's files, unlike the report's own page, which holds videos and is not in Git.
"""

import argparse
from pathlib import Path

from oclam.artifacts import atomic, read_csv, read_json
from oclam.cli import one_line_errors
from oclam.overview import overview
from oclam.params import read

SECTIONS = {  # of the pictures: the first word of their names, heading, caption
    "returns": ("Return against labelled trajectories", "Interquartile means with 95% bootstrap intervals; the dashed "
                "line is cloning of all true actions."),
    "probes": ("Errors of the action probes", "Dark: ridge regression on held-out trajectories; pale: the paper's "
               "online probe, on training batches."),
    "slots": ("Slots", "Frames of held-out episodes, the input of lapo-masks, the image decoded from the chosen "
              "slots' vector, and every slot."),
    "models": ("Slot models", "The same frames divided by other slot models (the paper's Figure 4)."),
    "reconstructions": ("Predictions of the forward model", "Predicted and true next frame; then the prediction with "
                        "another example's latent action, and the difference."),
    "latents": ("Latent actions", "Their first two principal components, coloured by the true action."),
    "losses": ("Training losses", "Those of different variants are not comparable."),
    "episode": ("Policies", "The beginning of their first evaluation episode."),
}


def published(run: Path | str) -> str:
    """The page as Markdown: `oclam.overview`'s tables of this run alone, and its pictures, linked by relative paths.

    run: a folder of `make publish`. Raises UserError that names a missing or damaged file.
    """
    run = Path(run)
    params, tasks = read(run / "params.yaml"), read_json(run / "metrics.json")["return"]
    seconds = sum(row["seconds"] or 0 for row in read_csv(run / "durations.csv"))
    seeds = f"seed{'s' * (len(params.seeds) > 1)} {', '.join(map(str, params.seeds))}"
    return "\n".join([
        f"# {run.name}: {', '.join(tasks)}\n",
        f"Scale {params.scale}, {seeds}, distractors of colour {params.env.color_scale:g} and camera "
        f"{params.env.camera_scale:g}; {seconds / 3600:.1f} hours of all stages together. [Parameters](params.yaml), "
        "[commit](commit), [what the columns mean](../README.md). In brackets the paper's numbers; returns are in "
        "% of the demonstrations'.\n",
        overview([run]), *(part for name, words in SECTIONS.items() for part in _section(run, name, *words))])


def _section(run, name, heading, caption):
    """The heading, caption and pictures of one kind, videos as links; nothing where there are none."""
    found = [path.relative_to(run).as_posix() for path in sorted(run.glob(f"figures/{name}-*"))]
    shown = [f"[{Path(path).stem}]({path})\n" if path.endswith(".mp4") else f"![{Path(path).stem}]({path})\n"
             for path in found]
    return [f"## {heading}\n", f"{caption}\n", *shown] if shown else []


def main():
    parser = argparse.ArgumentParser(prog="python -m oclam.published", description="Writes README.md of a run.")
    parser.add_argument("run", type=Path, help="folder of make publish, as reports/study-cpu-walker-run")
    run = parser.parse_args().run
    with atomic(run / "README.md") as file:
        file.write_text(published(run), encoding="utf-8")


if __name__ == "__main__":
    one_line_errors(main)

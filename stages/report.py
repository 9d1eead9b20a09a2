"""Tables, figures and the page: reads data/results, writes reports."""

from oclam import paths
from oclam.artifacts import atomic, write_absent, write_csv, write_json
from oclam.cli import arguments, run
from oclam.params import load
from oclam.report.gallery import draw
from oclam.report.page import page
from oclam.report.results import gather, metrics


def main():
    arguments()
    params = load("scale", "tasks", "seeds", "restarts", "finetune.budgets")
    results = gather(params.scale, params.tasks, params.seeds, params.restarts, params.finetune.budgets)
    for name in ("probes", "returns", "episodes", "losses", "slots", "models", "durations"):
        rows, path = getattr(results, name), paths.reports / f"{name}.csv"
        if rows:
            write_csv(path, rows)
        else:
            write_absent(path, f"there are no {name}")
    write_json(paths.reports / "metrics.json", metrics(results))
    with atomic(paths.reports / "figures") as folder:
        folder.mkdir()
        text = page(results, draw(results, folder))
    with atomic(paths.reports / "index.html") as file:
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(main)

"""Demonstrations: reads the expert and the background videos, or an imported dataset, writes the dataset of one task in
one view, and every episode's return."""

from pathlib import Path

from oclam import paths
from oclam.artifacts import write_absent, write_csv
from oclam.cli import arguments, run
from oclam.collect import Collection, collect
from oclam.params import load


def main():
    from oclam.checkpoint import Checkpoint  # here, because workers import this file and start faster without torch
    from oclam.experts.policy import load_expert
    from oclam.importers.adoption import adopt_dataset, refuse_foreign

    task, view = arguments("task", "view")
    params = load("env", "collect")
    folder, path = Path(params.collect.path), paths.dataset(task, view)
    refuse_foreign(path, folder)
    if params.collect.source == "files":
        return write_returns(task, view, adopt_dataset(folder, path, task, view, params.collect, params.env.image_size))
    policy = load_expert(paths.expert(task), task)
    backgrounds = paths.backgrounds if view == "distracted" else None
    plan = Collection(task, view, params.collect, params.env, policy, backgrounds)
    inputs = [paths.expert(task), backgrounds] if backgrounds else [paths.expert(task)]
    checkpoint = Checkpoint(f"collect-{task}-{view}", params, inputs)
    returns = collect(plan, checkpoint.folder, path)
    write_returns(task, view, returns)
    checkpoint.remove()


def write_returns(task, view, returns):
    if returns is None:
        return write_absent(paths.demonstration_returns(task, view), "the imported demonstrations have no rewards")
    write_csv(paths.demonstration_returns(task, view),
              [{"episode": episode, "return": value} for episode, value in enumerate(returns)])


if __name__ == "__main__":
    run(main)

"""Demonstrations: reads the expert and the background videos, writes the dataset of one task in one view, and every
episode's return."""

from oclam import paths
from oclam.artifacts import write_csv
from oclam.cli import arguments, run
from oclam.collect import Collection, collect
from oclam.params import load


def main():
    from oclam.checkpoint import Checkpoint  # here, because workers import this file and start faster without torch
    from oclam.experts.policy import load_expert

    task, view = arguments("task", "view")
    params = load("env", "collect")
    policy = load_expert(paths.expert(task), task)
    backgrounds = paths.backgrounds if view == "distracted" else None
    plan = Collection(task, view, params.collect, params.env, policy, backgrounds)
    inputs = [paths.expert(task), backgrounds] if backgrounds else [paths.expert(task)]
    checkpoint = Checkpoint(f"collect-{task}-{view}", params, inputs)
    returns = collect(plan, checkpoint.folder, paths.dataset(task, view))
    write_csv(paths.demonstrations(task, view),
              [{"episode": episode, "return": value} for episode, value in enumerate(returns)])
    checkpoint.remove()


if __name__ == "__main__":
    run(main)

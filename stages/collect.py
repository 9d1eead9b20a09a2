"""Reads the expert and the background videos; writes the dataset of one task as one view, and every
episode's return."""

from oclam import paths
from oclam.cli import arguments, run
from oclam.collect import Plan, collect
from oclam.params import load


def main():
    from oclam.artifacts import write_csv  # not for the workers, which import this file and do without torch
    from oclam.checkpoint import Checkpoint
    from oclam.expert_policy import load as load_expert

    task, view = arguments("task", "view")
    params = load("env", "collect")
    policy = load_expert(paths.expert(task), task)
    plan = Plan(task, view, params.collect, params.env, policy, paths.backgrounds)
    checkpoint = Checkpoint(f"collect-{task}-{view}", params, [paths.expert(task), paths.backgrounds])
    returns = collect(plan, checkpoint.folder, paths.dataset(task, view))
    write_csv(paths.demonstrations(task, view),
              [{"episode": episode, "return": value} for episode, value in enumerate(returns)])
    checkpoint.remove()


if __name__ == "__main__":
    run(main)

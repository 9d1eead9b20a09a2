"""Copy the task's shipped expert, or train one when `expert.train` says so: the policy and its learning curve. Imported
demonstrations need none."""

from pathlib import Path

from oclam import artifacts, paths, suite
from oclam.artifacts import read_csv, write_csv
from oclam.checkpoint import Checkpoint
from oclam.cli import arguments, run
from oclam.errors import Absent, UserError
from oclam.experts.policy import load_expert, remeasured, save_expert
from oclam.params import load


def main():
    task = arguments("task")
    params = load("expert", "collect.source")
    if params.collect.source == "files":
        raise Absent("collect.source is files: no expert acts")
    suite.load_task(task)  # raises for a task that the suite does not have
    settings = params.expert
    policy, curve = (trained if settings.train else shipped)(task, settings)
    save_expert(paths.expert(task), policy)
    write_csv(paths.expert_curve(task), curve)


def shipped(task, settings):
    """The policy in the folder, and its curve; a policy without a curve is measured instead."""
    path = Path(settings.folder) / f"{task}.safetensors"
    if not path.exists():
        other = f"put an expert of {task} there, or set expert.train and describe it under expert.training.{task}"
        raise UserError(f"{path}: no such file; {artifacts.kept(path) or other}")
    policy = load_expert(path, task)
    if path.with_suffix(".csv").exists():
        return policy, read_csv(path.with_suffix(".csv"))
    policy = remeasured(policy, settings.evaluation_episodes)
    return policy, [{"step": 0, "return_mean": policy.facts["return_mean"], "return_std": policy.facts["return_std"]}]


def trained(task, settings):
    try:
        from oclam.experts.training import train_expert
    except ModuleNotFoundError as error:
        raise UserError(f"expert.train: true given, but {error.name} is not installed; pip install -e '.[expert]', or "
                        "false for the shipped experts") from None
    training = settings.training[task]
    checkpoint = Checkpoint(f"expert-{task}", (training, settings.evaluation_episodes),
                            [Path(training.demonstrator)] if training.demonstrator else [])
    policy, curve = train_expert(task, training, checkpoint, settings.evaluation_episodes)
    checkpoint.remove()
    return policy, curve


if __name__ == "__main__":
    run(main)

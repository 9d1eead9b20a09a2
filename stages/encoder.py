"""The frozen encoder: takes what encoder.source names, or distils it, and writes data/encoder.safetensors."""

import sys
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from oclam import paths
from oclam.artifacts import existing, once
from oclam.checkpoint import Checkpoint
from oclam.cli import arguments, run
from oclam.encoders.distill import EPISODE_FRAMES, TASKS, distill, new_student, render, teach
from oclam.encoders.files import make_encoder, save_encoder
from oclam.errors import UserError
from oclam.experts.policy import load_expert
from oclam.params import load
from oclam.training import best_device


def main():
    arguments()
    params = load("encoder", "expert.folder")
    settings = params.encoder
    if settings.source == "distill":
        return distilled(params)
    embedded = settings.source == "embedded"
    source = existing(paths.embedded_encoder) if embedded else watched(settings.source, "encoder.source")
    save_encoder(paths.encoder, make_encoder(source, settings.name).resize(settings.image_size))


def watched(source, parameter):
    """The source, where it is the hub or in data/encoders, which the stage depends on; UserError for another place."""
    folder = paths.embedded_encoder.parent
    if source != "hub" and not Path(source).resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{parameter}: {source!r} given; put the file in {folder}, where DVC sees its changes")
    return source


def distilled(params):
    import oclam.envs  # noqa: F401, late: only distillation renders; but before the checkpoint, which hashes loaded code

    settings = params.encoder
    student = new_student(settings.image_size)
    key = "encoder.teacher_weights"
    teacher = make_encoder(watched(settings.teacher_weights or "hub", key), settings.teacher, key)
    teacher.resize(student.grid * teacher.patch_size)  # as many patches as the student's
    checkpoint = Checkpoint("encoder", params,
                            [paths.backgrounds, Path(params.expert.folder), paths.embedded_encoder.parent])
    frames = rendered(settings.distill_frames, Path(params.expert.folder), checkpoint.folder / "frames.npy")
    targets = teach(teacher.to(best_device()), frames, checkpoint.folder)
    distill(student, frames, targets, checkpoint, steps=settings.distill_steps, batch_size=settings.distill_batch,
            learning_rate=settings.distill_learning_rate)
    student.about["source"] = f"distilled from {settings.teacher}"
    save_encoder(paths.encoder, student, torch.float16)
    checkpoint.remove()


def rendered(count, experts, path):
    """The frames to learn from, uint8 (N, H, W, 3), made once for an interrupted stage."""
    def write(file):
        from oclam import envs

        policies = {task: load_expert(experts / f"{task}.safetensors", task) for task in TASKS
                    if (experts / f"{task}.safetensors").exists()}
        print(f"encoder: experts of {', '.join(policies) or 'no task'}, random actions elsewhere", file=sys.stderr)
        environments = [envs.make(task, "distracted", envs.DEFAULT, paths.backgrounds) for task in TASKS]
        episodes = [pixels for pixels, _ in islice(render(environments, policies), -(-count // EPISODE_FRAMES))]
        np.save(file, np.concatenate(episodes)[:count])

    return np.load(once(path, write))


if __name__ == "__main__":
    run(main)

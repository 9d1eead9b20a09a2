"""What encoders are worth: segmentation by nearest-neighbour label propagation on held-out backgrounds, and images/s.

`python -m tests.bench.encoder [--teacher-weights FILE] [--encoder FILE]` prints a Markdown table: the mean IoU of the
agent's mask, carried from an episode's first frame to its later ones by each patch's nearest patch, next to the truth.
It reads the test split of data/backgrounds.zarr. The teacher's rows appear when its weights are named.
"""

import argparse
import time
from itertools import islice

import numpy as np
import torch
from torch.nn import functional as F

from oclam import envs, paths
from oclam.agent.measures import agent_patches
from oclam.encoders.distill import EPISODE_FRAMES, TASKS, new_student, render
from oclam.encoders.files import load_encoder, make_encoder
from oclam.experts.policy import load_expert
from oclam.params import read

FIRST = 10_000  # seeds of episodes that no training saw
BATCH = 32


def propagate(reference, label, queries):
    """Give every patch the label of the nearest patch, by cosine, of a reference frame.

    Args: reference, (P, D); label, bool (P,); queries, (T, P, D). Returns bool (T, P).
    """
    nearest = (F.normalize(queries, dim=-1) @ F.normalize(reference, dim=-1).T).argmax(-1)
    return label[nearest]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher-weights", help="safetensors of encoder.teacher")
    parser.add_argument("--encoder", default=paths.embedded_encoder)
    parser.add_argument("--rounds", type=int, default=2, help="episodes of every task")
    options = parser.parse_args()
    embedded, settings = load_encoder(options.encoder), read().encoder
    encoders = {"random": new_student(embedded.image_size), embedded.about["source"]: embedded}
    if options.teacher_weights:
        teacher = make_encoder(options.teacher_weights, settings.teacher, "--teacher-weights")
        encoders = {settings.teacher: teacher.resize(embedded.grid * teacher.patch_size)} | encoders
    frames, masks = held_out(options.rounds)
    agent = torch.from_numpy(agent_patches(masks, embedded.grid)).flatten(1)
    print(f"| encoder | output | {' | '.join(TASKS)} | mean IoU | images/s |\n|---|---|{'---|' * (len(TASKS) + 2)}")
    for name, encoder in encoders.items():
        started = time.perf_counter()
        outputs = [encoder(torch.from_numpy(frames[i:i + BATCH])) for i in range(0, len(frames), BATCH)]
        speed = len(frames) / (time.perf_counter() - started)
        for output, values in zip(("features", "keys"), map(torch.cat, zip(*outputs, strict=True)), strict=True):
            scores = intersection_over_union(values, agent)
            row = " | ".join(f"{score:.3f}" for score in [*scores, scores.mean()])
            print(f"| {name} | {output} | {row} | {speed:.1f} |", flush=True)


def held_out(rounds):
    """Frames uint8 (N, H, W, 3) and masks uint8 (N, H, W), episode after episode, the tasks in turn."""
    policies = {task: load_expert(paths.expert(task), task) for task in TASKS if paths.expert(task).exists()}
    environments = [envs.make(task, "distracted", envs.DEFAULT, paths.backgrounds, "test") for task in TASKS]
    episodes = islice(render(environments, policies, FIRST), rounds * len(TASKS))
    return map(np.concatenate, zip(*episodes, strict=True))


def intersection_over_union(values, agent):
    """Mean IoU of every task: values (N, P, D), agent bool (N, P)."""
    scores = []
    for first in range(0, len(values), EPISODE_FRAMES):
        later = slice(first + 1, first + EPISODE_FRAMES)
        found, truth = propagate(values[first], agent[first], values[later]), agent[later]
        seen = truth.any(1)
        scores.append(((found & truth).sum(1) / (found | truth).sum(1))[seen].mean())
    return torch.stack(scores).view(-1, len(TASKS)).mean(0)


if __name__ == "__main__":
    main()

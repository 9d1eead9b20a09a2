"""A fine-tuned policy in the Gymnasium environment.

`python -m oclam.act data/cheetah-run/seed0/lapo-slots/policies --budget 8 --video episode.mp4` acts for one episode,
prints its return and writes a video; a folder of `oclam.export` needs no repository. In code:

    import gymnasium
    import oclam.envs
    from oclam.policies.files import Agent, load_policies

    policies, cards = load_policies(folder, [8])
    agent = Agent(policies[0], cards[0].frame_stack)
    environment = gymnasium.make("oclam/cheetah-run-v0")
    frame, _ = environment.reset(seed=0)
    action = agent.act(frame[None])[0]
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from oclam import envs, paths, suite
from oclam.artifacts import is_absent
from oclam.cli import one_line_errors
from oclam.errors import UserError
from oclam.evaluation.episodes import evaluate
from oclam.export.hub import CONFIG
from oclam.export.policies import HubPolicy
from oclam.params import Env, load
from oclam.policies.files import Card, load_policies
from oclam.video import caption, check_name, write_video


def play(folder: Path, budget: int | None = None, task: str | None = None, seed: int = 0, steps: int = 1000
         ) -> tuple[float, np.ndarray, np.ndarray, Card]:
    """Act in one episode: return, frames, rewards and the policy's card.

    Frames are uint8 (N, H, W, 3), rewards (N,). The environment is that of `params.yaml`, or an exported policy's own,
    with generated background videos.

    Args:
        folder: of policies, or of an exported one.
        budget: labelled trajectories, 0 for all labels, None for the largest budget there is.
        task: where given, must be the policy's.
        seed: of the episode.
        steps: at most.
    """
    if not folder.is_dir() and not is_absent(folder):  # of what is absent, load_policies says why
        raise UserError(f"{folder}: no such folder; name one of policies, or an exported one")
    expected = {"task": task} if task else {}
    if (folder / CONFIG).exists():
        policy = HubPolicy.from_pretrained(folder)
        policy.card.check(folder, expected | ({} if budget is None else {"budget": budget}))
        card, env, backgrounds = policy.card, Env(**policy.origin["env"]), None
    else:
        env, backgrounds = load("env").env, paths.backgrounds
        expected["image_size"] = env.image_size
        policies, cards = load_policies(folder, None if budget is None else [budget], **expected)
        policy, card = policies[-1], cards[-1]
    if card.task not in suite.TASKS:
        raise UserError(f"{folder}: learned from data of {card.task}, for which there is no environment to act in")
    make = partial(envs.make, card.task, card.view, env, backgrounds, "test")
    returns, frames, rewards = evaluate([policy], card.frame_stack, make, [seed], steps, "acting", recorded=steps)
    return returns.item(), frames, rewards, card


def main():
    parser = argparse.ArgumentParser(prog="python -m oclam.act", description="Act with a policy for one episode.")
    parser.add_argument("folder", type=Path, help="such as data/cheetah-run/seed0/lapo-slots/policies, or an exported "
                        "policy")
    parser.add_argument("--budget", type=int, help="labelled trajectories, 0 for all; default: the largest budget")
    parser.add_argument("--task", help="refuse a policy of another task")
    parser.add_argument("--seed", type=int, default=0, help="of the episode")
    parser.add_argument("--steps", type=int, default=1000, help="at most (default 1000); the tables' returns are "
                        "of collect.steps")
    parser.add_argument("--video", type=Path, help="of the episode: .mp4 or .gif")
    options = parser.parse_args()
    if options.steps < 1:
        raise UserError(f"--steps: {options.steps} given, at least 1 is needed")
    if options.seed < 0:
        raise UserError(f"--seed: {options.seed} given, at least 0 is needed")
    if options.video:
        check_name(options.video)
    gained, frames, rewards, card = play(options.folder, options.budget, options.task, options.seed, options.steps)
    labels = f"{card.budget} labelled" if card.budget else "all labels"
    title = f"{card.task}, {card.variant}, {labels}"
    print(f"{title}, {card.view}: return {gained:.1f}")
    if options.video:
        write_video(options.video, caption(frames, rewards, title), fps=30)


if __name__ == "__main__":
    one_line_errors(main)

"""Expert policies as files: network and observation normaliser, run by NumPy alone."""

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from oclam import suite
from oclam.artifacts import load_tensors, save_tensors
from oclam.errors import UserError
from oclam.seeding import seed_of

ACTIVATIONS = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}
# How an action is limited to [-1, 1]: by PPO, and by the other algorithms.
BOUNDS = {"clip": lambda x: np.clip(x, -1, 1), "tanh": np.tanh}


@dataclass(frozen=True)
class ExpertPolicy:
    """A multi-layer perceptron on normalised observations.

    Args:
        layers: (weight (out, in), bias (out,)) float32, first to last.
        mean, std: float64 (S,), of the observations in training.
        clip: largest absolute value of a normalised observation.
        activation, bound: of the hidden layers and of the action.
        facts: returns, steps and the like.
    """

    task: str
    algorithm: str
    layers: list
    mean: np.ndarray
    std: np.ndarray
    clip: float
    activation: str
    bound: str
    facts: dict = field(default_factory=dict)

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """The deterministic action, float32 (..., A) in [-1, 1], for an observation float32 (..., S)."""
        hidden = np.clip((observation - self.mean) / self.std, -self.clip, self.clip).astype(np.float32)
        for weight, bias in self.layers[:-1]:
            hidden = ACTIVATIONS[self.activation](hidden @ weight.T + bias)
        weight, bias = self.layers[-1]
        return BOUNDS[self.bound](hidden @ weight.T + bias)


def save_expert(path: Path, policy: ExpertPolicy) -> None:
    """Write a policy as safetensors."""
    import torch  # here, because workers that only act start faster without it

    tensors = {"observation.mean": policy.mean, "observation.std": policy.std}
    for k, (weight, bias) in enumerate(policy.layers):
        tensors |= {f"layers.{k}.weight": weight, f"layers.{k}.bias": bias}
    save_tensors(path, {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}, task=policy.task,
                 algorithm=policy.algorithm, observation_size=len(policy.mean), action_size=len(policy.layers[-1][1]),
                 clip=policy.clip, activation=policy.activation, bound=policy.bound, facts=policy.facts)


def load_expert(path: Path, task: str) -> ExpertPolicy:
    """The expert policy of a task.

    Raises UserError for a file that is missing, damaged, no expert, another task's or of the wrong shape.
    """
    tensors, metadata = load_tensors(path)
    tensors = {name: tensor.numpy() for name, tensor in tensors.items()}
    depth = sum(name.endswith(".weight") for name in tensors)
    try:
        layers = [(tensors[f"layers.{k}.weight"], tensors[f"layers.{k}.bias"]) for k in range(depth)]
        policy = ExpertPolicy(metadata["task"], metadata["algorithm"], layers, tensors["observation.mean"],
                        tensors["observation.std"], metadata["clip"], metadata["activation"], metadata["bound"],
                        metadata["facts"])
    except KeyError as error:
        raise UserError(f"{path}: not an expert, it has no {error}; write it with oclam.experts.policy.save_expert"
                        ) from None
    if policy.task != task:
        raise UserError(f"{path}: an expert for {policy.task}, {task} wanted; give that task's own file")
    if policy.activation not in ACTIVATIONS or policy.bound not in BOUNDS:
        raise UserError(f"{path}: activation {policy.activation!r}, bound {policy.bound!r} given; allowed are "
                        f"{', '.join(ACTIVATIONS)} and {', '.join(BOUNDS)}")
    action_size, state_size = suite.sizes(suite.load_task(task))
    sizes = [state_size, *(len(bias) for _, bias in layers)]
    expected = [(size,) for size in sizes[:1] * 2 + sizes[1:]] + list(zip(sizes[1:], sizes[:-1], strict=True))
    given = [part.shape for part in (policy.mean, policy.std, *(bias for _, bias in layers), *(w for w, _ in layers))]
    if given != expected or not layers or sizes[-1] != action_size:
        raise UserError(f"{path}: layers of {[weight.shape for weight, _ in layers]} given; {task} has observations of "
                        f"{state_size} and actions of {action_size}")
    return policy


def measure(policy: ExpertPolicy, episodes: int, *purpose: str) -> np.ndarray:
    """The returns of whole episodes, float64 (episodes,); the seeds depend on the purpose."""
    returns, environment = np.zeros(episodes), suite.load_task(policy.task)
    for k in range(episodes):
        environment.task.random.seed(seed_of("expert", policy.task, *purpose, k) % 2**32)
        step = environment.reset()
        while not step.last():
            step = environment.step(policy(suite.flatten(step.observation)))
            returns[k] += step.reward
    return returns


def remeasured(policy: ExpertPolicy, episodes: int) -> ExpertPolicy:
    """The policy with the returns of new episodes among its facts."""
    returns = measure(policy, episodes, "claim")
    return replace(policy, facts=policy.facts | {"return_mean": round(float(returns.mean()), 1), "episodes": episodes,
                                                 "return_std": round(float(returns.std()), 1)})


def main():
    parser = argparse.ArgumentParser(description="Measure an expert again, beside what its file claims.")
    parser.add_argument("path", type=Path)
    parser.add_argument("task")
    parser.add_argument("--episodes", type=int, default=20)
    given = parser.parse_args()
    expert = load_expert(given.path, given.task)
    if given.episodes < 1:
        raise UserError(f"--episodes: {given.episodes} given, at least 1 is needed")
    for name, facts in (("claimed", expert.facts), ("measured", remeasured(expert, given.episodes).facts)):
        if facts.keys() >= {"return_mean", "return_std", "episodes"}:  # a file of one's own need not claim any
            print(f"{name}: {facts['return_mean']} ± {facts['return_std']} over {facts['episodes']} episodes")


if __name__ == "__main__":
    from oclam.cli import one_line_errors  # which importers of this module do not need

    one_line_errors(main)

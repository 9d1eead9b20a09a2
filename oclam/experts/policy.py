"""An expert as a file that needs no framework: network and observation normaliser, run by NumPy."""

import argparse
import sys
from dataclasses import dataclass, field, replace

import numpy as np

from oclam import suite
from oclam.artifacts import load_tensors, save_tensors
from oclam.errors import UserError
from oclam.seeding import seed_of

__all__ = ["Policy", "load", "measure", "remeasured", "save"]

ACTIVATIONS = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}
BOUNDS = {"clip": lambda x: np.clip(x, -1, 1), "tanh": np.tanh}  # how an action is kept in [-1, 1]: PPO's, the others'


@dataclass(frozen=True)
class Policy:
    """A multi-layer perceptron on normalised observations.

    layers: (weight (out, in), bias (out,)) float32, first to last; mean, std: float64 (S,), of the observations in
    training; clip: largest absolute normalised observation; facts: what else the file says, such as returns and steps.
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

    def __call__(self, observation):
        """Deterministic action: float32 (..., S), as `oclam.suite.flatten` gives it, to float32 (..., A) in [-1, 1]."""
        hidden = np.clip((observation - self.mean) / self.std, -self.clip, self.clip).astype(np.float32)
        for weight, bias in self.layers[:-1]:
            hidden = ACTIVATIONS[self.activation](hidden @ weight.T + bias)
        weight, bias = self.layers[-1]
        return BOUNDS[self.bound](hidden @ weight.T + bias)


def save(path, policy):
    """Write a policy as safetensors."""
    import torch  # not for acting: workers that only act start without it

    tensors = {"observation.mean": policy.mean, "observation.std": policy.std}
    for k, (weight, bias) in enumerate(policy.layers):
        tensors |= {f"layers.{k}.weight": weight, f"layers.{k}.bias": bias}
    save_tensors(path, {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}, task=policy.task,
                 algorithm=policy.algorithm, observation_size=len(policy.mean), action_size=len(policy.layers[-1][1]),
                 clip=policy.clip, activation=policy.activation, bound=policy.bound, facts=policy.facts)


def load(path, task):
    """Read the policy of a task.

    Raises UserError, one line, for a file that is missing, damaged, no expert, another task's or of the wrong shape.
    """
    tensors, metadata = load_tensors(path)
    tensors = {name: tensor.numpy() for name, tensor in tensors.items()}
    depth = sum(name.endswith(".weight") for name in tensors)
    try:
        layers = [(tensors[f"layers.{k}.weight"], tensors[f"layers.{k}.bias"]) for k in range(depth)]
        policy = Policy(metadata["task"], metadata["algorithm"], layers, tensors["observation.mean"],
                        tensors["observation.std"], metadata["clip"], metadata["activation"], metadata["bound"],
                        metadata["facts"])
    except KeyError as error:
        raise UserError(f"{path}: not an expert, it has no {error}; write it with oclam.experts.policy.save") from None
    if policy.task != task:
        raise UserError(f"{path}: an expert for {policy.task}, {task} wanted; give that task's own file")
    if policy.activation not in ACTIVATIONS or policy.bound not in BOUNDS:
        raise UserError(f"{path}: activation {policy.activation!r}, bound {policy.bound!r} given; allowed are "
                        f"{', '.join(ACTIVATIONS)} and {', '.join(BOUNDS)}")
    action_size, state_size = suite.sizes(task)
    sizes = [state_size, *(len(bias) for _, bias in layers)]
    expected = [(size,) for size in sizes[:1] * 2 + sizes[1:]] + list(zip(sizes[1:], sizes[:-1], strict=True))
    given = [part.shape for part in (policy.mean, policy.std, *(bias for _, bias in layers), *(w for w, _ in layers))]
    if given != expected or not layers or sizes[-1] != action_size:
        raise UserError(f"{path}: layers of {[weight.shape for weight, _ in layers]} given; {task} has observations of "
                        f"{state_size} and actions of {action_size}")
    return policy


def measure(policy, episodes, *purpose):
    """Returns float64 (episodes,) of whole episodes, each begun from a seed of its own and of `purpose`."""
    returns, environment = np.zeros(episodes), suite.load(policy.task)
    for k in range(episodes):
        environment.task.random.seed(seed_of("expert", policy.task, *purpose, k) % 2**32)
        step = environment.reset()
        while not step.last():
            step = environment.step(policy(suite.flatten(step.observation)))
            returns[k] += step.reward
    return returns


def remeasured(policy, episodes):
    """The policy with the returns of fresh episodes among its facts."""
    returns = measure(policy, episodes, "claim")
    return replace(policy, facts=policy.facts | {"return_mean": round(float(returns.mean()), 1), "episodes": episodes,
                                                 "return_std": round(float(returns.std()), 1)})


def main():
    parser = argparse.ArgumentParser(description="Measure an expert anew, beside what its file claims.")
    parser.add_argument("path")
    parser.add_argument("task")
    parser.add_argument("--episodes", type=int, default=20)
    given = parser.parse_args()
    expert = load(given.path, given.task)
    for name, facts in (("claimed", expert.facts), ("measured", remeasured(expert, given.episodes).facts)):
        print(f"{name}: {facts['return_mean']} ± {facts['return_std']} over {facts['episodes']} episodes")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")

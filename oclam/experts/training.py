"""Training of an expert with sbx, resumed exactly; imported only where it is asked for, because it needs JAX."""

import inspect
import os
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")  # threads slow networks this small

import jax  # noqa: E402
import numpy as np  # noqa: E402
import sbx  # noqa: E402
import torch  # noqa: E402
from stable_baselines3.common.vec_env import VecNormalize  # noqa: E402

from oclam.checkpoint import Checkpoint  # noqa: E402
from oclam.errors import UserError  # noqa: E402
from oclam.experts.policy import ExpertPolicy, load_expert, measure, remeasured, save_expert  # noqa: E402
from oclam.experts.vector import BatchedTask  # noqa: E402
from oclam.params import Training  # noqa: E402
from oclam.progress import Progress  # noqa: E402
from oclam.seeding import seed_of  # noqa: E402

# Of every algorithm: where sbx keeps what it learns, its activation, and how its actor ends.
ON_POLICY = ("policy.actor_state", "policy.vf_state"), "tanh", "clip"
OFF_POLICY = ("policy.actor_state", "policy.qf_state", "ent_coef_state"), "relu", "tanh"
ALGORITHMS = {"PPO": ON_POLICY, "SAC": OFF_POLICY, "CrossQ": OFF_POLICY}
NOISE = 0.2  # standard deviation of what is added to a demonstrator's actions
NETWORK = ("layer_norm", "log_std_init", "net_arch", "ortho_init")  # hyperparameters that sbx calls the policy's


class Learner:
    """An sbx algorithm on a batch of environments, advanced in rounds.

    A round starts with new episodes and random numbers that depend on its number alone, so the state between rounds is
    only what was learned. PPO's learning rate decays linearly to a fiftieth, or follows `target_kl` where given.
    """

    def __init__(self, task: str, training: Training):
        self.task, self.training, self.steps = task, training, 0
        on_policy = training.algorithm == "PPO"
        options = dict(training.hyperparameters)
        network = {key: options.pop(key) for key in NETWORK if key in options}
        rate = options.pop("learning_rate", 3e-4)

        def schedule(_):  # sbx's own progress restarts in every round
            return rate * max(1 - self.steps / training.steps, 0.02) if on_policy else rate

        algorithm = getattr(sbx, training.algorithm)
        if unknown := options.keys() - inspect.signature(algorithm).parameters:
            raise UserError(f"expert.training.{task}.hyperparameters: {', '.join(sorted(unknown))} given; allowed are "
                            f"{', '.join(NETWORK)} and what sbx's {training.algorithm} takes")
        self.environments = BatchedTask(task, training.environments, 0, steps=training.episode_steps)
        self.normaliser = VecNormalize(self.environments, norm_reward=on_policy, gamma=options.get("gamma", 0.99))
        self.model = algorithm("MlpPolicy", self.normaliser, learning_rate=schedule, policy_kwargs=network, seed=0,
                               **options)
        if training.demonstrator:
            self._follow(load_expert(Path(training.demonstrator), task))

    def _follow(self, expert):
        """Let the expert act, with noise, in the steps before learning starts, instead of random actions."""
        sample = self.model._sample_action

        def act(learning_starts, action_noise=None, n_envs=1):
            if self.model.num_timesteps >= learning_starts:
                return sample(learning_starts, action_noise, n_envs)
            actions = expert(self.normaliser.get_original_obs())
            actions = np.clip(actions + self.noise.normal(0, NOISE, actions.shape), -1, 1).astype(np.float32)
            return actions, actions  # for the environments, for the replay buffer

        self.model._sample_action = act

    def advance(self, tick: Callable) -> None:
        """One round of at least `evaluate_every` steps; `tick()` is called after every step of all environments."""
        seed, model = seed_of("expert", self.task, self.steps) % 2**31, self.model
        self.environments.restart(seed)
        self.noise = np.random.default_rng(seed)
        model.set_random_seed(seed)
        model.key, model.policy.key = jax.random.split(model.key)
        model.policy.noise_key = model.policy.key
        model.num_timesteps, model._last_obs = self.steps, None  # None: start with a reset
        if buffer := getattr(model, "replay_buffer", None):  # which cuts episodes off: no n-step return may cross it
            buffer.timeouts[buffer.pos - 1] = True
        model.learn(self.training.evaluate_every, callback=lambda *_: tick(), reset_num_timesteps=False)
        self.steps = model.num_timesteps

    def policy(self) -> ExpertPolicy:
        """The deterministic policy learned so far, which needs no JAX."""
        actor, algorithm = self.model.policy.actor_state, self.training.algorithm
        weights = actor.params.get("params", actor.params)
        depth = sum(name.startswith("Dense_") for name in weights) - (algorithm != "PPO")  # the last is the deviation
        layers = [(np.array(weights[f"Dense_{k}"]["kernel"]).T, np.array(weights[f"Dense_{k}"]["bias"]))
                  for k in range(depth)]
        if algorithm == "CrossQ":  # a batch normalisation stands before every layer and, once trained, is part of it
            layers = [_folded(*layer, weights[f"BatchRenorm_{k}"], actor.batch_stats[f"BatchRenorm_{k}"])
                      for k, layer in enumerate(layers)]
        moments = self.normaliser.obs_rms
        facts = {"steps": self.steps, "training": self.training.model_dump()}
        deviation = np.sqrt(moments.var + self.normaliser.epsilon)
        return ExpertPolicy(self.task, algorithm, layers, moments.mean.copy(), deviation, self.normaliser.clip_obs,
                            *ALGORITHMS[algorithm][1:], facts)

    def state_dict(self) -> dict:
        """All that a later round depends on, as tensors: networks, optimizers, normaliser, replay buffer."""
        learned = [jax.tree.leaves(attrgetter(name)(self.model)) for name in self._learned()]
        state = {"learned": [[_tensor(leaf) for leaf in leaves] for leaves in learned], "steps": self.steps,
                 "updates": self.model._n_updates,
                 "moments": [(_tensor(one.mean), _tensor(one.var), float(one.count)) for one in self._moments()]}
        if adaptive := getattr(self.model, "adaptive_lr", None):
            state["rate"] = float(adaptive.current_adaptive_lr)
        if buffer := getattr(self.model, "replay_buffer", None):
            filled = slice(None) if buffer.full else slice(buffer.pos)
            state["replay"] = {name: _tensor(getattr(buffer, name)[filled]) for name in self._replay(buffer)}
            state["replay_position"], state["replay_full"] = buffer.pos, buffer.full
        return state

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave."""
        for name, tensors in zip(self._learned(), state["learned"], strict=True):
            owner, _, last = name.rpartition(".")
            owner = attrgetter(owner)(self.model) if owner else self.model
            structure = jax.tree.structure(getattr(owner, last))
            setattr(owner, last, jax.tree.unflatten(structure, [jax.numpy.asarray(t.numpy()) for t in tensors]))
        self.steps, self.model._n_updates = state["steps"], state["updates"]
        for one, (mean, var, count) in zip(self._moments(), state["moments"], strict=True):
            one.mean, one.var, one.count = mean.numpy(), var.numpy(), count
        if "rate" in state:
            self.model.adaptive_lr.current_adaptive_lr = state["rate"]
        if "replay" in state:
            buffer = self.model.replay_buffer
            for name, tensor in state["replay"].items():
                getattr(buffer, name)[:len(tensor)] = tensor.numpy()
            buffer.pos, buffer.full = state["replay_position"], state["replay_full"]

    def _learned(self):
        return ALGORITHMS[self.training.algorithm][0]

    def _moments(self):
        return self.normaliser.obs_rms, self.normaliser.ret_rms

    @staticmethod
    def _replay(buffer):
        return [name for name, value in vars(buffer).items() if isinstance(value, np.ndarray)]


def _folded(weight, bias, affine, moments):
    """Batch normalisation and the layer (weight, bias) after it, as one layer."""
    scale = np.array(affine["scale"]) / np.sqrt(np.array(moments["var"]) + 0.001)  # flax's and sbx's epsilon
    return weight * scale, bias + weight @ (np.array(affine["bias"]) - scale * np.array(moments["mean"]))


def _tensor(value):
    return torch.from_numpy(np.array(value))


def train_expert(task: str, training: Training, checkpoint: Checkpoint,
                 episodes: int) -> tuple[ExpertPolicy, list[dict]]:
    """The best policy of a training, and rows of step, return_mean and return_std, measured after every round.

    The policy's `facts` have the returns of new episodes, which had no part in choosing it. A training that was
    interrupted resumes from the checkpoint.
    """
    learner, best = Learner(task, training), checkpoint.folder / "best.safetensors"
    if best.exists():
        load_expert(best, task)  # if damaged, deleting it, as the message says, lets the training start again
    saved = checkpoint.restore({"learner": learner}) if best.exists() else None
    rows = saved["rows"] if saved else []
    with Progress(training.steps, checkpoint.name, " steps", initial=learner.steps) as bar:
        while learner.steps < training.steps:
            learner.advance(lambda: bar.update(training.environments) or True)
            policy = learner.policy()
            returns = measure(policy, episodes, "choice")
            mean, std = float(returns.mean()), float(returns.std())
            if all(mean > row["return_mean"] for row in rows):
                save_expert(best, policy)
            rows.append({"step": learner.steps, "return_mean": mean, "return_std": std})
            bar.set_postfix_str(f"return {mean:.0f}±{std:.0f}")
            if checkpoint.due() and learner.steps < training.steps:
                checkpoint.save({"learner": learner}, rows=rows)
    return remeasured(load_expert(best, task), episodes), rows

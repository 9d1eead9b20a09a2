"""Policies as files, and how one acts in many environments at once.

A folder holds one policy a label budget: `actor.safetensors`, the frozen actor, once, and `<budget>.safetensors` with
what that budget trained. `all.safetensors` is the policy of all labels (budget 0).
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from oclam.artifacts import load_tensors, save_tensors
from oclam.datasets import to_image
from oclam.errors import UserError
from oclam.policies.networks import ActionDecoder, Actor, Policy

__all__ = ["Agent", "Card", "load_actor", "load_policies", "save_actor", "save_policy"]


@dataclass(frozen=True)
class Card:
    """What a policy's file says about itself: whence it comes, and the sizes that rebuild it."""

    task: str
    view: str
    variant: str
    seed: int
    image_size: int
    frame_stack: int
    encoder_scale: int
    residual_blocks: int
    latent_dim: int | None  # None: the actor predicts true actions, without a decoder
    hidden_dim: int | None = None  # None here and below: no decoder yet
    action_dim: int | None = None
    budget: int | None = None  # labelled trajectories, 0 for all

    def actor(self):
        """An untrained actor of these sizes."""
        outputs = self.action_dim if self.latent_dim is None else self.latent_dim
        return Actor(3 * self.frame_stack, outputs, self.encoder_scale, self.residual_blocks)

    def decoder(self):
        """An untrained decoder of these sizes, or None where the actor predicts true actions."""
        return None if self.latent_dim is None else ActionDecoder(self.latent_dim, self.hidden_dim, self.action_dim)


def save_actor(path, actor, card):
    """Write an actor that has no decoder yet."""
    save_tensors(path, {f"actor.{name}": tensor for name, tensor in actor.state_dict().items()}, **asdict(card))


def load_actor(path, **expected):
    """Read an actor; `expected` as in `load_policies`.

    Returns (Actor, Card). Raises UserError when the file is missing, damaged or something else.
    """
    tensors, card = _read(path, expected)
    actor = Policy(card.actor())
    _fill(actor, tensors, path)
    return actor.actor, card


def save_policy(folder, policy, card, frozen=False):
    """Write what `card.budget` trained into the folder: everything, or the decoder alone where the actor is frozen."""
    tensors = {name: tensor for name, tensor in policy.state_dict().items()
               if not (frozen and name.startswith("actor."))}
    save_tensors(_file(folder, card.budget), tensors, **asdict(card))


def load_policies(folder, budgets=None, **expected):
    """Read the policies of a folder.

    Args: budgets, which ones, 0 for all labels, or None for every one there is; expected, entries of the card that
    must hold, such as task and view. Returns (list of Policy, list of Card) by rising budget; policies of one frozen
    actor share it. Raises UserError for a missing budget, another task or view, or parts that do not fit.
    """
    folder, frozen = Path(folder), None
    there = _budgets(folder)
    if not there:
        raise UserError(f"{folder}: no policies there; `dvc repro` makes the pipeline's own")
    if missing := sorted(set(budgets or []) - set(there)):
        raise UserError(f"{folder}: no policy of budget {', '.join(map(str, missing))}; "
                        f"there are {', '.join(map(str, there))} (0 stands for all labels)")
    policies, cards = [], []
    for budget in sorted(budgets or there):
        path = _file(folder, budget)
        tensors, card = _read(path, expected)
        policy = Policy(card.actor(), card.decoder())
        if not any(name.startswith("actor.") for name in tensors):
            if frozen is None:
                frozen, frozen_card = load_actor(folder / "actor.safetensors", **expected)
            if replace(card, hidden_dim=None, action_dim=None, budget=None) != frozen_card:
                raise UserError(f"{path}: a decoder for {_differences(card, frozen_card)} of the actor beside it; "
                                f"run `dvc repro` to make both anew")
            policy.actor = frozen
            _fill(policy.decoder, {name.removeprefix("decoder."): value for name, value in tensors.items()}, path)
        else:
            _fill(policy, tensors, path)
        policies.append(policy)
        cards.append(card)
    return policies, cards


class Agent:
    """Acts in a batch of environments, keeping each one's last frames.

    Args: policies, one or several; the batch is cut into as many equal parts, in order, one for each; frame_stack;
    device. A frozen actor that the policies share runs once for the whole batch.
    """

    def __init__(self, policies, frame_stack, device="cpu"):
        self.policies = [policy.to(device, memory_format=torch.channels_last).eval() for policy in policies]
        self.frame_stack, self.device = frame_stack, device
        self._shared = all(policy.actor is policies[0].actor for policy in policies)
        self.reset()

    def reset(self):
        """Forget the frames: the next ones begin new episodes."""
        self._stack = None

    @torch.inference_mode()
    def act(self, frames):
        """Actions float32 (B, A) in [-1, 1] for the newest frames, uint8 (B, H, W, 3)."""
        newest = torch.from_numpy(frames).to(self.device).unsqueeze(1)
        if self._stack is None:  # an episode's start repeats its first frame
            self._stack = newest.expand(-1, self.frame_stack, -1, -1, -1)
        else:
            self._stack = torch.cat([self._stack[:, 1:], newest], 1)  # (B, stack, H, W, 3)
        images = to_image(self._stack)
        if self._shared:
            parts = self.policies[0].actor(images).chunk(len(self.policies))
            actions = [policy.decoder(part) for policy, part in zip(self.policies, parts, strict=True)]
        else:
            parts = images.chunk(len(self.policies))
            actions = [policy(part) for policy, part in zip(self.policies, parts, strict=True)]
        return torch.cat(actions).clamp(-1, 1).cpu().numpy()


def _file(folder, budget):
    return Path(folder) / f"{budget or 'all'}.safetensors"


def _budgets(folder):
    names = [path.stem for path in folder.glob("*.safetensors")]
    return sorted(0 if name == "all" else int(name) for name in names if name == "all" or name.isdecimal())


def _read(path, expected):
    tensors, metadata = load_tensors(path)
    try:
        card = Card(**metadata)
    except TypeError:
        raise UserError(f"{path}: not a policy of this project; make it anew with `dvc repro`") from None
    for key, value in expected.items():
        if getattr(card, key) != value:
            raise UserError(f"{path}: a policy of {key} {getattr(card, key)!r}, {value!r} asked for; "
                            "a policy acts only where it was trained")
    return tensors, card


def _fill(module, tensors, path):
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path}: weights that its own description does not fit "
                        f"({' '.join(str(error).split())[:200]}); make it anew with `dvc repro`") from None


def _differences(card, other):
    ours, theirs = asdict(card), asdict(other)
    return ", ".join(f"{key} {ours[key]!r}, not {theirs[key]!r}" for key in theirs
                     if theirs[key] is not None and ours[key] != theirs[key])

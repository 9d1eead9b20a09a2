"""Policies as files, and how one acts in many environments at once.

A folder has one policy for every label budget: `actor.safetensors` is the frozen actor that they share,
`<budget>.safetensors` what that budget trained. `all.safetensors` is the policy of all labels (budget 0).
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from oclam.artifacts import atomic, existing, load_tensors, save_tensors
from oclam.datasets import to_image
from oclam.errors import UserError, one_line
from oclam.params import Bc
from oclam.policies.networks import ActionDecoder, Actor, Policy

SIZES = ("image_size", "frame_stack", "encoder_scale", "residual_blocks", "cells", "latent_dim", "hidden_dim",
         "action_dim")


@dataclass(frozen=True)
class Card:
    """The description in a policy's file: where it comes from, and the sizes of its networks."""

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
    cells: int = 1  # the actor's last feature map is pooled to cells x cells

    @classmethod
    def of(cls, bc: Bc, *names, **sizes) -> "Card":
        """A card with these names (task, view, variant, seed) and sizes, whose actor is that of the section bc."""
        return cls(*names, frame_stack=bc.frame_stack, encoder_scale=bc.encoder_scale,
                   residual_blocks=bc.residual_blocks, cells=bc.cells, **sizes)

    def check(self, path: Path, expected: dict, otherwise: str = "") -> None:
        """Raise UserError that names `path` where an entry is not as expected; otherwise: another mend."""
        for key, value in expected.items():
            if getattr(self, key) != value:
                raise UserError(f"{path}: the policy has {key} {getattr(self, key)!r}, {value!r} is needed; name a "
                                f"policy with that {key}{otherwise}")

    def actor(self) -> Actor:
        """An untrained actor of these sizes."""
        outputs = self.action_dim if self.latent_dim is None else self.latent_dim
        return Actor(3 * self.frame_stack, outputs, self.encoder_scale, self.residual_blocks, self.cells)

    def decoder(self) -> ActionDecoder | None:
        """An untrained decoder of these sizes, or None where the actor predicts true actions."""
        return None if self.latent_dim is None else ActionDecoder(self.latent_dim, self.hidden_dim, self.action_dim)


def save_actor(path: Path, actor: Actor, card: Card) -> None:
    """Write an actor without a decoder; it predicts what `policies.training.latent_targets` gave it to learn."""
    save_tensors(path, {f"actor.{name}": tensor for name, tensor in actor.state_dict().items()}, **asdict(card))


def load_actor(path: Path, **expected) -> tuple[Actor, Card]:
    """An actor and its description; `expected` as in `load_policies`.

    Raises UserError when the file is missing, damaged or something else.
    """
    tensors, card = _read(path, expected)
    actor = Policy(card.actor())
    _fill(actor, tensors, path)
    return actor.actor, card


def save_policy(folder: Path, policy: Policy, card: Card, frozen: bool = False) -> None:
    """Write the policy of `card.budget` into the folder: everything, or the decoder alone where the actor is frozen."""
    tensors = {name: tensor for name, tensor in policy.state_dict().items()
               if not (frozen and name.startswith("actor."))}
    save_tensors(_file(folder, card.budget), tensors, **asdict(card))


def save_policies(folder: Path, trained: Iterable[tuple[Policy, Card, list[dict]]],
                  frozen: tuple[Actor, Card] | None = None) -> list[dict]:
    """Write the folder of one policy per label budget; gives the loss rows of all, with their budgets.

    Args:
        trained: policy, card and loss rows of each budget.
        frozen: the actor that all share, and its card; None where each policy has its own.
    """
    losses = []
    with atomic(folder) as temporary:
        if frozen:
            save_actor(temporary / "actor.safetensors", *frozen)
        for policy, card, rows in trained:
            save_policy(temporary, policy, card, frozen is not None)
            losses += [{"budget": card.budget, **row} for row in rows]
    return losses


def load_policies(folder: Path | str, budgets: Sequence[int] | None = None,
                  **expected) -> tuple[list[Policy], list[Card]]:
    """The policies of a folder and their descriptions, by rising budget; policies of one frozen actor share it.

    Args:
        budgets: which ones, 0 for all labels; None for all that are there.
        expected: entries of the card that must hold, such as task and view.
    Raises UserError for a missing budget, another task or view, or parts that do not fit.
    """
    folder, frozen = Path(folder), None
    there = _budgets(existing(folder) if folder.exists() else folder)  # an absent one says why
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
                raise UserError(f"{path}: its decoder has {_differences(card, frozen_card)}, unlike the actor beside "
                                "it; delete both and run `dvc repro`")
            policy.actor = frozen
            _fill(policy.decoder, {name.removeprefix("decoder."): value for name, value in tensors.items()}, path)
        else:
            _fill(policy, tensors, path)
        policies.append(policy)
        cards.append(card)
    return policies, cards


class Agent:
    """Acts in a batch of environments and remembers each one's last frames.

    Args:
        policy: moved to `device`.
        frame_stack: how many frames it sees.
    """

    def __init__(self, policy: Policy, frame_stack: int, device: torch.device | str = "cpu"):
        self.policy = policy.to(device, memory_format=torch.channels_last).eval()
        self.frame_stack, self.device = frame_stack, device
        self.reset()

    def reset(self) -> None:
        """Forget the frames: the next ones are the first of new episodes."""
        self._stack = None

    @torch.inference_mode()
    def act(self, frames: np.ndarray) -> np.ndarray:
        """Actions float32 (B, A) for the newest frames, uint8 (B, H, W, 3); the suite clips them to [-1, 1]."""
        newest = torch.from_numpy(frames).to(self.device).unsqueeze(1)
        if self._stack is None:  # an episode's start repeats its first frame
            self._stack = newest.expand(-1, self.frame_stack, -1, -1, -1)
        else:
            self._stack = torch.cat([self._stack[:, 1:], newest], 1)  # (B, stack, H, W, 3)
        return self.policy(to_image(self._stack)).cpu().numpy()


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
        raise UserError(f"{path}: not a policy of this project; delete it and run `dvc repro`") from None
    for key in SIZES:
        size = getattr(card, key)
        optional = key in ("latent_dim", "hidden_dim", "action_dim")
        if not (size is None and optional) and (type(size) is not int or size < (key != "residual_blocks")):
            raise UserError(f"{path}: invalid {key} {size!r} in its description; delete it and run `dvc repro`")
    card.check(path, expected, ", or run `dvc repro`")
    return tensors, card


def _fill(module, tensors, path):
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path}: its weights do not fit its own description "
                        f"({one_line(error)}); delete it and run `dvc repro`") from None


def _differences(card, other):
    ours, theirs = asdict(card), asdict(other)
    return ", ".join(f"{key} {ours[key]!r}, not {theirs[key]!r}" for key in theirs
                     if theirs[key] is not None and ours[key] != theirs[key])

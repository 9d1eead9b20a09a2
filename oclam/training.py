"""The training loop of every stage: device, precision, schedules, one optimizer step, checkpoints and loss rows.

Where `oclam.parallel` started several processes, each takes its share of every batch and all take the same step.
"""

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import distributed

from oclam.checkpoint import Checkpoint
from oclam.curves import curves
from oclam.errors import UserError
from oclam.progress import Progress

EMULATING = ("NO AVX", "AVX2")  # instruction sets on which torch has no products in bfloat16


def best_device(threads: int | None = None) -> torch.device:
    """The GPU where there is one, else the CPU; torch uses `threads` of the CPU from here on (None: as before)."""
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context of the forward pass: bfloat16 where `precision` says so, else float32."""
    if precision == "bfloat16":
        if device.type == "cpu":
            _warn_of_emulation()
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


@cache
def _warn_of_emulation():
    if (instructions := torch.backends.cpu.get_cpu_capability()) in EMULATING:
        print(f"warning: this CPU ({instructions}) computes bfloat16 many times slower than float32; set "
              "compute.precision: float32", file=sys.stderr, flush=True)


def update_counts(settings, steps_per_epoch: int) -> tuple[int, float]:
    """How many updates `settings.epochs` take, at least one, and how many `settings.warmup_epochs` take.

    settings: anything with these two.
    """
    return max(round(settings.epochs * steps_per_epoch), 1), settings.warmup_epochs * steps_per_epoch


def linear_decay(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate at `step`: linear warm-up over `warmup` steps, then linearly to 0 at `steps`."""
    return min((step + 1) / (warmup + 1), (steps - step) / max(steps - warmup, 1))


def exponential_decay(step: int, half_life: int, warmup: int) -> float:
    """Share of the learning rate at `step`: linear warm-up, then half of it at `half_life` (VideoSAUR)."""
    return min((step + 1) / (warmup + 1), 1.0) * 0.5 ** (max(step - warmup, 0) / max(half_life - warmup, 1))


def own_part(batch: torch.Tensor) -> torch.Tensor:
    """This process's part of a batch that all draw alike: (B, ...) -> (B / processes, ...); all where it is alone."""
    if not distributed.is_initialized():
        return batch
    return batch.chunk(distributed.get_world_size())[distributed.get_rank()]


def average(tensors: list[torch.Tensor]) -> None:
    """Replace tensors by their means over the processes."""
    if distributed.is_initialized():
        for pending in [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
            pending.wait()
        for tensor in tensors:
            tensor /= distributed.get_world_size()


def update(optimizer: torch.optim.Optimizer, loss: torch.Tensor, learning_rate: float | list[float],
           clip_norm: float | None = None, norm: float = 2.0) -> None:
    """One step of the optimizer; gradients of a larger norm than `clip_norm` are scaled to it.

    Args:
        loss: the mean over this process's share of the batch.
        learning_rate: of all parameters, or one for each of the optimizer's groups.
        norm: 2 for the Euclidean one, infinity for the largest absolute value.
    """
    optimizer.zero_grad()
    loss.backward()
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    average([weight.grad for weight in weights if weight.grad is not None])
    if clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(weights, clip_norm, norm)
    groups = optimizer.param_groups
    rates = learning_rate if isinstance(learning_rate, list) else [learning_rate] * len(groups)
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    optimizer.step()


def count_parameters(*models: torch.nn.Module) -> dict[str, int]:
    """How many parameters the models have together: `total`, and `trainable` those that are not frozen."""
    parameters = [parameter for model in models for parameter in model.parameters()]
    return {"total": sum(p.numel() for p in parameters),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad)}


def train(step: Callable[[int], dict], steps: int, parts: dict, checkpoint: Checkpoint, *, samples: int,
          unit: str = "samples", rows: int = 200) -> list[dict]:
    """Call `step(i)` for i in 0..steps-1, or from the checkpoint on: about `rows` rows of step and mean scalars.

    The rows are also curves for TensorBoard while it runs (`oclam.curves`).

    Of several processes, all but the first end here when training is done. The last state is saved too, since what
    follows may be interrupted.

    Args:
        step: does one update and returns scalar tensors by name, "loss" among them.
        steps: how many updates.
        parts: objects with state_dict by name (model, optimizer).
        samples: how many a step uses, in `unit`, of all processes.
    Raises UserError when the loss is not finite; the last good checkpoint is kept.
    """
    position = checkpoint.restore(parts) or {"step": 0, "rows": []}
    _begin_alike(parts)
    first, table, window = position["step"], list(position["rows"]), []
    every = max(math.ceil(steps / rows), 1)
    shown = curves(checkpoint.name, first) if _is_first() and first < steps else nullcontext()
    with Progress(steps * samples, checkpoint.name, f" {unit}", initial=first * samples) as bar, shown as show:
        for i in range(first, steps):
            window.append(step(i))
            bar.update(samples)
            if (i + 1) % every == 0 or i + 1 == steps:
                table.append({"step": i + 1, **_means(window, i + 1, checkpoint)})
                bar.set_postfix_str(f"loss {table[-1]['loss']:.4g}", refresh=False)
                if show:
                    show(table[-1])
                window = []
                if checkpoint.due() and i + 1 < steps and _is_first():
                    checkpoint.save(parts, step=i + 1, rows=table)
    _end_others()
    checkpoint.save(parts, step=steps, rows=table)
    return table


def _is_first():
    return not distributed.is_initialized() or distributed.get_rank() == 0


def _begin_alike(parts):
    """Give the models of all processes the first one's weights, after all have read the checkpoint."""
    if distributed.is_initialized():
        for part in parts.values():
            if isinstance(part, torch.nn.Module):
                for tensor in part.state_dict().values():
                    distributed.broadcast(tensor, 0)


def _end_others():
    if distributed.is_initialized():
        first = _is_first()
        distributed.destroy_process_group()
        if not first:
            sys.exit()


def _means(window, step, checkpoint):
    values = {key: torch.stack([row[key].detach().float() for row in window]) for key in window[0]}
    average(list(values.values()))
    values = {key: value.cpu() for key, value in values.items()}
    finite = torch.isfinite(values["loss"])
    if not finite.all():
        bad = step - len(window) + 1 + int((~finite).nonzero()[0])
        raise UserError(f"{checkpoint.name}: the loss is {values['loss'][~finite][0]} at step {bad}; lower "
                        f"learning_rate in this stage's section of params.yaml (earlier steps are kept in "
                        f"{checkpoint.folder})")
    return {key: value.mean().item() for key, value in values.items()}

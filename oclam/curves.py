"""Curves of trainings while they run: `tensorboard --logdir logs`."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["curves"]


@contextmanager
def curves(name: str, first: int) -> Iterator[Callable[[dict], None]]:
    """A function that adds a row of step and scalars to the curves in logs/<experiment>/<name>.

    The experiment is DVC's, or `workspace`. Experiments in temporary copies write to the logs of their checkout.

    Args:
        name: of the training, with task, seed and variant.
        first: the step that it resumes from; 0 removes the curves of earlier trainings.
    """
    from torch.utils.tensorboard import SummaryWriter  # takes seconds

    here = Path.cwd()
    root = next((folder.parent for folder in here.parents if folder.name == ".dvc"), here)
    place = root / "logs" / os.environ.get("DVC_EXP_NAME", "workspace") / name
    if first == 0:
        shutil.rmtree(place, ignore_errors=True)
    with SummaryWriter(place, purge_step=first + 1, flush_secs=10) as writer:  # what was written after it is hidden

        def write(row):
            for key, value in row.items():
                if key != "step":
                    writer.add_scalar(key, value, row["step"])

        yield write

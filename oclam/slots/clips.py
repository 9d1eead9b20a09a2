"""Short clips of a dataset, encoded for object-centric pretraining."""

from collections.abc import Callable
from functools import cached_property

import torch

from oclam.datasets import Frames
from oclam.progress import Progress
from oclam.seeding import torch_rng
from oclam.training import own_part

ENCODER_BATCH = 64


def clip_index(count: int, episodes: int, steps: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Flat indices (count, length) of clips, drawn uniformly among all that lie within an episode."""
    episode = torch.randint(episodes, (count,), generator=generator)
    start = torch.randint(steps - length + 1, (count,), generator=generator)
    return (episode * steps + start)[:, None] + torch.arange(length)


class Clips:
    """`clips(step)` is this process's share of a training step's batch: tensors (B, T, ...), as `observe` gives them.

    `clips(step, whole=True)` is all of the batch.

    Args:
        frames: uint8 images.
        observe: uint8 (N, H, W, 3) -> tensors (N, ...), such as the frozen encoder.
        episodes, steps: of the dataset.
        length: of a clip.
        batch_size: clips of a step.
        kept: how many clips to draw and encode once, in float16, for all of training; None for new ones at every step.
        seed: of the draws.
    """

    def __init__(self, frames: Frames, observe: Callable, *, episodes: int, steps: int, length: int, batch_size: int,
                 kept: int | None, seed: int):
        self.frames, self.observe, self.seed = frames, observe, seed
        self.draw = lambda count, *purpose: clip_index(count, episodes, steps, length, torch_rng(*purpose, seed))
        self.batch_size, self.kept = batch_size, kept

    def __call__(self, step: int, whole: bool = False) -> tuple[torch.Tensor, ...]:
        part = (lambda batch: batch) if whole else own_part
        if self.kept is None:
            index = part(self.draw(self.batch_size, "clips", step))
            outputs = self.observe(self.frames.gather(index.flatten()))
            return tuple(output.unflatten(0, index.shape) for output in outputs)
        chosen = part(torch.randint(self.kept, (self.batch_size,), generator=torch_rng("clips", step, self.seed)))
        return tuple(tensor[chosen.to(tensor.device)].float() for tensor in self._store)

    @cached_property
    def _store(self):
        """All kept clips, (kept, T, ...); every frame is encoded once, although clips overlap."""
        unique, place = self.draw(self.kept, "kept clips").unique(return_inverse=True)
        outputs = []
        with Progress(len(unique), "encoding clips", " frames") as bar:
            for part in unique.split(ENCODER_BATCH):
                outputs.append([output.half() for output in self.observe(self.frames.gather(part))])
                bar.update(len(part))
        return tuple(torch.cat(column)[place.to(column[0].device)] for column in zip(*outputs, strict=True))

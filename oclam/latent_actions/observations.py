"""What latent action models observe at a frame: stacked frames, or the chosen slots."""

from dataclasses import dataclass

import torch
import zarr

from oclam.datasets import Frames, FrameStacks, mean_and_deviation, stack_index

FLOOR = 0.3


@dataclass(frozen=True)
class FrameObservations:
    """Stacked frames: flat indices (B,) -> (B, 3 stack, H, W) in [-1, 1].

    Args:
        stacks: the frames; those of lapo-masks are masked already.
        masks: of lapo-focus, the masks that weigh the loss: uint8 rows (H, W).
        background_weight: of lapo-focus, the weight of the loss outside the masks; inside it is 1.
    """

    stacks: FrameStacks
    masks: Frames | None = None
    background_weight: float | None = None

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        return self.stacks(t)

    def loss_weight(self, t: torch.Tensor) -> torch.Tensor | None:
        """The weight of every value of observation t in the loss, or None where all weigh the same."""
        if self.masks is None:
            return None
        masks = self.masks.gather(stack_index(t, self.stacks.stack, self.stacks.steps))  # (B, stack, H, W)
        return self.background_weight + (1 - self.background_weight) * masks.repeat_interleave(3, 1).float() / 255


@dataclass(frozen=True)
class SlotObservations:
    """The chosen slots: flat indices (B,) -> (B, D), float32, centred and divided by their standard deviations.

    Slots of a short pretraining hardly vary (by 0.05): unscaled, the forward model did worse than to copy its input. A
    deviation counts as at least FLOOR times the largest one, so that dimensions that hardly vary are not amplified.
    """

    slots: Frames
    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def load(cls, array: zarr.Array, training: int, device: torch.device) -> "SlotObservations":
        """Read slots (E, T, D); mean and standard deviation are those of the first `training` episodes."""
        mean, std = mean_and_deviation(array, training)
        std = std.clamp(min=FLOOR * std.max())
        frames = Frames.load(array, range(array.shape[0]), device)
        return cls(frames, mean.float().to(device), std.float().to(device))

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        return (self.slots.gather(t).float() - self.mean) / self.std

    def loss_weight(self, t: torch.Tensor) -> None:
        """None: all values weigh the same."""
        return None

"""Encoders, object-centric models and latent action models that need neither the repository nor its data.

What their input is normalised with is among their weights.

    model = HubLatentActionModel.from_pretrained("folder or user/name")
    latents = model.latents(frames)
"""

from types import SimpleNamespace

import timm
import torch
from torch import nn

from oclam.agent.refinement import agent_mask
from oclam.agent.store import crops, masked_frames
from oclam.datasets import stack_index, to_image
from oclam.encoders.frozen import FrozenEncoder
from oclam.export.hub import Hub
from oclam.laom.models import LaomModel, SlotLaomModel
from oclam.latent_actions.models import ImageLatentActionModel, SlotLatentActionModel
from oclam.params import Ocp
from oclam.slots.extraction import project, slots_of
from oclam.slots.models import make_model
from oclam.slots.registration import mask_moments, poses
from oclam.slots.steve import to_unit

BATCH = 64  # pairs of frames whose latent actions are computed at once
MODELS = {"lapo": ImageLatentActionModel, "laom": LaomModel, "slots": SlotLatentActionModel,
          "laom-slots": SlotLaomModel}


class HubEncoder(FrozenEncoder, Hub):
    """A frozen encoder, called with uint8 frames (B, H, W, 3).

    encoder: the other arguments of FrozenEncoder, among them the pixels' mean and deviation.
    """

    def __init__(self, encoder: dict, origin: dict):
        super().__init__(timm.create_model(encoder["name"], num_classes=0, **encoder["kwargs"]), **encoder)
        self.origin = origin


class HubLatentActionModel(nn.Module, Hub):
    """A latent action model with all that its input needs.

    Args:
        model: lapo, laom, slots or laom-slots.
        sizes: the arguments of that model.
        components: of slots, how many numbers of a masked frame they are components of; 0 where they are slot
            attention's own.
    """

    def __init__(self, model: str, sizes: dict, components: int, origin: dict):
        super().__init__()
        self.origin, self.model = origin, MODELS[model](**sizes)
        if "slot_dim" in sizes:
            width = sizes["slot_dim"]
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("std", torch.ones(width))
            self.register_buffer("crop_mean", torch.zeros(components))
            self.register_buffer("basis", torch.zeros(components, width))

    def observe(self, frames: torch.Tensor) -> torch.Tensor:
        """What `model` sees of an episode: (T, channels, H, W) in [-1, 1], or slots (T, D).

        frames: uint8 (T, H, W, 3), masked where the variant observes masked frames or their components
        (HubSlotModel.agent masks them); slot attention's own vectors are (T, D).
        """
        if "slot_dim" in self.model.sizes:
            if len(self.basis):
                frames = ((crops(frames) - self.crop_mean) @ self.basis).half()  # as the pipeline stores them
            return (frames.float() - self.mean) / self.std
        time = torch.arange(len(frames), device=frames.device)
        return to_image(frames[stack_index(time, self.model.sizes["channels"] // 3, len(frames))])

    @torch.no_grad()
    def latents(self, frames: torch.Tensor) -> torch.Tensor:
        """The latent action (T-1, L) between every two frames of an episode, which are as in `observe`."""
        seen = self.observe(frames)
        pairs = zip(seen[:-1].split(BATCH), seen[1:].split(BATCH), strict=True)
        return torch.cat([self.model.idm(now, later) for now, later in pairs])


class HubSlotModel(nn.Module, Hub):
    """An object-centric model with its frozen encoder, and the choice of the agent's slots.

    Args:
        ocp, steve: the section ocp, and of the section steve what shapes the model.
        select: chosen, the agent's slots; of the section slot_select masks and registered.
        image_size: edge of the frames.
        encoder: the arguments of FrozenEncoder without the transformer, None for STEVE.
    """

    def __init__(self, ocp: dict, steve: dict, select: dict, image_size: int, encoder: dict | None, origin: dict):
        super().__init__()
        self.select, self.window, self.origin = select, ocp["window"], origin
        self.encoder = HubEncoder(encoder, origin) if encoder else None
        self.model = make_model(Ocp(**ocp), SimpleNamespace(**steve), self.encoder, image_size)
        self.register_buffer("pose", torch.zeros(3, dtype=torch.float64))  # mean moments of the agent's mask

    @torch.no_grad()
    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Slots (T, K, D), and masks uint8 (T, K, G, G), 0..255, of an episode's frames, uint8 (T, H, W, 3)."""
        projected, = project([self.model], self.encoder or to_unit, frames[None])
        slots, masks = slots_of(self.model, projected, None, self.window)
        return slots[0], masks[0].unflatten(-1, (self.model.grid, self.model.grid))

    def agent(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The agent's mask, uint8 (T, H, W), 0..255, and the frames that lapo-masks sees, uint8 (T, H, W, 3).

        frames: of an episode, uint8 (T, H, W, 3).
        """
        masks, frames = self(frames)[1].cpu().numpy(), frames.cpu()
        mask = torch.from_numpy(agent_mask(masks, self.select["chosen"], self.select["masks"], frames.numpy()))
        pose = poses(mask_moments(mask / 255), self.pose.cpu()) if self.select["registered"] else None
        return mask, masked_frames(frames, mask, pose)

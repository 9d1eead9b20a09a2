"""The object-centric model that the parameters ask for, and its weights from a file."""

from collections.abc import Callable
from pathlib import Path

import torch

from oclam.artifacts import load_tensors
from oclam.encoders.files import load_encoder
from oclam.errors import UserError, one_line
from oclam.params import Ocp, Steve
from oclam.slots.slotcontrast import SlotContrast
from oclam.slots.steve import make_steve, to_unit
from oclam.slots.videosaur import VideoSaur

KINDS = {"videosaur": (VideoSaur, ("similarity_weight", "similarity_temperature", "reconstruction_weight")),
          "slotcontrast": (SlotContrast, ("contrast_weight", "contrast_temperature"))}


def make_observer(ocp: Ocp, encoder: Path, device: torch.device) -> Callable:
    """What turns uint8 frames (N, H, W, 3) into the model's inputs (N, ...): the frozen encoder, or scaled pixels.

    Raises UserError where the encoder has fewer patches than `ocp.decoded_patches`.
    """
    if ocp.model == "steve":
        return to_unit
    frozen = load_encoder(encoder)
    check_patches(ocp, frozen.grid**2)
    return frozen.to(device)


def check_patches(ocp: Ocp, patches: int) -> None:
    """Raise UserError where an encoder of so many patches has fewer than `ocp.decoded_patches`."""
    if (ocp.decoded_patches or 1) > patches:
        raise UserError(f"ocp.decoded_patches: {ocp.decoded_patches} given, the encoder has {patches} patches "
                        "at encoder.image_size; null takes all")


def make_model(ocp: Ocp, steve: Steve | None, observer: Callable, image_size: int) -> torch.nn.Module:
    """An untrained model.

    Args:
        ocp: the section ocp.
        steve: of the section steve what shapes the model; any where `ocp.model` is another.
        observer: as `make_observer` gives it.
        image_size: edge of the frames in pixels.
    """
    if ocp.model == "steve":
        return make_steve(steve, image_size, ocp.slots, ocp.slot_dim)
    kind, losses = KINDS[ocp.model]
    return kind(observer.dim, observer.grid**2, **ocp.model_dump(include={
        "slots", "slot_dim", "feature_hidden", "decoder_hidden", "decoder_layers", "masks", "published", *losses}))


def load_weights(model: torch.nn.Module, path: Path) -> torch.nn.Module:
    """The model with the weights in a file of stage ocp. Raises UserError when the file does not fit the parameters."""
    try:
        model.load_state_dict(load_tensors(path)[0])
    except RuntimeError as error:
        raise UserError(f"{path}: does not fit the section ocp ({one_line(error)}); run `dvc repro`") from None
    return model

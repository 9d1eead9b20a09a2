"""Frozen encoders from files and from the hub."""

import urllib.error
import urllib.request
from pathlib import Path

import timm
import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import nn

from oclam.artifacts import how_to_fix, load_tensors, save_tensors
from oclam.encoders.frozen import FrozenEncoder
from oclam.errors import UserError, one_line

WEIGHTS = "model.safetensors"  # its name in every repository of the hub
USED = ("blocks.", "patch_embed.", "pos_embed", "cls_token", "reg_token", "norm_pre.")  # tensors before the last norm
HUB_TIMEOUT = 4.0  # seconds until a hub that does not answer counts as out of reach


def save_encoder(path: Path, encoder: FrozenEncoder, dtype: torch.dtype = torch.float32) -> None:
    """Write an encoder's weights and description as safetensors."""
    tensors = {key: value.to(dtype) for key, value in encoder.vit.state_dict().items()}
    save_tensors(path, tensors, patch_size=encoder.patch_size, **encoder.about)


def load_encoder(path: Path) -> FrozenEncoder:
    """The encoder in a file of `save_encoder`. Raises UserError for a missing, damaged or other file."""
    tensors, about = load_tensors(path)
    if "kwargs" not in about:
        raise UserError(f"{path}: does not say which encoder it has; {how_to_fix(path)}")
    try:
        vit = timm.create_model(about["name"], num_classes=0, **about["kwargs"])
        vit.norm = nn.Identity()
        vit.load_state_dict({key: value.float() for key, value in tensors.items()})
        del about["patch_size"]  # it follows from the architecture
        return FrozenEncoder(vit, **about)
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its description does not fit its weights ({one_line(error)}); {how_to_fix(path)}"
                        ) from None


def make_encoder(source: str | Path, name: str, parameter: str = "encoder.source") -> FrozenEncoder:
    """The encoder that the parameters ask for, at the size that it was trained with.

    Args:
        source: `hub`, or a safetensors file with timm's tensor names or of `save_encoder`.
        name: timm's name of the architecture; a file of `save_encoder` has its own.
        parameter: the parameter that gave `source`, for messages.
    Raises UserError for an encoder that does not exist or cannot be downloaded.
    """
    if source != "hub" and not Path(source).is_file():
        raise UserError(f"{parameter}: {str(source)!r} given, no such file; give safetensors with timm's tensor names")
    if source != "hub" and "kwargs" in load_tensors(source)[1]:
        return load_encoder(source)
    key = "encoder.teacher" if parameter.startswith("encoder.teacher") else "encoder.name"
    check_name(name, key)
    file = _hub_file(name, key, parameter) if source == "hub" else Path(source)
    tensors, _ = load_tensors(file)
    try:
        vit = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": str(file)})
        renamed = {"reg_token"} if "register_tokens" in tensors else set()  # DINOv2's own name, which timm knows
        absent = [key for key in vit.state_dict().keys() - renamed if key.startswith(USED) and key not in tensors]
        if absent:  # timm keeps random weights for missing tensors when the number of classes differs
            raise KeyError(f"{min(absent)} is missing")
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{parameter}: {source} does not fit the architecture {name} ({one_line(error)})"
                        ) from None
    config = vit.pretrained_cfg
    size = vit.patch_embed.img_size[0]
    return FrozenEncoder(vit, name=name, kwargs={"img_size": size}, image_size=size, mean=config["mean"],
                         std=config["std"], source="hub" if source == "hub" else file.name)


def check_name(name: str, parameter: str = "encoder.name") -> None:
    """Raise UserError unless timm has a vision transformer of this name, and weights where it names some."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture) or tag and not timm.is_model_pretrained(name):
        raise UserError(f"{parameter}: {name!r} given, which timm {timm.__version__} does not know")
    with torch.device("meta"):
        vit = timm.create_model(name)
    try:
        vit.blocks[-1].attn.k_norm, vit.num_prefix_tokens, vit.patch_embed.img_size[0]  # which FrozenEncoder reads
    except (AttributeError, TypeError):
        raise UserError(f"{parameter}: {name!r} given, allowed are timm's vision transformers, of class "
                        "VisionTransformer or Eva") from None


def _hub_file(name, key, parameter):
    """The weights' file in the hub's cache, downloaded when it is not there yet."""
    repository = timm.get_pretrained_cfg(name).hf_hub_id
    if repository is None:
        raise UserError(f"{key}: {name!r} given, the hub has no weights for it")
    cached = try_to_load_from_cache(repository, WEIGHTS)
    if isinstance(cached, str):
        return Path(cached)
    _check_hub(repository, parameter)
    try:
        return Path(hf_hub_download(repository, WEIGHTS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{parameter}: {repository} cannot be downloaded ({one_line(error)}); "
                        f"{_by_hand(repository, parameter)}") from None


def _check_hub(repository, parameter):
    # Asked first, because huggingface_hub tries an absent hub again and again for more than 20 seconds.
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT)
    except urllib.error.HTTPError:
        return  # it answered
    except OSError as error:
        raise UserError(f"{parameter}: the hub at {constants.ENDPOINT} is out of reach ({error}); "
                        f"{_by_hand(repository, parameter)}") from None


def _by_hand(repository, parameter):
    return f"put {WEIGHTS} of the repository {repository} in data/encoders and set {parameter} to its path"

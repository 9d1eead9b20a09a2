"""Frozen vision transformers: what VideoSAUR sees of a frame (paper, section 4; VideoSAUR arXiv 2306.04829)."""

import urllib.error
import urllib.request
from pathlib import Path

import timm
import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from torch import nn
from torch.nn import functional as F

from oclam.artifacts import load_tensors, save_tensors
from oclam.errors import UserError

__all__ = ["FrozenEncoder", "load_encoder", "make_encoder"]

WEIGHTS = "model.safetensors"  # its name in every repository of the hub
HUB_TIMEOUT = 4.0  # seconds until a hub that does not answer counts as out of reach


class FrozenEncoder(nn.Module):
    """A timm vision transformer without gradients, final norm and head.

    Called with uint8 frames (B, H, W, 3), it returns the last block's output and the keys of that block's attention,
    both (B, patches, dim), row by row of the patch grid and without class and register tokens, from a single pass.

    Args: vit, a timm model with `blocks`; name and kwargs, what `timm.create_model` builds it from; image_size, to
    which frames are resized; mean and std of the pixels, in 0..1; source, where the weights came from.
    Attributes: dim, width of both outputs; patch_size; grid, patches per side.
    """

    def __init__(self, vit, *, name, kwargs, image_size, mean, std, source):
        super().__init__()
        vit.norm = nn.Identity()  # features are the last block's own output: 85,806,336 parameters for ViT-B/8
        self.vit = vit.eval().requires_grad_(False)
        self.dim, self.patch_size = vit.embed_dim, vit.patch_embed.patch_size[0]
        self.image_size, self.grid = image_size, image_size // self.patch_size
        self.about = {"name": name, "kwargs": dict(kwargs), "image_size": image_size, "mean": list(mean),
                      "std": list(std), "source": source}
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self._keys = None
        # The keys as attention uses them; without key normalisation this module is the identity and sees them too.
        vit.blocks[-1].attn.k_norm.register_forward_hook(self._remember_keys)

    def _remember_keys(self, module, inputs, keys):
        self._keys = keys  # (B, heads, tokens, dim / heads)

    @torch.no_grad()
    def forward(self, images):
        return self.encode(images)

    def encode(self, images):
        """The same pass with gradients, for distillation."""
        features = self.vit.forward_features(self.pixels(images))
        keys, self._keys = self._keys.transpose(1, 2).flatten(2), None
        prefix = self.vit.num_prefix_tokens
        return features[:, prefix:], keys[:, prefix:]

    def pixels(self, images):
        """uint8 frames (B, H, W, 3) to normalised float32 (B, 3, image_size, image_size), resized bicubically."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"frames are uint8 (B, H, W, 3), got {images.dtype} {tuple(images.shape)}")
        x = images.permute(0, 3, 1, 2).float() / 255
        if x.shape[-2:] != (self.image_size, self.image_size):
            x = F.interpolate(x, (self.image_size, self.image_size), mode="bicubic", antialias=True).clamp(0, 1)
        return (x - self.mean) / self.std

    def resize(self, image_size):
        """Take frames at another size from now on, the position embeddings resampled to it. Returns the encoder."""
        if image_size % self.patch_size:
            raise UserError(f"encoder.image_size: {image_size} given, allowed are multiples of the encoder's patch, "
                            f"{self.patch_size} pixels")
        self.vit.set_input_size((image_size, image_size))
        self.image_size, self.grid = image_size, image_size // self.patch_size
        self.about |= {"image_size": image_size, "kwargs": self.about["kwargs"] | {"img_size": image_size}}
        return self

    def train(self, mode=True):
        """Stay frozen: dropout and stochastic depth never come on."""
        return super().train(False)

    def save(self, path, dtype=torch.float32):
        """Write weights and description, as `load_encoder` reads them."""
        tensors = {key: value.to(dtype) for key, value in self.vit.state_dict().items()}
        save_tensors(path, tensors, patch_size=self.patch_size, **self.about)


def load_encoder(path):
    """Read what `FrozenEncoder.save` wrote. Raises UserError for a missing, damaged or foreign file."""
    tensors, about = load_tensors(path)
    if "kwargs" not in about:
        raise UserError(f"{path}: does not say what encoder it holds; give such a file as encoder.source, and the "
                        "stage encoder makes one that does")
    vit = timm.create_model(about["name"], num_classes=0, **about["kwargs"])
    vit.norm = nn.Identity()
    vit.load_state_dict({key: value.float() for key, value in tensors.items()})
    del about["patch_size"]  # which the architecture implies
    return FrozenEncoder(vit, **about)


def make_encoder(source, name, parameter="encoder.source"):
    """The encoder that the parameters ask for, at the size that it was trained with.

    Args: source, `hub` or a safetensors file: with timm's names for the architecture `name`, or written by
    `FrozenEncoder.save` and then saying itself what it is; parameter, which holds `source`.
    Raises UserError, naming the parameter, for what cannot be had.
    """
    if source != "hub" and not Path(source).is_file():
        raise UserError(f"{parameter}: {str(source)!r} given, which is no file; name safetensors with timm's names")
    if source != "hub" and "kwargs" in load_tensors(source)[1]:
        return load_encoder(source)
    _check_name(name)
    file = _hub_file(name, parameter) if source == "hub" else Path(source)
    tensors, _ = load_tensors(file)
    try:
        vit = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": str(file)})
        absent = [key for key in vit.state_dict() if key.startswith("blocks.") and key not in tensors]
        if absent:  # timm leaves what a file lacks at random when the file has another number of classes
            raise KeyError(f"{absent[0]} is missing")
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{parameter}: {source} does not fit the architecture {name} "
                        f"({' '.join(str(error).split())[:160]})") from None
    config = vit.pretrained_cfg
    size = vit.patch_embed.img_size[0]
    return FrozenEncoder(vit, name=name, kwargs={"img_size": size}, image_size=size, mean=config["mean"],
                         std=config["std"], source="hub" if source == "hub" else file.name)


def _check_name(name):
    if not timm.is_model(name):
        raise UserError(f"encoder.name: {name!r} given, which timm {timm.__version__} does not know")
    with torch.device("meta"):
        vit = timm.create_model(name)
    if not hasattr(vit, "blocks") or not hasattr(vit.blocks[-1], "attn"):
        raise UserError(f"encoder.name: {name!r} given, allowed are timm's vision transformers")


def _hub_file(name, parameter):
    """The weights' file in the hub's cache, downloaded when it is not there yet."""
    repository = timm.get_pretrained_cfg(name).hf_hub_id
    if repository is None:
        raise UserError(f"encoder.name: {name!r} given, of which the hub has no weights")
    cached = try_to_load_from_cache(repository, WEIGHTS)
    if isinstance(cached, str):
        return Path(cached)
    _check_hub(repository, parameter)
    return Path(hf_hub_download(repository, WEIGHTS))


def _check_hub(repository, parameter):
    # Asked first, because timm tries an absent hub again and again for more than 15 seconds.
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT)
    except urllib.error.HTTPError:
        return  # it answered
    except OSError as error:
        raise UserError(f"{parameter}: the hub at {constants.ENDPOINT} is out of reach ({error}); name "
                        f"a local file instead, such as {WEIGHTS} of the repository {repository}") from None

"""Slots and masks of every frame of a dataset, in one resumable streaming pass, or masks of a few episodes."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import zarr

from oclam.artifacts import move_store
from oclam.checkpoint import Units
from oclam.progress import Progress

EPISODES, STEPS, ENCODER_BATCH = 16, 100, 64  # a unit of work is also a chunk of the store


@torch.no_grad()
def extract_slots(model: torch.nn.Module, observe: Callable, pixels: zarr.Array, path: Path, folder: Path, *,
                  slots: int, slot_dim: int, window: int | None, forward: Callable, attrs: dict,
                  finish: Callable[[zarr.Group], None] | None = None) -> None:
    """Write the slots float16 (E, T, K, D) and masks uint8 (E, T, K, G, G), 0..255, of every frame to a Zarr group.

    Episodes are processed side by side, frame after frame; every frame passes the encoder once. After each unit of 16
    episodes x 100 frames, the store and the recurrent state are saved in `folder`, from where an interrupted call
    resumes to the same bytes.

    Args:
        model: with `project`, `slots`, `masks` and `grid`, G.
        observe: uint8 (N, H, W, 3) -> tensors (N, ...), of which the first one is the model's input.
        pixels: uint8 (E, T, H, W, 3).
        path: of the finished store.
        slots, slot_dim: K and D.
        window: length of independent windows, or None to go through whole episodes.
        forward: gives the context manager of a forward pass (precision).
        attrs: of the store.
        finish: called with the store when all slots are there, such as `oclam.slots.components.write_components`.
    """
    (episodes, steps), grid, device = pixels.shape[:2], model.grid, next(model.parameters()).device
    length = STEPS if window is None else window * -(-STEPS // window)
    shapes = {"slots": ((slots, slot_dim), "float16"), "masks": ((slots, grid, grid), "uint8")}
    progress = Units(folder / "units.pt", folder / "slots.zarr")
    store = zarr.open_group(folder / "slots.zarr", mode="a")
    if progress.done == 0:
        store.attrs.update(attrs)
        for name, (shape, dtype) in shapes.items():
            chunks = (min(EPISODES, episodes), min(length, steps), *shape)
            store.create_array(name, shape=(episodes, steps, *shape), chunks=chunks, dtype=dtype, overwrite=True)
    units = [(e, t) for e in range(0, episodes, EPISODES) for t in range(0, steps, length)]
    model.eval()
    with Progress(episodes * steps, "extracting slots", " frames") as bar:
        for unit, (e, t) in enumerate(units):
            place = slice(e, min(e + EPISODES, episodes)), slice(t, min(t + length, steps))
            count = (place[0].stop - e) * (place[1].stop - t)
            if unit >= progress.done:
                previous = None if t == 0 or window else progress.state.to(device)
                images = torch.from_numpy(pixels[place])
                with forward():
                    projected, = project([model], observe, images.to(device))
                    found, masks = slots_of(model, projected, previous, window)
                store["slots"][place] = found.half().cpu().numpy()
                store["masks"][place] = masks.unflatten(-1, (grid, grid)).cpu().numpy()
                progress.finish(found[:, -1].cpu())
            bar.update(count)
    if finish:
        progress.release(("slots/c/",))  # which `finish` writes again, without reading what may be damaged
        shutil.rmtree(folder / "slots.zarr/slots/c", ignore_errors=True)
        finish(store)
    move_store(folder / "slots.zarr", path, progress.path)


@torch.no_grad()
def find_masks(models: Sequence[torch.nn.Module], observe: Callable, episodes: Sequence[np.ndarray], *,
               window: int | None, forward: Callable) -> np.ndarray:
    """Masks of a few episodes by each of some models of one size: uint8 (models, episodes, T, K, G, G).

    Every frame passes the encoder once. episodes: uint8 (T, H, W, 3) each; all else as in `extract_slots`.
    """
    device, found = next(models[0].parameters()).device, [[] for _ in models]
    for model in models:
        model.eval()
    with Progress(len(episodes), "finding masks", " episodes") as bar, forward():
        for episode in episodes:
            projected = project(models, observe, torch.from_numpy(episode)[None].to(device))
            for model, part, masks in zip(models, projected, found, strict=True):
                masks.append(slots_of(model, part, None, window)[1][0])
            bar.update()
    return torch.stack([torch.stack(masks) for masks in found]).unflatten(-1, (models[0].grid,) * 2).cpu().numpy()


def project(models: Sequence[torch.nn.Module], observe: Callable, images: torch.Tensor) -> list[torch.Tensor]:
    """Projected features (B, T, P, D) of frames uint8 (B, T, H, W, 3), one tensor for each model."""
    observed = (observe(part)[0] for part in images.flatten(0, 1).split(ENCODER_BATCH))
    parts = [[model.project(features) for model in models] for features in observed]
    return [torch.cat(column).unflatten(0, images.shape[:2]) for column in zip(*parts, strict=True)]


def slots_of(model: torch.nn.Module, projected: torch.Tensor, previous: torch.Tensor | None,
             window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots (B, T, K, D) and masks uint8 (B, T, K, P), 0..255, of projected features (B, T, P, D).

    previous: slots (B, K, D) of the frame before; None at an episode's start.
    """
    pieces = projected.split(window or projected.shape[1], 1)
    slots = torch.cat([model.slots(piece, previous) for piece in pieces], 1)
    masks = [model.masks(*part) for part in zip(slots.flatten(0, 1).split(ENCODER_BATCH),
                                               projected.flatten(0, 1).split(ENCODER_BATCH), strict=True)]
    masks = torch.cat(masks).float().mul(255).round().byte().unflatten(0, projected.shape[:2])
    return slots, masks

"""Slots and masks of every frame of a dataset, in one streaming pass that can be interrupted, or of a few episodes."""

import shutil

import torch
import zarr

from oclam.artifacts import atomic
from oclam.checkpoint import Units
from oclam.progress import Progress

__all__ = ["extract_slots", "find_masks"]

EPISODES, STEPS, ENCODER_BATCH = 16, 100, 64  # a unit of work is also a chunk of the store


@torch.no_grad()
def extract_slots(model, observe, pixels, path, folder, *, slots, slot_dim, grid, window, device, forward, attrs):
    """Write the slots of every frame of `pixels` to a Zarr group.

    Episodes go through side by side, frame after frame; every frame passes the encoder once. After each unit of 16
    episodes x 100 frames the store and the recurrent state are in `folder`, from where an interrupted call goes on to
    the very bytes of an uninterrupted one.
    Args: model, with `project`, `slots` and `masks`; observe, uint8 (N, H, W, 3) -> tensors (N, ...), the first of them
    the model's input; pixels, Zarr uint8 (E, T, H, W, 3); path, the store's final place; slots K, slot_dim D, grid G;
    window, None to go through a whole episode, or the length of independent windows; forward, the context manager of
    the forward pass (precision); attrs of the store.
    Writes slots float16 (E, T, K, D); masks uint8 (E, T, K, G, G), 0..255.
    """
    episodes, steps = pixels.shape[:2]
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
                    projected, = _project([model], observe, images.to(device))
                    found, masks = _slots_of(model, projected, previous, window)
                store["slots"][place] = found.half().cpu().numpy()
                store["masks"][place] = masks.unflatten(-1, (grid, grid)).cpu().numpy()
                progress.finish(found[:, -1].cpu())
            bar.update(count)
    progress.path.unlink()  # first, so that a kill here leads to another extraction, not to half of one
    with atomic(path) as temporary:
        shutil.move(folder / "slots.zarr", temporary)


@torch.no_grad()
def find_masks(models, observe, episodes, *, window, forward):
    """The masks of a few episodes, as `extract_slots` finds them with each of some models of the same size.

    Every frame passes the encoder once. Episodes uint8 (T, H, W, 3) each -> uint8 (models, episodes, T, K, G, G).
    """
    device, found = next(models[0].parameters()).device, [[] for _ in models]
    for model in models:
        model.eval()
    with Progress(len(episodes), "finding masks", " episodes") as bar, forward():
        for episode in episodes:
            projected = _project(models, observe, torch.from_numpy(episode)[None].to(device))
            for model, part, masks in zip(models, projected, found, strict=True):
                masks.append(_slots_of(model, part, None, window)[1][0])
            bar.update()
    return torch.stack([torch.stack(masks) for masks in found]).unflatten(-1, (models[0].grid,) * 2).cpu().numpy()


def _project(models, observe, images):
    """Frames (B, T, H, W, 3) -> their features as each model's slots read them, (B, T, P, D)."""
    observed = (observe(part)[0] for part in images.flatten(0, 1).split(ENCODER_BATCH))
    parts = [[model.project(features) for model in models] for features in observed]
    return [torch.cat(column).unflatten(0, images.shape[:2]) for column in zip(*parts, strict=True)]


def _slots_of(model, projected, previous, window):
    """Projected features (B, T, P, D) -> slots (B, T, K, D) and masks uint8 (B, T, K, P)."""
    pieces = projected.split(window or projected.shape[1], 1)
    slots = torch.cat([model.slots(piece, previous) for piece in pieces], 1)
    masks = [model.masks(*part) for part in zip(slots.flatten(0, 1).split(ENCODER_BATCH),
                                               projected.flatten(0, 1).split(ENCODER_BATCH), strict=True)]
    masks = torch.cat(masks).float().mul(255).round().byte().unflatten(0, projected.shape[:2])
    return slots, masks

"""Slots and masks of every frame of a dataset, in one streaming pass that can be interrupted, or of a few episodes."""

import shutil

import numpy as np
import torch
import zarr

from oclam.artifacts import atomic
from oclam.progress import Progress

__all__ = ["extract_slots", "find_masks"]

EPISODES, STEPS, ENCODER_BATCH = 16, 100, 64  # a unit of work is also a chunk of the store


class _Position:
    """The next unit of work and the slots that its first frames go on from, as `oclam.checkpoint` saves them."""

    def __init__(self, path):
        self.path, self.unit, self.previous = path, 0, None
        if path.exists():
            self.unit, self.previous = torch.load(path, weights_only=True)

    def advance(self, previous):
        self.unit, self.previous = self.unit + 1, previous.cpu()
        with atomic(self.path) as temporary:
            torch.save((self.unit, self.previous), temporary)


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
    position, store = _Position(folder / "position.pt"), zarr.open_group(folder / "slots.zarr", mode="a")
    if position.unit == 0:
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
            if unit >= position.unit:
                previous = None if t == 0 or window else position.previous.to(device)
                images = torch.from_numpy(pixels[place])
                with forward():
                    found, masks = _slots_of(model, observe, images.to(device), previous, window)
                store["slots"][place] = found.half().cpu().numpy()
                store["masks"][place] = masks.unflatten(-1, (grid, grid)).cpu().numpy()
                position.advance(found[:, -1])
            bar.update(count)
    position.path.unlink()  # first, so that a kill here leads to another extraction, not to half of one
    with atomic(path) as temporary:
        shutil.move(folder / "slots.zarr", temporary)


@torch.no_grad()
def find_masks(model, observe, episodes, *, window, forward):
    """The masks of a few episodes, as `extract_slots` finds them: uint8 (T, H, W, 3) each -> uint8 (n, T, K, G, G)."""
    model.eval()
    device, found = next(model.parameters()).device, []
    for episode in episodes:
        with forward():
            masks = _slots_of(model, observe, torch.from_numpy(episode)[None].to(device), None, window)[1]
        found.append(masks[0].unflatten(-1, (model.grid, model.grid)).cpu().numpy())
    return np.stack(found)


def _slots_of(model, observe, images, previous, window):
    """Frames (B, T, H, W, 3) -> slots (B, T, K, D) and masks uint8 (B, T, K, P)."""
    frames = images.flatten(0, 1)
    projected = torch.cat([model.project(observe(part)[0]) for part in frames.split(ENCODER_BATCH)])
    projected = projected.unflatten(0, images.shape[:2])  # (B, T, P, D)
    pieces = projected.split(window or projected.shape[1], 1)
    slots = torch.cat([model.slots(piece, previous) for piece in pieces], 1)
    masks = [model.masks(*part) for part in zip(slots.flatten(0, 1).split(ENCODER_BATCH),
                                               projected.flatten(0, 1).split(ENCODER_BATCH), strict=True)]
    masks = torch.cat(masks).float().mul(255).round().byte().unflatten(0, images.shape[:2])
    return slots, masks

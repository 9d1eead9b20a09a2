"""The stores of stage slot-select: the chosen slots with their mask and masked frames, and what the report shows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import zarr
from torch.nn import functional as F

from oclam.agent.previews import shown_frames, take
from oclam.agent.refinement import agent_mask
from oclam.agent.selection import combine
from oclam.artifacts import move_store, save_tensors
from oclam.checkpoint import Units
from oclam.datasets import Dataset
from oclam.params import SlotSelect
from oclam.progress import Progress
from oclam.slots.components import Components, sample
from oclam.slots.registration import mask_moments, poses, register

EPISODES = 4  # written at a time
ANIMATION = 60  # frames of the report's moving picture
CROP = 32  # edge in pixels of the masked frames whose components are the chosen slots' vectors


def write_selection(path: Path, folder: Path, slots: zarr.Group, chosen: Sequence[int], select: SlotSelect,
                    dataset: Dataset) -> None:
    """Write, for every frame, the chosen slots (concatenated or averaged), their mask at image size, the masked frame.

    With `slots.vectors: components` the vectors are replaced by principal components of the masked frame, of the same
    width; the store then has their mean (F,) and basis (F, D) too.

    The store grows in `folder`, from where an interrupted call resumes to the same bytes.

    Args:
        path: of the finished store: slots float16 (E, T, D), mask uint8 (E, T, H, W), frames uint8 (E, T, H, W, 3).
        slots: the store of all slots.
        chosen: slot indices.
        dataset: the frames that the slots are of.
    """
    store = folder / "selection.zarr"
    progress = Units(folder / "units.pt", store)
    group = zarr.open_group(store, mode="a")
    if progress.done == 0:
        group.attrs.update(chosen=list(chosen), combine=select.combine, masks=select.masks,
                           registered=select.registered)
    _write_slots(group, slots, chosen, select, dataset.pixels, progress)
    _write_frames(group, dataset, select.registered)
    if slots.attrs.get("vectors") == "components":
        progress.release(("slots/c/", "frames/", "mean/", "basis/"))  # which are all written again
        _write_components(group, dataset.episodes)
    move_store(store, path, progress.path)


def _write_slots(group, slots, chosen, select, pixels, progress):
    episodes, steps, _, dim = slots["slots"].shape
    width, size = dim * (1 if select.combine == "mean" else len(chosen)), pixels.shape[2]
    if progress.done == 0:
        group.create_array("slots", shape=(episodes, steps, width), chunks=(EPISODES, steps, width), dtype="float16")
        _create_images(group, "mask", (episodes, steps, size, size))
    with Progress(episodes * steps, "writing slots and masks", " frames") as bar:
        for unit, part in enumerate(_parts(episodes)):
            if unit >= progress.done:
                group["slots"][part] = combine(slots["slots"][part], chosen, select.combine)
                pairs = zip(slots["masks"][part], pixels[part], strict=True)
                group["mask"][part] = np.stack([agent_mask(masks, chosen, select.masks, frames)
                                                for masks, frames in pairs])
                progress.finish()
            bar.update((part.stop - part.start) * steps)


def _write_frames(group, dataset, registered):
    """Frames times their masks and, where registered, turned and scaled to the mean pose of the training masks."""
    pixels, masks = dataset.pixels, group["mask"]
    episodes, steps = pixels.shape[:2]
    frames = _create_images(group, "frames", pixels.shape)
    if registered:
        measured = torch.cat([torch.stack([mask_moments(clip / 255) for clip in torch.from_numpy(masks[part])])
                              for part in _parts(episodes)])
        reference = measured[:dataset.episodes].mean((0, 1))
    with Progress(episodes * steps, "masking frames", " frames") as bar:
        for part in _parts(episodes):
            clips = torch.from_numpy(pixels[part]), torch.from_numpy(masks[part])
            found = [poses(one, reference) for one in measured[part]] if registered else [None] * len(clips[0])
            frames[part] = torch.stack([masked_frames(*clip) for clip in zip(*clips, found, strict=True)]).numpy()
            bar.update((part.stop - part.start) * steps)


def masked_frames(frames: torch.Tensor, mask: torch.Tensor, pose: torch.Tensor | None) -> torch.Tensor:
    """Frames times their mask and, where there is a pose, turned and scaled: uint8 (T, H, W, 3).

    Args:
        frames: uint8 (T, H, W, 3).
        mask: uint8 (T, H, W), 0..255.
        pose: as `oclam.slots.registration.poses` gives it.
    """
    images = (frames * (mask[..., None] / 255)).movedim(-1, 1)
    images = images if pose is None else register(images, pose)
    return images.movedim(1, -1).round().byte()


def _create_images(group, name, shape):
    blocks = 100 * -(-shape[1] // 100)
    return group.create_array(name, shape=shape, chunks=(EPISODES, 100, *shape[2:]),
                              shards=(EPISODES, blocks, *shape[2:]), dtype="uint8", overwrite=True)


def _parts(episodes):
    return [slice(e, min(e + EPISODES, episodes)) for e in range(0, episodes, EPISODES)]


def crops(frames: torch.Tensor) -> torch.Tensor:
    """Frames uint8 (N, H, W, 3) at CROP x CROP pixels, 0 to 1: (N, 3 x CROP x CROP)."""
    return F.adaptive_avg_pool2d(frames.movedim(-1, 1).float() / 255, CROP).flatten(1)


def masked_components(frames: Sequence[np.ndarray], masks: Sequence[np.ndarray], select: SlotSelect, width: int,
                      chosen: Sequence[int]) -> list[np.ndarray]:
    """Principal components (T, width) of the masked frames that this choice of slots gives, of every trajectory.

    They are as in `write_selection`, but of these trajectories alone, and as many for two slots as for one, so that
    choices are compared at the same size.

    Args:
        frames, masks: of every trajectory: uint8 (T, H, W, 3) and of every slot, uint8 (T, K, G, G).
        chosen: slot indices.
    """
    clips = [torch.from_numpy(clip) for clip in frames]
    with Progress(len(clips), f"masked by slot {' and '.join(map(str, chosen))}", " trajectories") as bar:
        inside = []
        for of_slots, clip in zip(masks, frames, strict=True):
            inside.append(torch.from_numpy(agent_mask(of_slots, chosen, select.masks, clip)))
            bar.update(1)
    measured = [mask_moments(mask / 255) for mask in inside]
    reference = torch.cat(measured).mean(0)
    found = [poses(one, reference) if select.registered else None for one in measured]
    views = [crops(masked_frames(*clip)) for clip in zip(clips, inside, found, strict=True)]
    components = Components(torch.cat(views)[sample(len(views), len(views[0]))], width)
    return [components(view).numpy() for view in views]


def _write_components(group, training):
    """Replace the chosen slots' vectors by principal components of the masked frames at CROP x CROP pixels."""
    frames, (episodes, steps, width) = group["frames"], group["slots"].shape

    def of(part, index=slice(None)):
        return crops(torch.from_numpy(frames[part]).flatten(0, 1)[index])

    sampled = sample(training, steps)
    owners = sampled // (EPISODES * steps)
    rows = [of(part, sampled[owners == number] - part.start * steps)
            for number, part in enumerate(_parts(training)) if (owners == number).any()]
    components = Components(torch.cat(rows), width)
    for name in ("mean", "basis"):
        group.create_array(name, data=getattr(components, name).numpy(), overwrite=True)
    with Progress(episodes * steps, "components", " frames") as bar:
        for part in _parts(episodes):
            group["slots"][part] = components(of(part)).unflatten(0, (-1, steps)).half().numpy()
            bar.update((part.stop - part.start) * steps)


def _decoded(selection, places):
    """Reconstructions from the chosen slots' vectors: uint8 (N, CROP, CROP, 3)."""
    vectors = take(selection["slots"], places).float()
    view = vectors @ torch.from_numpy(selection["basis"][:]).T + torch.from_numpy(selection["mean"][:])
    return (255 * view).clamp(0, 255).byte().unflatten(1, (3, CROP, CROP)).movedim(1, -1)


def write_preview(path: Path, dataset: Dataset, segmentation: zarr.Array | None, masks: np.ndarray,
                  selection: zarr.Group, episodes: range, chosen: Sequence[int]) -> None:
    """Write what the report's pictures of slots show: some frames of held-out episodes, and the first
    ANIMATION frames of the first one.

    Args:
        path: safetensors, all uint8.
        segmentation: the agent in the simulator (n, T, H, W), None in a dataset without it.
        masks: every slot's, (n, T, K, G, G).
        selection: what `write_selection` wrote.
        episodes: the n held-out episodes.
        chosen: slot indices.
    """
    shown, clip = shown_frames(len(episodes), dataset.steps), [(0, t) for t in range(min(ANIMATION, dataset.steps))]

    def at(places):
        return [(episodes[e], t) for e, t in places]

    save_tensors(path, {
        "frames": take(dataset.pixels, at(shown)), "masks": take(masks, shown),
        "selected": take(selection["mask"], at(shown)), "seen": take(selection["frames"], at(shown)),
        **({"decoded": _decoded(selection, at(shown))} if "basis" in selection else {}),
        **({} if segmentation is None else {"segmentation": take(segmentation, shown)}),
        "animation_frames": take(dataset.pixels, at(clip)), "animation_masks": take(masks, clip),
        "animation_seen": take(selection["frames"], at(clip))},
        chosen=list(chosen), episodes=[e for e, _ in at(shown)], steps=[t for _, t in at(shown)])

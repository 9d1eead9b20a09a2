"""The store of latent actions: IDM(t, t+1) of every transition."""

from collections.abc import Callable
from pathlib import Path

import torch
import zarr

from oclam.checkpoint import Units
from oclam.errors import UserError
from oclam.progress import Progress
from oclam.training import autocast

SHARD_BYTES = 1 << 27


@torch.no_grad()
def write_latents(idm: Callable, observe: Callable, path: Path, *, episodes: int, steps: int, latent_dim: int,
                  batch_size: int, device: torch.device, precision: str) -> None:
    """Write `latents` float16 (E, T-1, L) to a Zarr store; a call that was killed is resumed by the next one.

    A file beside the store says how many shards are done.

    Args:
        idm: two observations (B, ...) -> latents (B, L).
        observe: flat frame indices (B,) -> observations (B, ...).
        path: of the store.
        episodes, steps: of the dataset, E and T.
        latent_dim: L.
        batch_size: pairs of observations at a time.
        precision: as in the section compute.
    Raises UserError for a latent that float16 cannot hold.
    """
    size = 2 * (steps - 1) * latent_dim  # bytes of an episode
    shard = min(max(SHARD_BYTES // size, 1), episodes)
    progress = Units(path.with_suffix(".pt"), path)
    done = min(progress.done * shard, episodes)
    if done:
        array = zarr.open_group(path, mode="r+")["latents"]
    else:
        array = zarr.create_group(path, overwrite=True).create_array(
            "latents", shape=(episodes, steps - 1, latent_dim), dtype="float16", chunks=(1, steps - 1, latent_dim),
            shards=(shard, steps - 1, latent_dim), compressors=None, dimension_names=("episode", "step", "latent"))
    with Progress(episodes * (steps - 1), "latent actions", " transitions", initial=done * (steps - 1)) as bar:
        for first in range(done, episodes, shard):
            last = min(first + shard, episodes)
            rows = []
            for episode in range(first, last):
                observations = observe(torch.arange(episode * steps, (episode + 1) * steps))
                pairs = zip(observations[:-1].split(batch_size), observations[1:].split(batch_size), strict=True)
                with autocast(device, precision):
                    rows.append(torch.cat([idm(now, after) for now, after in pairs]).to(torch.float16).cpu())
                bar.update(steps - 1)
            rows = torch.stack(rows)
            if not rows.isfinite().all():
                raise UserError(f"{path}: a latent action is beyond float16 or not a number; lower learning_rate in "
                                "this stage's section of params.yaml")
            array[first:last] = rows.numpy()
            progress.finish()

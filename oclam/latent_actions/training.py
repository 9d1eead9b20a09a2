"""Training of latent action models with the online probe, and writing of their outputs."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
import zarr
from torch import nn
from torch.nn import functional as F

from oclam import paths
from oclam.artifacts import move_store, open_zarr, save_tensors, write_absent, write_csv, write_json
from oclam.checkpoint import Checkpoint
from oclam.datasets import Dataset, Frames, FrameStacks, Prefetch, TripleSampler, frame_of, open_dataset
from oclam.errors import UserError
from oclam.latent_actions.latents import write_latents
from oclam.latent_actions.models import ImageLatentActionModel, reconstruction_error
from oclam.latent_actions.observations import FrameObservations
from oclam.latent_actions.probes import OnlineProbe, probe_frames, probe_latents
from oclam.params import Compute
from oclam.seeding import seed_of
from oclam.training import (
    autocast,
    average,
    best_device,
    count_parameters,
    linear_decay,
    own_part,
    train,
    update,
    update_counts,
)
from oclam.variants import VARIANTS, view_of

PICTURES, POINTS = 6, 2000  # of held-out transitions in the report: example images, and points in the plot of latents


def train_model(model: nn.Module, observe: Callable, sampler: TripleSampler, actions: torch.Tensor, settings,
                compute: Compute, checkpoint: Checkpoint, units: tuple = (0.0, 1.0)) -> list[dict]:
    """Train a latent action model and the paper's online probe: a linear layer from detached latents to actions.

    The inverse model sees t and t+k, the forward model predicts t+1.

    Args:
        model: of `oclam.latent_actions.models`.
        observe: of `oclam.latent_actions.observations`.
        sampler: gives flat indices t, t+1 and t+k, each (B,).
        actions: (N, A), one a frame of the sampler's episodes; NaN where it is not known, which the probe leaves out.
        settings: the section lapo or lapo_slots.
        units: of the probe.
    Returns: about 200 rows of step, loss and probe_mse, each a mean over the updates since the last.
    """
    device = next(model.parameters()).device
    actions = actions.to(device)
    probe = OnlineProbe(model.sizes["latent_dim"], actions, units)
    # One optimizer serves both: Adam works on every weight alone, and no gradient leaves the probe.
    optimizer = torch.optim.Adam([*model.parameters(), *probe.parameters()], fused=True)
    steps, warmup = update_counts(settings, sampler.steps_per_epoch)
    forward = torch.compile(model) if compute.compile else model

    def make(i):
        t, after, future = map(own_part, sampler.batch(i))
        return observe(t), observe(after), observe(future), observe.loss_weight(after), actions[t.to(device)]

    batch = Prefetch(make)

    def step(i):
        now, target, future, weight, action = batch(i)
        with autocast(device, compute.precision):
            latent, prediction = forward(now, future)
        means = [] if weight is None else [weight.mean()]
        average(means)
        loss = reconstruction_error(prediction.float(), target, weight, *means)
        probe_mse = probe.error(latent, action)
        update(optimizer, loss + probe_mse, settings.learning_rate * linear_decay(i, steps, warmup))
        return {"loss": loss, "probe_mse": probe_mse}

    parts = {"model": model, "probe": probe, "optimizer": optimizer}
    return train(step, steps, parts, checkpoint, samples=sampler.batch_size)


@torch.no_grad()
def pictures(model: nn.Module, observe: FrameObservations, index: torch.Tensor, device: torch.device,
             precision: str) -> dict[str, torch.Tensor]:
    """Frames, targets and predictions for pictures: uint8 current, target, prediction and swapped, each (n, H, W, 3).

    target is the observation at t+1, prediction is FDM(t, IDM(t, t+1)); swapped[i] is predicted from frame i with the
    latent action of example i+1. index (n,): flat indices t.
    """
    current, target = observe(index), observe(index + 1)
    with autocast(device, precision):
        latent = model.idm(current, target)
        shown = current, target, model.fdm(current, latent), model.fdm(current, latent.roll(-1, 0))
    newest = [((images[:, -3:].float() + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1) for images in shown]
    return dict(zip(("current", "target", "prediction", "swapped"), newest, strict=True))


def projection(latents: torch.Tensor) -> torch.Tensor:
    """The first two principal components of latents (n, L): (n, 2) float32, with fixed signs; 0 where L is 1."""
    centred = latents.double() - latents.double().mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:2]  # (2, L)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    points = (centred @ (directions * largest.sign()).T).float()
    return F.pad(points, (0, 2 - points.shape[1]))


def learn(task: str, seed: int, variant: str, params: SimpleNamespace, settings, model: nn.Module, observe: Callable,
          dataset: Dataset, inputs: Sequence[Path], trainer: Callable = train_model) -> None:
    """Train one variant and write its weights, losses, latent actions, probes, and examples and points for the report.

    Args:
        task, seed, variant: name the artifacts.
        params: all that the stage loaded: the section compute, lapo.future_offset, and what the result depends on.
        settings: the section lapo, lapo_slots or laom.
        model: of `oclam.latent_actions.models`.
        observe: of `oclam.latent_actions.observations`.
        dataset: of the variant's view.
        inputs: the artifacts that were read.
        trainer: `train_model` or one like it.
    """
    device, steps, total = next(model.parameters()).device, dataset.steps, dataset.episodes + dataset.test_episodes
    checkpoint, compute = Checkpoint(f"{variant}-{task}-{seed}", params, inputs), params.compute
    sampler = TripleSampler(dataset.episodes, steps, settings.batch_size, params.lapo.future_offset,
                            f"lapo {task} {seed}")
    actions = torch.from_numpy(dataset.actions)
    rows = trainer(model, observe, sampler, actions[:dataset.episodes].flatten(0, 1), settings, compute, checkpoint,
                   units=dataset.action_units(range(dataset.episodes)))
    weights = paths.lapo(task, seed, variant)
    save_tensors(weights, model.state_dict(), task=task, seed=seed, variant=variant, sizes=model.sizes)
    write_csv(paths.log(weights), rows)
    write_json(paths.parameters(weights), count_parameters(model))

    store = checkpoint.folder / "latents.zarr"
    write_latents(model.idm, observe, store, episodes=total, steps=steps, latent_dim=model.sizes["latent_dim"],
                  batch_size=settings.batch_size, device=device, precision=compute.precision)
    latents = zarr.open_group(store, mode="r")["latents"]  # complete; its checksums are written when it moves

    def late(key):  # over the last tenth of training
        values = [row[key] for row in rows[-math.ceil(len(rows) / 10):]]
        return sum(values) / len(values)

    watched = {}
    if "state_variance" in rows[0] and settings.batch_size > 1:
        # Its share of the first row's; 0 where embeddings collapsed, or all frames are one.
        watched["state_variance_kept"] = late("state_variance") / max(rows[0]["state_variance"], 1e-12)
    samples, known = {}, actions.isfinite().all(2).all(1)  # (E,)
    true = actions[dataset.episodes:, :-1].flatten(0, 1)  # (test_episodes x (T-1), A)
    if known[dataset.episodes:].all() and known[:dataset.episodes].any():
        trained_on = actions[:dataset.episodes][known[:dataset.episodes], :-1].flatten(0, 1)
        write_json(paths.probe(task, seed, variant), {
            "online_mse": late("probe_mse"),  # on training batches
            "online_variance": trained_on.double().var(0, correction=0).mean().item(),
            **watched,
            **probe_latents(latents, dataset.actions, dataset.episodes, seed, device),
            **probe_frames(dataset.pixels, dataset.actions, dataset.episodes, device)})
        held_out = torch.from_numpy(latents[dataset.episodes:]).flatten(0, 1)
        points = torch.linspace(0, len(held_out) - 1, min(POINTS, len(held_out))).long()
        samples = {"latents": projection(held_out[points]), "actions": true[points]}
    else:
        write_absent(paths.probe(task, seed, variant), f"{dataset.path} lacks actions to fit or to measure a probe")
    if isinstance(model, ImageLatentActionModel):
        shown = torch.linspace(0, len(true) - 1, PICTURES + 2).long()[1:-1]
        index = dataset.episodes * steps + frame_of(shown, steps)
        samples |= pictures(model, observe, index, device, compute.precision)
    save_tensors(paths.samples(task, seed, variant), samples)
    move_store(store, paths.latents(task, seed, variant))
    checkpoint.remove()


def open_frames(task: str, seed: int, variant: str, stack: int, device: torch.device,
                background_weight: float | None = None) -> tuple[Dataset, FrameObservations, list]:
    """The dataset of a variant's view, what the variant observes of it, and the artifacts that were read."""
    dataset = open_dataset(paths.dataset(task, view_of(variant)), task)
    episodes, inputs = range(dataset.episodes + dataset.test_episodes), [dataset.path]
    row, pixels, masks = VARIANTS[variant], dataset.pixels, None
    if row.on_slots:
        inputs.append(paths.selection(task, seed))
        selection = open_zarr(inputs[-1])
    if row.observes == "masked frames":
        pixels = selection["frames"]
    elif row.observes == "weighted frames":
        masks = Frames.load(selection["mask"], episodes, device)
    elif row.observes != "frames":
        raise UserError(f"{variant}: observes {row.observes}; add how to `open_frames` in {__file__}")
    frames = FrameStacks(Frames.load(pixels, episodes, device), stack=stack, steps=dataset.steps)
    return dataset, FrameObservations(frames, masks, background_weight), inputs


def learn_from_images(task: str, seed: int, variant: str, params: SimpleNamespace,
                      background_weight: float | None = None) -> None:
    """Train a variant that observes frames, masked frames, or frames with a mask-weighted loss, and write its outputs.

    params: the sections compute and lapo; background_weight: the loss's weight outside the mask, for lapo-focus.
    """
    device = best_device(params.compute.threads)
    dataset, observe, inputs = open_frames(task, seed, variant, params.lapo.frame_stack, device, background_weight)
    torch.manual_seed(seed_of("lapo", task, seed))
    with device:
        model = ImageLatentActionModel(3 * params.lapo.frame_stack, dataset.pixels.shape[2], params.lapo.latent_dim,
                                       params.lapo.encoder_scale, params.lapo.residual_blocks)
    model.to(memory_format=torch.channels_last)
    learn(task, seed, variant, params, params.lapo, model, observe, dataset, inputs)

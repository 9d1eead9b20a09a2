"""What the latent action stages share: training with the online probe, then labels, probes and samples for pictures."""

import math
import shutil
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from oclam import paths
from oclam.artifacts import atomic, open_zarr, save_tensors, write_csv, write_json
from oclam.checkpoint import Checkpoint
from oclam.datasets import Frames, Prefetch, TripleSampler, open_dataset, stack_index, to_image
from oclam.latent_actions.labels import label
from oclam.latent_actions.models import ImageLatentActionModel, reconstruction_error
from oclam.latent_actions.probes import probe_frames, probe_latents
from oclam.params import view_of
from oclam.seeding import seed_of
from oclam.training import autocast, best_device, linear_decay, train

__all__ = ["Images", "Slots", "fit", "learn", "learn_from_images", "pictures", "projection"]

PICTURES, POINTS = 6, 2000  # held-out moments that the report shows: reconstructed, and as points in two dimensions


@dataclass(frozen=True)
class Images:
    """Observations of the image model: flat frame indices (B,) -> (B, 3 stack, H, W) in [-1, 1].

    Args: frames, uint8 rows (H, W, 3); of lapo-focus masks, uint8 rows (H, W), and background_weight, what the loss
    counts outside of them.
    """

    frames: Frames
    steps: int
    stack: int
    masks: Frames | None = None
    background_weight: float | None = None

    def __call__(self, t):
        return to_image(self.frames.gather(stack_index(t, self.stack, self.steps)))

    def weight(self, t):
        """What every value of observation t counts in the loss, or None where all count the same."""
        if self.masks is None:
            return None
        masks = self.masks.gather(stack_index(t, self.stack, self.steps))  # (B, stack, H, W)
        return self.background_weight + (1 - self.background_weight) * masks.repeat_interleave(3, 1).float() / 255


@dataclass(frozen=True)
class Slots:
    """Observations of the slot model: flat frame indices (B,) -> chosen slots (B, D), float32, standardised.

    Slots of a short pretraining hardly vary (by 0.05): unscaled, the forward model did worse than to copy its input.
    """

    slots: Frames
    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def load(cls, array, training, device):
        """Read chosen slots, a Zarr array (E, T, D); mean and deviation are those of the first `training` episodes."""
        moments = sum(np.stack([x.mean(0), (x**2).mean(0)]) for x in (array[e].astype(float) for e in range(training)))
        mean, square = moments / training
        std = np.sqrt(np.maximum(square - mean**2, 1e-8))
        mean, std = (torch.tensor(value, dtype=torch.float32, device=device) for value in (mean, std))
        return cls(Frames.load(array, range(array.shape[0]), device), mean, std)

    def __call__(self, t):
        return (self.slots.gather(t).float() - self.mean) / self.std

    def weight(self, t):
        return None


def fit(model, observe, sampler, actions, settings, compute, checkpoint):
    """Train the model, and beside it the paper's probe: a linear layer from detached latents to actions.

    Args: observe, `Images` or `Slots`; sampler, gives t, t+1 and t+k; actions (N, A), one a frame; settings, the
    section lapo or lapo_slots. The inverse model sees t and t+k, the forward model predicts t+1.
    Returns rows of step, loss and probe_mse.
    """
    device = next(model.parameters()).device
    actions = actions.to(device)
    probe = nn.Linear(model.sizes["latent_dim"], actions.shape[1], device=device)
    # One optimiser serves both: Adam works on every weight alone, and no gradient leaves the probe.
    optimiser = torch.optim.Adam([*model.parameters(), *probe.parameters()], fused=True)
    steps = max(round(settings.epochs * sampler.steps_per_epoch), 1)
    warmup = settings.warmup_epochs * sampler.steps_per_epoch
    forward = torch.compile(model) if compute.compile else model

    def make(i):
        t, after, future = sampler.batch(i)
        return observe(t), observe(after), observe(future), observe.weight(after), actions[t.to(device)]

    batch = Prefetch(make)

    def step(i):
        now, target, future, weight, action = batch(i)
        optimiser.param_groups[0]["lr"] = settings.learning_rate * linear_decay(i, steps, warmup)
        with autocast(device, compute.precision):
            latent, prediction = forward(now, future)
        loss = reconstruction_error(prediction.float(), target, weight)
        probe_mse = F.mse_loss(probe(latent.detach().float()), action)
        optimiser.zero_grad()
        (loss + probe_mse).backward()
        optimiser.step()
        return {"loss": loss, "probe_mse": probe_mse}

    parts = {"model": model, "probe": probe, "optimiser": optimiser}
    rows = train(step, steps, parts, checkpoint, samples=sampler.batch_size)
    checkpoint.save(parts, step=steps, rows=rows)  # labelling, if killed, need not train again
    return rows


@torch.no_grad()
def pictures(model, observe, moments, device, precision):
    """What the model reconstructs: uint8 current, target, prediction, swapped, each (n, H, W, 3).

    Args: moments (n,), flat indices t. target is t+1 as the model should predict it; prediction is FDM(t, IDM(t, t+1));
    swapped[i] gives frame i the latent of the next moment of the n instead of its own.
    """
    current, target = observe(moments), observe(moments + 1)
    with autocast(device, precision):
        latent = model.idm(current, target)
        shown = current, target, model.fdm(current, latent), model.fdm(current, latent.roll(-1, 0))
    newest = [((images[:, -3:].float() + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1) for images in shown]
    return dict(zip(("current", "target", "prediction", "swapped"), newest, strict=True))


def projection(latents):
    """The first two principal components: (n, L) -> (n, 2) float32; their signs are fixed."""
    centred = latents.double() - latents.double().mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:2]  # (2, L)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return (centred @ (directions * largest.sign()).T).float()


def learn(task, seed, variant, model, observe, dataset, settings, future_offset, compute, checkpoint):
    """Train one variant and write all that its stage owes: weights, loss rows, label store, probes, samples."""
    device, steps, total = next(model.parameters()).device, dataset.steps, dataset.episodes + dataset.test_episodes
    sampler = TripleSampler(dataset.episodes, steps, settings.batch_size, future_offset, f"lapo {task} {seed}")
    actions = torch.from_numpy(dataset.actions)
    rows = fit(model, observe, sampler, actions.flatten(0, 1), settings, compute, checkpoint)
    weights = paths.lapo(task, seed, variant)
    save_tensors(weights, model.state_dict(), task=task, seed=seed, variant=variant, sizes=model.sizes)
    write_csv(paths.log(weights), rows)

    store = checkpoint.folder / "latents.zarr"
    label(model.idm, observe, store, episodes=total, steps=steps, latent_dim=model.sizes["latent_dim"],
          batch_size=settings.batch_size, device=device, precision=compute.precision)
    latents = open_zarr(store)["latents"]

    late = rows[-math.ceil(len(rows) / 10):]
    write_json(paths.probe(task, seed, variant), {
        "online_mse": sum(row["probe_mse"] for row in late) / len(late),  # over the last tenth of training
        **probe_latents(latents, dataset.actions, dataset.episodes, seed, device),
        **probe_frames(dataset.pixels, dataset.actions, dataset.episodes, device)})

    held_out = torch.from_numpy(latents[dataset.episodes:]).flatten(0, 1)  # (test_episodes x (T-1), L)
    points = torch.linspace(0, len(held_out) - 1, min(POINTS, len(held_out))).long()
    true = actions[dataset.episodes:, :-1].flatten(0, 1)
    samples = {"latents": projection(held_out[points]), "actions": true[points]}
    if isinstance(observe, Images):
        chosen = torch.linspace(0, len(held_out) - 1, PICTURES + 2).long()[1:-1]
        moments = dataset.episodes * steps + chosen + chosen // (steps - 1)
        samples |= pictures(model, observe, moments, device, compute.precision)
    save_tensors(paths.samples(task, seed, variant), samples)
    with atomic(paths.latents(task, seed, variant)) as temporary:
        shutil.move(store, temporary)
    checkpoint.remove()


def learn_from_images(task, seed, variant, params, background_weight=None):
    """Train the image variants; params has compute and lapo, and everything else follows from the variant.

    background_weight is lapo-focus's alone.
    """
    dataset, device = open_dataset(paths.dataset(task, view_of(variant))), best_device()
    episodes, inputs = range(dataset.episodes + dataset.test_episodes), [dataset.path]
    pixels, masks = dataset.pixels, None
    if variant in ("lapo-masks", "lapo-focus"):
        inputs.append(paths.selection(task, seed))
        selection = open_zarr(inputs[-1])
        if variant == "lapo-masks":
            pixels = selection["frames"]
        else:
            masks = Frames.load(selection["mask"], episodes, device)
    observe = Images(Frames.load(pixels, episodes, device), dataset.steps, params.lapo.frame_stack, masks,
                     background_weight)
    torch.manual_seed(seed_of("lapo", task, seed))
    with device:
        model = ImageLatentActionModel(3 * params.lapo.frame_stack, dataset.pixels.shape[2], params.lapo.latent_dim,
                                       params.lapo.encoder_scale, params.lapo.residual_blocks)
    model.to(memory_format=torch.channels_last)
    checkpoint = Checkpoint(f"{variant}-{task}-{seed}", params, inputs)
    learn(task, seed, variant, model, observe, dataset, params.lapo, params.lapo.future_offset, params.compute,
          checkpoint)

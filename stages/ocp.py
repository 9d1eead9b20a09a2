"""Object-centric pretraining and the extraction of slots: reads a distracted dataset and the frozen encoder, writes
the model's weights, its training's log, and slots and masks of every frame."""

from functools import partial

import torch

from oclam import paths
from oclam.artifacts import save_tensors, write_csv
from oclam.checkpoint import Checkpoint
from oclam.cli import arguments, run
from oclam.clips import Clips
from oclam.datasets import Frames, open_dataset
from oclam.encoders import load_encoder
from oclam.ocp import VideoSaur
from oclam.params import load
from oclam.seeding import seed_of, torch_rng
from oclam.slots import extract_slots
from oclam.steve import Steve, to_unit
from oclam.training import autocast, best_device, exponential_decay, train


def main():
    task, seed = arguments("task", "seed")
    params = load("compute", "ocp")
    ocp, device = params.ocp, best_device()
    inputs = [paths.dataset(task, "distracted"), paths.encoder]
    checkpoint = Checkpoint(f"ocp-{task}-{seed}", params, inputs)
    dataset = open_dataset(inputs[0])
    forward = partial(autocast, device, params.compute.precision)

    torch.manual_seed(seed_of("ocp", seed))
    sizes = ocp.model_dump(include={"slots", "slot_dim", "feature_hidden", "decoder_hidden", "decoder_layers"})
    if ocp.model == "videosaur":
        observer = load_encoder(paths.encoder).to(device)
        options = ocp.model_dump(include={"masks", "similarity_weight", "similarity_temperature",
                                          "reconstruction_weight"})
        model = VideoSaur(observer.dim, observer.grid**2, **sizes, **options).to(device)
    else:
        observer = to_unit
        model = Steve(dataset.pixels.shape[2], **sizes).to(device)
    grid = model.grid
    optimizer = torch.optim.Adam(model.parameters(), lr=ocp.learning_rate)
    losses_of = torch.compile(model) if params.compute.compile else model

    def observe(images):
        with forward():
            return observer(images)

    def step(i):
        clips_of_step = clips(i)
        noise = torch.randn(ocp.batch_size, ocp.slots, ocp.slot_dim, generator=torch_rng("slot noise", seed, i))
        order = torch.randperm(grid**2, generator=torch_rng("decoded patches", seed, i))
        decoded = order[:ocp.decoded_patches].sort().values  # all in order when null
        with forward():
            losses = losses_of(*clips_of_step, noise.to(device), decoded.to(device))
        optimizer.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), ocp.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = ocp.learning_rate * exponential_decay(i, ocp.decay_steps, ocp.warmup_steps)
        optimizer.step()
        return losses

    frames = Frames.load(dataset.pixels, range(dataset.episodes), device)
    clips = Clips(frames, observe, episodes=dataset.episodes, steps=dataset.steps, length=ocp.clip_length,
                  batch_size=ocp.batch_size, kept=ocp.kept_clips, seed=seed)
    rows = train(step, ocp.steps, {"model": model, "optimizer": optimizer}, checkpoint,
                 samples=ocp.batch_size * ocp.clip_length, unit="frames")
    checkpoint.save({"model": model, "optimizer": optimizer}, step=ocp.steps, rows=rows)
    extract_slots(model, observe, dataset.pixels, paths.slots(task, seed), checkpoint.folder, slots=ocp.slots,
                  slot_dim=ocp.slot_dim, grid=grid, window=ocp.window, device=device, forward=forward,
                  attrs={"model": ocp.model, "window": ocp.window, "grid": grid, "seed": seed})
    save_tensors(paths.ocp(task, seed), model.state_dict(), **ocp.model_dump())
    write_csv(paths.log(paths.ocp(task, seed)), rows)
    checkpoint.remove()


if __name__ == "__main__":
    run(main)

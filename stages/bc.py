"""Behaviour cloning of latent actions: reads a dataset's frames and a variant's stored latents, writes the actor."""

from oclam import paths
from oclam.artifacts import open_zarr, write_csv
from oclam.checkpoint import Checkpoint
from oclam.cli import arguments, run
from oclam.datasets import Frames, FrameSampler, open_dataset
from oclam.errors import UserError
from oclam.params import load, view_of
from oclam.policies.files import Card, save_actor
from oclam.policies.training import Images, fit, seeded
from oclam.training import best_device


def main():
    task, seed, variant = arguments("task", "seed", "variant")
    params = load("compute", "bc")
    bc, device, view = params.bc, best_device(), view_of(variant)
    inputs = [paths.dataset(task, view), paths.latents(task, seed, variant)]
    dataset, latents = open_dataset(inputs[0]), open_zarr(inputs[1])["latents"]
    episodes, steps = range(dataset.episodes), dataset.steps
    if latents.shape[:2] != (dataset.episodes + dataset.test_episodes, steps - 1):
        raise UserError(f"{inputs[1]}: latents {latents.shape} of another dataset than {inputs[0]}; run `dvc repro`")

    card = Card(task, view, variant, seed, image_size=dataset.pixels.shape[2], frame_stack=bc.frame_stack,
                encoder_scale=bc.encoder_scale, residual_blocks=bc.residual_blocks, latent_dim=latents.shape[2])
    actor = seeded(card.actor, "bc", task, seed).to(device)
    images = Images(Frames.load(dataset.pixels, episodes, device), bc.frame_stack, steps)
    targets = Frames.load(latents, episodes, device)
    sampler = FrameSampler(dataset.episodes, steps, bc.batch_size, f"bc {task} {seed}")
    checkpoint = Checkpoint(f"bc-{task}-{seed}-{variant}", params, inputs)
    rows = fit(actor, images, lambda t: targets.gather(t - t // steps), sampler,  # an episode has steps - 1 latents
               steps=max(round(bc.epochs * sampler.steps_per_epoch), 1), learning_rate=bc.learning_rate,
               warmup=bc.warmup_epochs * sampler.steps_per_epoch, checkpoint=checkpoint, compute=params.compute)

    save_actor(paths.actor(task, seed, variant), actor, card)
    write_csv(paths.log(paths.actor(task, seed, variant)), rows)
    checkpoint.remove()


if __name__ == "__main__":
    run(main)

"""Behaviour cloning of latent actions: reads a dataset's frames and a variant's stored latents, writes the actor.

The variant bc, cloned from true actions, is stage bc-full's.
"""

from oclam import paths
from oclam.artifacts import open_zarr, write_csv, write_json
from oclam.checkpoint import Checkpoint
from oclam.cli import arguments, run
from oclam.datasets import Frames, FrameSampler, FrameStacks, open_dataset
from oclam.errors import UserError
from oclam.params import load
from oclam.policies.files import Card, save_actor
from oclam.policies.training import latent_targets, new_actor, regress
from oclam.training import best_device, count_parameters, update_counts
from oclam.variants import view_of


def main():
    task, seed, variant = arguments("task", "seed", "variant")
    params = load("compute", "bc")
    bc, device, view = params.bc, best_device(params.compute.threads), view_of(variant)
    inputs = [paths.dataset(task, view), paths.latents(task, seed, variant)]
    latents, dataset = open_zarr(inputs[1])["latents"], open_dataset(inputs[0], task)
    episodes, steps = range(dataset.episodes), dataset.steps
    if latents.shape[:2] != (dataset.episodes + dataset.test_episodes, steps - 1):
        raise UserError(f"{inputs[1]}: latents {latents.shape} of another dataset than {inputs[0]}; run `dvc repro`")

    card = Card.of(bc, task, view, variant, seed, image_size=dataset.pixels.shape[2], latent_dim=latents.shape[2])
    actor = new_actor(card, bc.published, device)
    images = FrameStacks(Frames.load(dataset.pixels, episodes, device), stack=bc.frame_stack, steps=steps)
    targets = latent_targets(latents, dataset.episodes, bc.published, device)
    sampler = FrameSampler(dataset.episodes, steps, bc.batch_size, f"bc {task} {seed}")
    checkpoint = Checkpoint(f"bc-{task}-{seed}-{variant}", params, inputs)
    updates, warmup = update_counts(bc, sampler.steps_per_epoch)
    rows = regress(actor, images, targets, sampler, steps=updates, learning_rate=bc.learning_rate, warmup=warmup,
                   checkpoint=checkpoint, compute=params.compute)

    save_actor(paths.actor(task, seed, variant), actor, card)
    write_csv(paths.log(paths.actor(task, seed, variant)), rows)
    write_json(paths.parameters(paths.actor(task, seed, variant)), count_parameters(actor))
    checkpoint.remove()


if __name__ == "__main__":
    run(main, parallel=True)

"""Train an image latent action model on plain, masked or clean frames; then write and probe the latent action
of every transition."""

from oclam.cli import arguments, run
from oclam.latent_actions.training import learn_from_images
from oclam.params import load


def main():
    task, seed, variant = arguments("task", "seed", "variant")
    learn_from_images(task, seed, variant, load("compute", "lapo"))


if __name__ == "__main__":
    run(main, parallel=True)

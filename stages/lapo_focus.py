"""Train an image latent action model on distracted frames, with a loss that the chosen slots' masks weigh; then write
and probe the latent action of every transition."""

from oclam.cli import arguments, run
from oclam.errors import Absent
from oclam.latent_actions.training import learn_from_images
from oclam.params import load


def main():
    task, seed, variant = arguments("task", "seed", "variant")
    params = load("compute", "lapo", "lapo_focus", "extras.lapo_focus")
    if not params.extras.lapo_focus:
        raise Absent("extras.lapo_focus is false")
    learn_from_images(task, seed, variant, params, params.lapo_focus.background_weight)


if __name__ == "__main__":
    run(main, parallel=True)

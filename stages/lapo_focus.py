"""Train lapo-focus: plain distracted frames, a loss weighted by the chosen slots' masks; then labels and probes."""

from oclam.cli import arguments, run
from oclam.latent_actions.training import learn_from_images
from oclam.params import load


def main():
    task, seed = arguments("task", "seed")
    params = load("compute", "lapo", "lapo_focus")
    learn_from_images(task, seed, "lapo-focus", params, params.lapo_focus.background_weight)


if __name__ == "__main__":
    run(main)

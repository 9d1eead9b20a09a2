"""Train an image latent action model, label every transition with it and probe the labels.

Variants: lapo (distracted frames), lapo-masks (the same behind the chosen slots' masks), lapo-no-distractors (clean).
"""

from oclam.cli import arguments, run
from oclam.errors import UserError
from oclam.latent_actions.training import learn_from_images
from oclam.params import load

VARIANTS = ("lapo", "lapo-masks", "lapo-no-distractors")


def main():
    task, seed, variant = arguments("task", "seed", "variant")
    if variant not in VARIANTS:
        raise UserError(f"variant: {variant!r} given, one of {', '.join(VARIANTS)} goes here")
    learn_from_images(task, seed, variant, load("compute", "lapo"))


if __name__ == "__main__":
    run(main)

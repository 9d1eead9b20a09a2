"""Train LAOM on distracted or masked frames; then write and probe the latent action of every transition."""

from oclam.cli import arguments, run
from oclam.errors import Absent
from oclam.laom.training import learn_laom
from oclam.params import load


def main():
    task, seed, variant = arguments("task", "seed", "variant")
    params = load("compute", "lapo.latent_dim", "lapo.frame_stack", "lapo.future_offset", "lapo.encoder_scale",
                  "lapo.residual_blocks", "laom", "extras.laom")
    if not params.extras.laom:
        raise Absent("extras.laom is false")
    learn_laom(task, seed, variant, params)


if __name__ == "__main__":
    run(main)

"""Train LAOM with the true actions of the trajectories that finetune's largest budget has; then write and probe the
latent action of every transition."""

from oclam import paths
from oclam.cli import arguments, run
from oclam.datasets import open_dataset
from oclam.errors import Absent
from oclam.laom.training import Labels, learn_laom
from oclam.params import load
from oclam.variants import view_of


def main():
    task, seed, variant = arguments("task", "seed", "variant")
    params = load("compute", "lapo.latent_dim", "lapo.frame_stack", "lapo.future_offset", "lapo.encoder_scale",
                  "lapo.residual_blocks", "laom", "laom_labels", "finetune.budgets", "extras.laom_labels")
    if not params.extras.laom_labels:
        raise Absent("extras.laom_labels is false")
    dataset = open_dataset(paths.dataset(task, view_of(variant)), task)
    labelled = dataset.labelled(max(params.finetune.budgets), seed, "finetune.budgets")
    labels = Labels(labelled, dataset.action_units(labelled), **params.laom_labels.model_dump())
    learn_laom(task, seed, variant, params, labels)


if __name__ == "__main__":
    run(main)

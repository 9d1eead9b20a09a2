"""The control for fine-tuning: the same labels without latent pretraining. Reads a dataset, writes one
policy per label budget and the training curves."""

from types import SimpleNamespace

from oclam import paths
from oclam.artifacts import write_csv
from oclam.checkpoint import Checkpoint
from oclam.cli import arguments, run
from oclam.datasets import open_dataset
from oclam.params import load
from oclam.policies.files import Card, save_policies
from oclam.policies.networks import Policy
from oclam.policies.training import fine_tune
from oclam.training import best_device
from oclam.variants import view_of


def main():
    task, seed = arguments("task", "seed")
    params = load("compute", "bc.frame_stack", "bc.encoder_scale", "bc.residual_blocks", "bc.cells", "scratch",
                  "finetune.budgets", "finetune.hidden_dim", "finetune.batch_size", "finetune.learning_rate",
                  "finetune.decoder_init", "finetune.loss")
    view = view_of("scratch")
    settings = SimpleNamespace(**vars(params.finetune), **vars(params.scratch))
    inputs = [paths.dataset(task, view)]
    dataset = open_dataset(inputs[0], task)
    # Actor and decoder meet in two linear layers, so a latent wider than the decoder could express nothing more.
    card = Card.of(params.bc, task, view, "scratch", seed, image_size=dataset.pixels.shape[2],
                   latent_dim=settings.hidden_dim, hidden_dim=settings.hidden_dim, action_dim=dataset.actions.shape[2])
    checkpoints = {budget: Checkpoint(f"scratch-{task}-{seed}-{budget}", params, inputs)
                   for budget in settings.budgets}

    def start():
        return Policy(card.actor(), card.decoder())

    trained = fine_tune(start, card, dataset, settings, params.compute, checkpoints, False,
                        best_device(params.compute.threads))
    rows = save_policies(paths.policies(task, seed, "scratch"), trained)
    write_csv(paths.log(paths.policies(task, seed, "scratch")), rows)
    for checkpoint in checkpoints.values():
        checkpoint.remove()


if __name__ == "__main__":
    run(main)

"""STEVE beside the model of ocp (paper, appendix A): reads a distracted dataset, writes masks of the frames
that the report shows and, where the agent is segmented, every slot's measures."""

from types import SimpleNamespace

from oclam.cli import arguments, run
from oclam.comparison import train_for_comparison
from oclam.errors import Absent
from oclam.params import load
from oclam.slots.steve import make_steve, to_unit
from oclam.training import best_device


def main():
    task, seed = arguments("task", "seed")
    params = load("compute", "steve", "ocp.slots", "ocp.clip_length", "ocp.clip_norm", "ocp.window", "extras.steve")
    if not params.extras.steve:
        raise Absent("extras.steve is false")
    ocp, steve = params.ocp, params.steve
    # There is no encoder and every token is predicted anyway, so kept clips and fewer patches would save nothing.
    settings = SimpleNamespace(**vars(ocp), **dict(steve), kept_clips=None, decoded_patches=None)
    train_for_comparison("steve", task, seed, params, settings,
                         lambda size: make_steve(steve, size, ocp.slots, steve.slot_dim), to_unit,
                         best_device(params.compute.threads), model="STEVE" if steve.published else "small STEVE")


if __name__ == "__main__":
    run(main)

"""Export a trained model for the Hugging Face hub, or a dataset for LeRobot."""

import argparse
from pathlib import Path

from oclam.cli import one_line_errors
from oclam.errors import UserError


def main():
    parser = argparse.ArgumentParser(prog="python -m oclam.export", description=__doc__,
                                     epilog="`hf upload USER/NAME OUT` publishes OUT on the hub.")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="of data/<task>/seed<seed>: <variant>/policies, "
                        "<variant>/lapo.safetensors or ocp/<restart>.safetensors; data/encoder.safetensors; or a "
                        "dataset, data/<task>/<view>.zarr")
    parser.add_argument("target", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--budget", type=int, help="labelled trajectories of the policy, 0 for all; default: the most "
                        "there is")
    parser.add_argument("--fps", type=int, help="of a dataset's videos; default: the task's own")
    given = parser.parse_args()
    if given.fps is not None and given.fps < 1:
        raise UserError(f"--fps: {given.fps} given, at least 1 is needed")
    if (given.source / "zarr.json").exists():  # late imports, because they take seconds
        from oclam.export.lerobot import export_lerobot

        export_lerobot(given.source, given.target, given.fps)
    else:
        from oclam.export.pipeline import export_model

        export_model(given.source, given.target, given.budget)
    print(f"exported; {given.target}/README.md describes it")


if __name__ == "__main__":
    one_line_errors(main)

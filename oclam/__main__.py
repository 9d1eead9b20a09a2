"""The command `oclam`: `oclam act ...` is `python -m oclam.act ...`, and so on."""

import argparse
import runpy
import sys

COMMANDS = {  # the module of each, and what it does
    "plan": ("plan", "what a scale costs: parameters, FLOPs, memory, hours"),
    "import": ("import", "import demonstrations or videos as a dataset"),
    "export": ("export", "export a trained model or a dataset for the Hugging Face hub"),
    "act": ("act", "act with a policy for one episode"),
    "cluster": ("cluster", "run the pipeline as Ray tasks, in a clone of the repository"),
    "run": ("slices", "run the pipeline, in a clone of the repository"),
}


def main():
    listed = "\n".join(f"  {name:8}{what}" for name, (_, what) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="oclam", description=f"Object-centric latent action learning.\n\ncommands:\n{listed}",
        epilog="`oclam COMMAND --help` explains a command.", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    given = parser.parse_args()
    sys.argv = [f"oclam {given.command}", *given.arguments]
    runpy.run_module(f"oclam.{COMMANDS[given.command][0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

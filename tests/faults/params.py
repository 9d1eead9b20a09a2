"""Mutated parameter files, at a tiny scale: `python -m tests.faults.params --count 1000`.

Each file has one value replaced, removed, repeated or renamed, or one byte damaged. It is refused in one line when it
is read, or the first stage that it changes runs: `ran`, `refused by the stage` in one line, or `runs`, still without
an error after some seconds. All else is printed and counted: tracebacks, ends by a signal, refusals of several lines.
"""

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import chdir
from pathlib import Path

import yaml

from oclam.errors import UserError
from oclam.params import read
from tests.faults.__main__ import forked, import_stages
from tests.stages.tiny import build, expanded

SECONDS = 12  # after which a stage counts as running
MEMORY = 4 << 30  # bytes for a stage
GOOD = ("refused", "refused by the stage", "ran", "runs", "no change")
VALUES = [0, 1, 2, 3, 7, -1, 64, 500, 2**16, 10**9, 2**40, 0.0, 0.5, 1.0, 1e-5, 9.0, 1e5, 1e300, float("nan"),
          float("inf"), True, False, None, [], {}, [0], [1, 1], [0, 1, 2], ["cheetah-run", "../x-y"], ["walker-run"],
          ["cheetah-fly"], {"x": [0]}, {"cheetah-run": [0]}, {"cheetah-run": [9, 9]}, "", "x", "../x", "cheetah-fly",
          "reference", "front", "back", "davis", "folder", "hub", "distill", "videosaur", "steve", "slotcontrast",
          "attention", "decoder", "components", "manual", "auto", "mean", "soft", "refined", "train", "test",
          "bfloat16"]


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.faults.params", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one file, by its number")
    parser.add_argument("--finished", type=Path, help="a project that tests.stages.tiny has built; else it is built")
    arguments = parser.parse_args()
    counts = Counter()
    with tempfile.TemporaryDirectory() as folder:
        finished, copy = Path(folder) / "finished", Path(folder) / "copy"
        if arguments.finished:
            shutil.copytree(arguments.finished, finished)
        else:
            build(finished)
        with chdir(finished):
            text, stages = Path("params.yaml").read_text(), expanded()
        import_stages(stages)
        for number in [arguments.only] if arguments.only is not None else range(arguments.count):
            rng = random.Random(f"{arguments.seed} {number}")
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(finished, copy)
            with chdir(copy):
                change, content = mutated(text, rng)
                Path("params.yaml").write_bytes(content)
                outcome, said = attempt(stages)
            counts[outcome] += 1
            last = [line for line in said.splitlines() if line][-1:] or [""]
            print(f"{number} {change}: {outcome}; {last[0][:200]}", flush=True)
            if outcome not in GOOD:
                print("\n".join(f"    {line}" for line in said.splitlines()), flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
    sys.exit(not counts.keys() <= set(GOOD))


def mutated(text, rng):
    """What was changed, and the changed bytes."""
    content = yaml.safe_load(text)
    section, key = content, rng.choice(list(content))
    name = key
    while isinstance(section[key], dict) and section[key] and rng.random() < 0.95:
        section = section[key]
        key = rng.choice(list(section))
        name = f"{name}.{key}"
    given, kind = section[key], rng.choice(["value", "alike", "alike", "alike", "scale", "scale", "change", "bytes"])
    if kind == "scale" and isinstance(given, int | float) and not isinstance(given, bool):
        section[key] = rng.choice([given + 1, given - 1, 2 * given, given // 2, -given, 1000 * given, float(given),
                                   str(given)])
    elif kind == "change":
        value = section.pop(key)
        if rng.random() < 0.5:
            section[f"{key}s"] = value
    elif kind == "bytes":
        damaged = bytearray(yaml.safe_dump(content).encode())
        damaged[rng.randrange(len(damaged))] = rng.choice(b"\x00\xff\t\n :-[]{}&*!|'\"%@`0e.")
        return "a byte", bytes(damaged)
    else:
        alike = [value for value in VALUES if kind == "value" or type(value) is type(given)]
        section[key] = rng.choice(alike or VALUES)
    return f"{name} {given!r} {kind}: {section.get(key, '-')!r}", yaml.safe_dump(content).encode()


def attempt(before):
    """The outcome of the parameters in the working folder, and what was said.

    before: the stages with the parameters that they had.
    """
    try:
        stages, values = expanded(), read().model_dump()
    except UserError as error:
        said = str(error)
        return "refused" if said.startswith("params.yaml: ") and "\n" not in said else "several lines", said
    old = yaml.safe_load((Path("../finished") / "params.yaml").read_text())

    def settings(params, stage):
        return [_at(params, key) for key in stage.params]

    changed = [stage for name, stage in stages.items()
               if name not in before or stage != before[name] or settings(old, stage) != settings(values, stage)]
    if not changed:
        return "no change", ""
    for out in map(Path, changed[0].outs):
        shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    status, said = forked(changed[0], seconds=SECONDS, memory=MEMORY)
    if "Traceback" in said:
        return "traceback", said
    if status == 0 or status is None:
        return "ran" if status == 0 else "runs", f"{changed[0].name}"
    lines = [line for line in said.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    return "refused by the stage" if status == 1 and len(lines) == 1 else f"status {status}", said


def _at(params, key):
    for part in key.split("."):
        params = params.get(part)
    return params


if __name__ == "__main__":
    main()

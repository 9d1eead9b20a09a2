"""The pipeline in slices of bounded time, for batch queues that end every job early and machines without DVC.

`python -m oclam.slices --minutes 9` runs the stages of dvc.yaml in order, skips what is done and stops in time; called
again, it goes on from there, wherever the tree with its `data`, `reports` and `.resume` is by then.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import reduce
from itertools import product
from operator import getitem
from pathlib import Path

import yaml

from oclam.artifacts import digest, read_json, write_json
from oclam.errors import UserError
from oclam.params import read

__all__ = ["Stage", "expand", "in_order", "run_slice", "upstream"]

RECORDS = Path(".resume/slices")
PLACE = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True)
class Stage:
    """One instance of a stage as DVC would run it; params are keys of params.yaml, deps and outs paths."""

    name: str
    cmd: str
    params: list
    deps: list
    outs: list

    def key(self, params):
        """Hash of all that decides the outputs: command, values of its parameters, content of its dependencies."""
        values = {key: _value(params, key) for key in self.params}
        decides = [self.cmd, values, {dep: digest(dep) for dep in self.deps}]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def expand(content, params):
    """The stages of a dvc.yaml's content with every matrix unrolled and ${...} filled in. Returns {name: Stage}."""
    stages = {}
    for name, stage in content["stages"].items():
        matrix = _fill(stage.get("matrix", {}), params)
        for values in product(*matrix.values()):
            scope = params | {"item": dict(zip(matrix, values, strict=True))}
            full = "@".join(filter(None, [name, "-".join(map(str, values))]))  # DVC's own name
            outs = [*stage["outs"], *(path for metric in stage.get("metrics", []) for path in metric)]
            stages[full] = Stage(full, *_fill([stage["cmd"], stage.get("params", []), stage["deps"], outs], scope))
    return stages


def _fill(value, scope):
    if isinstance(value, str):
        whole = PLACE.fullmatch(value)
        return _value(scope, whole[1]) if whole else PLACE.sub(lambda place: str(_value(scope, place[1])), value)
    if isinstance(value, list):
        return [_fill(part, scope) for part in value]
    return {key: _fill(part, scope) for key, part in value.items()} if isinstance(value, dict) else value


def _value(scope, key):
    return reduce(getitem, key.split("."), scope)


def upstream(stage, stages):
    """Names of the stages that make what this one reads: a path, something within it or a folder around it."""
    return [other.name for other in stages.values()
            if any(f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/") for a in other.outs for b in stage.deps)]


def in_order(stages, until=None):
    """Every Stage after what it needs; `until`, a stage's or an instance's name, leaves out what that does not need."""
    order = {}

    def visit(name):
        if name not in order:
            for needed in upstream(stages[name], stages):
                visit(needed)
            order[name] = stages[name]

    for name in stages:
        if until in (None, name, name.split("@")[0]):
            visit(name)
    if not order:
        known = dict.fromkeys(name.split("@")[0] for name in stages)
        raise UserError(f"--until: {until!r} given, stages are {', '.join(known)}")
    return list(order.values())


def run_slice(minutes, until=None):
    """Run what is not done yet for at most `minutes`; a stage still running then is ended. Returns whether all is done.

    A stage is done when it succeeded with these parameters and dependencies, and its outputs are there.
    Raises UserError when a stage fails.
    """
    deadline, params = time.monotonic() + 60 * minutes, read().model_dump()
    stages = in_order(expand(yaml.safe_load(Path("dvc.yaml").read_text()), params), until)
    for number, stage in enumerate(stages, 1):
        file, key = RECORDS / f"{stage.name}.json", stage.key(params)
        record = read_json(file) if file.exists() else {"key": None}
        begun = record["key"] == key
        if begun and record["done"] and all(Path(out).exists() for out in stage.outs):
            continue
        spent = record["seconds"] if begun and not record["done"] else 0.0
        started = time.monotonic()
        if started >= deadline:
            return False
        print(f"{stage.name}, {number} of {len(stages)}: {(deadline - started) / 60:.1f} minutes left", flush=True)
        status = _run(stage.cmd, spent, deadline - started)
        seconds = spent + time.monotonic() - started
        write_json(file, {"key": key, "done": status == 0, "seconds": round(seconds, 1)})
        if status is None:
            return False
        if status:
            raise UserError(f"{stage.name} ended with status {status}: {stage.cmd}")
    return True


def _run(command, spent, seconds):
    """Status of the stage's command, None when it did not end within `seconds` and was made to."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]),
                                "OCLAM_SPENT": str(spent)}
    # A group of its own, so that its worker processes end with it, but the queue's session, so that no job outlives it.
    process = subprocess.Popen([sys.executable, *shlex.split(command)[1:]], env=environment, process_group=0)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def main():
    parser = argparse.ArgumentParser(prog="python -m oclam.slices", description=__doc__.splitlines()[0],
                                     epilog="Status: 0, all is done; 75, call again; 1, a stage failed.")
    parser.add_argument("--minutes", type=float, required=True, help="a little less than the queue's limit")
    parser.add_argument("--until", metavar="STAGE", help="the last stage, or instance such as lapo@cheetah-run-0")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(os.EX_TEMPFAIL))  # the queue's end is a slice's end too
    if not run_slice(arguments.minutes, arguments.until):
        print("The time is over; the same command goes on from here", flush=True)
        sys.exit(os.EX_TEMPFAIL)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")

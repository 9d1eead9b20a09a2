"""The pipeline in slices of limited time, for batch queues that end jobs early and for machines without DVC.

`python -m oclam.slices --minutes 9` runs the stages of dvc.yaml in order, skips what is done and stops in time; called
again, it resumes, also on another machine with a copy of the tree with its `data`, `reports` and `.resume`.
"""

import argparse
import ctypes
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from functools import reduce
from graphlib import TopologicalSorter
from itertools import product
from operator import getitem
from pathlib import Path

import yaml

from oclam.artifacts import digest, read_json, write_json
from oclam.cli import only_one
from oclam.errors import UserError
from oclam.params import read

__all__ = ["Stage", "expand", "needed_for", "run_slice", "upstream"]

RECORDS = Path(".resume/slices")
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
PLACE = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True)
class Stage:
    """One instance of a stage as DVC would run it; params are keys of params.yaml, deps and outs paths."""

    name: str
    cmd: str
    params: list
    deps: list
    outs: list

    def key(self, params: dict) -> str:
        """Hash of all that determines the outputs: command, values of the parameters, content of the dependencies."""
        values = {key: _value(params, key) for key in self.params}
        inputs = [self.cmd, values, {dep: digest(dep) for dep in self.deps}]
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()

    def made(self) -> dict | None:
        """{output: hash of its content}, None where one is missing."""
        return {out: digest(out) for out in self.outs} if all(Path(out).exists() for out in self.outs) else None


def expand(content: dict, params: dict) -> dict[str, Stage]:
    """The stages of a dvc.yaml by name, every matrix expanded and ${...} filled in."""
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


def upstream(stage: Stage, stages: dict[str, Stage]) -> list[str]:
    """Names of the stages whose outputs this one reads: the same path, one inside it or a folder around it."""
    return [other.name for other in stages.values()
            if any(f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/") for a in other.outs for b in stage.deps)]


def needed_for(until: str | None, stages: dict[str, Stage]) -> dict[str, Stage]:
    """`until`, the name of a stage or an instance, and all stages that it needs; every stage for None."""
    asked = [name for name in stages if until in (None, name, name.split("@")[0])]
    if not asked:
        known = dict.fromkeys(name.split("@")[0] for name in stages)
        raise UserError(f"--until: {until!r} given, stages are {', '.join(known)}")
    needed = set()
    while asked:
        name = asked.pop()
        if name not in needed:
            needed.add(name)
            asked += upstream(stages[name], stages)
    return {name: stage for name, stage in stages.items() if name in needed}


class _Job:
    """A stage that is run: the record of earlier slices, and the process that runs it now."""

    def __init__(self, stage, params):
        self.stage, self.key, self.record = stage, stage.key(params), RECORDS / f"{stage.name}.json"
        record = self._read()
        started, made = record.get("key") == self.key, record.get("made")
        self.done = started and made is not None and made == stage.made()
        self.spent = record.get("seconds", 0.0) if started and made is None else 0.0

    def _read(self):
        try:
            return read_json(self.record) if self.record.exists() else {}
        except UserError as error:
            print(f"{error}: {self.stage.name} runs again", file=sys.stderr)
            return {}

    def start(self, cores: list[int]) -> None:
        """Run the stage on these cores only."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]),
                                    "OCLAM_SPENT": str(self.spent)}
        self.cores, self.started, ours = cores, time.monotonic(), os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)  # inherited
        # A group of its own, so that its workers end with it, but the queue's session, so that no job outlives it.
        self.process = subprocess.Popen([sys.executable, *shlex.split(self.stage.cmd)[1:]], env=environment,
                                        process_group=0, preexec_fn=_end_with_parent)
        os.sched_setaffinity(0, ours)

    def end(self) -> int:
        """The stage's status; it is stopped if it still runs, and recorded."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        status = self.process.wait()
        seconds = self.spent + time.monotonic() - self.started
        write_json(self.record, {"key": self.key, "seconds": round(seconds, 1),
                                 "made": self.stage.made() if status == 0 else None})
        return status


def _end_with_parent():
    """Ask Linux to send SIGTERM to this process when its parent ends, by kill -9 too."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def run_slice(minutes: float, until: str | None = None, jobs: int = 1) -> bool:
    """Run what is not done yet for at most `minutes`, and stop what still runs then; whether all is done.

    A stage is done when it succeeded with these parameters and dependencies, and its outputs are as it left them.

    Args:
        until: as in `needed_for`.
        jobs: how many stages run side by side, each on its share of the cores.
    Raises UserError when a stage fails; those beside it are stopped and resume at the next call.
    """
    deadline, params, cores = time.monotonic() + 60 * minutes, read().model_dump(), sorted(os.sched_getaffinity(0))
    if not 1 <= jobs <= len(cores):
        raise UserError(f"--jobs: {jobs} given, 1 to {len(cores)} can share {len(cores)} cores")
    shares = [cores[job::jobs] for job in range(jobs)]
    stages = needed_for(until, expand(yaml.safe_load(Path("dvc.yaml").read_text()), params))
    graph = TopologicalSorter({name: upstream(stage, stages) for name, stage in stages.items()})
    graph.prepare()
    ready, running = deque(), []
    try:
        while graph.is_active():
            ready.extend(graph.get_ready())
            if ready and shares:
                job = _Job(stages[ready.popleft()], params)
                if job.done:
                    graph.done(job.stage.name)
                    continue
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                print(f"{job.stage.name}, {left / 60:.1f} minutes left", flush=True)
                job.start(shares.pop())
                running.append(job)
            elif ended := [job for job in running if job.process.poll() is not None]:
                for job in ended:
                    running.remove(job)
                    shares.append(job.cores)
                    if status := job.end():
                        raise UserError(f"{job.stage.name} ended with status {status}: {job.stage.cmd}")
                    graph.done(job.stage.name)
            elif time.monotonic() >= deadline:
                return False
            else:
                time.sleep(0.05)
    finally:
        for job in running:
            job.end()
    return True


def main():
    parser = argparse.ArgumentParser(prog="python -m oclam.slices", description=__doc__.splitlines()[0],
                                     epilog="Status: 0, all is done; 75, call again; 1, a stage failed.")
    parser.add_argument("--minutes", type=float, required=True, help="a little less than the queue's limit")
    parser.add_argument("--until", metavar="STAGE", help="the last stage, or instance such as slots@cheetah-run-0")
    parser.add_argument("--jobs", type=int, default=1, help="stages side by side, among which the cores are shared")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(os.EX_TEMPFAIL))  # the queue's end is a slice's end too
    with only_one("slices"):
        done = run_slice(arguments.minutes, arguments.until, arguments.jobs)
    if not done:
        print("The time is over; the same command resumes here", flush=True)
        sys.exit(os.EX_TEMPFAIL)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")

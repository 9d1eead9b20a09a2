"""The stages of dvc.yaml side by side, as cores and GPUs allow, for a limited time where a queue ends jobs early.

`python -m oclam.slices` skips what is done and resumes what is not, also on another machine with a copy of the tree
with its `data`, `reports` and `.resume`. Every stage writes its log to `.resume/logs`.
"""

import argparse
import logging
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from graphlib import TopologicalSorter
from itertools import takewhile
from pathlib import Path

from oclam.artifacts import atomic, is_absent, read_json, write_json
from oclam.cli import one_line_errors, only_one
from oclam.errors import UserError, one_line
from oclam.graph import needed_for, read_stages, start_order, upstream
from oclam.machine import cores, end_with_parent
from oclam.params import read

RECORDS, LOGS = Path(".resume/slices"), Path(".resume/logs")
WORKERS = ("expert", "collect", "eval")  # scripts that use every core that they get
PARALLEL = ("bc", "bc_full", "lapo", "lapo_focus", "lapo_slots", "ocp")  # scripts that train on compute.devices GPUs
STATUS_INTERVAL = 30.0  # seconds between two status reports


class Job:
    """A stage that is run: the record of earlier runs, and the process that runs it now."""

    def __init__(self, stage, params):
        self.stage, self.key, self.record = stage, stage.key(params), RECORDS / f"{stage.name}.json"
        self.log, record = LOGS / f"{stage.name}.log", self._read()
        started, made = record.get("key") == self.key, record.get("made")
        self.seconds = record.get("seconds", 0.0)  # of the last run, whatever it made
        self.done = started and made is not None and made == stage.made()
        self.spent = self.seconds if started and made is None else 0.0

    def _read(self):
        try:
            return read_json(self.record) if self.record.exists() else {}
        except UserError as error:
            print(f"{error}: {self.stage.name} runs again", file=sys.stderr)
            return {}

    def write(self, done: bool, seconds: float = 0.0) -> None:
        """Record how far the stage is with these parameters and dependencies."""
        made = self.stage.made() if done else None
        write_json(self.record, {"key": self.key, "seconds": round(seconds, 1), "made": made})

    @property
    def seconds_so_far(self) -> float:
        """How long the stage that runs has taken, with what was interrupted before."""
        return self.spent + time.monotonic() - self.started

    def devices(self, asked: int) -> int:
        """How many GPUs the stage gets: `asked` where several processes can train, otherwise one at most."""
        if "compute" not in self.stage.params:
            return 0
        return asked if self.stage.script in PARALLEL else min(asked, 1)

    def start(self, cores: list[int], gpus: list[str], **environment: str) -> None:
        """Run the stage on these cores only, and on these GPUs if there are any; environment: variables for it.

        Raises UserError where params.yaml cannot be read.
        """
        self.key = self.stage.key(read().model_dump())  # of what it reads now
        limited = _limited()
        environment = os.environ | ({"OCLAM_CORES": str(len(cores))} if limited else {}) | environment | {
            "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]),
            "OCLAM_SPENT": str(self.spent)}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        self.cores, self.gpus, self.started, ours = cores, gpus, time.monotonic(), os.sched_getaffinity(0)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        os.sched_setaffinity(0, ours if limited else cores)  # inherited
        # A group of its own, so that its workers end with it, but the queue's session, so that no job outlives it.
        with self.log.open("a" if self.spent else "w") as log:
            self.process = subprocess.Popen([sys.executable, *shlex.split(self.stage.cmd)[1:]], env=environment,
                                            stdout=log, stderr=log, process_group=0,
                                            preexec_fn=partial(end_with_parent, signal.SIGTERM, os.getpid()))
        os.sched_setaffinity(0, ours)

    def end(self, recorded: bool = True) -> str:
        """Why the stage failed, or ""; it is stopped if it still runs, and recorded unless another process does so."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        status = self.process.wait()
        why = ""
        if status:
            why = f"status {status}, see {self.log}: {last_line(self.stage.name)}"
        elif not self.unchanged():
            why = "parameters, code or inputs changed while it ran; the same command runs it again"
        if recorded:
            left_out = not why and all(map(is_absent, self.stage.outs))  # says nothing of others of its kind
            self.write(not why, 0.0 if left_out else self.seconds_so_far)
        return why

    def unchanged(self) -> bool:
        """Whether the parameters and dependencies are those of this job."""
        try:
            return self.stage.key(read().model_dump()) == self.key
        except UserError:
            return False


def _limited():
    """Whether a quota of CPU time grants fewer cores than there are: stages are then not pinned to cores."""
    return len(cores()) < len(os.sched_getaffinity(0))


def last_line(stage: str) -> str:
    """The last line of a stage's log."""
    log = LOGS / f"{stage}.log"
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def time_left(rest: list[str], running: list[tuple[str, float]], jobs: int) -> str:
    """How long the rest takes, as `, about 5 minutes are left`, or `at least` where a kind of stage never ended
    here, or was only left out.

    Less than half a minute, and what is quite unknown, is "".

    rest: instances that have not begun; running: those that have, and for how many seconds; jobs: side by side.
    """
    known = {}  # kind of stage -> seconds of each instance that ended
    for path in RECORDS.glob("*.json"):
        with suppress(UserError):  # one that is damaged says so when its stage comes
            record = read_json(path)
            if record.get("made") is not None and record.get("seconds"):  # 0: left out, or taken from DVC's cache
                known.setdefault(path.stem.split("@")[0], []).append(record["seconds"])
    usual = {kind: sum(seconds) / len(seconds) for kind, seconds in known.items()}
    spent = [(name.split("@")[0], seconds) for name, seconds in [*running, *((name, 0.0) for name in rest)]]
    minutes = sum(max(usual.get(kind, 0) - seconds, 0) for kind, seconds in spent) / jobs / 60
    if minutes < 0.5:
        return ""
    return f", {'about' if usual.keys() >= dict(spent).keys() else 'at least'} {minutes:.0f} minutes are left"


def run_slice(minutes: float = math.inf, until: str | None = None, jobs: int | None = None) -> bool:
    """Run what is not done yet for at most `minutes`, and stop what still runs then; whether all is done.

    A stage is done when it succeeded with these parameters and dependencies, and its outputs are as it left them.

    Args:
        until: as in `oclam.graph.needed_for`.
        jobs: how many stages run side by side at most, each on its share of the cores; None: as many as cores.
    Raises UserError that names the stages that failed, once all that does not need them is done.
    """
    deadline, params, free, gpus = time.monotonic() + 60 * minutes, read().model_dump(), cores(), _gpus()
    jobs = len(free) if jobs is None else jobs
    if not 1 <= jobs <= len(free):
        raise UserError(f"--jobs: {jobs} given, 1 to {len(free)} can share {len(free)} cores")
    every, total = len(free), len(gpus)
    share, devices = every // jobs, min(params["compute"]["devices"], total)
    stages = needed_for(until, read_stages(params))
    needs = {name: upstream(stage, stages) for name, stage in stages.items()}
    graph, rank = TopologicalSorter(needs), start_order(needs)
    graph.prepare()
    done, waiting, running, failed, next_status = set(), [], [], [], time.monotonic() + STATUS_INTERVAL

    def fail(name, why):
        failed.append(name)
        print(f"{name} failed: {why}", flush=True)

    def least(job):
        """Cores that the stage needs: one a thread where it trains without a GPU."""
        trains = "compute" in job.stage.params and not job.devices(devices)
        return max(share, min(params["compute"]["threads"], every)) if trains else share

    try:
        while True:
            while ready := graph.get_ready():
                for name in ready:
                    try:
                        job = Job(stages[name], params)
                    except UserError as error:  # of a dependency that is missing
                        fail(name, error)
                        continue
                    if job.done:
                        graph.done(name)
                        done.add(name)
                    else:
                        waiting.append(job)
            if not waiting and not running:
                break
            if time.monotonic() >= deadline:
                return False
            possible = [job for job in waiting if job.devices(devices) <= len(gpus) and least(job) <= len(free)]
            if possible and len(running) < jobs:
                job = min(possible, key=lambda job: rank[job.stage.name])
                waiting.remove(job)
                own = job.devices(devices)
                useful = len(free) // (len(waiting) + 1) if job.stage.script in WORKERS else every * own // (total or 1)
                count = max(least(job), min(useful, len(free)))
                try:
                    job.start(free[-count:], gpus[len(gpus) - own:], OCLAM_JOBS=str(jobs))
                except UserError as error:  # of params.yaml, which somebody edits
                    fail(job.stage.name, error)
                    continue
                del free[-count:], gpus[len(gpus) - own:]
                running.append(job)
                print(f"{job.stage.name} starts; of {len(stages)} stages {len(done)} are done", flush=True)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                free += job.cores
                gpus += job.gpus
                if why := job.end():
                    fail(job.stage.name, why)
                else:
                    graph.done(job.stage.name)
                    done.add(job.stage.name)
            if time.monotonic() >= next_status:
                next_status += STATUS_INTERVAL
                rest = list(stages.keys() - done - set(failed) - {job.stage.name for job in running})
                for job in running:  # for this runner could be killed
                    job.write(done=False, seconds=job.seconds_so_far)
                spent = [(job.stage.name, job.seconds_so_far) for job in running]
                print("\n".join([f"{len(done)} of {len(stages)} stages are done{time_left(rest, spent, jobs)}",
                                 *(f"  {job.stage.name}: {last_line(job.stage.name)}" for job in running)]), flush=True)
            time.sleep(0.05)
    finally:
        for job in running:
            job.end()
    if failed:
        rest = len(stages) - len(done) - len(failed)
        raise UserError(f"{', '.join(failed)} failed, and {rest} of the stages need what they make")
    return True


def _gpus():
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return list(takewhile(lambda gpu: gpu and not gpu.startswith("-"), named.split(",")))  # as CUDA reads it
    if not Path("/proc/driver/nvidia").exists():
        return []
    import torch  # which takes seconds

    return [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def _dvc() -> Iterator:
    """DVC's repository here; what it refuses is a UserError."""
    from dvc.exceptions import DvcException  # machines that run slices alone need no DVC
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            yield repo
    except DvcException as error:
        raise UserError(f"DVC: {one_line(error)}") from None


def trust_dvc_lock() -> None:
    """Mark as done every stage that DVC recorded and that has not changed since."""
    params = read().model_dump()
    with _dvc() as repo:
        changed = repo.status()
    for name, stage in read_stages(params).items():
        if name not in changed:
            job = Job(stage, params)
            job.write(done=True, seconds=job.seconds)


def record() -> None:
    """Let DVC record every stage that is done, and nothing else, in dvc.lock.

    Raises UserError, and leaves dvc.lock as it was, where what it records changed meanwhile.
    """
    logging.getLogger("dvc").setLevel(logging.WARNING)  # a line for every stage says nothing
    params = read().model_dump()
    stages, lock = read_stages(params), Path("dvc.lock")
    jobs = (Job(stage, params) for stage in stages.values() if all(map(os.path.exists, stage.deps)))
    done = [job for job in jobs if job.done]
    before = lock.read_bytes() if lock.exists() else None
    targets = [None] if len(done) == len(stages) else [job.stage.name for job in done]  # all at once is 3 times as fast
    with _dvc() as repo:
        for target in targets:
            repo.commit(target, force=True)
    if not all(job.unchanged() for job in done):  # DVC wrote what it found then
        if before is None:
            lock.unlink()
        else:
            with atomic(lock) as temporary:
                temporary.write_bytes(before)
        raise UserError("dvc.lock is as before: parameters, code or inputs changed while DVC recorded what is done; "
                        "the same command records it")


def main():
    parser = argparse.ArgumentParser(prog="python -m oclam.slices", description=__doc__.splitlines()[0],
                                     epilog="Status: 0, all is done; 75, call again; 1, a stage failed.")
    parser.add_argument("--minutes", type=float, default=math.inf,
                        help="stop after this many: a little less than the queue's limit")
    parser.add_argument("--until", metavar="STAGE", help="the last stage, or instance such as slots@cheetah-run-0")
    parser.add_argument("--jobs", type=int,
                        help="how many stages run at once and share the cores (default: one per core)")
    parser.add_argument("--dvc", action="store_true", help="begin from DVC's record, and end with it")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(os.EX_TEMPFAIL))  # the queue's end is a slice's end too
    with only_one("pipeline"):
        if arguments.dvc:
            trust_dvc_lock()
        try:
            done = run_slice(arguments.minutes, arguments.until, arguments.jobs)
        finally:
            if arguments.dvc:
                record()
    if not done:
        print("The time is over; the same command resumes here", flush=True)
        sys.exit(os.EX_TEMPFAIL)


if __name__ == "__main__":
    one_line_errors(main)

"""Faults at random in every stage of dvc.yaml, at a tiny scale: `python -m tests.faults --count 300`.

Each injection changes a copy of a finished project and runs one stage in a process of its own. What passes: `same`, the
undisturbed bytes; `mended`, one line that names the file, whose mend, done as the line says, ends in the undisturbed
bytes; `made again`, a stage cannot see the damage, but by hash `oclam.slices` does, as `dvc repro` does, and makes the
file again; `edited`, other parameters that are as good. All else is printed and counted: a silent other result, a hang,
a traceback, a wrong mend. A seed gives the same faults again.
"""

import argparse
import importlib
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import chdir
from multiprocessing.connection import wait
from pathlib import Path

from oclam.artifacts import digest, read_json, write_json
from oclam.checkpoint import Checkpoint
from oclam.graph import upstream
from oclam.params import read
from oclam.slices import RECORDS
from tests.stages.tiny import build, expanded, run

TIMEOUT = 1200  # seconds after which a stage hangs; the longest takes five of one core
EVENTS = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir")
SHIPPED = ("data/encoders", "data/experts", "params.yaml")  # kept in Git
FAULTS = ("kill", "disk", "remove", "truncate", "flip", "resume", "params")
GOOD = ("same", "mended", "made again", "edited")


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one injection, by its number")
    parser.add_argument("--finished", type=Path, help="a project that tests.stages.tiny has built; else it is built")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        finished = Path(folder) / "finished"
        if arguments.finished:
            shutil.copytree(arguments.finished, finished)
        else:
            build(finished)
        with chdir(finished):
            record()
        counts = inject(finished, Path(folder) / "damaged", arguments)
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
    sys.exit(not counts.keys() <= set(GOOD))


def record():
    """Put into Git what is kept there, and record every stage as done, as `oclam.slices` does."""
    for words in (["init", "-q"], ["add", "-f", *SHIPPED],
                  ["-c", "user.name=faults", "-c", "user.email=faults@localhost", "commit", "-qm", "finished"]):
        subprocess.run(["git", *words], check=True)
    for name, stage in expanded().items():
        write_json(RECORDS / f"{name}.json", {"made": stage.made()})


def inject(finished, copy, arguments):
    """The number of injections by outcome."""
    with chdir(finished):
        stages = expanded()
    import_stages(stages)
    names, counts, calls = sorted({name.split("@")[0] for name in stages}), Counter(), {}
    random.Random(arguments.seed).shuffle(names)
    for number in range(arguments.count):
        rng = random.Random(f"{arguments.seed} {number}")
        # Every stage in turn; the second round begins with another fault, so that each stage meets each of them.
        kind = FAULTS[(number + number // len(names)) % len(FAULTS)]
        stage = stages[rng.choice([name for name in stages if name.split("@")[0] == names[number % len(names)]])]
        if arguments.only not in (None, str(number)):
            continue
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(finished, copy)
        started = time.monotonic()
        with chdir(copy):
            trial = Trial(stage, stages, finished, calls, rng)
            outcome = getattr(trial, kind)()
        counts[outcome] += 1
        print(f"{number} {stage.name} {trial.fault}: {outcome}, {time.monotonic() - started:.1f} s", flush=True)
        if outcome not in GOOD:
            print("\n".join(f"    {line}" for line in trial.said.splitlines()), flush=True)
    return counts


def import_stages(stages):
    """Import every stage once, in the process from which all others are forked."""
    os.environ.pop("MUJOCO_GL", None)  # set, it loads EGL now, beside all libraries of all stages: not in this process
    for stage in stages.values():
        importlib.import_module(f"stages.{stage.script}")


class Trial:
    """One fault in one stage, in the working folder, a copy of the finished project.

    calls: file-system calls of every stage, which are counted at its first kill.
    """

    def __init__(self, stage, stages, finished, calls, rng):
        self.stage, self.stages, self.finished, self.calls, self.rng = stage, stages, finished, calls, rng
        self.fault = self.said = ""

    # Every fault returns its outcome.

    def kill(self):
        """At up to three random file-system calls, by any of three signals."""
        calls = self.count()
        self.forget(self.stage)
        for _ in range(self.rng.randint(1, 3)):
            number = self.rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            call = self.rng.randint(1, calls)
            self.fault += f"{number.name} at call {call} "
            status = self.start(kill=(call, number))
            if status not in (0, -number, 128 + number) or "Traceback" in self.said:
                return self.wrong(status)
        return self.finish()

    def disk(self):
        """No file may grow beyond a random size."""
        sizes = [file.stat().st_size for out in self.stage.outs for file in files(Path(out))]
        limit = self.rng.randint(1, max(sizes))
        self.fault = f"no file above {limit} bytes"
        self.forget(self.stage)
        return self.outcome(self.start(limit=limit), None)

    def remove(self):
        return self.damage(self.input(), Path.unlink)

    def truncate(self):
        path = self.input()
        size = self.rng.choice([0, self.rng.randrange(path.stat().st_size)])
        return self.damage(path, lambda file: os.truncate(file, size))

    def flip(self):
        return self.damage(self.input(), self.flip_bit)

    def resume(self):
        """Work in progress is damaged: killed, then a file under .resume is removed, cut or has a flipped bit."""
        calls, there = self.count(), []
        for _ in range(5):
            self.forget(self.stage)
            status = self.start(kill=(self.rng.randint(calls // 3, calls), signal.SIGKILL))
            there = [file for path in unfinished() for file in files(path) if file.stat().st_size]
            if there:
                break
        else:
            self.fault = "killed without work in progress"
            return self.finish()
        path = self.rng.choice(there)
        harm = self.rng.choice([Path.unlink, self.flip_bit, lambda file: os.truncate(file, file.stat().st_size // 2)])
        harm(path)
        self.fault = f"killed ({status}), {getattr(harm, '__name__', 'cut')} {path}"
        return self.outcome(self.start(), path)

    def params(self):
        """The file of parameters has another byte, or ends early."""
        path, given = Path("params.yaml"), read()
        content = bytearray(path.read_bytes())
        place = self.rng.randrange(len(content))
        content[place:place + self.rng.choice([1, len(content)])] = self.rng.choice([b"", b"\xff", b"9", b":", b"\t"])
        path.write_bytes(content)
        self.fault = f"params.yaml differs from byte {place} on"
        status = self.start()
        if status == 0 and read() != given:
            return "edited"
        return self.outcome(status, path)

    # What a fault is made of.

    def count(self):
        """How many file-system calls the undisturbed stage makes; each could be its last."""
        if self.stage.name not in self.calls:
            self.start(count=True)
            self.calls[self.stage.name] = int(re.search(r"^calls (\d+)$", self.said, re.M)[1])
        return self.calls[self.stage.name]

    def start(self, **fault):
        """Run the stage; its status, None where it had to be stopped. What it said is kept."""
        shutil.rmtree("reports/durations")  # the report reads them, and seconds are never the same
        shutil.copytree(self.finished / "reports/durations", "reports/durations")
        status, self.said = forked(self.stage, **fault)
        return status

    def input(self):
        """A file that the stage depends on: of one dependency and one kind, so that chunks do not crowd out others."""
        deps = [Path(dep) for dep in self.stage.deps if dep.startswith("data/") and files(Path(dep))]
        if not deps:
            return Path("params.yaml")
        found = files(self.rng.choice(deps))
        kind = self.rng.choice(sorted({file.suffix for file in found}))
        return self.rng.choice([file for file in found if file.suffix == kind and file.stat().st_size])

    def flip_bit(self, path):
        content = bytearray(path.read_bytes())
        # In a text that people edit and Git keeps, another digit is an edit.
        edit = path.as_posix().startswith(SHIPPED) and path.suffix in (".csv", ".yaml")
        content[self.rng.randrange(len(content))] ^= 1 << (7 if edit else self.rng.randrange(8))
        path.write_bytes(content)

    def damage(self, path, harm):
        harm(path)
        self.fault = f"{sys._getframe(1).f_code.co_name} {path}"
        self.forget(self.stage)
        return self.outcome(self.start(), path)

    def forget(self, stage):
        for out in map(Path, stage.outs):
            shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)

    # What came of it.

    def outcome(self, status, path):
        if status == 0 and "Traceback" not in self.said:
            return "same" if self.same() else self.made_again()
        lines = [line for line in re.split("[\r\n]+", self.said) if line.startswith("error: ")]
        if status != 1 or len(lines) != 1 or "Traceback" in self.said:
            return self.wrong(status)
        if path and not any(str(place) in lines[0] for place in [path, *path.parents]
                            if place not in (Path("."), Path("data"))):
            return "another file named"
        if not self.mend(lines[0]):
            return "no mend"
        return "mended" if self.finish() == "same" else "wrong mend"

    def finish(self):
        """The outcome of one more run."""
        status = self.start()
        return ("same" if self.same() else "silent") if status == 0 else self.wrong(status)

    def made_again(self):
        """The outcome where the runner notices outputs that are not as they were recorded, and makes them again."""
        noticed = []
        for name, stage in self.stages.items():
            if name != self.stage.name and read_json(RECORDS / f"{name}.json")["made"] != stage.made():
                noticed.append(name)
                forked(stage)
        return "made again" if noticed and self.finish() == "same" else "silent"

    def wrong(self, status):
        return "hang" if status is None else "traceback" if "Traceback" in self.said else f"status {status}"

    def mend(self, line):
        """Do what the line says; whether it says something."""
        kept = re.findall(r"`git checkout (\S+)`", line) or re.findall("^error: (params.yaml): ", line)
        if kept:
            subprocess.run(["git", "checkout", "-q", *kept], check=True)
        elif found := re.search(r"delete (\S+?),? (?:and (\S+) )?and run `dvc repro`", line):
            for name in filter(None, found.groups()):
                path = Path(line.removeprefix("error: ").split(": ")[0] if name == "it" else name)
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        elif "`dvc repro`" not in line:
            return False
        self.repro()
        return True

    def repro(self):
        """Run the stages before this one of whose outputs a file is not there, as `dvc repro` does."""
        needed, asked = set(), [self.stage.name]
        while asked:
            before = upstream(self.stages[asked.pop()], self.stages)
            asked += set(before) - needed
            needed |= set(before)
        for name, stage in self.stages.items():
            if name in needed and any(not (Path() / file.relative_to(self.finished)).exists()
                                      for out in stage.outs for file in files(self.finished / out)):
                self.said += forked(stage)[1]

    def same(self):
        """Whether the stage's outputs have the undisturbed bytes, and nothing unfinished is left."""
        left = unfinished() + list(Path("data").rglob("*.tmp")) + list(Path("reports").rglob("*.tmp"))
        other = [out for out in self.stage.outs if not Path(out).exists() or digest(out) != digest(self.finished / out)]
        self.said += "".join(f"\nleft: {path}" for path in left) + "".join(f"\ndiffers: {out}" for out in other)
        return not left and not other


def files(path):
    """The file itself, or all files in the folder; none where there is neither."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path][:path.exists()]


def unfinished():
    """Work in progress."""
    return [path for path in Path(".resume").iterdir() if path.name not in ("locks", RECORDS.name)]


def forked(stage, seconds=TIMEOUT, **fault):
    """Status and output of a stage in a process of its own; status None where it had to be stopped."""
    receiver, sender = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=_child, args=(stage, sender), kwargs=fault)
    process.start()
    os.close(sender)
    said, deadline = b"", time.monotonic() + seconds
    while process.is_alive() and time.monotonic() < deadline:
        if receiver in wait([receiver, process.sentinel], timeout=1):
            said += os.read(receiver, 1 << 16)
    hangs = process.is_alive()
    if hangs:
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    os.set_blocking(receiver, False)  # workers of a killed stage may hold the other end
    try:
        while part := os.read(receiver, 1 << 16):
            said += part
    except BlockingIOError:
        pass
    os.close(receiver)
    return None if hangs else process.exitcode, said.decode(errors="replace")


def _child(stage, output, count=False, kill=None, limit=None, memory=None):
    os.setpgid(0, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    Checkpoint.due = lambda self: True  # a state after every row, so that there is something to resume from
    seen, root, process = [0], os.getcwd(), os.getpid()

    def hook(event, arguments):
        if event in EVENTS and os.getpid() == process and isinstance(arguments[0], str | os.PathLike):
            if os.path.abspath(arguments[0]).startswith(root):
                seen[0] += 1
                if kill and seen[0] == kill[0]:
                    os.kill(process, kill[1])

    if count or kill:
        sys.addaudithook(hook)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    if memory:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    run(stage)
    if count:
        print(f"\ncalls {seen[0]}", flush=True)


if __name__ == "__main__":
    main()

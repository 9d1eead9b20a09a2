"""The command line of every stage: arguments, one-line errors, and a record of duration and hardware."""

import argparse
import errno
import fcntl
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from oclam import paths
from oclam.artifacts import write_absent, write_json
from oclam.errors import Absent, UserError
from oclam.graph import read_stages
from oclam.lease import hold
from oclam.machine import keep_freed_memory, limit_memory
from oclam.parallel import is_worker, launch, work
from oclam.params import read

TYPES = {"seed": int, "restart": int}
FIXES = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some space", errno.EFBIG: "raise `ulimit -f`",
         errno.EROFS: "make it writable", errno.EACCES: "change its permissions",
         errno.EPERM: "change its permissions"}
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of file systems


def arguments(*names: str):
    """The stage's positional arguments, such as task, seed and variant, in order; a single one by itself."""
    parser = argparse.ArgumentParser()
    for name in names:
        parser.add_argument(name, type=TYPES.get(name, str))
    values = list(vars(parser.parse_args()).values())
    return values[0] if len(values) == 1 else values


def run_name(script: str, words: list[str]) -> str:
    """The name of a stage's run, such as bc-full-cheetah-run-0-bc, from its script (bc_full) and its arguments."""
    return "-".join([script.replace("_", "-"), *words])


def run(main: Callable[[], None], parallel: bool = False) -> None:
    """Run a stage's main: wrong input or a full disk end it with one line; its duration is written to reports.

    parallel: in as many processes as compute.devices says.
    """
    started = time.time() - float(os.environ.get("OCLAM_SPENT", 0))  # seconds of earlier slices (oclam.slices)
    keep_freed_memory()
    limit_memory()
    name = run_name(Path(sys.argv[0]).stem, sys.argv[1:])
    if is_worker():
        return work(readable_errors()(main))
    _end_by_exception(signal.SIGTERM)
    try:
        with readable_errors(), only_one(name):
            params = read()
            devices = params.compute.devices if parallel else 1
            try:
                main() if devices == 1 else launch(devices)
            except Absent as reason:
                _write_absent(name, reason, params)
                paths.duration(name).unlink(missing_ok=True)  # of an earlier run that had something to do
            else:
                write_json(paths.duration(name), {"stage": name, "scale": params.scale, "hardware": _hardware(),
                                                  "seconds": round(time.time() - started, 1)})
    except KeyboardInterrupt:
        print("error: interrupted; `dvc repro` resumes", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except UserError as error:
        sys.exit(f"error: {error}")


def _write_absent(name, reason, params):
    """Write that each output of the stage is absent."""
    outs = [out for stage in read_stages(params.model_dump()).values() if run_name(stage.script, stage.words) == name
            for out in stage.outs]
    if not outs:
        raise UserError(f"{name}: no stage of dvc.yaml and params.yaml has these arguments")
    for out in outs:
        write_absent(Path(out), str(reason))
    print(f"absent: {reason}", file=sys.stderr)


def one_line_errors(main: Callable[[], None]) -> None:
    """Run a command's main: wrong input, a full disk, too little memory and an interruption end it with one line."""
    then = "run the same command again"
    try:
        with readable_errors(then):
            main()
    except KeyboardInterrupt:
        sys.exit(f"error: interrupted; {then}")
    except UserError as error:
        sys.exit(f"error: {error}")


@contextmanager
def readable_errors(then: str = "`dvc repro` resumes") -> Iterator[None]:
    """Turn errors of the file system and of memory that the user can correct into UserError; then: what to do after."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or re.search("can't allocate memory|out of memory|bad_alloc", str(error)):
            raise UserError("out of memory; lower batch sizes or widths in params.yaml: `python -m oclam.plan` counts "
                            "what each stage needs") from None
        raise
    except OSError as error:
        if error.errno not in FIXES:
            raise
        raise UserError(f"{error.filename or Path.cwd()}: {error.strerror}; {FIXES[error.errno]}, then "
                        f"{then}") from None


@contextmanager
def only_one(name: str) -> Iterator[None]:
    """Hold the lock `name` of this working tree while the block runs.

    Raises UserError where another process holds it. The lock ends with the process that holds it, however it ends; on
    file systems without locks, as some of clusters, 90 seconds later (`oclam.lease`).
    """
    path = paths.lock(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{name} is already running in this folder; wait for it, or stop it") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            lock = hold(path.with_suffix(".lease"), wait=False)
        else:
            lock = nullcontext()
        with lock:
            yield


def _end_by_exception(number):
    """Let a signal raise SystemExit, so that temporary files are removed; workers, which inherit this, just end."""
    process = os.getpid()

    def end(*_):
        if os.getpid() != process:
            os._exit(128 + number)
        print("error: stopped by a signal; `dvc repro` resumes", file=sys.stderr)
        sys.exit(128 + number)

    signal.signal(number, end)


def _hardware():
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{len(os.sched_getaffinity(0))} {platform.machine()} cores"

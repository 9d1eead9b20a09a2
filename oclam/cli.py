"""The command line of every stage: arguments, one-line errors, and a record of duration and hardware."""

import argparse
import errno
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

from oclam import paths
from oclam.artifacts import write_json
from oclam.errors import UserError
from oclam.memory import keep_freed_memory

__all__ = ["arguments", "run"]

TYPES = {"seed": int, "restart": int}
MENDS = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some space", errno.EROFS: "make it writable",
         errno.EACCES: "change its permissions", errno.EPERM: "change its permissions"}


def arguments(*names: str):
    """The stage's positional arguments, such as task, seed and variant, in order; a single one by itself."""
    parser = argparse.ArgumentParser()
    for name in names:
        parser.add_argument(name, type=TYPES.get(name, str))
    values = [getattr(parser.parse_args(), name) for name in names]
    return values[0] if len(values) == 1 else values


def run(main: Callable[[], None]) -> None:
    """Run a stage's main: wrong input or a full disk end it with one line; its duration is written to reports."""
    started = time.time() - float(os.environ.get("OCLAM_SPENT", 0))  # seconds of earlier slices (oclam.slices)
    keep_freed_memory()
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in MENDS:
            raise
        sys.exit(f"error: {error.filename}: {error.strerror}; {MENDS[error.errno]}, then `dvc repro` resumes")
    name = "-".join([Path(sys.argv[0]).stem.replace("_", "-"), *sys.argv[1:]])
    write_json(paths.duration(name),
               {"stage": name, "seconds": round(time.time() - started, 1), "hardware": _hardware()})


def _hardware():
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{len(os.sched_getaffinity(0))} {platform.machine()} cores"

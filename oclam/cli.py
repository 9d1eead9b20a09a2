"""What every stage's command line shares: arguments, one-line errors, how long it took and on what."""

import argparse
import errno
import os
import platform
import sys
import time
from pathlib import Path

from oclam import paths
from oclam.artifacts import write_json
from oclam.errors import UserError
from oclam.memory import keep_freed_memory

__all__ = ["arguments", "run"]

TYPES = {"seed": int, "restart": int}


def arguments(*names):
    """Parse the stage's positional arguments, such as task, seed and variant. Returns them in order."""
    parser = argparse.ArgumentParser()
    for name in names:
        parser.add_argument(name, type=TYPES.get(name, str))
    values = [getattr(parser.parse_args(), name) for name in names]
    return values[0] if len(values) == 1 else values


def run(main):
    """Run a stage's main: bad input and a full disk end it with one line, success leaves its duration in reports."""
    started = time.time() - float(os.environ.get("OCLAM_SPENT", 0))  # what earlier slices (oclam.slices) spent on it
    keep_freed_memory()
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit(f"error: the disk is full ({error.filename}); free some space, then `dvc repro` goes on from there")
    name = "-".join([Path(sys.argv[0]).stem.replace("_", "-"), *sys.argv[1:]])
    write_json(paths.duration(name),
               {"stage": name, "seconds": round(time.time() - started, 1), "hardware": _hardware()})


def _hardware():
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{len(os.sched_getaffinity(0))} {platform.machine()} cores"

"""What a process does with its memory."""

import ctypes
import platform
import resource
from pathlib import Path

from oclam.machine import total_memory

__all__ = ["keep_freed_memory", "limit_memory"]

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let this process reuse large freed blocks instead of returning them to the system, where glibc is its C library.

    Otherwise activations and batches of tens of megabytes are mapped, zeroed page by page and unmapped in every step,
    which takes half of a small model's training time on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)


def limit_memory() -> None:
    """Limit this process to the machine's memory: asking for more then raises an error, instead of Linux killing it.

    Not beside an NVIDIA GPU, whose driver reserves more than it uses.
    """
    if not Path("/proc/driver/nvidia").exists():
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = total_memory()
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))

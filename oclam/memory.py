"""The C library's reuse of freed memory."""

import ctypes
import platform

__all__ = ["keep_freed_memory"]

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let this process reuse large freed blocks instead of returning them to the system; whether glibc allowed it.

    Otherwise activations and batches of tens of megabytes are mapped, zeroed page by page and unmapped in every step,
    which takes half of a small model's training time on a CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, 2**31 - 1))

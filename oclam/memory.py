"""How the C library hands out memory."""

import ctypes
import platform

__all__ = ["keep_freed_memory"]

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory():
    """Let this process reuse large freed blocks instead of returning them to the system, where it is glibc's to say.

    Activations and batches of tens of megabytes are else mapped, zeroed page by page and unmapped in every step, which
    takes half of a small model's training time on a CPU. Returns whether it was possible.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_MAX, 0) and mallopt(TRIM_THRESHOLD, 2**31 - 1))

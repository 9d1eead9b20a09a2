"""What this process may use of the machine, as its control groups (version 1 or 2) grant it, and its own limits."""

import ctypes
import multiprocessing
import os
import platform
import resource
from collections.abc import Iterator
from pathlib import Path

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of glibc's malloc.h
GROUPS, MEMBERSHIP, MEMINFO = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), Path("/proc/meminfo")


def cores() -> list[int]:
    """The numbers of the cores that this process may use, as many as its quota of CPU time is worth, at least one.

    OCLAM_CORES in the environment, which `oclam.slices` and `oclam.cluster` set, is an upper limit.
    """
    ours = sorted(os.sched_getaffinity(0))
    limit = min([int(os.environ.get("OCLAM_CORES", len(ours))), *_quotas()])
    return ours[:max(int(limit), 1)]


def _quotas():
    for group in _groups("cpu"):
        quota, period = (_read(group / "cpu.max") or "max max").split()
        if quota == "max":
            quota, period = _read(group / "cpu.cfs_quota_us") or "-1", _read(group / "cpu.cfs_period_us")
        if int(quota) > 0:
            yield int(quota) / int(period)


def end_with_parent(number: int, parent: int | None = None) -> None:
    """Ask Linux to send this process the signal `number` when its parent ends, by kill -9 too.

    parent: its process number, by which an end before this call is noticed; by default of `multiprocessing`'s parent.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if parent is None and (known := multiprocessing.parent_process()):
        parent = known.pid
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), number)


def available_memory() -> int:
    """Bytes of memory that this process may still use; what the system would free for it counts as available.

    OCLAM_MEMORY in the environment, which `oclam.cluster` sets, is an upper limit.
    """
    available = int(MEMINFO.read_text().split("MemAvailable:")[1].split()[0]) * 1024
    for group in _groups("memory"):
        limit = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes") or "max"
        if limit != "max":
            used = int(_read(group / "memory.current") or _read(group / "memory.usage_in_bytes"))
            statistics = (line.split() for line in (_read(group / "memory.stat") or "").splitlines())
            cached = {key: int(value) for key, value in statistics}
            free = int(limit) - used + cached.get("total_inactive_file", cached.get("inactive_file", 0))
            available = min(available, free)
    return max(min(available, int(os.environ.get("OCLAM_MEMORY", available))), 0)


def total_memory() -> int:
    """Bytes of memory and swap that the processes of these control groups can hold together."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    swap = int(MEMINFO.read_text().split("SwapTotal:")[1].split()[0]) * 1024
    memory = min([total, *_limits("memory.max", "memory.limit_in_bytes")])
    return min([memory + min([swap, *_limits("memory.swap.max")]), *_limits("memory.memsw.limit_in_bytes")])


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


def _limits(*names):
    """The numbers that control groups of memory have in the first of these files that is there."""
    for group in _groups("memory"):
        limit = next((text for name in names if (text := _read(group / name))), "max")
        if limit != "max":
            yield int(limit)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of the control groups of this process that can limit `controller`, each with those around it."""
    lines = MEMBERSHIP.read_text().splitlines() if MEMBERSHIP.exists() else []
    for number, names, path in (line.split(":", 2) for line in lines):
        mounts = [GROUPS, GROUPS / "unified"] if number == "0" else [GROUPS / controller]
        if number == "0" or controller in names.split(","):
            for mount in mounts:
                own = mount / path.lstrip("/")
                yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(mount))


def _read(path):
    return path.read_text().strip() if path.is_file() else None

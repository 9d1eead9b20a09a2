"""Cores and memory that control groups grant, of both versions, nested ones too, and how a process holds memory."""

import multiprocessing
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from oclam import machine


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A function that lays out files of control groups, and says in which ones this process is."""
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 1, 2, 0})
    (tmp_path / "meminfo").write_text("MemTotal: 999 kB\nMemAvailable: 500 kB\n")

    def lay_out(membership, files):
        (tmp_path / "membership").write_text(membership)
        for name, content in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    return lay_out


@pytest.mark.parametrize(("membership", "files", "count"), [
    ("", {}, 4),
    ("0::/\n", {"cpu.max": "max 100000"}, 4),
    ("0::/\n", {"cpu.max": "250000 100000"}, 2),
    ("0::/job/step\n", {"job/cpu.max": "100000 100000", "job/step/cpu.max": "max 100000"}, 1),
    ("0::/\n", {"cpu.max": "50000 100000"}, 1),
    ("0::/\n", {"cpu.max": "190000 100000"}, 1),
    ("4:cpu,cpuacct:/job\n", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
    ("4:cpuset:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 4),
])
def test_cores_are_the_least_that_affinity_and_quotas_allow(groups, membership, files, count):
    groups(membership, files)
    assert machine.cores() == list(range(count))


KB = 1024


@pytest.mark.parametrize(("membership", "files", "kilobytes"), [
    ("", {}, 500),
    ("0::/\n", {"memory.max": "max", "memory.current": "7"}, 500),
    ("0::/\n", {"memory.max": str(300 * KB), "memory.current": str(100 * KB)}, 200),
    ("0::/\n", {"memory.max": str(300 * KB), "memory.current": str(100 * KB),
                "memory.stat": f"anon 5\ninactive_file {40 * KB}"}, 240),
    ("0::/a/b\n", {"a/memory.max": str(90 * KB), "a/memory.current": str(20 * KB), "a/b/memory.max": "max"}, 70),
    ("9:memory:/a\n", {"memory/a/memory.limit_in_bytes": str(80 * KB), "memory/a/memory.usage_in_bytes": str(50 * KB),
                       "memory/a/memory.stat": f"inactive_file 1\ntotal_inactive_file {10 * KB}",
                       "memory/memory.limit_in_bytes": str(2**63 - 4096), "memory/memory.usage_in_bytes": "0"}, 40),
    ("0::/\n", {"memory.max": "1000", "memory.current": "2000"}, 0),
])
def test_memory_is_the_least_that_the_machine_and_its_groups_have_left(groups, membership, files, kilobytes):
    groups(membership, files)
    assert machine.available_memory() == kilobytes * KB


def test_memory_is_at_most_what_a_cluster_reserves(groups, monkeypatch):
    groups("0::/\n", {"memory.max": str(300 * KB), "memory.current": str(100 * KB)})
    for reserved, available in ((150, 150), (250, 200)):
        monkeypatch.setenv("OCLAM_MEMORY", str(reserved * KB))
        assert machine.available_memory() == available * KB


def test_here_both_are_what_the_system_says_at_most():
    assert set(machine.cores()) <= os.sched_getaffinity(0) and machine.cores()
    assert 0 < machine.available_memory() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_all_memory_is_the_machine_s_or_the_group_s_with_swap(groups, monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 100, "SC_PAGE_SIZE": 4 * KB}.get)
    machine.MEMINFO.write_text("MemTotal: 999 kB\nSwapTotal: 30 kB\n")
    groups("0::/a\n", {"memory.max": "max"})
    assert machine.total_memory() == 430 * KB
    groups("0::/a\n", {"a/memory.max": str(90 * KB), "a/memory.current": str(80 * KB)})
    assert machine.total_memory() == 120 * KB
    groups("0::/a\n", {"a/memory.max": str(90 * KB), "a/memory.swap.max": "0"})  # as Kubernetes
    assert machine.total_memory() == 90 * KB
    groups("9:memory:/a\n", {"memory/a/memory.limit_in_bytes": str(80 * KB),
                             "memory/a/memory.memsw.limit_in_bytes": str(95 * KB)})
    assert machine.total_memory() == 95 * KB


@pytest.mark.parametrize(("given", "count"), [("2", 2), ("9", 3), ("0", 1)])
def test_cores_are_no_more_than_the_environment_says(groups, monkeypatch, given, count):
    groups("0::/\n", {"cpu.max": "300000 100000"})
    monkeypatch.setenv("OCLAM_CORES", given)
    assert machine.cores() == list(range(count))


FREED = """
import sys, numpy
if sys.argv[1] == "keep":
    from oclam.machine import keep_freed_memory
    keep_freed_memory()
resident = lambda: 4096 * int(open("/proc/self/statm").read().split()[1])
array = numpy.ones(2**24)
used = resident()
del array
print((used - resident()) // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone can be told")
@pytest.mark.parametrize(("keep", "returned"), [("keep", 0), ("default", 128)])
def test_freed_blocks_stay_with_the_process(keep, returned):
    done = subprocess.run([sys.executable, "-c", FREED, keep], capture_output=True, text=True, check=True)
    assert abs(int(done.stdout) - returned) < 32  # MiB given back to the system


LIMIT = """
import resource, sys
from oclam import machine
machine.total_memory = lambda: int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]),) * 2)
machine.limit_memory()
print(*resource.getrlimit(resource.RLIMIT_DATA))
"""


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="a GPU's driver reserves more than it uses")
@pytest.mark.parametrize(("total", "hard"), [(2**40, 2**50), (2**50, 2**40)])
def test_a_process_is_limited_to_the_machine_s_memory_and_to_what_it_was_given(total, hard):
    words = [sys.executable, "-c", LIMIT, str(total), str(hard)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(2**40), str(hard)]


def test_a_parent_that_ended_before_the_call_is_noticed():
    def child():
        os.getppid = lambda: 1  # an orphan's
        machine.end_with_parent(signal.SIGTERM)

    def outcome(parent):
        code = f"import os; from oclam.machine import end_with_parent; end_with_parent({signal.SIGTERM}, {parent})"
        return subprocess.run([sys.executable, "-c", code]).returncode

    assert outcome("os.getppid()") == 0 and outcome("os.getppid() + 1") == -signal.SIGTERM
    for orphan, ended in ((child, -signal.SIGTERM), (lambda: machine.end_with_parent(signal.SIGTERM), 0)):
        process = multiprocessing.get_context("fork").Process(target=orphan)
        process.start()
        process.join()
        assert process.exitcode == ended

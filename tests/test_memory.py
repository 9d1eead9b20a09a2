import platform
import subprocess
import sys
from pathlib import Path

import pytest

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

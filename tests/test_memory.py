import platform
import subprocess
import sys

import pytest

FREED = """
import sys, numpy
if sys.argv[1] == "keep":
    from oclam.memory import keep_freed_memory
    assert keep_freed_memory()
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

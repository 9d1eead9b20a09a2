import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from oclam import lease
from oclam.errors import UserError
from oclam.lease import hold

PATIENCE = 0.6


def test_only_one_holds_it_and_it_is_gone_afterwards(tmp_path):
    path, inside, most = tmp_path / "leases/stage", [], []

    def work():
        with hold(path, True, PATIENCE) as held:
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            assert held()
            inside.pop()

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda _: work(), range(6))) == [None] * 6
    assert most == [1] * 6 and list(path.parent.iterdir()) == []


def test_who_does_not_wait_is_told_who_holds_it(tmp_path):
    with hold(tmp_path / "driver", True, PATIENCE):
        with pytest.raises(UserError, match=rf"driver is already running, on host .* process {os.getpid()}; wait"):
            with hold(tmp_path / "driver", False, PATIENCE):
                raise AssertionError("held twice")


def test_a_holder_that_fell_silent_loses_it_and_learns_so(tmp_path):
    path, first = tmp_path / "stage", hold(tmp_path / "stage", True, 1000)  # does not touch the file for minutes
    held = first.__enter__()
    assert held()
    started = time.monotonic()
    with hold(path, False, PATIENCE) as again:
        assert PATIENCE <= time.monotonic() - started < 10 * PATIENCE
        assert again() and not held()
        first.__exit__(None, None, None)  # it wakes up, and leaves the other's alone
        assert again()
    assert not path.exists()


def test_a_holder_that_lives_keeps_it_however_long_others_wait(tmp_path):
    path, order = Path(tmp_path / "stage"), []

    def later():
        with hold(path, True, PATIENCE):
            order.append("second")

    with hold(path, True, PATIENCE) as held:
        other = threading.Thread(target=later)
        other.start()
        time.sleep(2.5 * PATIENCE)
        assert held()
        order.append("first")
    other.join()
    assert order == ["first", "second"]


def test_a_lease_taken_over_meanwhile_is_left_to_its_new_holder(tmp_path, monkeypatch):
    path, rename = tmp_path / "stage", Path.rename
    path.write_text("elsewhere 1 dead\n")
    waiting, left = threading.Event(), threading.Event()

    def late(self, target):  # between looking at the silent holder's file and taking it away, another takes over
        if self == path and not waiting.is_set():
            waiting.set()
            path.write_text("elsewhere 2 alive\n")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    threading.Thread(target=lambda: (waiting.wait(), time.sleep(PATIENCE), left.set(), path.unlink()),
                     daemon=True).start()
    with hold(path, True, 2 * PATIENCE):
        assert left.is_set() and not path.read_text().startswith("elsewhere")
    assert list(tmp_path.iterdir()) == []


def test_all_who_wait_for_a_dead_holder_get_it_in_the_end(tmp_path):
    path, got = tmp_path / "stage", []
    path.write_text("elsewhere 1 dead\n")

    def work():
        with hold(path, True, PATIENCE):
            got.append(1)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda _: work(), range(6))) == [None] * 6
    assert len(got) == 6 and list(tmp_path.iterdir()) == []


def test_of_two_who_do_not_wait_for_the_dead_one_gets_it_and_the_other_is_told(tmp_path):
    path, leave = tmp_path / "driver", threading.Event()
    path.write_text("elsewhere 1 dead\n")

    def work():
        try:
            with hold(path, False, PATIENCE):
                leave.wait(600)
                return "held"
        except UserError as error:
            leave.set()
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        told, held = sorted(pool.map(lambda _: work(), range(2)))
    assert held == "held" and re.match(rf"driver is already running, on host .* process {os.getpid()}; wait", told)


def test_a_stall_of_the_whole_machine_makes_nobody_dead(tmp_path, monkeypatch):
    path, sleeps = tmp_path / "driver", []
    path.write_text("here 1 alive\n")

    def sleep(seconds):  # the first one takes far too long; then the holder, which had stopped too, goes on
        sleeps.append(seconds)
        time.sleep(2 * PATIENCE if len(sleeps) == 1 else 0)
        if len(sleeps) == 3:
            os.utime(path)

    monkeypatch.setattr(lease, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    with pytest.raises(UserError, match="driver is already running, on host here"):
        with hold(path, False, PATIENCE):
            raise AssertionError("taken for dead")
    assert len(sleeps) == 3


def test_a_holder_that_lost_it_keeps_no_other_s_alive(tmp_path):
    path = tmp_path / "stage"
    with hold(path, True, PATIENCE):
        path.write_text("elsewhere 1 dead\n")
        time.sleep(PATIENCE / 6)
        touched = path.stat().st_mtime_ns
        time.sleep(PATIENCE / 3)
        assert path.stat().st_mtime_ns == touched
    assert path.read_text() == "elsewhere 1 dead\n"

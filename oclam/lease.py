"""A lock between hosts that share a folder: a file that its holder keeps touching.

`flock` does not reach every network file system, and the holder of a lock file may be on a host that died. Here a
holder that has been silent for a while is taken to be dead, and one that wakes up after that learns that it lost.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from oclam.errors import UserError

LOOKS = 24  # at a silent holder's file before it is taken for dead; the holder touches it half as often
PATIENCE = 90.0  # seconds of silence; network file systems show touches up to a minute late


@contextmanager
def hold(path: Path, wait: bool, patience: float = PATIENCE) -> Iterator[Callable[[], bool]]:
    """Hold the lease `path`; gives a function that says whether it is still held.

    Another holder is waited for; once it has been silent for `patience` seconds, the lease is taken over.

    Args:
        wait: while the other holder is alive; False raises UserError as soon as it touches the file.
        patience: seconds; the file is touched 12 times in them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}\n"
    while not _created(path, mine):
        _await_silence(path, wait, patience)
    ended = threading.Event()
    threading.Thread(target=_touch, args=(path, mine, ended, patience / 12), daemon=True).start()
    try:
        yield lambda: _content(path) == mine
    finally:
        ended.set()
        if _content(path) == mine:
            path.unlink(missing_ok=True)


def _created(path, content):
    """Create the file with this content; False where there is one. A link, unlike O_EXCL, is exclusive on any NFS."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(content)
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    finally:
        temporary.unlink()


def _await_silence(path, wait, patience):
    """Return when the file is gone, and remove it when nothing has changed for `patience` seconds, seen at LOOKS looks.

    They are counted, since both this process and the holder may have been stopped between two of them.
    """
    seen, looks = _state(path), 0
    while seen is not None:
        if looks == LOOKS:
            if _state(path) == seen:
                silent = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
                with suppress(FileNotFoundError):  # another one that waits was faster
                    path.rename(silent)
                    if silent.read_text() != seen[0]:  # one that waited has just taken the lease: it stays
                        with suppress(FileExistsError):
                            os.link(silent, path)
                    silent.unlink()
            return
        time.sleep(patience / LOOKS)
        looks += 1
        if (now := _state(path)) != seen:
            if not wait and now is not None and now[0] == seen[0]:
                raise UserError(f"{path.name} is already running, on host {now[0].split()[0]} as process "
                                f"{now[0].split()[1]}; wait for it, or stop it")
            seen, looks = now, 0


def _touch(path, mine, ended, beat):
    while not ended.wait(beat) and _content(path) == mine:
        with suppress(FileNotFoundError):  # taken over just now
            os.utime(path)


def _content(path):
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _state(path):
    """Content and time of the last touch; None when there is no file."""
    try:
        return path.read_text(), path.stat().st_mtime_ns
    except FileNotFoundError:
        return None

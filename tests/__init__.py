"""What several test modules share."""

import hashlib
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Killed(Exception):
    """Ends work where a test wants it to end."""


class Unsaved:
    """A checkpoint that keeps nothing."""

    name, folder = "test", None

    def restore(self, parts):
        self.parts = parts

    def due(self):
        return False

    def save(self, parts, **position):
        pass


def contents(path: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its name there."""
    return {file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(path.rglob("*")) if file.is_file()}


def until(holds, seconds=300):
    """Wait until holds() is true; a busy machine takes a minute to start a node of Ray."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def runs(pid):
    """Whether the process runs; a zombie that nobody here waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False

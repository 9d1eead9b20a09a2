"""Checkpoints: the state of an unfinished stage, from which it resumes."""

import hashlib
import io
import shutil
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch

from oclam.artifacts import atomic, checksums, digest

FOLDER = Path(".resume")


class Checkpoint:
    """The state of one unfinished stage, in a folder named by its parameters, code and inputs.

    So a stage never resumes from the state of another version of itself.

    Args:
        name: the stage with its task, seed and variant.
        params: what else the result depends on, as `oclam.params.load` gives it; other values need another `repr`.
        inputs: the artifacts that are read.
        interval: seconds between two saves.
    """

    def __init__(self, name: str, params, inputs: Sequence[Path] = (), interval: float = 60.0):
        key = hashlib.sha256(repr(params).encode())
        for source in _loaded_code():
            key.update(source.read_bytes())
        for path in inputs:
            key.update(digest(path).encode())
        self.name, self.interval = name, interval
        self.folder = FOLDER / f"{name}-{key.hexdigest()[:16]}"
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Whether `interval` seconds have passed since the last save."""
        return time.monotonic() - self._saved >= self.interval

    def save(self, parts: dict, **position) -> None:
        """Write the state of every part (model, optimizer, ...), the random state and the position, atomically."""
        state = {"parts": {name: part.state_dict() for name, part in parts.items()}, "random": torch.get_rng_state(),
                 "position": position}
        if torch.cuda.is_available():
            state["random_cuda"] = torch.cuda.get_rng_state()
        _write(self.folder / "state.pt", state)
        self._saved = time.monotonic()

    def restore(self, parts: dict) -> dict | None:
        """The saved position, after its state was loaded into the parts; None when nothing intact was saved."""
        path = self.folder / "state.pt"
        state = _read(path)
        if state is None:
            return None
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        torch.set_rng_state(state["random"])
        if "random_cuda" in state:
            torch.cuda.set_rng_state(state["random_cuda"])
        print(f"{self.name}: resumed from {path}", file=sys.stderr)
        return state["position"]

    def remove(self) -> None:
        """Delete the state of this stage, and that of its earlier versions."""
        for folder in FOLDER.glob(f"{self.name}-" + "[0-9a-f]" * 16):
            shutil.rmtree(folder)


class Units:
    """How many equal units of a long piece of work are done, kept in a file beside the unfinished result.

    Args: path, of the file; result, the folder of the unfinished result, in which no file changes after its unit: if
    its files do not match the recorded checksums, it is deleted and the work starts again.
    Attributes: done, how many units; state, the tensor that the next unit begins with.
    """

    def __init__(self, path: Path, result: Path):
        self.path, self.result, self.done, self.state = path, result, 0, None
        for file in result.rglob("*.partial"):  # Zarr's, of a write that was killed
            file.unlink()
        record = _read(path) if result.exists() else None
        if record:
            found = checksums(result)
            if damaged := [name for name, crc in record[2].items() if found.get(name) != crc]:
                print(f"{result}/{damaged[0]}: damaged, so this work starts again", file=sys.stderr)
            else:
                self.done, self.state, _ = record
        if not self.done:
            shutil.rmtree(result, ignore_errors=True)

    def finish(self, state: torch.Tensor | None = None) -> None:
        """Record one more unit as done, atomically."""
        self.done, self.state = self.done + 1, state
        self.release(())

    def release(self, parts: tuple[str, ...]) -> None:
        """Record what is done so far; from here on files whose names begin with one of `parts` may change."""
        found = {name: crc for name, crc in checksums(self.result).items() if not name.startswith(parts)}
        _write(self.path, (self.done, self.state, found))


def _write(path, state):
    """Write what torch can save, atomically, after its CRC-32 (4 bytes)."""
    content = io.BytesIO()
    torch.save(state, content)
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(zlib.crc32(content.getbuffer()).to_bytes(4, "big"))
        file.write(content.getbuffer())


def _read(path):
    """What `_write` wrote; None where there is no such file or, with one line, where it is damaged."""
    if not path.exists():
        return None
    content = path.read_bytes()
    if len(content) < 5 or zlib.crc32(content[4:]) != int.from_bytes(content[:4], "big"):
        print(f"{path}: damaged, so this work starts again", file=sys.stderr)
        return None
    return torch.load(io.BytesIO(content[4:]), map_location="cpu", weights_only=True)


def _loaded_code():
    """The running script and every module of oclam that it has imported."""
    modules = [module for name, module in sys.modules.items() if name == "__main__" or name.startswith("oclam")]
    return sorted({Path(module.__file__) for module in modules if getattr(module, "__file__", None)})

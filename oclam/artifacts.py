"""Reading and writing artifacts: atomically, without pickles, and with one line when a file is missing or damaged.

Zarr stores and safetensors carry checksums (CRC-32), which every opening verifies; files from elsewhere may have none.
"""

import csv
import functools
import glob
import hashlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import zarr
from safetensors import SafetensorError, safe_open

from oclam.errors import Absent, UserError

CHECKSUMS = "checksums.json"  # in every Zarr store: {file: CRC-32}
ABSENT = b'{"absent": '  # the beginning of a file in place of an artifact that is absent


@contextmanager
def atomic(path: Path | str, checked: bool = False) -> Iterator[Path]:
    """A temporary path for a file or folder, which is renamed to `path` when the block ends without an error.

    A Zarr store gets its checksums, unless `checked` says that it has them.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    temporary, old = (path.with_name(f".{path.name}.{host}-{os.getpid()}-{secrets.token_hex(4)}.tmp") for _ in range(2))
    for other in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(host)}-*.tmp"):
        if not Path(f"/proc/{other.stem.split('-')[-2]}").exists():  # of a process that was killed
            _remove(other)
    try:
        yield temporary
        if not checked and (temporary / "zarr.json").exists():
            _write_checksums(temporary)
        if path.is_dir():  # deleted after the new one is in place: a signal during that long work loses nothing
            path.rename(old)
            os.replace(temporary, path)
            _remove(old)
        else:
            if temporary.is_dir():
                path.unlink(missing_ok=True)
            os.replace(temporary, path)
    except OSError as error:
        if error.filename is None or temporary.name in str(error.filename):  # a full disk names no file
            error.filename = str(path)
        raise
    finally:
        _remove(temporary)


def save_tensors(path: Path, tensors: dict, **metadata) -> None:
    """Write tensors by name as safetensors, with metadata that JSON can hold."""
    from safetensors.torch import save  # here, because workers that only simulate start faster without torch

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata |= {"crc32": _checksum(tensors)}
    with atomic(path) as temporary:
        # One entry: safetensors writes several in an order that changes from run to run.
        temporary.write_bytes(save(tensors, {"oclam": json.dumps(metadata, sort_keys=True)}))


def load_tensors(path: Path | str) -> tuple[dict, dict]:
    """Tensors by name, and metadata, of a safetensors file. Raises UserError for a missing or damaged file."""
    try:
        if existing(path).is_dir():
            raise ValueError("it is a folder")
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = json.loads((file.metadata() or {}).get("oclam", "{}"))
        if metadata.pop("crc32", None) not in (None, _checksum(tensors)):
            raise ValueError("its checksum does not match")
        return tensors, metadata
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: damaged or not safetensors ({error}); {how_to_fix(path)}") from None


def open_zarr(path: Path | str) -> zarr.Group:
    """A Zarr store, read-only. Raises UserError when it, or one of its files, is missing or damaged."""
    if (existing(path) / CHECKSUMS).exists():
        expected, found = read_json(Path(path) / CHECKSUMS), checksums(Path(path))
        if not isinstance(expected, dict):
            raise UserError(f"{path}/{CHECKSUMS}: damaged; {how_to_fix(path)}")
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                state = "damaged" if name in found else "missing"
                raise UserError(f"{path}/{name}: {state}; {how_to_fix(path)}")
    try:
        return zarr.open_group(path, mode="r")
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise UserError(f"{path}: not a Zarr store ({error}); {how_to_fix(path)}") from None


def checksums(folder: Path) -> dict[str, int]:
    """The CRC-32 of every file in a Zarr store, by its path in the store."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != CHECKSUMS)
    facts = [(file, file.stat()) for file in files]
    return {file.relative_to(folder).as_posix(): _crc32(file, fact.st_size, fact.st_mtime_ns) for file, fact in facts}


def move_store(store: Path, path: Path, progress: Path | None = None) -> None:
    """Move a finished Zarr store to `path`.

    Its checksums, which take minutes, are computed where it is, so that a kill meanwhile loses nothing.

    Args:
        progress: a file that says how much of the store is done. It is removed before the store moves, so that a kill
            then starts the work again instead of keeping half of it.
    """
    _write_checksums(store)
    if progress:
        progress.unlink()
    with atomic(path, checked=True) as temporary:
        shutil.move(store, temporary)


def _write_checksums(store):
    (store / CHECKSUMS).write_text(json.dumps(checksums(store), indent=0), encoding="utf-8")


def once(path: Path, write: Callable[[BinaryIO], None]) -> Path:
    """`path`, which `write` fills unless an earlier call has; its last 4 bytes are the CRC-32 of the others."""
    if damaged := path.exists() and not _intact(path):
        print(f"{path}: damaged, so it is made again", file=sys.stderr)
    if damaged or not path.exists():
        with atomic(path) as temporary, temporary.open("w+b") as file:
            write(file)
            file.flush()
            file.write(zlib.crc32(np.memmap(temporary, mode="r")).to_bytes(4, "big"))
    return path


def _intact(path):
    if path.stat().st_size < 5:
        return False
    content = np.memmap(path, mode="r")
    return zlib.crc32(content[:-4]) == int.from_bytes(content[-4:].tobytes(), "big")


def write_json(path: Path, value) -> None:
    """Write JSON with sorted keys. Raises ValueError for NaN, which JSON does not have."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path):
    """The content of a JSON file. Raises UserError when it is missing or damaged."""
    try:
        text = existing(path).read_text(encoding="utf-8")
        return json.loads(text, object_hook=lambda entries: _Entries(path, entries))
    except ValueError as error:
        raise UserError(f"{path}: damaged JSON ({error}); {how_to_fix(path)}") from None


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write a list of dicts with the same keys; None becomes an empty entry."""
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict]:
    """The rows of a CSV file of `write_csv`, with numbers, words and None. Raises UserError when missing or damaged."""
    try:
        with existing(path).open(newline="", encoding="utf-8") as file:
            text = file.read()
        header, *rows = csv.reader(text.splitlines(), strict=True)
        if not text.endswith("\n") or not rows or any(len(row) != len(header) for row in rows):
            raise ValueError("it ends within a row, or its rows differ in length")
        columns = [[_number(text) for text in column] for column in zip(*rows, strict=True)]
        if any(len({isinstance(value, str) for value in column if value is not None}) > 1 for column in columns):
            raise ValueError("a column has numbers and words")
        return [_Entries(path, zip(header, row, strict=True)) for row in zip(*columns, strict=True)]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: damaged table ({error}); {how_to_fix(path)}") from None


def write_absent(path: Path, reason: str) -> None:
    """Write a small file in place of an artifact that is absent; reading it raises Absent with the reason."""
    with atomic(path) as temporary:
        temporary.write_bytes(ABSENT + json.dumps(reason).encode() + b"}\n")


def existing(path: Path | str) -> Path:
    """The path. Raises UserError when nothing or a damaged file is there, and Absent when `write_absent` wrote it."""
    path = _there(path)
    if is_absent(path):
        try:
            reason = json.loads(path.read_bytes())["absent"]
        except ValueError:
            raise UserError(f"{path}: damaged; {how_to_fix(path)}") from None
        raise Absent(reason)
    return path


def is_absent(path: Path | str) -> bool:
    """Whether `write_absent` wrote this file."""
    if not Path(path).is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(ABSENT)) == ABSENT


def contents(path: Path) -> list[Path]:
    """All files and folders in a folder. Raises UserError for a link to a folder: no hash sees what is behind it."""
    found = list(path.rglob("*"))
    if link := next((entry for entry in found if entry.is_symlink() and entry.is_dir()), None):
        raise UserError(f"{link}: a link to a folder, which DVC does not follow inside {path}; replace it by the "
                        "folder")
    return found


def is_temporary(file: Path) -> bool:
    """Whether a file is no part of a folder's content: Python's caches, an editor's files, those of `atomic`."""
    return "__pycache__" in file.parts or file.name.startswith(".") and file.suffix in (".swp", ".tmp")


def digest(path: Path | str) -> str:
    """The SHA-256 of a file or folder: every file's name, size and content, without temporary ones.

    In a store with checksums, other files count by name and size alone; `open_zarr` verifies their content. Raises
    UserError as `contents` does.
    """
    path, content = _there(path), hashlib.sha256()
    found = sorted(contents(path)) if path.is_dir() else [path]
    files = [file for file in found if file.is_file() and not is_temporary(file)]
    stores = {file.parent for file in files if file.name == CHECKSUMS}
    for file in files:
        content.update(f"{file.relative_to(path)}:{file.stat().st_size}:".encode())
        if file.name == CHECKSUMS or stores.isdisjoint(file.parents):
            with file.open("rb") as stream:
                content.update(hashlib.file_digest(stream, "sha256").digest())
    return content.hexdigest()


class _Entries(dict):
    """Entries of a file; a missing one raises UserError with the file's name."""

    def __init__(self, path, entries):
        super().__init__(entries)
        self.path = path

    def __missing__(self, key):
        raise UserError(f"{self.path}: no entry {key!r}; {how_to_fix(self.path)}")


def how_to_fix(path: Path | str) -> str:
    """What brings a damaged file back, as words."""
    return kept(path) or f"delete {path} and run `dvc repro`"


def kept(path: Path | str) -> str | None:
    """What brings back a file that Git keeps, as words; None for others."""
    git = shutil.which("git")
    if git and subprocess.run([git, "ls-files", "--error-unmatch", path], capture_output=True).returncode == 0:
        return f"`git checkout {path}` restores it"
    return None


def _remove(path):
    for _ in range(100):  # after a signal, Zarr's threads may still write into it
        shutil.rmtree(path, ignore_errors=True)
        if not path.is_dir():
            break
        time.sleep(0.01)
    path.unlink(missing_ok=True)


def _there(path):
    path = Path(path)
    if not path.exists():
        otherwise = "put it there, or run the stage that writes it (`dvc repro`)"
        raise UserError(f"{path}: no such file; {kept(path) or otherwise}")
    return path


@functools.lru_cache(1 << 16)  # every environment of a process opens the same background videos
def _crc32(file, _size, _time):
    return zlib.crc32(file.read_bytes())


def _checksum(tensors):
    """The CRC-32 of tensors' names, types, shapes and bytes."""
    import torch

    crc = 0
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), crc)
    return crc


def _number(text):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None

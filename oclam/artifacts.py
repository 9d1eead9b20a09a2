"""Writing and reading artifacts: atomically, without pickles, and with one line when something is wrong."""

import csv
import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import zarr
from safetensors import SafetensorError, safe_open

from oclam.errors import UserError

__all__ = ["atomic", "digest", "load_tensors", "open_zarr", "read_csv", "read_json", "save_tensors", "write_csv",
           "write_json"]


@contextmanager
def atomic(path):
    """Give a temporary name beside `path` to write a file or folder to; it becomes `path` when all went well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def save_tensors(path, tensors, **metadata):
    """Write named tensors as safetensors with JSON-able metadata."""
    from safetensors.torch import save_file  # brings torch, which workers that only simulate do without

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as temporary:
        # One entry only: safetensors writes several in an order that changes from run to run.
        save_file(tensors, temporary, {"oclam": json.dumps(metadata, sort_keys=True)})


def load_tensors(path):
    """Read safetensors. Returns (tensors by name, metadata). Raises UserError for a missing or damaged file."""
    try:
        with safe_open(_existing(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, json.loads((file.metadata() or {}).get("oclam", "{}"))
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: damaged or not safetensors ({error}); make it anew with `dvc repro`") from None


def open_zarr(path):
    """Open a Zarr store read-only. Raises UserError when it is missing or damaged."""
    try:
        return zarr.open_group(_existing(path), mode="r")
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise UserError(f"{path}: not a Zarr store ({error}); make it anew with `dvc repro`") from None


def write_json(path, value):
    """Write JSON with sorted keys. Raises ValueError for NaN, which JSON does not have."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path):
    """Read JSON. Raises UserError when it is missing or damaged."""
    try:
        return json.loads(_existing(path).read_text())
    except ValueError as error:
        raise UserError(f"{path}: damaged JSON ({error}); make it anew with `dvc repro`") from None


def write_csv(path, rows):
    """Write a list of dicts that share their keys."""
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path):
    """Read a CSV file into a list of dicts; what looks like a number becomes one."""
    with _existing(path).open(newline="") as file:
        return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(file)]


def digest(path):
    """Cheap identity of an artifact's content: every file's name, size, first and last 64 KiB.

    What Python compiles beside code does not count.
    """
    path, block, content = _existing(path), 1 << 16, hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not file.is_file() or "__pycache__" in file.parts:
            continue
        size = file.stat().st_size
        content.update(f"{file.relative_to(path)}:{size}:".encode())
        with file.open("rb") as stream:
            content.update(stream.read(block))
            stream.seek(max(size - block, 0))
            content.update(stream.read(block))
    return content.hexdigest()


def _existing(path):
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; `dvc repro` makes the pipeline's own")
    return path


def _number(text):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text

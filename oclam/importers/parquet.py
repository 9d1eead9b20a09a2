"""Parquet data sets with one row a step: observation, action, state, mask, reward, terminated, truncated.

This is the layout that forks of LAOM publish. Pictures are encoded bytes, the hub's image structs or nested lists. Rows
of one trajectory follow each other; it ends where terminated or truncated is true, or where episode changes.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from oclam.backgrounds.footage import natural_order
from oclam.errors import UserError, one_line
from oclam.importers.store import Episode, Source

ENDS = ("terminated", "truncated")


class Table:
    """The rows of Parquet files as one table, which decodes each row group once where rows are asked for in order.

    files: in the order of their rows. Raises UserError for a damaged file, and when pyarrow is missing.
    """

    def __init__(self, files: list[Path]):
        try:
            import pyarrow
            from pyarrow.parquet import ParquetFile
        except ModuleNotFoundError:
            raise UserError("reading Parquet needs pyarrow; pip install pyarrow") from None
        self.groups, self.rows, self.names = [], 0, set()
        self.latest = {}  # column -> its row group that was read last, and the values in it
        for number, path in enumerate(files):
            try:
                file = ParquetFile(path)
            except (pyarrow.ArrowInvalid, OSError) as error:
                raise UserError(f"{path}: damaged or not Parquet ({one_line(error)}); get it again") from None
            names = set(file.schema_arrow.names)
            self.names = self.names & names if number else names
            for group in range(file.num_row_groups):
                self.groups.append(_Group(path, file, group, self.rows))
                self.rows += file.metadata.row_group(group).num_rows

    def values(self, column: str, first: int, stop: int) -> Iterator:
        """The values of a column in the rows from first to before stop, as Python objects."""
        for group in self.groups:
            begin, end = max(first, group.first), min(stop, group.first + group.rows)
            if begin < end:
                if column not in self.latest or self.latest[column][0] is not group:
                    self.latest[column] = group, group.read(column)
                yield from self.latest[column][1].slice(begin - group.first, end - begin).to_pylist()

    def numbers(self, column: str, first: int = 0, stop: int | None = None) -> np.ndarray | None:
        """The same as float32 (rows, width), None without such a column. Raises UserError where widths differ."""
        if column not in self.names:
            return None
        values = list(self.values(column, first, self.rows if stop is None else stop))
        try:
            return np.asarray(values, np.float32).reshape(len(values), -1)
        except (ValueError, TypeError):
            raise UserError(f"{self.groups[0].path}: the column {column} has values that are missing, no numbers or of "
                            "different widths") from None


@dataclass
class _Group:
    path: Path
    file: object
    number: int
    first: int

    @property
    def rows(self):
        return self.file.metadata.row_group(self.number).num_rows

    def read(self, column):
        try:
            return self.file.read_row_group(self.number, [column]).column(0)
        except OSError as error:  # also of damaged pages
            raise UserError(f"{self.path}: damaged ({one_line(error)}); get it again") from None


def from_parquet(folder: Path) -> Source:
    """The trajectories in a folder's Parquet files, read in natural order of their names.

    Raises UserError for columns that are missing, values of other kinds and damaged files.
    """
    table = Table(sorted(folder.rglob("*.parquet"), key=natural_order))
    ends = _ends(folder, table)
    if "observation" not in table.names:
        raise UserError(f"{folder}: no column observation among {', '.join(sorted(table.names))}")

    if "action" not in table.names:
        print(f"{folder}: imported without actions, no column action among {', '.join(sorted(table.names))}",
              file=sys.stderr)

    def read(index):
        first, stop = ends[index], ends[index + 1]
        pixels = (picture(value, f"{folder}: row {row}")
                  for row, value in enumerate(table.values("observation", first, stop), first))
        masks = None if "mask" not in table.names else np.stack(
            [picture(value, f"{folder}: row {row}").any(2) for row, value in
             enumerate(table.values("mask", first, stop), first)])
        rewards = table.numbers("reward", first, stop)
        return Episode(pixels, table.numbers("action", first, stop), table.numbers("state", first, stop),
                       None if rewards is None else rewards[:, 0], masks)

    widths = [values.shape[1] if (values := table.numbers(name, 0, 1)) is not None else 0
              for name in ("action", "state")]
    return Source(folder.name, [stop - first for first, stop in pairwise(ends)], read, *widths, {})


def _ends(folder, table):
    """[0, the row after the first trajectory, ..., the number of rows]."""
    episodes = next((name for name in ("episode", "episode_index") if name in table.names), None)
    ends = [name for name in ENDS if name in table.names]
    if not episodes and not ends:
        raise UserError(f"{folder}: no column {', '.join(ENDS)} or episode among {', '.join(sorted(table.names))}, "
                        "where trajectories would end")
    if not table.rows:
        raise UserError(f"{folder}: its Parquet files have no rows")
    last = np.zeros(table.rows - 1, bool)
    for name in ends:
        last |= table.numbers(name)[:-1, 0] > 0
    if episodes:
        last |= [now != later for now, later in pairwise(table.values(episodes, 0, table.rows))]
    return [0, *(np.flatnonzero(last) + 1).tolist(), table.rows]


def picture(value, where: str) -> np.ndarray:
    """A picture in a Parquet file as uint8 (H, W, 3).

    value: encoded bytes, a dict with `bytes`, or nested lists (H, W), (H, W, 1) or (H, W, 3) of 0 to 255; where: names
    it in a UserError.
    """
    value = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(value, bytes):
        decoded = cv2.imdecode(np.frombuffer(value, np.uint8), cv2.IMREAD_COLOR) if value else None
        pixels = None if decoded is None else cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    else:
        try:
            pixels = np.asarray(value)
        except ValueError:
            pixels = None
    if pixels is not None and pixels.ndim in (2, 3) and pixels.dtype.kind in "iub":
        pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        if pixels.shape[2] in (1, 3) and pixels.min(initial=0) >= 0 and pixels.max(initial=0) <= 255:
            return np.broadcast_to(np.uint8(pixels), (*pixels.shape[:2], 3))
    raise UserError(f"{where}: no picture; expected encoded bytes, or whole numbers 0 to 255 (H, W, 3) in RGB")

"""The datasets that the authors published: HDF5 with one group an episode.

Each group has `obs` (T, H, W, 3) uint8, `actions` (T, A) and `states` (T, S); the file has the attributes domain_name,
task_name, difficulty, dynamic, img_hw and split.
"""

from pathlib import Path

import h5py
import numpy as np

from oclam.backgrounds.footage import natural_order
from oclam.errors import UserError
from oclam.importers.store import Episode, Source

ATTRIBUTES = ("domain_name", "task_name", "difficulty", "dynamic", "img_hw", "split")
ARRAYS = ("obs", "actions", "states")
DEFLATE = 1032  # the most that HDF5's usual compression can save: what declares more is not there
BLOCK = 100  # frames read at once


def from_hdf5(path: Path) -> tuple[Source, str, str]:
    """The episodes of a file in natural order, its task and its view.

    Rewards are not published, and there are no masks. Raises UserError when the file has another layout or links, or
    its episodes differ in shape; no other file is read.
    """
    try:
        file = h5py.File(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read as HDF5 ({error}); of videos or Parquet files give the folder"
                        ) from None
    attributes, names, shapes = _checked(path, file)

    def read(index):
        group = file[names[index]]
        pixels = (frame for t in range(0, len(group["obs"]), BLOCK) for frame in group["obs"][t:t + BLOCK])
        return Episode(pixels, group["actions"][:], group["states"][:])

    source = Source(path.name, [file[name]["obs"].shape[0] for name in names], read, shapes["actions"][0],
                    shapes["states"][0], attributes)
    view = "clean" if attributes["difficulty"] in ("vanilla", "none", "") else "distracted"
    return source, f"{attributes['domain_name']}-{attributes['task_name']}", view


def _checked(path, file):
    """Attributes that JSON can hold, episodes in natural order, and every array's shape without its length."""
    missing = [name for name in ATTRIBUTES if name not in file.attrs]
    if missing:
        raise UserError(f"{path}: no attribute {', '.join(missing)}; expected are {', '.join(ATTRIBUTES)}")
    names = sorted(file, key=natural_order)
    if not names:
        raise UserError(f"{path}: no episodes, expected one group for each")
    shapes = None
    for name in names:
        if not _is_stored(file, name, h5py.Group) or not all(_is_stored(file[name], array, h5py.Dataset)
                                                             for array in ARRAYS):
            raise UserError(f"{path}: {name} is no episode, expected a group of {', '.join(ARRAYS)}")
        found = {array: file[name][array].shape for array in ARRAYS}
        widths = {array: shape[1:] for array, shape in found.items()}
        shapes = shapes or widths
        steps = {shape[0] if shape else 0 for shape in found.values()}
        ranks = [len(shape) for shape in found.values()]
        if widths != shapes or len(steps) > 1 or min(steps) < 1 or ranks != [4, 2, 2] or shapes["obs"][2] != 3:
            raise UserError(f"{path}: episode {name} has {found}, expected obs (T, H, W, 3), actions (T, A) and states "
                            f"(T, S), as wide as in the first episode ({shapes})")
        for array in ARRAYS:
            kind = file[name][array].dtype
            if kind != np.uint8 if array == "obs" else kind.kind not in "fiu":
                raise UserError(f"{path}: episode {name} has {array} of type {kind}, expected "
                                + ("uint8" if array == "obs" else "numbers"))
            declared, stored = file[name][array].nbytes, file[name][array].id.get_storage_size()
            if declared > DEFLATE * stored:
                raise UserError(f"{path}: episode {name} declares {declared} bytes of {array} and stores {stored}; "
                                "the file is incomplete")
    return {name: _plain(file.attrs[name]) for name in ATTRIBUTES}, names, shapes


def _is_stored(group, name, kind):
    """Whether the group has this member in the file itself: no soft or external link, no storage in other files."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink) or not isinstance(group[name], kind):
        return False
    return kind is h5py.Group or not (group[name].external or group[name].is_virtual)


def _plain(value):
    """An attribute as JSON can hold it."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

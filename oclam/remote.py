"""A DVC remote, by which machines that share no folder exchange code, parameters and what stages make.

Its objects are those of `dvc push` and `dvc pull`; DVC's locks and records are not touched.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from dvc.fs import LocalFileSystem, get_cloud_fs
from dvc.repo import Repo
from dvc_data.hashfile import load
from dvc_data.hashfile.build import build
from dvc_data.hashfile.checkout import checkout
from dvc_data.hashfile.db import HashFileDB, get_odb
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.transfer import transfer

from oclam.artifacts import atomic, digest, is_temporary
from oclam.errors import UserError, one_line


class Version(NamedTuple):
    """A file or folder as it was pushed: its name in the remote, and the hash of `oclam.artifacts.digest`."""

    name: str
    content: str


@dataclass(frozen=True)
class Remote:
    """Where the objects are: class and settings of a file system, credentials too, and the folder there."""

    filesystem: type
    config: dict[str, Any]
    folder: str

    @classmethod
    def named(cls, name: str) -> "Remote":
        """The remote of the repository in the working folder; raises UserError for one that cannot be used."""
        with _as_user_error(f"--remote: {name}"), Repo() as repo:
            known = repo.config["remote"]
            if name not in known:
                raise UserError(f"--remote: {name!r} given, `dvc remote list` has {', '.join(known) or 'none'}")
            if known[name].get("worktree") or known[name].get("version_aware"):
                raise UserError(f"--remote: {name!r} is worktree or version_aware, which is not supported; name "
                                "another remote")
            return cls(*get_cloud_fs(repo.config, name=name))

    def _objects(self) -> HashFileDB:
        filesystem = self.filesystem(**self.config)
        return get_odb(filesystem, filesystem.join(self.folder, "files", "md5"), hash_name="md5", **self.config)

    def push(self, path: str | Path) -> Version:
        """Copy a file or folder to the remote; raises UserError when it does not take all of it."""
        content = digest(path)
        with _as_user_error(f"{path}: cannot be pushed to the remote {self.folder}"):
            objects = self._objects()
            staged, _, found = build(objects, os.path.abspath(path), LocalFileSystem(), "md5", ignore=_Temporary())
            failed = transfer(staged, objects, {found.hash_info}, shallow=False).failed
        if failed:
            raise UserError(f"{path}: {len(failed)} of its files could not be pushed to the remote {self.folder}; "
                            "check its free space and permissions")
        return Version(found.hash_info.value, content)

    def pull(self, path: str | Path, version: Version) -> None:
        """Make `path` this version, unless it is; raises UserError when the remote lacks some of it."""
        path, identity = Path(path), HashInfo("md5", version.name)
        if path.exists() and digest(path) == version.content:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with _as_user_error(f"{path}: cannot be pulled from the remote {self.folder}"), \
                TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp") as here:
            local = get_odb(LocalFileSystem(), os.path.abspath(here), hash_name="md5", type=["hardlink", "copy"])
            transfer(self._objects(), local, {identity}, shallow=False)  # many files at once, unlike checkout
            with atomic(path, checked=True) as temporary:  # what is at `path` stays until all has come
                checkout(os.path.abspath(temporary), local.fs, load(local, identity), local, quiet=True)
        if digest(path) != version.content:
            raise UserError(f"{path}: content from the remote {self.folder} differs from its hash; delete {path} here "
                            "and its copy there, then run again")


class _Temporary:
    """The files that DVC leaves out of a folder: those that `digest` leaves out."""

    def walk(self, fs, folder):
        for root, folders, files in fs.walk(folder):
            there = Path(root).relative_to(folder)
            yield root, folders, [name for name in files if not is_temporary(there / name)]


@contextmanager
def _as_user_error(what: str) -> Iterator[None]:
    """Turn whatever DVC and the libraries of clouds raise into a UserError that begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} ({type(error).__name__}: {one_line(error)})") from error

"""A DVC remote, by which machines that share no folder exchange what stages make.

Its objects are those of `dvc push` and `dvc pull`; DVC's locks and records are not touched.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dvc.fs import LocalFileSystem, get_cloud_fs
from dvc.repo import Repo
from dvc_data.hashfile import load
from dvc_data.hashfile.build import build
from dvc_data.hashfile.checkout import CheckoutError, checkout
from dvc_data.hashfile.db import HashFileDB, get_odb
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.transfer import transfer
from dvc_objects.errors import ObjectFormatError

from oclam.artifacts import digest
from oclam.errors import UserError

__all__ = ["Remote", "Version"]


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
        with Repo() as repo:
            known = repo.config["remote"]
            if name not in known:
                raise UserError(f"--remote: {name!r} given, `dvc remote list` has {', '.join(known) or 'none'}")
            if known[name].get("worktree") or known[name].get("version_aware"):
                raise UserError(f"--remote: {name!r} keeps versions by the cloud's means; one without is needed")
            return cls(*get_cloud_fs(repo.config, name=name))

    def _objects(self) -> HashFileDB:
        filesystem = self.filesystem(**self.config)
        return get_odb(filesystem, filesystem.join(self.folder, "files", "md5"), hash_name="md5", **self.config)

    def push(self, path: str | Path) -> Version:
        """Copy a file or folder to the remote; raises UserError when it does not take all of it."""
        content, objects = digest(path), self._objects()
        try:
            staged, _, found = build(objects, os.path.abspath(path), LocalFileSystem(), "md5")
            failed = transfer(staged, objects, {found.hash_info}, shallow=False).failed
        except OSError as error:
            raise UserError(f"{path}: the remote {self.folder} does not take it ({error})") from None
        if failed:
            raise UserError(f"{path}: the remote {self.folder} does not take {len(failed)} of its files; is it full?")
        return Version(found.hash_info.value, content)

    def pull(self, path: str | Path, version: Version) -> None:
        """Make `path` this version, unless it is; raises UserError when the remote lacks some of it."""
        if Path(path).exists() and digest(path) == version.content:
            return
        objects = self._objects()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            found = load(objects, HashInfo("md5", version.name))
            checkout(os.path.abspath(path), LocalFileSystem(), found, objects, force=True, quiet=True)
        except (CheckoutError, ObjectFormatError, OSError) as error:
            raise UserError(f"{path}: it does not come from the remote {self.folder} ({error})") from None
        if digest(path) != version.content:
            raise UserError(f"{path}: the remote {self.folder} gave other content; remove that file there, and here")

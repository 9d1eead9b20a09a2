"""Files and folders through a DVC remote in a local folder, and what is missing or damaged there."""

from pathlib import Path

import pytest
from dvc.repo import Repo

from oclam.artifacts import digest
from oclam.errors import UserError
from oclam.remote import Remote


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A remote named relative to the repository, which is the working folder."""
    (repository := tmp_path / "repository").mkdir()
    monkeypatch.chdir(repository)
    Repo.init(no_scm=True)
    with Path(".dvc/config").open("a") as config:  # as `dvc remote add store ../store` writes it
        config.write("""['remote "store"']\nurl = ../../store\n""")
        config.write("""['remote "kept"']\nurl = s3://bucket\nversion_aware = true\n""")
    Path("set/inner").mkdir(parents=True)
    Path("set/inner/x").write_bytes(bytes(range(256)))
    Path("set/y").write_text("y")
    Path("file").write_text("text")
    return Remote.named("store")


@pytest.mark.parametrize("path", ["set", "file"])
def test_what_was_pushed_is_pulled_elsewhere_and_over_what_is_there(remote, path, monkeypatch):
    version, content = remote.push(path), digest(path)
    monkeypatch.chdir("..")  # no repository
    remote.pull(f"new/{path}", version)
    assert digest(f"new/{path}") == content == version.content
    changed = Path("new", path) if path == "file" else Path("new/set/y")
    changed.write_text("changed")
    (Path("new/set").mkdir(exist_ok=True), Path("new/set/more").touch())
    remote.pull(f"new/{path}", version)
    assert digest(f"new/{path}") == content


def test_caches_and_temporary_files_stay_here(remote):
    version = remote.push("set")
    (Path("set/inner/__pycache__").mkdir(), Path("set/inner/__pycache__/x.pyc").touch(), Path("set/.y.swp").touch())
    assert remote.push("set") == version
    remote.pull("new", version)
    assert sorted(path.name for path in Path("new").rglob("*")) == ["inner", "x", "y"]


def test_what_is_there_already_does_not_need_the_remote(remote):
    version = remote.push("set")
    Path("../store").rename("../away")
    remote.pull("set", version)
    with pytest.raises(UserError, match="^new: cannot be pulled from the remote .*store"):
        remote.pull("new", version)


def test_a_file_stays_where_the_remote_does_not_answer(remote):
    version = remote.push("file")
    Path("file").write_text("mine")
    Path("../store").rename("../away")
    with pytest.raises(UserError, match="^file: cannot be pulled from the remote .*store"):
        remote.pull("file", version)
    assert Path("file").read_text() == "mine"


def test_a_folder_replaces_a_file_and_a_file_a_folder(remote):
    versions = {path: remote.push(path) for path in ("set", "file")}
    for path, other in (("set", "file"), ("file", "set"), ("set", "file")):
        remote.pull("new", versions[other])
        remote.pull("new", versions[path])
        assert digest("new") == digest(path)
    assert [path.name for path in Path().glob("*")].count("new") == 1 and not list(Path().rglob("*.tmp"))


def test_a_link_to_a_folder_inside_is_refused_since_its_files_would_be_missing(remote):
    Path("set/link").symlink_to("../..")
    with pytest.raises(UserError, match="^set/link: a link to a folder"):
        remote.push("set")


def test_a_damaged_object_is_not_taken_for_the_file(remote):
    version = remote.push("file")
    [kept] = Path("../store/files/md5").glob("*/*")
    kept.chmod(0o644)
    kept.write_text("damaged")
    with pytest.raises(UserError, match="^new: "):
        remote.pull("new", version)


def test_remotes_that_cannot_be_used_are_refused(remote, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="^--remote: 'nowhere' given, `dvc remote list` has store, kept$"):
        Remote.named("nowhere")
    with pytest.raises(UserError, match="^--remote: 'kept' is worktree or version_aware"):
        Remote.named("kept")
    (tmp_path / "store").write_text("a file in its place")
    with pytest.raises(UserError, match="^file: cannot be pushed to the remote .*store"):
        remote.push("file")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="^--remote: store .*not inside of a DVC repository"):
        Remote.named("store")

import os
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import zarr

from oclam import artifacts
from oclam.artifacts import (
    atomic,
    digest,
    is_absent,
    load_tensors,
    once,
    open_zarr,
    read_csv,
    read_json,
    save_tensors,
    write_absent,
    write_csv,
    write_json,
)
from oclam.errors import Absent, UserError


def test_tensors_and_metadata_come_back(tmp_path):
    tensors = {"weight": torch.randn(3, 4), "count": torch.arange(5)}
    save_tensors(tmp_path / "model.safetensors", tensors, task="cheetah-run", sizes=[1, 2], view=None)
    loaded, metadata = load_tensors(tmp_path / "model.safetensors")
    assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[key], tensors[key]) for key in tensors)
    assert metadata == {"task": "cheetah-run", "sizes": [1, 2], "view": None}


def test_same_tensors_same_bytes(tmp_path):
    for name in "ab":
        save_tensors(tmp_path / name, {"x": torch.ones(4)}, second=2, first=1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_failed_write_leaves_the_old_artifact_and_no_litter(tmp_path):
    path = tmp_path / "artifact"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_failed_write_is_cleared_although_a_thread_still_writes(tmp_path, monkeypatch):
    remove, late = os.rmdir, []

    def rmdir(*arguments, **options):
        if not late:
            late.append((temporary / "late").touch())
        remove(*arguments, **options)

    monkeypatch.setattr(os, "rmdir", rmdir)
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "store") as temporary:
        (temporary / "pixels").mkdir(parents=True)
        raise ZeroDivisionError
    assert late and list(tmp_path.iterdir()) == []


def test_atomic_replaces_a_folder_whole(tmp_path):
    path = tmp_path / "store"
    for content in ("first", "second"):
        with atomic(path) as temporary:
            temporary.mkdir()
            (temporary / content).touch()
    assert [file.name for file in path.iterdir()] == ["second"]


def test_a_signal_while_the_old_folder_is_deleted_keeps_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "store"
    for content in ("first", "second"):
        with monkeypatch.context() as context, suppress(KeyboardInterrupt), atomic(path) as temporary:
            temporary.mkdir()
            (temporary / content).touch()
            if content == "second":
                context.setattr(artifacts, "_remove", Mock(side_effect=[KeyboardInterrupt, None]))
    assert [file.name for file in path.iterdir()] == ["second"]


def test_files_have_the_permissions_of_the_umask(tmp_path):
    for umask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(umask)
        try:
            save_tensors(tmp_path / "weights.safetensors", {"x": torch.ones(2)})
            write_json(tmp_path / "table.json", {})
        finally:
            os.umask(before)
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


def test_tables_come_back(tmp_path):
    rows = [{"step": 1, "loss": 0.1, "kept": None, "variant": "lapo"},
            {"step": 2, "loss": 1e-9, "kept": 0.5, "variant": "bc"}]
    write_csv(tmp_path / "rows.csv", rows)
    assert read_csv(tmp_path / "rows.csv") == rows


@pytest.mark.parametrize("text", ["", "step,loss\n", "step,loss\n1,0.5\n2,0.2", "step,loss\n1,0.5\n2\n",
                                  "step,loss\n1,0.5,3\n", "step,loss\n1,0.5\n2,0.u\n",
                                  b"step,loss\n1,\xb0.5\n", "step,loss\n1,\"0.5\n"])
def test_a_table_that_was_cut_or_altered_is_named(tmp_path, text):
    path = tmp_path / "rows.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=f"{path}: damaged table .*; delete {path} and run `dvc repro`"):
        read_csv(path)


def test_a_missing_entry_is_told_with_its_file(tmp_path):
    write_json(tmp_path / "probe.json", {"slots": [{"areb": 1}]})
    write_csv(tmp_path / "rows.csv", [{"stfp": 1}])
    for name, get in (("probe.json", lambda path: read_json(path)["slots"][0]["area"]),
                      ("rows.csv", lambda path: read_csv(path)[0]["step"])):
        path = tmp_path / name
        with pytest.raises(UserError, match=f"{path}: no entry '(area|step)'; delete {path} and run `dvc repro`"):
            get(path)


def test_what_git_keeps_is_restored_from_git(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tensors(Path("expert.safetensors"), {"x": torch.ones(9)})
    for command in ("git init -q", "git add expert.safetensors",
                    "git -c user.name=a -c user.email=a@b.c commit -qm expert"):
        subprocess.run(command.split(), check=True)
    shutil.copy("expert.safetensors", "other.safetensors")
    for name, mend in (("expert", "`git checkout expert.safetensors` restores it"),
                       ("other", "delete other.safetensors and run `dvc repro`")):
        _flip(Path(f"{name}.safetensors"))
        with pytest.raises(UserError, match=f"{name}.safetensors: damaged .*; {mend}"):
            load_tensors(f"{name}.safetensors")


def test_what_is_written_once_is_made_again_where_it_was_damaged(tmp_path, capsys):
    path, made = tmp_path / "work/rows.npy", []

    def write(file):
        made.append(1)
        np.save(file, np.arange(10))

    def rows():
        return np.load(once(path, write), mmap_mode="r").tolist()

    assert rows() == rows() == list(range(10)) and len(made) == 1 and not capsys.readouterr().err
    content = path.read_bytes()
    for damaged in (b"", content[:-1], content[:-12] + b"\xff" + content[-11:]):
        path.write_bytes(damaged)
        assert rows() == list(range(10)) and capsys.readouterr().err == f"{path}: damaged, so it is made again\n"
    assert path.read_bytes() == content and len(made) == 4


@pytest.mark.parametrize("read", [open_zarr, load_tensors, read_json, read_csv])
def test_reading_what_is_absent_says_why(tmp_path, read):
    path = tmp_path / "some"
    with atomic(path) as folder:  # what was there before, here a folder, is replaced, and replaces it again
        folder.mkdir()
    write_absent(path, 'no "view"')
    with pytest.raises(Absent, match='^no "view"$'):
        read(path)
    assert is_absent(path) and len(digest(path)) == 64
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=f"{path}.*damaged.*dvc repro"):
        read(path)
    with atomic(path) as folder:
        folder.mkdir()
    assert path.is_dir() and not is_absent(path)


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "metrics.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("read", [load_tensors, open_zarr, read_json, read_csv, digest])
def test_missing_file_is_one_line_with_its_name(tmp_path, read):
    with pytest.raises(UserError, match="absent.*dvc repro") as error:
        read(tmp_path / "absent")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", [load_tensors, read_json])
def test_truncated_file_is_one_line_with_its_name(tmp_path, read):
    path = tmp_path / "file"
    save_tensors(path, {"x": torch.ones(1000)})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=f"{path}: damaged"):
        read(path)


def test_a_folder_is_not_safetensors(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: damaged or not safetensors .it is a folder"):
        load_tensors(tmp_path)


def test_checksums_that_are_no_table_are_named(tmp_path):
    zarr.open_group(tmp_path / "store.zarr", mode="w")
    (tmp_path / "store.zarr/checksums.json").write_text("[1]")
    with pytest.raises(UserError, match="store.zarr/checksums.json: damaged; delete .*store.zarr and run"):
        open_zarr(tmp_path / "store.zarr")


def _flip(path):
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("damage", "state"), [
    (lambda file: file.unlink(), "missing"), (_flip, "damaged"),
    (lambda file: file.write_bytes(file.read_bytes()[:-1]), "damaged")])
def test_every_damaged_file_of_a_store_is_named(tmp_path, damage, state):
    path = tmp_path / "store.zarr"
    with atomic(path) as temporary:
        group = zarr.open_group(temporary, mode="w")
        group.create_array("actions", data=np.arange(12.0).reshape(4, 3), chunks=(2, 3))
        group.create_array("masks", shape=(4, 4), dtype="uint8", chunks=(4, 4), shards=(4, 4))[:] = 1
    assert (open_zarr(path)["actions"][:] == np.arange(12.0).reshape(4, 3)).all()
    files = [file for file in path.rglob("*") if file.is_file() and file.name != "checksums.json"]
    assert len(files) == 6  # three zarr.json, two chunks, one shard
    for file in files:
        content = file.read_bytes()
        damage(file)
        with pytest.raises(UserError, match=f"{file}: {state}; delete {path}"):
            open_zarr(path)
        file.write_bytes(content)
    assert open_zarr(path)["masks"][:].sum() == 16


def test_one_bit_of_a_tensor_is_noticed(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_tensors(path, {"a": torch.randn(50), "b": torch.randn(3, 2).bfloat16(), "c": torch.tensor(1)})
    load_tensors(path)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")  # of the tensors' bytes
    for at in range(start, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1:])
        with pytest.raises(UserError, match=f"{path}: damaged.*checksum"):
            load_tensors(path)


def test_digest_sees_content_names_and_sizes(tmp_path):
    def folder(name, **files):
        for file, content in files.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / file).write_bytes(content)
        return digest(tmp_path / name)

    base = folder("a", x=b"one", y=b"two")
    assert folder("b", x=b"one", y=b"two") == base
    others = [folder("c", x=b"one", y=b"twO"), folder("d", x=b"one", z=b"two"), folder("e", x=b"onet", y=b"wo")]
    assert len({base, *others}) == 4
    content = bytearray(1 << 20)
    one = folder("f", x=content)
    content[1 << 19] = 1
    assert folder("f", x=content) != one


def test_temporary_files_of_editors_do_not_count_and_links_to_folders_are_refused(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code/a.py").write_text("x = 1")
    base = digest(tmp_path / "code")
    for name in (".a.py.swp", ".a.py.host-1-2.tmp"):
        (tmp_path / "code" / name).write_text("unfinished")
    assert digest(tmp_path / "code") == base
    (tmp_path / "code/link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="code/link: a link to a folder, which DVC does not follow"):
        digest(tmp_path / "code")


def test_digest_of_a_store_reads_its_checksums_alone(tmp_path):
    path = tmp_path / "store.zarr"
    with atomic(path) as temporary:
        zarr.open_group(temporary, mode="w").create_array("actions", data=np.arange(12.0))
    base, chunk = digest(tmp_path), next(file for file in (path / "actions/c").rglob("*") if file.is_file())
    _flip(chunk)
    assert digest(tmp_path) == base  # open_zarr names it
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert digest(tmp_path) != base
    _flip(path / "checksums.json")
    assert digest(path) != digest(path / "actions")


def test_two_writers_of_one_path_keep_each_other_s_work_and_clear_that_of_the_dead(tmp_path):
    path = tmp_path / "artifact"
    (tmp_path / f".artifact.{socket.gethostname()}-{2**22 + 1}-0a1b2c3d.tmp").write_text("half")  # no such process
    with atomic(path) as first:
        first.write_text("first")
        with atomic(path) as second:
            second.write_text("second")
        assert path.read_text() == "second" and sorted(tmp_path.iterdir()) == sorted([path, first])
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_digest_sees_the_folder_of_a_file_and_no_compiled_code(tmp_path):
    for name in ("one/a/x", "other/b/x"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("same")
    base = digest(tmp_path / "one")
    assert digest(tmp_path / "other") != base
    (tmp_path / "one/a/__pycache__").mkdir()
    (tmp_path / "one/a/__pycache__/x.pyc").touch()
    assert digest(tmp_path / "one") == base

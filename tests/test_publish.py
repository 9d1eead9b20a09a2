"""`make publish` keeps what is small of a run where Git sees it, and says of which commit and parameters it is."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests import ROOT

SMALL = {"durations.csv", "episodes.csv", "losses.csv", "models.csv", "probes.csv", "returns.csv", "slots.csv",
         "metrics.json", "figures/a.svg"}
PAGE = "import sys, pathlib; pathlib.Path(sys.argv[1], 'README.md').write_text('page')"


def run(*words):
    return subprocess.run(words, capture_output=True, text=True)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A project with a finished report, under the project's own Makefile and ignore files."""
    monkeypatch.chdir(tmp_path)
    for name in (*SMALL, "index.html"):
        path = Path("reports", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"this is {name}")
    for name in ("Makefile", "dvc.yaml", "params.yaml", ".gitignore", "reports/.gitignore"):
        shutil.copy(ROOT / name, name)
    for name in ("oclam", "stages"):
        Path(name).mkdir()
        Path(name, "__init__.py").touch()
    Path("oclam/published.py").write_text(PAGE)
    run("git", "init", "-q")
    run("git", "add", ".")
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all")
    return tmp_path


def test_what_is_small_is_kept_for_git_with_its_parameters_and_commit(tree):
    for _ in range(2):
        assert run("make", "publish", "RUN=study").returncode == 0
    run("git", "add", ".")
    kept = {name.removeprefix("reports/study/") for name in run("git", "ls-files", "reports/study").stdout.split()}
    assert kept == SMALL | {"params.yaml", "commit", "README.md"}
    assert all(Path("reports/study", name).read_text() == f"this is {name}" for name in SMALL)
    assert Path("reports/study/commit").read_text() == run("git", "rev-parse", "HEAD").stdout


def test_a_name_with_a_space_is_one_folder_and_leaves_others_alone(tree):
    for name in ("study", "study 2", "study 2"):
        assert run("make", "publish", f"RUN={name}").returncode == 0
    assert (tree / "reports" / "study 2" / "commit").exists() and (tree / "reports" / "study" / "figures").is_dir()


def test_code_that_no_commit_holds_is_refused(tree):
    Path("params.yaml").write_text("of this run")  # which is kept beside the results, and so may differ
    assert run("make", "publish", "RUN=study").returncode == 0
    Path("oclam/published.py").write_text("changed")
    refused = run("make", "publish", "RUN=other")
    assert refused.returncode and refused.stderr.startswith("error: commit oclam, stages and dvc.yaml first")
    assert not Path("reports/other").exists()

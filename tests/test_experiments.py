"""DVC's experiments in a temporary folder run the code beside them, not the checkout that is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = {
    "oclam/__init__.py": "", "oclam/number.py": "VALUE = 1\n", "params.yaml": "x: 1\n",
    "stages/make.py": "from pathlib import Path\nfrom oclam.number import VALUE\nPath('out').write_text(str(VALUE))\n",
    "dvc.yaml": "stages:\n  make:\n    cmd: python -m stages.make\n    params: [x]\n    deps: [oclam]\n"
                "    outs: [out: {cache: false}]\n",
    ".gitignore": "__pycache__/\n", ".dvcignore": "__pycache__\n"}


def run(*words):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    environment |= dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "a")
    environment |= dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "a@b")
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    run("git", "init", "-q")
    run("dvc", "init", "-q")
    run("dvc", "config", "core.analytics", "false")
    run("dvc", "repro")
    run("git", "add", ".")
    run("git", "commit", "-qm", "one")


def test_an_experiment_runs_the_module_that_it_was_started_with(project):
    Path("oclam/number.py").write_text("VALUE = 2\n")  # the installed oclam has no such module at all
    run("dvc", "exp", "run", "--temp", "--name", "two", "-S", "x=2")
    experiment, = run("git", "for-each-ref", "--format=%(refname)", "refs/exps/**/two").split()
    assert run("git", "show", f"{experiment}:out") == "2" and Path("out").read_text() == "1"

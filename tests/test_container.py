"""The Containerfile, as far as it can be read without a container tool."""

import json
import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import PurePath

from tests import ROOT

TEXT = (ROOT / "Containerfile").read_text(encoding="utf-8")
STEPS = [line.split(maxsplit=1) for line in re.sub(r"^#.*\n", "", TEXT, flags=re.M).replace("\\\n", " ").splitlines()]


def arguments(instruction):
    return [words for name, words in STEPS if name == instruction]


def test_it_runs_the_readmes_two_commands():
    commands = re.search(r"## Run it\n\n```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[1]
    first, second = (line.split("#")[0].strip() for line in commands.splitlines())
    assert [json.loads(words) for words in arguments("CMD")] == [first.split()]
    assert f"podman run oclam [{second}]" in TEXT


def test_cpu_is_the_default_and_a_build_argument_takes_another_pytorch():
    (environment,) = arguments("ENV")
    order = [STEPS.index(step) for step in (["ARG", "TORCH=cpu"], ["ENV", environment], ["RUN", "make setup"])]
    assert "UV_TORCH_BACKEND=${TORCH}" in environment.split() and order == sorted(order)


def test_setup_finds_all_that_it_reads_and_needs():
    (setup,) = [place for place, step in enumerate(STEPS) if step == ["RUN", "make setup"]]
    *before, last = [words.split() for name, words in STEPS if name == "COPY"]
    assert last == [".", "."] and STEPS.index(["COPY", ". ."]) > setup
    copied = {source for *sources, _ in before for source in sources}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert copied == {"pyproject.toml", "Makefile", project["readme"], *project["license-files"], "oclam/__init__.py"}
    assert all((ROOT / source).is_file() for source in copied)
    system = re.search(r"^SYSTEM := (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1].split()
    installed = arguments("RUN")[0].split("&&")[1].split()
    assert set(system) - set(installed) == {"python3-venv"}  # the image's Python has it


def test_everything_in_git_is_copied_and_nothing_large():
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()

    def ignored(path):
        verdict = False
        for rule in rules:
            pattern = rule.removeprefix("!").removeprefix("**/")
            if any(fnmatch(str(part), pattern) and str(part).count("/") == pattern.count("/")
                   for part in (PurePath(path), *PurePath(path).parents)):
                verdict = not rule.startswith("!")
        return verdict

    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not [path for path in tracked if ignored(path)]
    assert all(map(ignored, ["data/cheetah-run/clean.zarr/x", ".venv-3.13/bin/python", ".dvc/cache/x", ".resume/x"]))

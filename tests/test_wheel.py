"""The wheel, installed without network into an empty folder, acts with an exported policy; it lacks no file."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from oclam.export.policies import HubPolicy
from oclam.params import DEFAULT_ENV
from oclam.policies.files import Card
from tests import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the wheel, and `target`, where it is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "oclam", folder / "source/oclam", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", folder, folder / "source"], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", folder / "target", wheel], check=True)
    return folder


@pytest.fixture
def run(built, tmp_path):
    """Runs a command in an empty folder with only the installed wheel on the path: the ended process."""
    environment = {**os.environ, "PYTHONPATH": str(built / "target")}
    return lambda *command: subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment,
                                           capture_output=True, text=True)


def test_everything_of_the_package_is_in_the_wheel(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == {path.relative_to(ROOT).as_posix() for path in (ROOT / "oclam").rglob("*")
                      if path.is_file() and "__pycache__" not in path.parts}


def test_an_exported_policy_acts_with_the_wheel_alone(built, run, tmp_path):
    card = Card("cheetah-run", "distracted", "lapo", 0, image_size=16, frame_stack=2, encoder_scale=1,
                residual_blocks=0, latent_dim=4, hidden_dim=4, action_dim=6, budget=2)
    origin = {"env": DEFAULT_ENV.model_dump() | {"image_size": 16, "texture_size": 16}, "trained": [], "figures": [],
              "licence": "", "version": ""}
    HubPolicy(card=vars(card), origin=origin).save_pretrained(tmp_path / "policy")
    assert run("-c", "import oclam; print(oclam.__file__)").stdout.startswith(str(built / "target"))
    ended = run(built / "target/bin/oclam", "act", "policy", "--steps", "3")
    assert ended.stdout.startswith("cheetah-run, lapo, 2 labelled, distracted: return "), ended.stderr


def test_what_needs_the_repository_says_so_in_one_line(built, run):
    ended = run(built / "target/bin/oclam", "run")
    assert (ended.returncode, ended.stderr) == (
        1, "error: params.yaml: no such parameter file; run in a clone of oclam's repository, or name one\n")

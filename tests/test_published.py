"""The page of a published run: what it shows, and that those in `reports` show what is there."""

import re
import shutil
import sys

import pytest

from oclam.artifacts import write_absent
from oclam.errors import UserError
from oclam.overview import overview
from oclam.published import main, published
from tests import ROOT

RUNS = sorted(ROOT.glob("reports/study-*"))
WALKER = ROOT / "reports/study-hard-walker-run"


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_page_in_git_is_that_of_its_files_and_shows_every_picture(run):
    page = (run / "README.md").read_text(encoding="utf-8")
    assert page == published(run), f"python -m oclam.published reports/{run.name} writes it again"
    linked = re.findall(r"\]\((?!\.\./)(.+?)\)", page)
    assert sorted(linked) == sorted(["params.yaml", "commit", *(f"figures/{path.name}" for path in
                                                              (run / "figures").iterdir())])


@pytest.fixture
def run(tmp_path):
    """A copy of a published run of walker-run."""
    return shutil.copytree(WALKER, tmp_path / "run", ignore=shutil.ignore_patterns("README.md"))


def test_the_command_writes_the_page_where_the_run_is_and_nothing_elsewhere(run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["published", str(run)])
    main()
    assert (run / "README.md").read_text(encoding="utf-8") == published(run)
    monkeypatch.setattr(sys, "argv", ["published", str(other := run.with_name("other"))])
    with pytest.raises(UserError, match="other/params.yaml: no such"):
        main()
    assert not other.exists()


def test_pictures_have_the_variants_names_and_order(run):
    for path in (run / "figures").iterdir():
        path.unlink()
    for name in ("slots-walker-run.png", "latents-walker-run-laom.png", "latents-walker-run-lapo.png"):
        (run / "figures" / name).touch()
    *_, pictures = published(run).partition("## Slots")
    assert re.findall("## .+|[*]{2}.+[*]{2}|/(?:.+)png", pictures) == [
        "/slots-walker-run.png", "## Latent actions", "**lapo**", "/latents-walker-run-lapo.png", "**laom**",
        "/latents-walker-run-laom.png"]


def test_what_was_not_measured_has_no_table(run):
    _, returns, _ = overview([run])
    assert returns in published(run)
    write_absent(run / "returns.csv", "there are no returns")
    assert "demonstrations" not in published(run).split("# Returns")[0]
    write_absent(run / "probes.csv", "there are no probes")
    assert "|" not in published(run)


def test_seeds_distractors_hours_and_labels_are_those_of_the_run(run):
    hours = sum(float(line.split(",")[4] or 0) for line in (run / "durations.csv").read_text().splitlines()[1:]) / 3600
    page, params = published(run), run / "params.yaml"
    assert "seed 0, 160 episodes of 250 steps, distractors: video, colour 0.3, camera 0.3. " in page
    assert f"Its stages took {hours:.1f} hours" in page
    assert "Before it lapo-masks, lapo-slots, lapo-focus, laom-masks used 16. Before it laom-labels used 128." in page
    text = params.read_text().replace("color_scale: 0.3", "color_scale: 0.2").replace("background: true",
                                                                                      "background: false")
    params.write_text(re.sub(r"seeds:\n- 0", r"seeds:\n- 3\n- 4", text))
    assert "seeds 3, 4 (pictures: 3)" in published(run) and "distractors: colour 0.2, camera 0.3." in published(run)
    params.write_text(params.read_text().replace("camera: true", "camera: false").replace("color: true",
                                                                                         "color: false"))
    assert "distractors: none." in published(run)

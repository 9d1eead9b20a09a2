"""The page of a published run: what it shows, and that those in `reports` show what is there."""

import re

import pytest

from oclam.errors import UserError
from oclam.overview import overview
from oclam.published import published
from tests import ROOT

RUNS = sorted(ROOT.glob("reports/study-*"))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_page_in_git_is_that_of_its_files_and_shows_every_picture(run):
    page = (run / "README.md").read_text(encoding="utf-8")
    assert page == published(run) and overview([run]) in page
    linked = re.findall(r"\]\((?!\.\./)(.+?)\)", page)
    assert sorted(linked) == sorted(["params.yaml", "commit", *(f"figures/{path.name}" for path in
                                                              (run / "figures").iterdir())])


def test_a_section_without_pictures_is_left_out(tmp_path):
    for name in ("params.yaml", "metrics.json", "probes.csv", "returns.csv", "durations.csv"):
        (tmp_path / name).write_bytes((RUNS[0] / name).read_bytes())
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/slots-cheetah-run.png").touch()
    assert re.findall("^## (.+)$", published(tmp_path), re.MULTILINE) == ["Slots"]
    (tmp_path / "durations.csv").unlink()
    with pytest.raises(UserError, match="durations.csv"):
        published(tmp_path)


def test_hours_seeds_and_distractors_are_those_of_the_run():
    run = ROOT / "reports/study-hard-walker-run"
    hours = sum(float(line.split(",")[4] or 0) for line in (run / "durations.csv").read_text().splitlines()[1:]) / 3600
    assert f"Scale study-cpu, seed 0, distractors of colour 0.3 and camera 0.3; {hours:.1f} hours" in published(run)

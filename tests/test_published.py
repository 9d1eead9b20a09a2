"""The page of a published run: what it shows, and that those in `reports` show what is there."""

import re
import shutil
import sys

import pytest

from oclam.artifacts import read_csv, write_absent
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
    assert "demonstrations" not in published(run).split("# Returns")[0] and "P(> lapo)" not in published(run)
    write_absent(run / "probes.csv", "there are no probes")
    assert "|" not in published(run)


def test_seeds_distractors_hours_and_labels_are_those_of_the_run(run):
    hours = sum(float(line.split(",")[4] or 0) for line in (run / "durations.csv").read_text().splitlines()[1:]) / 3600
    page, params = published(run), run / "params.yaml"
    assert ("seed 0, 160 episodes of 250 steps, distractors: video, colour 0.3, camera 0.3; policies act in 12 "
            f"episodes. Its stages' times add up to {hours:.1f} hours, in float32. [Param") in page
    assert "paper's, of 5,000 episodes" in published(ROOT / "reports/study-cpu-walker-run")
    assert "Before it lapo-masks, lapo-slots had used 16." in page
    assert "laom-masks had used 16; laom-labels had used 128." in published(ROOT / "reports/study-cpu-walker-run")
    text = params.read_text().replace("color_scale: 0.3", "color_scale: 0.2").replace("background: true",
                                                                                      "background: false")
    params.write_text(re.sub(r"seeds:\n- 0", r"seeds:\n- 3\n- 4", text))
    assert "seeds 3, 4 (pictures: 3)" in published(run) and "distractors: colour 0.2, camera 0.3;" in published(run)
    params.write_text(params.read_text().replace("camera: true", "camera: false").replace("color: true",
                                                                                         "color: false"))
    assert "distractors: none;" in published(run)
    params.write_text(params.read_text().replace("source: simulator", "source: files"))
    assert "distractors: those of the data;" in published(run)


def test_labels_videos_and_demonstrations_are_those_of_the_run(run):
    assert ("Mean of 64 and 128 labelled trajectories, on backgrounds that no training saw; ± is the standard error of "
            "one policy's episodes. The demonstrations return 121 on walker-run.") in published(run)
    params = run / "params.yaml"
    text = params.read_text().replace("backgrounds: test", "backgrounds: train")
    params.write_text(text.replace("  - 64\n  - 128\n", ""))
    assert "All labels, on the backgrounds of training; ± " in published(run)
    params.write_text(params.read_text().replace("background: true", "background: false"))
    assert "All labels, without background videos; ± " in published(run)


def test_chances_to_return_more_than_lapo_are_those_of_the_table(run):
    row = next(row for row in read_csv(run / "returns.csv") if (row["variant"], row["budget"]) == ("lapo-slots", 64))
    chance, low, high = (f"{row[key]:.0%}" for key in ("improvement", "improvement_low", "improvement_high"))
    *_, table = published(run).partition("## P(> lapo)")
    line = next(line for line in table.splitlines() if line.startswith("| lapo-slots |"))
    assert line.split(" | ")[3] == f"**{chance} ({low} to {high})**" and "| lapo |" not in table
    *_, table = published(ROOT / "reports/study-cpu-hopper-hop").partition("## P(> lapo)")
    line = next(line for line in table.splitlines() if line.startswith("| lapo-masks |"))
    assert line.startswith("| lapo-masks | **60% (50% to 74%)** |") and " 59% (50% to 73%) " in line

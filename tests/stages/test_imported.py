"""The pipeline on imported demonstrations: no environment, no clean view, videos beside labels or alone."""

import csv
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest

from oclam import paths
from oclam.artifacts import is_absent, open_zarr, read_json
from oclam.importers.store import Episode, Source, write_dataset
from oclam.variants import LATENT, VARIANTS
from tests.stages.tiny import BUDGETS, SIZE, STEPS, build, expanded

TASK = "kitchen-sweep"
OBSERVED = [name for name, row in VARIANTS.items() if row.view == "distracted"]


def trajectories(name, count, labels):
    """A bright square that an action moves to the right or to the left, over noise."""
    def read(i):
        rng = np.random.default_rng([i, labels])
        actions = rng.uniform(-1, 1, (STEPS, 1))
        places = 12 + np.round(np.cumsum(actions, 0)[:, 0]).astype(int)
        frames = rng.integers(0, 90, (STEPS, SIZE, SIZE, 3), np.uint8)
        for frame, place in zip(frames, places, strict=True):
            frame[12:20, place:place + 8] = 250
        return Episode(frames, actions if labels else None)
    return Source(name, [STEPS] * count, read, int(labels), 0, {})


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    sources = [trajectories("videos", 2, False), trajectories("labelled", 4, True)]
    write_dataset(folder / "data/demonstrations" / TASK / "distracted.zarr", sources, TASK, "distracted", None, SIZE, 2)
    build(folder, tasks=[TASK], collect={"source": "files", "episodes": 4, "test_episodes": 2, "segmented_episodes": 0})
    with chdir(folder):
        yield folder


def test_every_stage_ends_well_and_what_cannot_be_is_absent(project):
    absent = {name for name, stage in expanded().items() if all(is_absent(out) for out in stage.outs)}
    clean = {"lapo-no-distractors", "bc-clean", "bc-full-clean", "finetune-clean", "eval-clean", "collect-clean"}
    assert {name.split("@")[0] for name in absent} == {"expert", "eval"} | clean
    for name, stage in expanded().items():
        assert all(Path(out).exists() for out in stage.outs), name


def test_latent_actions_of_all_frames_are_probed_where_actions_are_known(project):
    for variant in OBSERVED:
        if variant in LATENT:
            assert np.isfinite(open_zarr(paths.latents(TASK, 0, variant))["latents"][:]).all()
            assert np.isfinite(read_json(paths.probe(TASK, 0, variant))["ridge_mse"])
            assert all((paths.policies(TASK, 0, variant) / f"{budget}.safetensors").exists() for budget in BUDGETS)


def test_the_report_has_the_variants_that_exist(project):
    with (paths.reports / "probes.csv").open() as file:
        labels = {row["variant"]: int(row["labels"]) for row in csv.DictReader(file)}
    assert set(labels) == set(OBSERVED) & set(LATENT)
    assert labels["laom-labels"] == max(BUDGETS)  # also where no policy acted
    page = Path(paths.reports / "index.html").read_text()
    assert "Table 1. Action probes" in page and "Table 2" not in page and "no policies acted" in page


def test_from_films_alone_latent_actions_are_learned_on_slots_chosen_by_hand(tmp_path):
    write_dataset(tmp_path / "data/demonstrations" / TASK / "distracted.zarr", [trajectories("videos", 6, False)], TASK,
                  "distracted", None, SIZE, 2)
    build(tmp_path, tasks=[TASK], restarts=[0, 1], slot_select={"method": "manual", "manual": {TASK: [1]}},
          collect={"source": "files", "episodes": 4, "test_episodes": 2, "segmented_episodes": 0})
    with chdir(tmp_path):
        table = read_json(paths.slot_table(TASK, 0))
        assert table["chosen"] == [1] and table["labels"] == 0 and "no actions are known" in table["why"]
        assert table["restart"] == 0 and not table["restart_errors"]  # without actions the first one is kept
        learned = {name for name in OBSERVED if name in LATENT and not is_absent(paths.latents(TASK, 0, name))}
        assert learned == set(OBSERVED) & set(LATENT) - {"laom-labels"}
        assert "Chosen by hand" in Path(paths.reports / "index.html").read_text()

from pathlib import Path

import numpy as np
import pytest
import zarr

from oclam.datasets import open_dataset
from oclam.errors import Absent, UserError
from oclam.importers.adoption import adopt_dataset, refuse_foreign
from oclam.importers.store import write_dataset
from oclam.params import read
from tests import ROOT
from tests.importers.test_store import source

COLLECT = read(ROOT / "params.yaml").collect.model_copy(update={
    "source": "files", "episodes": 2, "test_episodes": 1, "segmented_episodes": 1, "steps": 16})


@pytest.fixture
def folder(tmp_path):
    write_dataset(tmp_path / "in/kitchen-sweep/distracted.zarr", [source([16, 16, 16])], "kitchen-sweep", "distracted",
                  None, 16, 1)
    return tmp_path / "in"


def adopt(folder, view="distracted", image_size=16, **given):
    return adopt_dataset(folder, folder.with_name("out.zarr"), "kitchen-sweep", view, COLLECT.model_copy(update=given),
                         image_size)


def test_the_copy_is_the_dataset_and_returns_are_sums_of_rewards(folder):
    assert adopt(folder) == [16.0] * 3
    ours, theirs = open_dataset(folder.with_name("out.zarr")), open_dataset(folder / "kitchen-sweep/distracted.zarr")
    assert ours.attrs == theirs.attrs | {"adopted": str(theirs.path)}
    for name in ("pixels", "actions", "states", "rewards"):
        np.testing.assert_array_equal(ours.group[name][:], theirs.group[name][:])


def test_the_copy_of_a_read_only_dataset_can_be_written(folder):
    source = folder / "kitchen-sweep/distracted.zarr"
    for path in [*source.rglob("*"), source]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    adopt(folder)
    copy = folder.with_name("out.zarr")
    assert all(path.stat().st_mode & 0o200 for path in [*copy.rglob("*"), copy])


def test_counts_that_are_not_the_dataset_s_are_all_named(folder):
    with pytest.raises(UserError, match=r"collect.episodes: 5 given, 2 in .*; env.image_size: 64 given, 16 in"):
        adopt(folder, episodes=5, image_size=64)


def test_no_clean_twin_is_absent_and_no_distracted_dataset_an_error(folder):
    with pytest.raises(Absent, match="nothing is learned from clean frames"):
        adopt(folder, "clean")
    (folder / "kitchen-sweep/distracted.zarr").rename(folder / "kitchen-sweep/clean.zarr")
    with pytest.raises(UserError, match="no such dataset; `python -m oclam.import` writes it"):
        adopt(folder)
    with pytest.raises(UserError, match="a dataset of the distracted view; it belongs in .*distracted.zarr"):
        adopt(folder, "clean")


def test_a_dataset_of_one_s_own_among_the_pipeline_s_is_refused_and_the_pipeline_s_replaced(folder):
    mine, adopted = folder / "kitchen-sweep/distracted.zarr", folder.with_name("out.zarr")
    with pytest.raises(UserError, match="no stage wrote this dataset; move it to demonstrations/kitchen-sweep/distr"):
        refuse_foreign(mine, Path("demonstrations"))
    for _ in range(2):
        adopt(folder)
        refuse_foreign(adopted, folder)
    (mine / "zarr.json").write_text("{")
    refuse_foreign(mine, folder)
    refuse_foreign(folder / "nothing", folder)


def change(folder, name, index, value):
    group = zarr.open_group(folder / "kitchen-sweep/distracted.zarr")
    group[name][index] = value
    (folder / "kitchen-sweep/distracted.zarr/checksums.json").unlink(missing_ok=True)


def test_an_episode_has_all_its_actions_or_none(folder):
    change(folder, "actions", 0, np.nan)
    adopt(folder)
    assert open_dataset(folder.with_name("out.zarr")).with_actions == [1]
    change(folder, "actions", (1, 3, 0), np.nan)
    with pytest.raises(UserError, match="episode 1 has actions that are not finite"):
        adopt(folder)


def test_without_rewards_there_are_no_returns(folder):
    change(folder, "rewards", slice(None), np.nan)
    assert adopt(folder) is None


def test_a_link_in_place_of_a_dataset_is_refused_since_dvc_does_not_see_what_is_behind_it(folder):
    path, elsewhere = folder / "kitchen-sweep/distracted.zarr", folder.with_name("elsewhere.zarr")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(UserError, match="distracted.zarr: a link to a folder, which DVC does not follow"):
        adopt(folder)
    assert not folder.with_name("out.zarr").exists()

"""The graph of dvc.yaml is DVC's own, and the order in which its stages start."""

import random
from itertools import combinations, pairwise

import pytest
import yaml
from dvc.dependency import ParamsDependency

from oclam.errors import UserError
from oclam.graph import expand, needed_for, overlap, start_order, upstream
from oclam.params import read
from tests import ROOT

STAGES = expand(yaml.safe_load((ROOT / "dvc.yaml").read_text()), read(ROOT / "params.yaml").model_dump())


def test_the_stages_are_those_of_dvc(graph):
    theirs = {stage.addressing: (
        stage.cmd, {key for dep in stage.deps if isinstance(dep, ParamsDependency) for key in dep.params},
        {dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency)},
        {out.def_path for out in stage.outs}) for stage in graph}
    assert {name: (s.cmd, set(s.params), set(s.deps), set(s.outs)) for name, s in STAGES.items()} == theirs


def test_a_stage_needs_what_it_needs_to_dvc(graph):
    theirs = {stage.addressing: {needed.addressing for needed in graph.successors(stage)} for stage in graph}
    assert {name: set(upstream(stage, STAGES)) for name, stage in STAGES.items()} == theirs


def test_until_leaves_out_what_is_not_needed():
    found = needed_for("slot-select", STAGES)
    assert set(found) == {"backgrounds", "expert@cheetah-run", "encoder", "collect@cheetah-run", "slots@cheetah-run-0",
                          "slot-select@cheetah-run-0", "ocp@cheetah-run-0-0"}
    assert needed_for("slot-select@cheetah-run-0", STAGES) == found and needed_for(None, STAGES) == STAGES
    with pytest.raises(UserError, match="--until: 'lappo' given, stages are backgrounds, expert,"):
        needed_for("lappo", STAGES)


def test_the_longest_chain_ranks_first():
    generator = random.Random(0)
    for size in (1, 5, 9):
        names = [f"stage{number}" for number in range(size)]
        needs = {name: [other for other in names[:place] if generator.random() < 0.4]
                 for place, name in enumerate(names)}
        # Every subset of the stages that is a chain, by its first stage.
        subsets = [chosen for count in range(1, size + 1) for chosen in combinations(names, count)]
        chains = [chosen for chosen in subsets if all(one in needs[other] for one, other in pairwise(chosen))]
        longest = {name: max(len(chain) for chain in chains if chain[0] == name) for name in names}
        shuffled = dict(sorted(needs.items(), key=lambda _: generator.random()))
        assert list(start_order(shuffled)) == sorted(shuffled, key=lambda name: -longest[name])
        assert list(start_order(shuffled).values()) == list(range(size))


def test_paths_overlap_where_they_are_the_same_or_one_is_inside_the_other():
    assert overlap("a/b", "a/b") and overlap("a/b", "a") and overlap("a", "a/b")
    assert not overlap("a/b", "a/c") and not overlap("a/lapo", "a/lapo-slots") and not overlap("a/lapo-slots", "a/lapo")

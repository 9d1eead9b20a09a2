"""The stages of dvc.yaml as a graph: every instance with its command, inputs and outputs, and what it needs."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from graphlib import TopologicalSorter
from itertools import product
from operator import getitem
from pathlib import Path

import yaml

from oclam.artifacts import digest
from oclam.errors import UserError

PLACE = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True)
class Stage:
    """One instance of a stage as DVC would run it; params are keys of params.yaml, deps and outs paths."""

    name: str
    cmd: str
    params: list
    deps: list
    outs: list

    @property
    def script(self) -> str:
        """The module of `stages` that it runs, such as bc_full; "" where it runs something else."""
        module = re.match(r"python -m stages\.(\w+)", self.cmd)
        return module[1] if module else ""

    @property
    def words(self) -> list[str]:
        """The arguments of the script."""
        return self.cmd.split()[3:]

    def key(self, params: dict) -> str:
        """Hash of all that determines the outputs: command, values of the parameters, content of the dependencies."""
        values = {key: _value(params, key) for key in self.params}
        inputs = [self.cmd, values, {dep: digest(dep) for dep in self.deps}]
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()

    def made(self) -> dict | None:
        """{output: hash of its content}, None where one is missing."""
        return {out: digest(out) for out in self.outs} if all(Path(out).exists() for out in self.outs) else None


def read_stages(params: dict) -> dict[str, Stage]:
    """The stages of dvc.yaml in the working folder, as `expand`."""
    return expand(yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8")), params)


def expand(content: dict, params: dict) -> dict[str, Stage]:
    """The stages of a dvc.yaml by name, every matrix expanded and ${...} filled in."""
    stages = {}
    for name, stage in content["stages"].items():
        matrix = _fill(stage.get("matrix", {}), params)
        for values in product(*matrix.values()):
            scope = params | {"item": dict(zip(matrix, values, strict=True))}
            full = "@".join(filter(None, [name, "-".join(map(str, values))]))  # DVC's own name
            outs = [path for out in [*stage["outs"], *stage.get("metrics", [])]
                    for path in (out if isinstance(out, dict) else [out])]
            stages[full] = Stage(full, *_fill([stage["cmd"], stage.get("params", []), stage["deps"], outs], scope))
    return stages


def _fill(value, scope):
    if isinstance(value, str):
        whole = PLACE.fullmatch(value)
        return _value(scope, whole[1]) if whole else PLACE.sub(lambda place: str(_value(scope, place[1])), value)
    if isinstance(value, list):
        return [_fill(part, scope) for part in value]
    return {key: _fill(part, scope) for key, part in value.items()} if isinstance(value, dict) else value


def _value(scope, key):
    return reduce(getitem, key.split("."), scope)


def upstream(stage: Stage, stages: dict[str, Stage]) -> list[str]:
    """Names of the stages whose outputs this one reads: the same path, one inside it or a folder around it."""
    return [other.name for other in stages.values() if any(overlap(a, b) for a in other.outs for b in stage.deps)]


def overlap(a: str, b: str) -> bool:
    """Whether two paths are the same, or one is inside the other."""
    return f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/")


def start_order(needs: Mapping[str, list[str]]) -> dict[str, int]:
    """The rank of each stage, 0 for the first to start: the one with the longest chain of stages that depend on it.

    Args:
        needs: {stage: those whose outputs it reads}; those with equal chains keep this order.
    """
    chains = {}
    for name in reversed(list(TopologicalSorter(needs).static_order())):
        chains[name] = 1 + max((chain for later, chain in chains.items() if name in needs[later]), default=0)
    return {name: rank for rank, name in enumerate(sorted(needs, key=chains.get, reverse=True))}


def needed_for(until: str | None, stages: dict[str, Stage]) -> dict[str, Stage]:
    """`until`, the name of a stage or an instance, and all stages that it needs; every stage for None."""
    asked = [name for name in stages if until in (None, name, name.split("@")[0])]
    if not asked:
        known = dict.fromkeys(name.split("@")[0] for name in stages)
        raise UserError(f"--until: {until!r} given, stages are {', '.join(known)}")
    needed = set()
    while asked:
        name = asked.pop()
        if name not in needed:
            needed.add(name)
            asked += upstream(stages[name], stages)
    return {name: stage for name, stage in stages.items() if name in needed}

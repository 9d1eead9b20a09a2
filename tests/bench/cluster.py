"""The paper's graph on 1 to 64 GPUs, simulated with the plan's hours, and what Ray adds to a stage.

`python -m tests.bench.cluster`; the second part needs the extra cluster.
"""

import heapq
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path

import yaml

from oclam.graph import expand, start_order, upstream
from oclam.params import Extras, read
from oclam.plan import TFLOPS, Plan
from oclam.slices import run_slice
from tests import ROOT

COUNT = 20  # stages that only start Python


def makespan(hours: Mapping[str, float], needs: Mapping[str, list[str]], gpus: int, on_gpu: set[str]) -> float:
    """Hours until all is done when a stage starts as soon as what it needs is there and, if it wants one, a GPU.

    Ready stages are taken by `start_order`, as `oclam.cluster` does; stages without a GPU never wait.
    """
    rank, missing = start_order(needs), {name: len(needs[name]) for name in hours}
    later = {name: [other for other in hours if name in needs[other]] for name in hours}
    ready, ends, now, free = [name for name in hours if not missing[name]], [], 0.0, gpus
    while ready or ends:
        for name in sorted(ready, key=rank.get):
            if name not in on_gpu or free:
                free -= name in on_gpu
                ready.remove(name)
                heapq.heappush(ends, (now + hours[name], name))
        now, name = heapq.heappop(ends)
        free += name in on_gpu
        for other in later[name]:
            missing[other] -= 1
            if not missing[other]:
                ready.append(other)
    return now


def simulated():
    params = read(ROOT / "params/paper.yaml", [f"extras.{name}=true" for name in Extras.model_fields])
    stages = expand(yaml.safe_load((ROOT / "dvc.yaml").read_text()), params.model_dump())
    needs = {name: upstream(stage, stages) for name, stage in stages.items()}
    of_kind = {cost.stage: cost.hours(1e12 * TFLOPS.get(cost.stage, 200), 3200) for cost in Plan(params).costs()}
    hours = {name: of_kind.get(name.split("@")[0].removesuffix("-clean"), 0.0) for name in stages}
    on_gpu = {name for name, stage in stages.items() if "compute" in stage.params}
    path = makespan(hours, needs, len(stages), on_gpu)
    total = sum(hours[name] for name in on_gpu)
    print(f"{len(stages)} stages, {total:.0f} GPU-hours, critical path {path:.1f} h")
    for gpus in (1, 2, 4, 8, 16, 32, 64):
        found, least = makespan(hours, needs, gpus, on_gpu), max(path, total / gpus)
        print(f"{gpus:3} GPUs: {found:7.1f} h, {found / least - 1:.1%} above the least possible ({least:.1f} h)")


def overhead():
    import ray

    from oclam.cluster import run_graph

    content = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"seeds": list(range(COUNT))}
    stage = {"matrix": {"seed": "${seeds}"}, "cmd": "python make.py ${item.seed}", "deps": ["make.py"],
             "outs": ["made/${item.seed}"]}
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("params.yaml").write_text(yaml.dump(content))
        Path("dvc.yaml").write_text(yaml.dump({"stages": {"each": stage}}))
        Path("make.py").write_text("import pathlib, sys; pathlib.Path('made', sys.argv[1]).touch()")
        Path("made").mkdir()
        Path("cluster.yaml").write_text("default: {default: {cpus: 1, gpus: 0, memory: 0.1}}")
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error",
                 _node_ip_address="127.0.0.1", runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
        for name, run in (("Ray, first", run_graph), ("Ray", run_graph), ("side by side", run_slice)):
            for seed in range(COUNT):
                Path(f"made/{seed}").unlink(missing_ok=True)
            started = time.perf_counter()
            run()
            print(f"{name}: {(time.perf_counter() - started) / COUNT:.2f} s a stage, two at a time")
        ray.shutdown()


def main():
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    simulated()
    overhead()


if __name__ == "__main__":
    main()

"""Nodes of a Ray cluster die at random while every stage of dvc.yaml runs at a tiny scale, on two nodes of one machine.

`python -m tests.faults.nodes --kills 20`. Every round kills all processes of a node at once, again and again, and adds
another in its place, until the graph is done; then all outputs must have the bytes of an undisturbed run.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import threading
from contextlib import chdir
from pathlib import Path

import psutil
import yaml

os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
import ray
from ray.cluster_utils import Cluster

from oclam import paths
from oclam.artifacts import digest
from oclam.cluster import LEASES, run_graph
from oclam.slices import RECORDS
from tests import ROOT
from tests.stages.tiny import build, expanded, run

PAUSE = (3.0, 12.0)  # seconds between two kills; the shorter, the more of them fall into the early stages
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.faults.nodes", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, kills, wrong, rounds = random.Random(arguments.seed), 0, [], 0
    with tempfile.TemporaryDirectory() as folder:
        finished = Path(folder) / "finished"
        build(finished)
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
        nodes = [cluster.add_node(**NODE) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error",
                 runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
        while kills < arguments.kills:
            rounds += 1
            tree = start(finished, Path(folder) / f"round{rounds}")
            with chdir(tree):
                kills += disturb(cluster, nodes, arguments.kills - kills, rng)
                wrong += [f"round {rounds}: {name}" for name in differences(finished)]
        ray.shutdown()
        cluster.shutdown()
    print("\n".join([f"{kills} kills in {rounds} rounds, {len(wrong)} outputs differ", *wrong]))
    sys.exit(bool(wrong))


def start(finished: Path, tree: Path) -> Path:
    """A project with the finished one's parameters, and nothing made."""
    tree.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(finished / name, tree)
    for name in ("oclam", "stages", *(f"data/{name}" for name in ("demonstrations", "encoders", "experts", "videos"))):
        shutil.copytree(ROOT / name, tree / name)
    (tree / "cluster.yaml").write_text(yaml.dump({"default": {"default": {"cpus": 1, "gpus": 0, "memory": 0.05}}}))
    return tree


def disturb(cluster: Cluster, nodes: list, most: int, rng: random.Random) -> int:
    """Run the graph in the working folder; the number of nodes that were killed meanwhile."""
    kills, result = 0, []
    runner = threading.Thread(target=lambda: result.append(run_graph(patience=3)))
    runner.start()
    while runner.is_alive():
        runner.join(timeout=rng.uniform(*PAUSE))
        if runner.is_alive() and kills < most:
            node = nodes.pop(rng.randrange(len(nodes)))
            running = sorted(path.name for path in LEASES.glob("[!.]*"))
            for process in processes(node):
                process.kill()
            cluster.remove_node(node, allow_graceful=False)
            nodes.append(cluster.add_node(**NODE))
            kills += 1
            print(f"kill {kills} while {', '.join(running) or 'nothing'} ran", flush=True)
    if not result:
        sys.exit("the graph did not end well")
    return kills


def processes(node) -> list[psutil.Process]:
    """Those of a node, its stages among them."""
    found = [psutil.Process(started.process.pid) for kind in node.all_processes.values() for started in kind]
    return found + [child for process in found for child in process.children(recursive=True)]


def differences(finished: Path) -> list[str]:
    """The stages whose outputs in the working folder are not those of the finished project, or that left work.

    The report shows durations, so the finished project's is made again with the durations of here.
    """
    shutil.copytree(paths.reports / "durations", finished / paths.reports / "durations", dirs_exist_ok=True)
    with chdir(finished):
        run(expanded()["report"])
    other = [name for name, stage in expanded().items()
             if any(not Path(out).exists() or digest(out) != digest(finished / out) for out in stage.outs)]
    known = {"locks", "logs", RECORDS.name, LEASES.name}
    left = [str(path) for path in Path(".resume").iterdir() if path.name not in known]
    return other + left + list(map(str, Path("data").rglob("*.tmp")))


if __name__ == "__main__":
    main()

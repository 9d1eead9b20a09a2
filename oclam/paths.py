"""Every artifact's path, relative to the project's root; nothing else builds one."""

from pathlib import Path

__all__ = [
    "actor", "backgrounds", "dataset", "embedded_encoder", "encoder", "evaluation", "expert", "expert_curve",
    "latents", "lapo", "log", "ocp", "policies", "probe", "reports", "selection", "slots",
]

DATA = Path("data")
reports = Path("reports")
backgrounds = DATA / "backgrounds.zarr"
encoder = DATA / "encoder.safetensors"
embedded_encoder = DATA / "encoders" / "embedded.safetensors"


def expert(task):
    return DATA / task / "expert.safetensors"


def expert_curve(task):
    return DATA / task / "expert.csv"


def dataset(task, view):
    """view: `distracted` or `clean`."""
    return DATA / task / f"{view}.zarr"


def _seed(task, seed):
    return DATA / task / f"seed{seed}"


def ocp(task, seed):
    return _seed(task, seed) / "ocp.safetensors"


def slots(task, seed):
    """Every slot and its mask on the patch grid, for the whole dataset."""
    return _seed(task, seed) / "slots.zarr"


def selection(task, seed):
    """The chosen slots' vectors and their mask at image size."""
    return _seed(task, seed) / "selection.zarr"


def lapo(task, seed, variant):
    return _seed(task, seed) / variant / "lapo.safetensors"


def latents(task, seed, variant):
    return _seed(task, seed) / variant / "latents.zarr"


def probe(task, seed, variant):
    return _seed(task, seed) / variant / "probe.json"


def actor(task, seed, variant):
    return _seed(task, seed) / variant / "actor.safetensors"


def policies(task, seed, variant):
    """A folder: actor.safetensors once, and <budget>.safetensors (or all.safetensors) with what that budget trained."""
    return _seed(task, seed) / variant / "policies"


def evaluation(task, seed, variant):
    return _seed(task, seed) / variant / "returns.csv"


def log(artifact):
    """The rows (step, loss, ...) of the training that made `artifact`, beside it."""
    return artifact.with_suffix(".csv")

"""The path of every artifact of the stages, relative to the project's root.

Under `data/results` are the small files that the report reads; all else under `data` is large.
"""

from pathlib import Path

DATA, RESULTS = Path("data"), Path("data/results")
reports = Path("reports")
backgrounds = DATA / "backgrounds.zarr"
downloads = DATA / "downloads"
encoder = DATA / "encoder.safetensors"
embedded_encoder = DATA / "encoders" / "embedded.safetensors"


def lock(name: str) -> Path:
    """The file that is locked while a stage, or the whole pipeline, runs."""
    return Path(".resume/locks") / name


def expert(task: str) -> Path:
    return DATA / task / "expert.safetensors"


def expert_curve(task: str) -> Path:
    return RESULTS / task / "expert.csv"


def dataset(task: str, view: str) -> Path:
    """view: `distracted` or `clean`."""
    return DATA / task / f"{view}.zarr"


def demonstration_returns(task: str, view: str) -> Path:
    """The return of every episode of the dataset."""
    return RESULTS / task / f"{view}.csv"


def ocp(task: str, seed: int, restart: int) -> Path:
    return DATA / task / f"seed{seed}" / "ocp" / f"{restart}.safetensors"


def slots(task: str, seed: int) -> Path:
    """Every slot and its mask on the patch grid, for the whole dataset."""
    return DATA / task / f"seed{seed}" / "slots.zarr"


def selection(task: str, seed: int) -> Path:
    """The chosen slots' vectors and their mask at image size, for the whole dataset."""
    return DATA / task / f"seed{seed}" / "selection.zarr"


def slot_table(task: str, seed: int) -> Path:
    """JSON: what was chosen and why, and every slot's measures."""
    return RESULTS / task / f"seed{seed}" / "slots.json"


def slot_preview(task: str, seed: int) -> Path:
    """Safetensors, uint8: frames and every slot's masks of some held-out frames, for pictures."""
    return RESULTS / task / f"seed{seed}" / "slots.safetensors"


def compared(task: str, seed: int, model: str) -> Path:
    """Safetensors: masks of the preview's frames, measures and the training's log of `steve` or `slotcontrast`."""
    return RESULTS / task / f"seed{seed}" / f"{model}.safetensors"


def lapo(task: str, seed: int, variant: str) -> Path:
    """The latent action model of any variant, LAOM's too."""
    return DATA / task / f"seed{seed}" / variant / "lapo.safetensors"


def latents(task: str, seed: int, variant: str) -> Path:
    """IDM(t, t+1) of every transition."""
    return DATA / task / f"seed{seed}" / variant / "latents.zarr"


def probe(task: str, seed: int, variant: str) -> Path:
    return RESULTS / task / f"seed{seed}" / variant / "probe.json"


def samples(task: str, seed: int, variant: str) -> Path:
    """Safetensors: reconstructions and latents of some held-out frames, for pictures."""
    return RESULTS / task / f"seed{seed}" / variant / "samples.safetensors"


def actor(task: str, seed: int, variant: str) -> Path:
    return DATA / task / f"seed{seed}" / variant / "actor.safetensors"


def policies(task: str, seed: int, variant: str) -> Path:
    """A folder: actor.safetensors once, and <budget>.safetensors (or all.safetensors) with what that budget trained."""
    return DATA / task / f"seed{seed}" / variant / "policies"


def evaluation(task: str, seed: int, variant: str) -> Path:
    return RESULTS / task / f"seed{seed}" / variant / "returns.csv"


def episode_video(task: str, seed: int, variant: str) -> Path:
    """The beginning of the first evaluation episode at the largest budget."""
    return RESULTS / task / f"seed{seed}" / variant / "episode.gif"


def log(artifact: Path) -> Path:
    """The rows (step, loss, ...) of the training that made `artifact`."""
    return RESULTS / artifact.relative_to(DATA).with_suffix(".csv")


def parameters(artifact: Path) -> Path:
    """JSON: how many parameters, `total` and `trainable`, the model in `artifact` has."""
    return log(artifact).with_suffix(".json")


def duration(stage: str) -> Path:
    """How long a stage took, and on what; `stage` is its name and arguments, joined by hyphens."""
    return reports / "durations" / f"{stage}.json"

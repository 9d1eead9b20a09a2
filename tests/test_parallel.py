"""Two processes that train one model together follow the curve of one process, and fail and end as one."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
import zarr
from torch import distributed, nn
from torch.nn import functional as F

from oclam import paths
from oclam.artifacts import is_absent, load_tensors, read_csv, write_absent
from oclam.checkpoint import FOLDER, Checkpoint
from oclam.datasets import Frames, FrameSampler, FrameStacks, TripleSampler
from oclam.errors import UserError
from oclam.laom.models import SlotLaomModel
from oclam.laom.training import train_laom
from oclam.latent_actions.models import ImageLatentActionModel
from oclam.latent_actions.observations import FrameObservations
from oclam.latent_actions.training import train_model
from oclam.parallel import launch, work
from oclam.params import Compute
from oclam.policies.networks import Actor
from oclam.policies.training import regress
from oclam.slots.training import clips_of, train_slots
from oclam.slots.videosaur import VideoSaur
from oclam.training import train, update
from tests import ROOT, Killed, runs, until

COMPUTE = Compute(precision="float32", compile=False, devices=2, threads=1)
E, T, SIZE, BATCH = 3, 12, 16, 8


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Watched:
    """A function of frames that records how many it got, and stops the training at a call."""

    def __init__(self, function, kill_at=None):
        self.function, self.kill_at, self.sizes = function, kill_at, []

    def __call__(self, index):
        if len(self.sizes) == self.kill_at:
            raise Killed
        self.sizes.append(len(index))
        return self.function(index)


def patches(images):
    """Features and keys of patches of 4 x 4 pixels: uint8 (N, 16, 16, 3) -> two (N, 16, 48)."""
    features = F.unfold(images.movedim(-1, 1).float() / 255, 4, stride=4).mT
    return features, features.flip(-1)


def ocp(kill_at, kept=None):
    pixels = zarr.create_array({}, data=np.random.default_rng(0).integers(0, 256, (E, T, SIZE, SIZE, 3), np.uint8))
    settings = SimpleNamespace(slots=3, slot_dim=8, clip_length=3, batch_size=BATCH, kept_clips=kept, steps=12,
                               decoded_patches=5, learning_rate=3e-3, warmup_steps=1, decay_steps=6, clip_norm=0.05)
    model = VideoSaur(48, 16, slots=3, slot_dim=8, feature_hidden=8, decoder_hidden=8, decoder_layers=1)
    observe = Watched(patches, kill_at)
    clips = clips_of(SimpleNamespace(pixels=pixels, episodes=E, steps=T), observe, settings, seed=0,
                     device=torch.device("cpu"), forward=nullcontext)
    rows = train_slots(model, clips, settings, Checkpoint("ocp", None, interval=0), seed=0, forward=nullcontext,
                       compiled=False)
    return model, rows, observe.sizes


def lapo(kill_at):
    """lapo-focus, whose weighted mean is over the whole batch."""
    frames = Frames(torch.randint(256, (E * T, SIZE, SIZE, 3), dtype=torch.uint8), "cpu")
    masks = Frames(torch.randint(256, (E * T, 1, 1), dtype=torch.uint8).expand(-1, SIZE, SIZE).contiguous(), "cpu")
    watched = Watched(FrameStacks(frames, stack=2, steps=T), kill_at)
    watched.stack, watched.steps = 2, T
    observe = FrameObservations(watched, masks, background_weight=0.1)
    model = ImageLatentActionModel(6, SIZE, 4, 1, 1)
    settings = SimpleNamespace(epochs=2.5, warmup_epochs=1, learning_rate=1e-3)
    rows = train_model(model, observe, TripleSampler(E, T, BATCH, 3, "lapo"), torch.randn(E * T, 2), settings, COMPUTE,
                       Checkpoint("lapo", None, interval=0))
    return model, rows, watched.sizes


def laom(kill_at):
    """lapo-slots with `lapo_slots.model: laom`."""
    vectors = torch.randn(E * T, 6)
    observe = Watched(vectors.__getitem__, kill_at)
    model = SlotLaomModel(6, 4, 8, 2)
    settings = SimpleNamespace(epochs=2.5, warmup_epochs=1, learning_rate=1e-3, target_rate=0.1, augmentation=0,
                               centred=True)
    rows = train_laom(model, observe, TripleSampler(E, T, BATCH, 3, "laom"), torch.randn(E * T, 2), settings, COMPUTE,
                      Checkpoint("laom", None, interval=0))
    return model, rows, observe.sizes


def bc(kill_at):
    frames = Frames(torch.randint(256, (E * T, SIZE, SIZE, 3), dtype=torch.uint8), "cpu")
    targets, inputs = Frames(torch.randn(E * T, 4), "cpu"), Watched(FrameStacks(frames, stack=2, steps=T), kill_at)
    network = Actor(6, 4, 1, 1)
    rows = regress(network, inputs, targets.gather, FrameSampler(E, T, BATCH, "bc"), 12, 1e-3,
                   Checkpoint("bc", None, interval=0), COMPUTE)
    return network, rows, inputs.sizes


def kept(kill_at):
    return ocp(kill_at, kept=10)


def outcome(training, kill_at=None):
    """Rows, weights, and how many frames each call got."""
    torch.manual_seed(0)
    model, rows, sizes = training(kill_at)
    return rows, {name: tensor.clone() for name, tensor in model.state_dict().items()}, sizes


def in_two(*arguments):
    """`outcome` in the first of two processes, or None where it was killed."""
    def one(rank, file):
        torch.set_num_threads(1)
        distributed.init_process_group("gloo", store=distributed.FileStore(file, 2), rank=rank, world_size=2)
        try:
            torch.save(outcome(*arguments), f"{file}-{rank}")
        except Killed:
            os._exit(9)

    file = f"group-{time.monotonic_ns()}"
    started = [multiprocessing.get_context("fork").Process(target=one, args=(rank, file)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(600)
    written = list(Path().glob(f"{file}-*"))
    if [process.exitcode for process in started] == [9, 9]:
        return None
    assert [process.exitcode for process in started] == [0, 0] and [path.name for path in written] == [f"{file}-0"]
    return torch.load(written[0])


@pytest.mark.parametrize("training", [ocp, kept, lapo, laom, bc])
def test_two_processes_follow_the_curve_of_one_on_halves_of_each_batch(training, tmp_path):
    rows, weights, sizes = outcome(training)
    Checkpoint(training.__name__.replace("kept", "ocp"), None).remove()
    rows_of_two, weights_of_two, sizes_of_two = in_two(training)
    assert len(rows) >= 12 and rows[-1]["loss"] != rows[0]["loss"]
    for one, two in zip(rows, rows_of_two, strict=True):
        assert two == pytest.approx(one, rel=2e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(weights_of_two[name], tensor, atol=2e-4, rtol=1e-3)
    if training is not kept:  # whose clips each process encodes for itself
        assert sum(sizes_of_two) == sum(sizes) / 2


@pytest.mark.parametrize("training", [ocp, lapo, laom, bc])
def test_two_processes_resume_to_the_same_bits(training):
    rows, weights, sizes = in_two(training)
    Checkpoint(training.__name__, None).remove()
    assert in_two(training, len(sizes) // 2) is None and list(FOLDER.glob("*/state.pt"))
    resumed_rows, resumed, rest = in_two(training)
    assert len(rest) < len(sizes) and rows == resumed_rows
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def unlike(_):
    """Weights that differ at the start, and a loss that is lost in the second process alone."""
    if distributed.get_rank():
        torch.manual_seed(1)
    model, started = nn.Linear(2, 1), []

    def step(i):
        started.append(model.weight.detach().clone())
        loss = model(torch.ones(1, 2)).sum() * (float("nan") if i == 3 and distributed.get_rank() else 1)
        update(torch.optim.SGD(model.parameters()), loss, 0.1)
        return {"loss": loss}

    try:
        train(step, 6, {"model": model}, Checkpoint("unlike", None), samples=1)
    except UserError as error:
        both = [torch.empty(1, 2) for _ in range(2)]
        distributed.all_gather(both, started[0])
        assert torch.equal(*both) and "loss is nan at step 4" in str(error)
        raise Killed from None


def test_weights_are_the_first_process_s_and_a_lost_loss_ends_all():
    assert in_two(unlike) is None


def project(devices=2):
    """A folder with a tiny dataset and latents."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["compute"]["devices"], params["bc"]["batch_size"] = devices, 16
    Path("params.yaml").write_text(yaml.safe_dump(params))
    rng = np.random.default_rng(0)
    group = zarr.open_group(paths.dataset("a-b", "distracted"), mode="w", attributes={
        "task": "a-b", "view": "distracted", "episodes": E, "test_episodes": 1})
    group.create_array("pixels", data=rng.integers(0, 256, (E + 1, T, SIZE, SIZE, 3), np.uint8))
    for name, shape in {"actions": (E + 1, T, 2), "states": (E + 1, T, 1), "rewards": (E + 1, T)}.items():
        group.create_array(name, data=rng.normal(size=shape).astype(np.float32))
    latents = zarr.open_group(paths.latents("a-b", 0, "lapo"), mode="w")
    latents.create_array("latents", data=rng.normal(size=(E + 1, T - 1, 4)).astype(np.float16))


def start(module, *words):
    return subprocess.Popen([sys.executable, "-m", module, *words], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": f"{ROOT}:{Path.cwd()}"})


def test_a_stage_on_two_devices_writes_what_it_writes_on_one(tmp_path):
    written = {}
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        os.chdir(folder)
        project(devices)
        stage = start("stages.bc", "a-b", "0", "lapo")
        said = stage.communicate(timeout=600)[1]
        assert stage.returncode == 0 and said.count("host memory") == 2, said
        files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and "logs" not in path.parts}
        actor = paths.actor("a-b", 0, "lapo")
        written[devices] = files, read_csv(paths.log(actor)), load_tensors(actor)[0]
    (files, rows, weights), (files_of_two, rows_of_two, weights_of_two) = written.values()
    assert files == files_of_two and paths.duration("bc-a-b-0-lapo") in files
    for one, two in zip(rows, rows_of_two, strict=True):
        assert two == pytest.approx(one, rel=2e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(weights_of_two[name], tensor, atol=2e-4, rtol=1e-3)


def test_what_demonstrations_do_not_allow_is_absent_on_two_devices_too():
    project()
    params = yaml.safe_load(Path("params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(params | {"tasks": ["a-b"], "collect": params["collect"] | {
        "source": "files"}}))
    shutil.copy(ROOT / "dvc.yaml", ".")
    shutil.rmtree(paths.latents("a-b", 0, "lapo"))
    write_absent(paths.latents("a-b", 0, "lapo"), "no clean view")
    stage = start("stages.bc", "a-b", "0", "lapo")
    said = stage.communicate(timeout=600)[1]
    assert stage.returncode == 0 and said.endswith("absent: no clean view\n"), said
    assert is_absent(paths.actor("a-b", 0, "lapo"))


def test_more_devices_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="^compute.devices: 3 given, this machine has 2 GPUs$"):
        launch(3)


@pytest.mark.parametrize(("visible", "own"), [(None, "1"), ("4,7", "7"), ("GPU-a,GPU-b", "GPU-b"), ("3", ""), ("", "")])
def test_a_process_sees_its_own_gpu_only(monkeypatch, visible, own):
    def main():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == own

    monkeypatch.setattr(distributed, "init_process_group", lambda backend: None)
    monkeypatch.setattr("oclam.parallel.end_with_parent", lambda _: None)
    monkeypatch.setattr("oclam.parallel.signal.signal", lambda *_: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")  # first, so that the test's end restores it
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    work(main)


CASE = """
import errno, os, sys, time
from pathlib import Path
from oclam.cli import run

def main():
    rank = os.environ["RANK"]
    Path(f"started{rank}").write_text(str(os.getpid()))
    if sys.argv[1] == "full" and rank == "1":
        raise OSError(errno.ENOSPC, "No space left", "data/x.zarr")
    time.sleep(3600)

if __name__ == "__main__":
    run(main, parallel=True)
"""


def test_the_error_of_any_process_is_one_line():
    project()
    Path("case.py").write_text(CASE)
    stage = start("case", "full")
    said = stage.communicate(timeout=600)
    assert said == ("", "error: data/x.zarr: No space left; free some space, then `dvc repro` resumes\n")
    assert stage.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_all_processes_end_with_the_stage_and_a_second_start_is_refused(number):
    project()
    Path("case.py").write_text(CASE)
    stage = start("case", "wait")
    files = [Path(f"started{rank}") for rank in range(2)]
    until(lambda: all(file.exists() and file.read_text() for file in files), seconds=600)
    workers = [file.read_text() for file in files]
    if number == signal.SIGTERM:
        assert start("case", "wait").communicate(timeout=600)[1].startswith("error: case-wait is already running")
    stage.send_signal(number)
    said = stage.communicate(timeout=600)[1]
    until(lambda: not any(map(runs, workers)), seconds=600)
    if number == signal.SIGTERM:
        assert said == "error: stopped by a signal; `dvc repro` resumes\n" and stage.returncode == 128 + number

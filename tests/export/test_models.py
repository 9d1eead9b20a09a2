"""Exported models: in an empty folder they compute, from raw frames, what the pipeline computed from its stores."""

import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import yaml
import zarr
from huggingface_hub import hub_mixin
from safetensors.torch import load_file, save_file

from oclam import paths
from oclam.agent.store import write_selection
from oclam.artifacts import open_zarr, save_tensors, write_csv, write_json
from oclam.datasets import Frames, FrameStacks, open_dataset
from oclam.encoders.files import load_encoder, save_encoder
from oclam.encoders.frozen import FrozenEncoder
from oclam.errors import UserError
from oclam.export import hub, models
from oclam.export.models import HubEncoder, HubLatentActionModel, HubSlotModel
from oclam.export.pipeline import export_model
from oclam.export.policies import HubPolicy
from oclam.laom.models import LaomModel, SlotLaomModel
from oclam.latent_actions.models import ImageLatentActionModel, SlotLatentActionModel
from oclam.latent_actions.observations import FrameObservations, SlotObservations
from oclam.latent_actions.training import open_frames
from oclam.params import read
from oclam.policies.files import Agent, Card, save_actor, save_policy
from oclam.policies.networks import Policy
from oclam.slots.extraction import extract_slots
from oclam.slots.models import make_model, make_observer
from oclam.training import autocast
from oclam.variants import VARIANTS
from tests import ROOT
from tests.stages.tiny import TINY

TASK, EPISODES, STEPS, SIZE, STACK = "cheetah-run", 3, 12, 32, 3
CPU = torch.device("cpu")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Makes a project with one committed file, parameters, random frames and, beside `chosen` slots, their stores."""
    def make(registered=True, masks="refined", vectors="components", window=None, model="videosaur"):
        content = yaml.safe_load((ROOT / "params.yaml").read_text())
        for section, values in TINY.items():
            content[section] = content[section] | values if isinstance(values, dict) else values
        content["ocp"] |= {"window": window, "model": model, "masks": "attention"}
        content["slot_select"] |= {"registered": registered, "masks": masks}
        (folder := tmp_path / "project").mkdir()
        monkeypatch.chdir(folder)
        (folder / "params.yaml").write_text(yaml.safe_dump(content))
        subprocess.run("git init -q . && git add params.yaml && git -c user.name=x -c user.email=x@y commit -qm x",
                       shell=True, check=True)
        write_dataset()
        write_slots(read(), vectors)
        return folder

    yield make


def write_dataset():
    group = zarr.open_group(paths.dataset(TASK, "distracted"), mode="w")
    rng = np.random.default_rng(0)
    blobs = np.kron(rng.integers(0, 256, (EPISODES, STEPS, 4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    for name, value in {"pixels": blobs, "actions": rng.uniform(-1, 1, (EPISODES, STEPS, 6)).astype(np.float32),
                        "states": rng.normal(size=(EPISODES, STEPS, 17)).astype(np.float32),
                        "rewards": rng.random((EPISODES, STEPS)).astype(np.float32)}.items():
        group.create_array(name, data=value)
    group.attrs.update(task=TASK, view="distracted", episodes=2, test_episodes=1)


def write_slots(params, vectors):
    """An encoder and an object-centric model with random weights, all slots, and the selection of two of them."""
    torch.manual_seed(0)
    kwargs = {"img_size": SIZE, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 2}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **kwargs)
    save_encoder(paths.encoder, FrozenEncoder(vit, name="vit_tiny_patch16_224", kwargs=kwargs, image_size=SIZE,
                                              mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3], source="random"))
    dataset, observe = open_dataset(paths.dataset(TASK, "distracted")), make_observer(params.ocp, paths.encoder, CPU)
    model = make_model(params.ocp, params.steve, observe, SIZE)
    for weight in model.parameters():
        weight.data *= 2  # so that masks differ from slot to slot and patch to patch
    model.slots.attention.gru.bias_hh.data.zero_()  # else slots stay where they start, which is anywhere
    save_tensors(paths.ocp(TASK, 0, 1), model.state_dict(), **params.ocp.model_dump(), restart=1)
    extract_slots(model, observe, dataset.pixels, paths.slots(TASK, 0), paths.DATA / "unfinished",
                  slots=params.ocp.slots, slot_dim=params.ocp.slot_dim, window=params.ocp.window,
                  forward=partial(autocast, CPU, "float32"), attrs={"restart": 1, "vectors": vectors})
    write_selection(paths.selection(TASK, 0), paths.DATA / "unfinished", open_zarr(paths.slots(TASK, 0)), [0, 2],
                    params.slot_select, dataset)
    write_json(paths.slot_table(TASK, 0), {"mask": {"vector_mse": 0.25}})


@pytest.mark.parametrize("kind, options", [
    (SlotLatentActionModel, {}), (SlotLaomModel, {"model": "steve"}),
    (SlotLatentActionModel, {"registered": False, "masks": "soft", "vectors": "attention", "window": 4}),
    (SlotLatentActionModel, {"model": "slotcontrast", "window": 4})])
def test_exported_slots_and_latent_actions_are_the_pipelines(project, tmp_path, monkeypatch, kind, options):
    project(**options)
    dataset, selection = open_dataset(paths.dataset(TASK, "distracted")), open_zarr(paths.selection(TASK, 0))
    observe = SlotObservations.load(selection["slots"], dataset.episodes, CPU)
    slots = kind(selection["slots"].shape[2], 4, 8, 1)
    save_tensors(paths.lapo(TASK, 0, "lapo-slots"), slots.state_dict(), task=TASK, seed=0, variant="lapo-slots",
                 sizes=slots.sizes)
    edited = read().model_dump()
    edited["slot_select"] |= {"masks": "soft" if edited["slot_select"]["masks"] == "refined" else "refined",
                              "registered": not edited["slot_select"]["registered"]}
    Path("params.yaml").write_text(yaml.dump(edited))  # after the selection was made
    export_model(paths.ocp(TASK, 0, 1), tmp_path / "ocp")
    export_model(paths.lapo(TASK, 0, "lapo-slots"), tmp_path / "lapo")
    stored = {name: selection[name][2] for name in ("mask", "frames", "slots")}
    masks, pixels = open_zarr(paths.slots(TASK, 0))["masks"][2], torch.from_numpy(dataset.pixels[2])
    time = torch.arange(2 * STEPS, 3 * STEPS)
    expected = slots.idm(observe(time[:-1]), observe(time[1:]))
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(tmp_path / "project")
    model, lapo = HubSlotModel.from_pretrained("ocp"), HubLatentActionModel.from_pretrained("lapo")
    found = model(pixels)[1].numpy()
    assert np.sort(np.bincount(found.argmax(1).ravel()))[-2] > 0.2 * found[:, 0].size  # no slot holds nearly all
    assert (np.abs(found.astype(int) - masks) > 1).mean() < 0.01  # batches of another size round otherwise
    assert 0.1 < stored["mask"].mean() / 255 < 0.97
    for ours, theirs in zip(model.agent(pixels), (stored["mask"], stored["frames"]), strict=True):
        assert (np.abs(ours.numpy().astype(int) - theirs) > 2).mean() < 0.02  # a patch may change its slot by that
    assert expected.std() > 0.1  # latents differ
    seen = torch.from_numpy(stored["frames" if "vectors" not in options else "slots"])
    torch.testing.assert_close(lapo.latents(seen), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind, variant", [(ImageLatentActionModel, "lapo"), (LaomModel, "laom")])
def test_latent_actions_of_frames_are_the_pipelines(project, tmp_path, monkeypatch, kind, variant):
    project()
    monkeypatch.setattr(models, "BATCH", 5)  # of 11 pairs
    more = {"hidden_dim": 8, "expansion": 1} if kind is LaomModel else {}
    network = kind(3 * STACK, SIZE, latent_dim=4, scale=1, residual_blocks=1, **more)
    dataset = open_dataset(paths.dataset(TASK, "distracted"))
    save_tensors(paths.lapo(TASK, 0, variant), network.state_dict(), task=TASK, seed=0, variant=variant,
                 sizes=network.sizes)
    write_json(paths.probe(TASK, 0, variant), {"ridge_mse": 0.1234})
    export_model(paths.lapo(TASK, 0, variant), tmp_path / "out")
    observe = FrameObservations(FrameStacks(Frames.load(dataset.pixels, range(3), CPU), stack=STACK, steps=STEPS))
    time = torch.arange(STEPS, 2 * STEPS)
    expected = network.idm(observe(time[:-1]), observe(time[1:]))
    found = HubLatentActionModel.from_pretrained(tmp_path / "out").latents(torch.from_numpy(dataset.pixels[1]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert "| probe error, held out | 0.123 |" in (tmp_path / "out/README.md").read_text(encoding="utf-8")


def test_an_observation_that_only_the_pipeline_makes_is_not_exported(project, tmp_path, monkeypatch):
    project()
    network = ImageLatentActionModel(3 * STACK, SIZE, latent_dim=4, scale=1, residual_blocks=1)
    monkeypatch.setitem(VARIANTS, "lapo", replace(VARIANTS["lapo"], observes="blurred frames"))
    save_tensors(paths.lapo(TASK, 0, "lapo"), network.state_dict(), task=TASK, seed=0, variant="lapo",
                 sizes=network.sizes)
    with pytest.raises(UserError, match="lapo: an exported model cannot make blurred frames from frames"):
        export_model(paths.lapo(TASK, 0, "lapo"), tmp_path / "out")
    with pytest.raises(UserError, match="lapo: observes blurred frames"):
        open_frames(TASK, 0, "lapo", STACK, CPU)


def test_an_encoder_keeps_its_pixels_mean_and_deviation(project, tmp_path):
    project()
    frames = torch.from_numpy(open_dataset(paths.dataset(TASK, "distracted")).pixels[0])
    export_model(paths.encoder, tmp_path / "out")
    loaded, expected = HubEncoder.from_pretrained(tmp_path / "out"), load_encoder(paths.encoder)
    for ours, theirs in zip(loaded(frames), expected(frames), strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    black = expected.pixels(torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8))[0, :, 0, 0]
    torch.testing.assert_close(black, -torch.tensor([0.4, 0.5, 0.6]) / torch.tensor([0.2, 0.25, 0.3]))


@pytest.fixture
def policies(project):
    """A project with policies of 2 and 8 labels, the actor frozen, whose actions are rescaled; the one of 8 labels."""
    project()
    folder = paths.policies(TASK, 0, "lapo")
    card = Card(TASK, "distracted", "lapo", 0, image_size=SIZE, frame_stack=STACK, encoder_scale=1, residual_blocks=1,
                latent_dim=4)
    torch.manual_seed(1)
    save_actor(folder / "actor.safetensors", actor := card.actor(), card)
    for budget in (2, 8):
        full = Card(**vars(card) | {"hidden_dim": 4, "action_dim": 6, "budget": budget})
        policy = Policy(actor, full.decoder())
        policy.rescale(torch.zeros(6), torch.linspace(0.5, 2, 6))
        save_policy(folder, policy, full, frozen=True)
    write_csv(paths.evaluation(TASK, 0, "lapo"), [
        {"backgrounds": backgrounds, "budget": budget, "episode": episode, "return": value}
        for backgrounds, budget, values in (("train", 8, (20.0, 22.0)), ("test", 2, (1.0, 1.0)),
                                            ("test", 8, (10.0, 14.0))) for episode, value in enumerate(values)])
    return policy


def test_a_policy_acts_the_same_without_the_repository_and_its_card_says_how(policies, tmp_path, monkeypatch):
    frames = open_dataset(paths.dataset(TASK, "distracted")).pixels[0]
    export_model(paths.policies(TASK, 0, "lapo"), tmp_path / "out")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.chdir(tmp_path / "out")
    shutil.rmtree(tmp_path / "project")
    text, names = (tmp_path / "out/README.md").read_text(encoding="utf-8"), {}
    exec(text.split("```python\n")[1].split("```")[0], names)  # the card's own example
    assert names["frame"].shape == (SIZE, SIZE, 3) and np.isfinite(names["reward"])
    policy = HubPolicy.from_pretrained(tmp_path / "out")
    assert policy.card.budget == 8  # the largest
    agents = [Agent(one, STACK) for one in (policy, policies)]
    for frame in frames[:4]:
        np.testing.assert_array_equal(*(agent.act(frame[None]) for agent in agents))
    for words in ("license: apache-2.0", "# Policy of lapo on cheetah-run", "| scale | tiny |", "| seed | 0 |",
                  "generated background videos, camera (0.1), colours (0.1)", f"| commit | {commit} |",
                  "| true actions | 8 trajectories |",
                  "| return, train backgrounds | 21.0 ± 1.0 (standard error, 2 episodes) |",
                  "| return, test backgrounds | 12.0 ± 2.0 (standard error, 2 episodes) |", "Apache 2.0."):
        assert words in text


def test_loading_needs_no_simulator():
    program = "import sys, oclam.export.models, oclam.export.policies; "
    program += "assert not {'mujoco', 'dm_control'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_policy_is_pushed_to_the_hub_with_its_card_and_comes_back(policies, tmp_path, monkeypatch):
    pushed = {}

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, folder_path, **_):
            pushed.update({path.name: path.read_bytes() for path in folder_path.iterdir()})

    export_model(paths.policies(TASK, 0, "lapo"), tmp_path / "out", budget=2)
    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    HubPolicy.from_pretrained(tmp_path / "out").push_to_hub("someone/policy")
    assert pushed == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(pushed) == {"README.md", "config.json", "model.safetensors"}
    monkeypatch.setattr(hub, "hf_hub_download", lambda name, file, **_: f"{tmp_path}/out/{file}")
    monkeypatch.setattr(hub_mixin, "hf_hub_download", lambda filename, **_: f"{tmp_path}/out/{filename}")
    assert HubPolicy.from_pretrained("someone/policy").card.budget == 2


def spoil(folder, change):
    """Write other weights, by name, without the checksum that would tell."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("damage, message", [
    (lambda folder: spoil(folder, lambda tensors: tensors.pop("actor.head.bias")), "does not fit .*actor.head.bias"),
    (lambda folder: spoil(folder, lambda tensors: tensors.update(more=torch.zeros(1))), "does not fit .*more"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "damaged .*export it again"),
    (lambda folder: (folder / "model.safetensors").unlink(), "no such file; export it again"),
    (lambda folder: (folder / "config.json").unlink(), "missing, or not written by `python -m oclam.export`"),
    (lambda folder: (folder / "config.json").write_text('{"kind": "Hub'), "config.json: damaged .*export it again"),
    (lambda folder: (folder / "config.json").write_text("[1]"), "config.json: not written by `python -m oclam.export`"),
    (lambda folder: (folder / "config.json").write_text('{"kind": "HubEncoder"}'), "HubEncoder; load it with HubEnc"),
    (lambda folder: (folder / "config.json").write_text('{"kind": "HubPolicy", "card": {"x": 1}, "origin": {}}'),
     "does not fit"),
])
def test_what_does_not_fit_is_one_line(tmp_path, damage, message):
    card = Card(TASK, "clean", "bc", 0, image_size=8, frame_stack=1, encoder_scale=1, residual_blocks=0,
                latent_dim=None, action_dim=2, budget=0)
    origin = {"trained": [], "figures": [], "licence": "", "version": ""}
    HubPolicy(card=vars(card), origin=origin).save_pretrained(tmp_path)
    HubPolicy.from_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        HubPolicy.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_a_policy_of_other_frames_than_its_card_would_say_is_not_exported(policies, tmp_path):
    content = read().model_dump()
    content["env"]["image_size"] = 2 * SIZE
    Path("params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=f"image_size {SIZE}.*{2 * SIZE}"):
        export_model(paths.policies(TASK, 0, "lapo"), tmp_path / "out")


def test_a_policy_of_other_distractors_than_its_card_would_say_is_not_exported(policies, tmp_path):
    dataset, env = zarr.open_group(paths.dataset(TASK, "distracted"), mode="r+"), read().env.model_dump()
    dataset.attrs["env"] = env | {"camera_scale": 0.3}
    with pytest.raises(UserError, match="^params.yaml: env is not what data/.*distracted.zarr was collected with"):
        export_model(paths.policies(TASK, 0, "lapo"), tmp_path / "out")
    dataset.attrs["env"] = env
    export_model(paths.policies(TASK, 0, "lapo"), tmp_path / "out")


def test_what_cannot_be_exported_is_one_line(policies, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no policy of budget 4"):
        export_model(paths.policies(TASK, 0, "lapo"), tmp_path / "out", budget=4)
    save_tensors(paths.ocp(TASK, 0, 0), {}, **read().ocp.model_dump(), restart=0)
    with pytest.raises(UserError, match="not the restart that the pipeline kept; export data/.*/ocp/1.safetensors"):
        export_model(paths.ocp(TASK, 0, 0), tmp_path / "out")
    with pytest.raises(UserError, match="not what oclam exports"):
        save_tensors(tmp_path / "x.safetensors", {})
        export_model(tmp_path / "x.safetensors", tmp_path / "out")
    with pytest.raises(UserError, match="already there"):
        export_model(paths.policies(TASK, 0, "lapo"), tmp_path)
    source = paths.policies(TASK, 0, "lapo").absolute()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="params.yaml: no such parameter file; run in a clone of oclam's repository"):
        export_model(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()

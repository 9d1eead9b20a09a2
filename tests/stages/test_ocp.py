"""Stages ocp, slot-select, steve and slotcontrast on a tiny dataset in which one moving square obeys the actions."""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
import zarr

from oclam import paths
from oclam.agent.refinement import refine
from oclam.artifacts import load_tensors, open_zarr, read_csv, read_json
from oclam.datasets import open_dataset
from oclam.encoders.files import save_encoder
from oclam.encoders.frozen import FrozenEncoder
from oclam.graph import Stage
from oclam.slots.registration import mask_moments, poses, register
from tests import ROOT
from tests.stages import tiny

EPISODES, STEPS, SIZE = 6, 24, 32


def square_moves(rng):
    """A red square on noise that moves by the action; pixels, actions, segmentation."""
    actions = rng.uniform(-1, 1, (EPISODES, STEPS, 2)).astype(np.float32)
    pixels = rng.integers(100, size=(EPISODES, STEPS, SIZE, SIZE, 3), dtype=np.uint8)
    agent = np.zeros((EPISODES, STEPS, SIZE, SIZE), np.uint8)
    for e in range(EPISODES):
        place = np.array([12.0, 12.0])
        for t in range(STEPS):
            row, column = place.astype(int)
            agent[e, t, row:row + 8, column:column + 8] = 1
            place = np.clip(place + 4 * actions[e, t], 0, SIZE - 8)
    pixels[agent == 1] = [255, 0, 0]
    return pixels, actions, agent


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["ocp"] |= {"slots": 3, "slot_dim": 8, "feature_hidden": 16, "decoder_hidden": 16, "decoder_layers": 1,
                      "kept_clips": 16, "decoded_patches": 16, "batch_size": 4,
                      "steps": 6, "warmup_steps": 1, "decay_steps": 6}
    params["restarts"] = [0, 1]
    params["steve"] |= {"feature_hidden": 8, "decoder_hidden": 8, "decoder_layers": 1, "batch_size": 2, "steps": 4}
    params["slot_select"] |= {"labelled_episodes": 3, "max_slots": 2}
    params["extras"] = dict.fromkeys(params["extras"], True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    pixels, actions, agent = square_moves(np.random.default_rng(0))
    path = folder / paths.dataset("cheetah-run", "distracted")
    group = zarr.open_group(path, mode="w", attributes={
        "task": "cheetah-run", "view": "distracted", "episodes": 4, "test_episodes": 2, "segmented_episodes": 1})
    for name, value in {"pixels": pixels, "actions": actions, "states": actions, "rewards": actions[..., 0],
                        "segmentation": agent[4:5]}.items():
        group.create_array(name, data=value)
    torch.manual_seed(0)
    kwargs = {"img_size": SIZE, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **kwargs)
    encoder = FrozenEncoder(vit, name="vit_tiny_patch16_224", kwargs=kwargs, image_size=SIZE, mean=[0.5] * 3,
                            std=[0.5] * 3, source="random")
    save_encoder(folder / paths.encoder, encoder)
    return folder


def run(project, stage, *words):
    command = [sys.executable, "-m", f"stages.{stage}", "cheetah-run", "0", *words]
    return subprocess.run(command, cwd=project, text=True,
                          capture_output=True, check=True, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


def content(path):
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [hashlib.sha256(p.read_bytes()).hexdigest() for p in files]


def test_selected_are_the_agents_slot_and_pixels(project, monkeypatch):
    monkeypatch.chdir(project)
    _, actions, agent = square_moves(np.random.default_rng(0))
    labels = 2 * agent.reshape(EPISODES, STEPS, 4, 8, 4, 8).max((3, 5))  # slot 2 has what the square touches
    labels[..., :2][labels[..., :2] == 0] = 1  # and slots 1 and 0 the rest, to the left and to the right
    masks = 255 * (labels[:, :, None] == np.arange(3)[:, None, None]).astype(np.uint8)
    vectors = np.arange(EPISODES * STEPS * 3 * 8, dtype=np.float16).reshape(EPISODES, STEPS, 3, 8)
    slots = zarr.open_group(paths.slots("cheetah-run", 0), mode="w", attributes={
        "model": "videosaur", "restart": 0, "restart_errors": []})
    for name, value in {"slots": vectors, "masks": masks}.items():
        slots.create_array(name, data=value)
    run(project, "slot_select")
    selection, table = open_zarr(paths.selection("cheetah-run", 0)), read_json(paths.slot_table("cheetah-run", 0))
    assert table["chosen"] == [2] and table["segmentation_choice"] == 2 and table["better_than_whole_frame"]
    assert table["labels"] == 3
    np.testing.assert_array_equal(selection["slots"][:], vectors[:, :, 2])
    np.testing.assert_array_equal(selection["mask"][:], 255 * agent)
    measured = torch.stack([mask_moments(torch.from_numpy(episode)) for episode in agent])
    clip = torch.from_numpy(255.0 * agent[5]).float()[:, None] * torch.tensor([1, 0, 0]).view(3, 1, 1)  # it is red
    upright = register(clip, poses(measured[5], measured[:4].mean((0, 1))))  # against the mean over what is trained on
    np.testing.assert_array_equal(selection["frames"][5], upright.round().byte().movedim(1, -1))
    vector = table["chosen_probe"]["vector_mse"]
    assert table["mask"] == {"agent_iou": 1, "agent_recall": 1, "area": pytest.approx(64 / SIZE**2),
                             "vector_mse": pytest.approx(vector)}


def test_slotcontrast_runs_through_all_its_stages(project, tmp_path, monkeypatch):
    shutil.copytree(project, tmp_path / "copy", ignore=shutil.ignore_patterns("slots*", "selection*", "ocp"))
    monkeypatch.chdir(tmp_path / "copy")
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["ocp"]["model"], params["restarts"], params["slotcontrast"]["steps"] = "slotcontrast", [0], 5
    Path("params.yaml").write_text(yaml.safe_dump(params))
    for stage in ("ocp", "slots", "slot_select", "slotcontrast"):
        words = "cheetah-run 0" + " 0" * (stage == "ocp")
        tiny.run(Stage(stage, f"python -m stages.{stage} {words}", [], [], []))

    weights = paths.ocp("cheetah-run", 0, 0)
    tensors, about = load_tensors(weights)
    assert about["model"] == "slotcontrast" and "slots.init.log_std" not in tensors
    assert tensors["decoder.renderer.2.weight"].shape == (17, 16)  # the encoder's 16 features and a mask
    counts = read_json(paths.parameters(weights))
    assert counts["trainable"] == sum(tensor.numel() for tensor in tensors.values()) < counts["total"]
    for row in read_csv(paths.log(weights)):
        assert row["loss"] == pytest.approx(row["reconstruction"] + 0.5 * row["contrast"])
    slots, table = open_zarr(paths.slots("cheetah-run", 0)), read_json(paths.slot_table("cheetah-run", 0))
    assert slots.attrs["model"] == table["model"] == "slotcontrast"
    assert abs(slots["masks"][:].astype(int).sum(2) - 255).max() <= 2

    shown, beside = load_tensors(paths.compared("cheetah-run", 0, "slotcontrast"))
    preview, chosen = load_tensors(paths.slot_preview("cheetah-run", 0))
    assert (beside["episodes"], beside["steps"]) == (chosen["episodes"], chosen["steps"])  # the same moments
    assert shown["masks"].shape == preview["masks"].shape == (6, 3, 4, 4)
    assert beside["model"] == "SlotContrast" and 0 <= beside["fg_ari"] <= 1 and len(beside["slots"]) == 3
    assert [row["step"] for row in beside["log"]] == list(range(1, 6))


def test_ocp_and_slot_select_end_to_end(project, monkeypatch):
    monkeypatch.chdir(project)
    weights = [paths.ocp("cheetah-run", 0, restart) for restart in range(2)]
    outs = [path for file in weights for path in (file, paths.log(file), paths.parameters(file))]

    def train():
        for restart in "01":
            run(project, "ocp", restart)
        return run(project, "slots").stderr, [content(out) for out in (*outs, paths.slots("cheetah-run", 0))]

    said, first = train()
    assert train()[1] == first and [path.name for path in (project / ".resume").iterdir()] == ["locks"]

    tensors, about = load_tensors(weights[1])
    assert about["restart"] == 1 and about["slots"] == 3 and tensors["slots.init.mean"].shape == (3, 8)
    assert not torch.equal(tensors["slots.init.mean"], load_tensors(weights[0])[0]["slots.init.mean"])
    assert [row["step"] for row in read_csv(outs[1])] == list(range(1, 7))
    trainable = sum(tensor.numel() for tensor in tensors.values())
    assert read_json(outs[2])["trainable"] == trainable < read_json(outs[2])["total"]
    slots = open_zarr(paths.slots("cheetah-run", 0))
    errors = slots.attrs["restart_errors"]
    assert slots.attrs["restart"] == np.argmin(errors) and len(errors) == 2
    assert re.search(r"by restart: ([\d.]+, [\d.]+);", said)[1] == ", ".join(f"{error:.3f}" for error in errors)
    assert slots["slots"].shape == (EPISODES, STEPS, 3, 8) and slots["masks"].shape == (EPISODES, STEPS, 3, 4, 4)
    assert abs(slots["masks"][:].astype(int).sum(2) - 255).max() <= 2

    done = run(project, "slot_select")
    table, selection = read_json(paths.slot_table("cheetah-run", 0)), open_zarr(paths.selection("cheetah-run", 0))
    assert ("WARNING" in done.stderr) != table["better_than_whole_frame"]
    chosen = table["chosen"]
    masks, mean, basis = slots["masks"][:], selection["mean"][:], selection["basis"][:]
    seen = selection["frames"][:].transpose(0, 1, 4, 2, 3).reshape(EPISODES, STEPS, -1) / 255  # 32 x 32, as the view is
    np.testing.assert_allclose(selection["slots"][:], (seen - mean) @ basis, atol=5e-3)
    np.testing.assert_allclose(mean, seen[:4].mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-5)
    frames = open_zarr(paths.dataset("cheetah-run", "distracted"))["pixels"][1]
    assert selection["mask"].shape == (EPISODES, STEPS, SIZE, SIZE)
    np.testing.assert_array_equal(selection["mask"][1], 255 * refine(np.isin(masks[1].argmax(1), chosen), frames))
    assert [row["slot"] for row in table["slots"]] == [0, 1, 2]
    preview, about = load_tensors(paths.slot_preview("cheetah-run", 0))
    assert preview["frames"].shape == (6, SIZE, SIZE, 3) and preview["masks"].shape == (6, 3, 4, 4)
    assert about["chosen"] == chosen and set(about["episodes"]) == {4}
    inside, agent = selection["mask"][4] == 255, square_moves(np.random.default_rng(0))[2][4] == 1
    assert table["mask"]["agent_recall"] == pytest.approx((inside & agent).sum((1, 2)).mean() / 64)
    assert [torch.equal(shown, torch.from_numpy(selection["mask"][4, t])) for shown, t in
            zip(preview["selected"], about["steps"], strict=True)] == [True] * 6
    assert [torch.equal(shown, torch.from_numpy(selection["frames"][4, t])) for shown, t in
            zip(preview["seen"], about["steps"], strict=True)] == [True] * 6
    run(project, "steve")
    compared, steve = load_tensors(paths.compared("cheetah-run", 0, "steve"))
    assert (steve["episodes"], steve["steps"]) == (about["episodes"], about["steps"])
    assert compared["masks"].shape == (6, 3, SIZE // 4, SIZE // 4)
    assert abs(compared["masks"].int().sum(1) - 255).max() <= 2
    assert len(steve["slots"]) == 3 and steve["best"] == np.argmax([row["agent_iou"] for row in steve["slots"]])
    assert [row["step"] for row in steve["log"]] == list(range(1, 5))

    params = (project / "params.yaml").read_text()
    params = params.replace("masks: refined", "masks: soft").replace("registered: true", "registered: false")
    (project / "params.yaml").write_text(params)
    run(project, "slot_select")
    selection, pixels = open_zarr(paths.selection("cheetah-run", 0)), square_moves(np.random.default_rng(0))[0]
    soft = selection["mask"][:]
    np.testing.assert_allclose(selection["frames"][:], pixels * (soft / 255)[..., None], rtol=0, atol=0.501)
    np.testing.assert_allclose(soft.mean((2, 3)), masks[:, :, chosen].sum(2, dtype=int).mean((2, 3)), atol=1)
    expected = content(paths.selection("cheetah-run", 0)), table["why"], preview["masks"][0]
    group = zarr.open_group(paths.dataset("cheetah-run", "distracted"), mode="r+")
    del group["segmentation"], group.attrs["segmented_episodes"]
    unlabelled, = set(range(4)) - set(open_dataset(paths.dataset("cheetah-run", "distracted")).labelled(3, 0, "a.b"))
    group["actions"][unlabelled] = -group["actions"][unlabelled]  # nothing but labelled actions may choose
    run(project, "slots")
    assert content(paths.slots("cheetah-run", 0)) == first[-1]
    run(project, "slot_select")
    table = read_json(paths.slot_table("cheetah-run", 0))
    preview, about = load_tensors(paths.slot_preview("cheetah-run", 0))
    assert (content(paths.selection("cheetah-run", 0)), table["why"]) == expected[:2]
    assert torch.equal(preview["masks"][0], expected[2]) and set(about["episodes"]) == {4, 5}
    assert "agent_iou" not in table and table["mask"].keys() == {"vector_mse"}
    assert table["slots"][0].keys() == {"slot", "probe_mse", "probe_r2", "vector_mse"}
    assert "segmentation" not in preview
    run(project, "steve")
    _, steve = load_tensors(paths.compared("cheetah-run", 0, "steve"))
    assert (steve["episodes"], steve["steps"], steve["slots"]) == (about["episodes"], about["steps"], [])

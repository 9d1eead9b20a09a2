from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch.nn import functional as F

from oclam import envs, paths
from oclam.agent.measures import agent_patches
from oclam.artifacts import load_tensors, save_tensors
from oclam.encoders.distill import new_student
from oclam.encoders.files import HUB_TIMEOUT, load_encoder, make_encoder, save_encoder
from oclam.errors import UserError
from tests.encoders.small import NAME, frames, small

TEACHER = Path("../shared/assets/encoders/vit_small_patch14_dinov2.lvd142m.fp16.safetensors")


def test_saved_and_loaded_it_is_the_same(tmp_path):
    encoder = small(reg_tokens=2)
    save_encoder(tmp_path / "encoder.safetensors", encoder)
    again = load_encoder(tmp_path / "encoder.safetensors")
    assert again.about == encoder.about
    for left, right in zip(again(frames()), encoder(frames()), strict=True):
        assert torch.equal(left, right)
    assert load_tensors(tmp_path / "encoder.safetensors")[1]["patch_size"] == 8


@pytest.mark.parametrize("changes", [{"name": "vit_small"}, {"nbme": 1}, {"mean": "x"}, {"kwargs": {"num_heads": 7}},
                                     {"kwargs": {"depth": 1}}, {"kwargs": {"depht": 2}}])
def test_a_description_that_does_not_fit_is_one_line(tmp_path, changes):
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, small())
    tensors, about = load_tensors(path)
    save_tensors(path, tensors, **{key: value | changes[key] if isinstance(value, dict) and key in changes
                                   else changes.get(key, value) for key, value in (about | changes).items()})
    with pytest.raises(UserError, match=f"{path}: its description does not .*; delete {path} and run `dvc repro`"):
        load_encoder(path)


def test_a_file_with_timm_s_names_and_the_encoder_s_own(tmp_path):
    vit = timm.create_model(NAME)
    save_file(vit.state_dict(), tmp_path / "timm.safetensors")
    encoder = make_encoder(tmp_path / "timm.safetensors", NAME)
    assert (encoder.grid, encoder.about["source"]) == (14, "timm.safetensors")
    assert torch.equal(encoder.vit.blocks[3].attn.qkv.weight, vit.blocks[3].attn.qkv.weight)
    save_encoder(tmp_path / "own.safetensors", encoder.resize(32))
    assert make_encoder(tmp_path / "own.safetensors", "ignored").about == encoder.about


@pytest.mark.parametrize("name", ["patch_embed.proj.bias", "pos_embed", "cls_token", "blocks.11.norm2.bias"])
def test_a_tensor_that_is_missing_is_not_left_random(tmp_path, name):
    weights = timm.create_model(NAME).state_dict()
    del weights[name]
    save_file(weights, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=f"^encoder.source: .*part.safetensors does not fit .*{name} is missing"):
        make_encoder(tmp_path / "part.safetensors", NAME)


def test_a_transformer_that_has_no_keys_to_read_is_refused_before_its_weights_come():
    for name in ("beit_base_patch16_224", "xcit_nano_12_p16_224", "hiera_tiny_224", "samvit_base_patch16"):
        with pytest.raises(UserError, match=f"^encoder.name: '{name}' given, allowed are timm's vision transformers"):
            make_encoder("hub", name)
    with pytest.raises(UserError, match="^encoder.teacher: 'resnet18' given"):
        make_encoder("hub", "resnet18", "encoder.teacher_weights")
    with pytest.raises(UserError, match="^encoder.teacher: 'vit_base_patch32_plus_256' given, the hub has no weights"):
        make_encoder("hub", "vit_base_patch32_plus_256", "encoder.teacher_weights")


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_had_is_one_line(tmp_path):
    with pytest.raises(UserError, match="^encoder.source: 'absent' given") as error:
        make_encoder("absent", NAME)
    one_line(error)
    with pytest.raises(UserError, match="^encoder.name: 'vit_nothing' given"):
        make_encoder("hub", "vit_nothing")
    with pytest.raises(UserError, match="^encoder.name: 'resnet18' given"):
        make_encoder("hub", "resnet18")
    with pytest.raises(UserError, match="^encoder.image_size: 30 given"):
        small().resize(30)
    weights = timm.create_model(NAME, depth=1).state_dict()
    save_file(weights, tmp_path / "shallow.safetensors")
    with pytest.raises(UserError, match=f"^encoder.source: .*shallow.safetensors does not fit .* {NAME}") as error:
        make_encoder(tmp_path / "shallow.safetensors", NAME)
    one_line(error)
    with pytest.raises(UserError, match="shallow.safetensors: does not say which encoder it has; delete"):
        load_encoder(tmp_path / "shallow.safetensors")


def test_a_hub_out_of_reach_is_one_line_without_its_many_attempts(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("oclam.encoders.files.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("oclam.encoders.files.hf_hub_download", lambda *_: pytest.fail("it is asked all the same"))
    message = "^encoder.source: .*; put model.safetensors of the repository .*vit_tiny.* in data/encoders"
    with pytest.raises(UserError, match=message) as error:
        make_encoder("hub", "vit_tiny_patch16_224.augreg_in21k")
    one_line(error)
    assert HUB_TIMEOUT < 8  # seconds, for one that does not even refuse


def test_the_embedded_encoder():
    assert paths.embedded_encoder.stat().st_size < 6e6
    tensors, _ = load_tensors(paths.embedded_encoder)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    encoder = load_encoder(paths.embedded_encoder)
    features, keys = encoder(frames(2, 64))
    assert features.shape == keys.shape == (2, 256, encoder.dim) and encoder.grid == 16
    assert torch.isfinite(features).all() and torch.isfinite(keys).all()


def test_the_embedded_encoder_follows_the_agent_better_than_random_weights():
    env, rng = envs.make("cheetah-run", "distracted", envs.DEFAULT), np.random.default_rng(0)
    scores = {"learned": [], "random": []}
    encoders = {"learned": load_encoder(paths.embedded_encoder), "random": new_student(64)}
    for episode in range(3):
        images, agents = [], []
        pixels, info = env.reset(seed=episode, options={"segmentation": True})
        for _ in range(2):
            images.append(pixels)
            agents.append(agent_patches(info["segmentation"][None], 16).ravel())
            for _ in range(8):
                pixels, _, _, _, info = env.step(rng.uniform(-1, 1, 6))
        for name, encoder in encoders.items():
            old, new = F.normalize(encoder(torch.from_numpy(np.stack(images)))[0], dim=-1)
            found = agents[0][(new @ old.T).argmax(1).numpy()]  # every patch gets the label of the nearest patch before
            scores[name].append((found & agents[1]).sum() / (found | agents[1]).sum())
    env.close()
    assert np.mean(scores["learned"]) > 0.7 and np.mean(scores["random"]) < np.mean(scores["learned"]) - 0.1


def test_a_hub_that_refuses_is_one_line(monkeypatch):
    def refuses(*_):
        raise LocalEntryNotFoundError("nothing\nhere")

    monkeypatch.setattr("oclam.encoders.files.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("oclam.encoders.files._check_hub", lambda *_: None)
    monkeypatch.setattr("oclam.encoders.files.hf_hub_download", refuses)
    message = "^encoder.source: .* cannot be downloaded .nothing here.; put .* and set encoder.source to its path$"
    with pytest.raises(UserError, match=message) as error:
        make_encoder("hub", "vit_tiny_patch16_224.augreg_in21k")
    one_line(error)
    with pytest.raises(UserError, match="^encoder.name: 'vit_base_patch8_224.dinoo' given"):
        make_encoder("hub", "vit_base_patch8_224.dinoo")


@pytest.mark.skipif(not TEACHER.exists(), reason="DINOv2's weights are not beside the project")
def test_dinov2_from_a_local_file():
    encoder = make_encoder(TEACHER, "vit_small_patch14_dinov2.lvd142m").resize(56)
    features, _ = encoder(frames(1, 64))
    reference = timm.create_model("vit_small_patch14_dinov2.lvd142m", pretrained=True, num_classes=0, img_size=56,
                                  dynamic_img_size=True, pretrained_cfg_overlay={"file": str(TEACHER)}).eval()
    (expected,) = reference.forward_intermediates(encoder.pixels(frames(1, 64)), indices=1, output_fmt="NLC",
                                                  intermediates_only=True)
    torch.testing.assert_close(features, expected, atol=2e-3, rtol=0)  # timm resamples positions in float16


def test_an_encoder_of_timm_has_the_mean_and_deviation_that_it_was_trained_with(tmp_path):
    name = "deit_tiny_patch16_224"
    save_file(timm.create_model(name).state_dict(), tmp_path / "timm.safetensors")
    about = make_encoder(tmp_path / "timm.safetensors", name).about
    assert (about["mean"], about["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # of ImageNet


import pytest
import timm
import torch
from torch.nn import functional as F

from oclam.encoders.files import load_encoder, save_encoder
from oclam.encoders.frozen import FrozenEncoder
from tests.encoders.small import HALF, frames, small


def test_paper_size_of_the_base_encoder():
    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch8_224.dino", num_classes=0)
    encoder = FrozenEncoder(vit, name="", kwargs={}, image_size=224, source="", **HALF)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 85_806_336
    assert (encoder.dim, encoder.grid) == (768, 28)


@pytest.mark.parametrize("kwargs", [{}, {"reg_tokens": 4}, {"class_token": False, "global_pool": ""},
                                    {"dynamic_img_size": True}, {"qk_norm": True}, {"init_values": 0.1},
                                    {"reg_tokens": 2, "no_embed_class": True}], ids=str)
def test_features_and_keys_are_the_last_block_s(kwargs):
    encoder, images = small(**kwargs), frames()
    features, keys = encoder(images)
    assert features.shape == keys.shape == (3, encoder.grid**2, encoder.dim) == (3, 16, 24)

    vit, block = encoder.vit, encoder.vit.blocks[-1]
    tokens = []
    handle = block.register_forward_pre_hook(lambda module, inputs: tokens.append(inputs[0]))
    vit.forward_features((images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    handle.remove()
    weight, bias = block.attn.qkv.weight[24:48], block.attn.qkv.bias[24:48]
    expected = block.attn.k_norm((block.norm1(tokens[0]) @ weight.T + bias).unflatten(-1, (3, 8))).flatten(-2)
    torch.testing.assert_close(features, block(tokens[0])[:, vit.num_prefix_tokens:])
    torch.testing.assert_close(keys, expected[:, vit.num_prefix_tokens:])


def test_one_pass_a_frame():
    encoder, calls = small(), []
    for module in (encoder.vit.patch_embed, encoder.vit.blocks[-1].attn.qkv):
        module.register_forward_hook(lambda *_: calls.append(1))
    encoder(frames())
    assert len(calls) == 2


def test_patches_stand_row_by_row():
    encoder = small(class_token=False, global_pool="")
    for block in encoder.vit.blocks:
        torch.nn.init.zeros_(block.attn.proj.weight)  # nothing passes from patch to patch
    image = frames(1)
    changed = image.clone()
    changed[:, 8:16, 16:24] ^= 255  # second row, third column
    differs = (encoder(image)[0] != encoder(changed)[0]).any(-1)[0]
    assert differs.nonzero().flatten().tolist() == [1 * 4 + 2]


def test_frames_are_resized_inside():
    encoder = small()
    flat = torch.full((1, 20, 20, 3), 77, dtype=torch.uint8)
    torch.testing.assert_close(encoder(flat), encoder(torch.full((1, 32, 32, 3), 77, dtype=torch.uint8)))
    assert encoder.pixels(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match="float32"):
        encoder(torch.zeros(1, 32, 32, 3))


def test_stays_frozen():
    encoder = small(proj_drop_rate=0.5).train()
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    torch.testing.assert_close(encoder(frames()), encoder(frames()))
    assert not encoder(frames())[0].requires_grad


def test_another_image_size_keeps_what_is_not_position(tmp_path):
    encoder = small()
    before = {key: value.clone() for key, value in encoder.vit.state_dict().items()}
    encoder.resize(64)
    assert encoder.grid == 8 and encoder(frames(size=64))[0].shape == (3, 64, 24)
    after = encoder.vit.state_dict()
    assert after["pos_embed"].shape == (1, 65, 24)
    assert all(torch.equal(after[key], before[key]) for key in before if key != "pos_embed")
    save_encoder(tmp_path / "encoder.safetensors", encoder)
    torch.testing.assert_close(load_encoder(tmp_path / "encoder.safetensors")(frames()), encoder(frames()))


def test_larger_frames_are_shrunk_without_aliasing_and_smaller_ones_enlarged_without_a_filter():
    encoder, stripes = small(), torch.zeros(1, 96, 96, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 255  # finer than the pixels of a third of the size, where all are grey: 0 between -1 and 1
    assert encoder.pixels(stripes)[..., 1:-1].abs().max() < 0.1
    images = frames(size=20)
    enlarged = F.interpolate(images.movedim(-1, 1) / 255, (32, 32), mode="bicubic").clamp(0, 1)
    torch.testing.assert_close(encoder.pixels(images), 2 * enlarged - 1)

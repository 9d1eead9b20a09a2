"""STEVE as published: parameter counts, and its parts against naive versions and closed forms."""

import math

import pytest
import torch
from torch.nn import functional as F

from oclam.slots.published_steve import Attention, PublishedSteve, Slots, Stack, cosine_decay

TINY = {"slots": 3, "slot_dim": 8, "feature_hidden": 8, "decoder_hidden": 8, "decoder_layers": 2, "vocabulary": 16}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PublishedSteve(16, **TINY)


def test_the_published_sizes_have_the_published_parameters():
    with torch.device("meta"):
        model = PublishedSteve(64, slots=15, slot_dim=192, feature_hidden=64, decoder_hidden=64, decoder_layers=8,
                               vocabulary=4096)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    d, v = 192, 4096
    vae = (48 + 1) * 64 + 6 * (64 + 1) * 64 + (64 + 1) * v + (v + 1) * 64
    vae += 2 * ((9 * 64 + 1) * 64 + 2 * (64 + 1) * 64 + (64 + 1) * 256) + (64 + 1) * 3
    norm, square, attention, mlp = 2 * d, d * d + d, 4 * d * d, (d + 1) * 4 * d + (4 * d + 1) * d
    convolutions = (75 + 1) * 64 + 2 * (25 * 64 + 1) * 64 + (25 * 64 + 1) * d
    slots = 2 * d + 3 * norm + 3 * d * d + 6 * square + 2 * square + 3 * norm + attention + mlp
    encoder = convolutions + 5 * d + norm + 2 * square + slots + d * d
    decoder = 2 * v * d + d + 257 * d + 8 * (3 * norm + 2 * attention + mlp) + norm
    assert counts == {"vae": vae, "encoder": encoder, "decoder": decoder} and sum(counts.values()) == 8_521_347


@pytest.mark.parametrize(("size", "grid"), [(64, 64), (128, 64), (32, 16)])
def test_images_of_64_pixels_keep_their_resolution(size, grid):
    with torch.device("meta"):
        model = PublishedSteve(size, **TINY)
        assert model.project(torch.empty(2, 3, 3, size, size)).shape == (2, 3, grid**2, 8) and model.grid == grid


def test_attention_equals_a_loop_over_heads():
    torch.manual_seed(0)
    layer, x = Attention(8, dropout=0.5, gain=1.0).eval(), torch.randn(2, 5, 8)
    heads = []
    for part in range(4):
        q, k, v = (F.linear(x, w.weight[2 * part:2 * part + 2]) for w in (layer.query, layer.key, layer.value))
        scores = (q @ k.mT / math.sqrt(2)).masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(-1) @ v)
    torch.testing.assert_close(layer(x, x, causal=True), torch.cat(heads, -1) @ layer.output.weight.T)


def test_the_first_block_of_a_stack_keeps_the_normalised_input():
    torch.manual_seed(0)
    stack, x = Stack(8, blocks=2, dropout=0.0, decoder=False), 3 + 5 * torch.randn(2, 4, 8)
    for block in stack.blocks:  # without what attention and MLP add, only the norms are left
        torch.nn.init.zeros_(block.attention.output.weight)
        torch.nn.init.zeros_(block.mlp[1].weight)
    torch.testing.assert_close(stack(x), F.layer_norm(F.layer_norm(x, (8,)), (8,)))


def test_slots_equal_a_naive_loop():
    torch.manual_seed(0)
    slots, features, noise = Slots(3, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 3, 8)
    for b in range(2):
        now = slots.mean[0] + slots.log_std[0].exp() * noise[b]
        for t in range(2):
            now = slots.predictor(now[None])[0] if t else now
            normed = F.layer_norm(features[b, t], (8,))
            for iteration in range(2):
                if iteration:
                    now = now + slots.mlp(F.layer_norm(now, (8,)))
                query = F.layer_norm(now, (8,)) @ slots.query.weight.T
                share = ((normed @ slots.key.weight.T) @ query.T / math.sqrt(8)).softmax(1) + 1e-8
                now = slots.gru((share / share.sum(0)).T @ (normed @ slots.value.weight.T), now)
            torch.testing.assert_close(slots(features, noise=noise)[b, t], now)


def test_an_episode_continues_from_the_slots_of_the_frame_before():
    torch.manual_seed(0)
    slots, features = Slots(3, 8), torch.randn(2, 5, 6, 8)
    whole, begun = slots(features), slots(features[:, :2])
    torch.testing.assert_close(torch.cat([begun, slots(features[:, 2:], begun[:, -1])], 1), whole)
    torch.testing.assert_close(slots(features)[:1], slots(features[:1]))  # every episode begins with the same slots


def test_a_token_is_predicted_from_those_before_it_and_the_slots(model):
    model.eval()
    tokens, slots = torch.randint(16, (2, 16)), torch.randn(2, 3, 8)
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 16
    one, other = model.next_token(tokens, slots), model.next_token(changed, slots)
    torch.testing.assert_close(one[:, :8], other[:, :8])
    assert not torch.allclose(one[:, 8], other[:, 8])
    assert not torch.allclose(one[:, 0], model.next_token(tokens, slots.flip(0))[:, 0])


def test_losses_are_sums_over_a_frame(model):
    torch.nn.init.zeros_(model.decoder["logits"].weight)
    last = model.vae["decoder"][-1]
    torch.nn.init.zeros_(last.weight)
    losses = model(torch.full((2, 3, 3, 16, 16), 0.5), torch.randn(2, 3, 8))
    assert losses["prediction"].item() == pytest.approx(16 * math.log(16))
    assert losses["reconstruction"].item() == pytest.approx(3 * 16 * 16 * 0.25)
    assert losses["loss"] == losses["prediction"] + losses["reconstruction"]


def test_every_parameter_has_a_gradient_and_is_in_one_group(model):
    model(torch.rand(2, 2, 3, 16, 16), torch.randn(2, 3, 8))["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    grouped = [id(p) for group in model.groups() for p in group["params"]]
    assert sorted(grouped) == sorted(map(id, model.parameters()))


def test_rates_and_temperature_follow_the_published_schedule(model):
    assert [cosine_decay(step, 1.0, 0.1, 100) for step in (0, 50, 100, 999)] == pytest.approx([1.0, 0.55, 0.1, 0.1])
    for step, factor, temperature in ((0, 1 / 30_000, 1.0), (14_999, 0.5 * 0.5 ** (14_999 / 250_000), 0.55),
                                      (250_000, 0.5, 0.1)):
        assert model.schedule(step, 3e-4, 30_000, 250_000) == pytest.approx([3e-4, 1e-4 * factor, 3e-4 * factor])
        assert model.temperature.item() == pytest.approx(temperature, abs=1e-4)


def test_masks_are_shares_on_the_grid(model):
    projected = model.project(torch.rand(4, 3, 16, 16))
    masks = model.masks(model.slots(projected[:, None])[:, 0], projected)
    assert masks.shape == (4, 3, model.grid**2)
    torch.testing.assert_close(masks.sum(1), torch.ones(4, model.grid**2))


def test_soft_tokens_become_hard_as_the_temperature_falls(model):
    tokens = []
    model.vae["decoder"].register_forward_pre_hook(lambda module, inputs: tokens.append(inputs[0]))
    for temperature in (1.0, 1e-4):
        model.temperature.fill_(temperature)
        model(torch.rand(2, 2, 3, 16, 16), torch.randn(2, 3, 8))
    soft, hard = (values.max(1).values for values in tokens)
    assert soft.mean() < 0.9 and hard.min() > 0.99


@pytest.mark.parametrize(("decoder", "branches"), [(False, 2), (True, 3)])
def test_residual_branches_start_smaller_the_more_of_them_there_are(decoder, branches):
    torch.manual_seed(0)
    for block in Stack(128, blocks=2, dropout=0.0, decoder=decoder).blocks:
        for layer, inputs, outputs in ((block.attention.output, 128, 128), (block.mlp[1], 512, 128)):
            expected = (2 / (inputs + outputs) / (2 * branches)) ** 0.5  # Xavier's, by the root of all branches
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.02)

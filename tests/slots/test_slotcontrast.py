import math

import pytest
import torch
from torch.nn import functional as F

from oclam.slots.slotcontrast import BroadcastDecoder, SlotContrast, contrast_loss

CLIPS, FRAMES, SLOTS, DIM, PATCHES, FEATURES = 2, 3, 3, 8, 16, 12


def small(**changes):
    torch.manual_seed(0)
    sizes = {"slots": SLOTS, "slot_dim": DIM, "feature_hidden": 16, "decoder_hidden": 16, "decoder_layers": 2}
    return SlotContrast(FEATURES, PATCHES, **sizes | changes)


def random(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def clip():
    return random(CLIPS, FRAMES, PATCHES, FEATURES), None, random(CLIPS, SLOTS, DIM, seed=2)


def test_contrast_is_the_naive_double_loop():
    slots, temperature, losses = random(CLIPS, FRAMES, SLOTS, DIM), 0.3, []
    for t in range(FRAMES - 1):
        now, later = slots[:, t].reshape(-1, DIM), slots[:, t + 1].reshape(-1, DIM)
        for i, slot in enumerate(now):
            odds = [math.exp(F.cosine_similarity(slot, other, dim=0).item() / temperature) for other in later]
            losses.append(-math.log(odds[i] / sum(odds)))
    torch.testing.assert_close(contrast_loss(slots, temperature).item(), sum(losses) / len(losses))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_contrast_in_closed_form(temperature):
    others = CLIPS * SLOTS - 1
    alike = torch.ones(CLIPS, FRAMES, SLOTS, DIM)
    torch.testing.assert_close(contrast_loss(alike, temperature), torch.tensor(math.log(others + 1)))
    apart = torch.eye(others + 1).view(CLIPS, 1, SLOTS, -1).expand(-1, FRAMES, -1, -1)  # each its own direction
    expected = math.log1p(others * math.exp(-1 / temperature))
    torch.testing.assert_close(contrast_loss(3 * apart, temperature), torch.tensor(expected))
    swapped = apart.clone()
    swapped[:, 1] = apart[:, 0].roll(1, 1)  # every slot found by its neighbour: 1 / temperature more in both steps
    torch.testing.assert_close(contrast_loss(swapped, temperature), torch.tensor(expected + 1 / temperature))


def test_the_order_of_clips_does_not_count_and_their_company_does():
    slots = random(4, FRAMES, SLOTS, DIM)
    torch.testing.assert_close(contrast_loss(slots[[2, 0, 3, 1]], 0.1), contrast_loss(slots, 0.1))
    torch.testing.assert_close(contrast_loss(slots * torch.arange(1, 5).view(4, 1, 1, 1), 0.1),
                               contrast_loss(slots, 0.1))
    apart = sum(contrast_loss(one, 0.1) for one in slots.split(1)) / 4
    assert contrast_loss(slots, 0.1) > apart  # other clips' slots are wrong answers too


def test_losses_add_up_by_the_weight_and_the_temperature_scales_the_logits():
    found = {weight: small(contrast_weight=weight)(*clip()) for weight in (0.0, 0.5, 2.0)}
    for weight, losses in found.items():
        torch.testing.assert_close(losses["loss"], losses["reconstruction"] + weight * losses["contrast"])
        assert torch.equal(losses["contrast"], found[0.5]["contrast"])
    assert small()(*clip())["loss"] == found[0.5]["loss"]
    model = small()
    slots = model.slots(model.project(clip()[0]))
    for temperature in (0.1, 0.4):
        torch.testing.assert_close(small(contrast_temperature=temperature)(*clip())["contrast"],
                                   contrast_loss(slots, temperature))


def test_reconstruction_is_the_mean_squared_error_of_every_frame():
    model, (features, keys, noise) = small(), clip()
    slots = model.slots(model.project(features))
    rebuilt = torch.stack([model.decoder(slots[:, t])[0] for t in range(FRAMES)], 1)
    torch.testing.assert_close(model(features, keys, noise)["reconstruction"], ((rebuilt - features) ** 2).mean())
    parts = [model(features, keys, noise, patches)["reconstruction"] for patches in torch.randperm(PATCHES).split(4)]
    torch.testing.assert_close(sum(parts) / 4, model(features, keys, noise)["reconstruction"])


def test_every_parameter_learns_and_the_initial_slots_from_the_contrast_alone():
    model = small()
    model(*clip())["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    model = small()
    model(*clip())["contrast"].backward()
    assert model.slots.init.mean.grad.abs().sum(1).gt(0).all()


def test_initial_slots_are_the_learned_vectors_in_training_and_inference():
    model, (features, keys, noise) = small(), clip()
    assert torch.equal(model.slots.init(CLIPS, noise), model.slots.init.mean.expand(CLIPS, -1, -1))
    assert torch.equal(model(features, keys, noise)["loss"], model(features, keys, 9 * noise)["loss"])
    projected = model.project(features)
    key, value = model.slots.attention.read(projected[:, 0])
    expected = model.slots.attention(model.slots.init.mean.expand(CLIPS, -1, -1), key, value, 3)
    assert torch.equal(model.eval().slots(projected)[:, 0], expected)
    assert [name for name in model.state_dict() if "init" in name] == ["slots.init.mean"]


def test_parameters_by_hand():
    def linear(inputs, outputs, bias=True):
        return (inputs + bias) * outputs

    d, f, norm = 128, 768, 2 * 128
    block = 2 * norm + 4 * linear(d, d) + linear(d, 4 * d) + linear(4 * d, d)
    features = 2 * f + linear(f, 1536) + linear(1536, d)
    residual = norm + linear(d, 4 * d) + linear(4 * d, d)
    attention = 2 * norm + 3 * linear(d, d, False) + 2 * linear(d, 3 * d) + residual  # the GRU has three gates
    decoder = 784 * d + linear(d, 1024) + 3 * linear(1024, 1024) + linear(1024, f + 1)
    with torch.device("meta"):
        model = SlotContrast(f, 784, slots=4, slot_dim=d, feature_hidden=1536, decoder_hidden=1024, decoder_layers=4)
    assert sum(p.numel() for p in model.parameters()) == features + 4 * d + attention + block + decoder


def test_slots_compete_for_every_position():
    """The decoder equals a loop over slots and positions, whose outputs are averaged by the masks."""
    decoder, slots = BroadcastDecoder(8, PATCHES, 12, 2, 5), torch.randn(3, 4, 8)
    outputs, masks = decoder(slots)
    for b, p in ((0, 0), (2, PATCHES - 1)):
        parts = torch.stack([decoder.renderer(slots[b, k] + decoder.position[p]) for k in range(4)])
        weights = parts[:, -1].exp() / parts[:, -1].exp().sum()
        torch.testing.assert_close(masks[b, p], weights)
        torch.testing.assert_close(outputs[b, p], (weights[:, None] * parts[:, :-1]).sum(0))
    some = torch.tensor([1, 3])
    torch.testing.assert_close(decoder(slots, some)[0], outputs[:, some])


def test_bfloat16_is_close_to_float32():
    expected = small()(*clip())["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        found = small()(*clip())["loss"]
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)

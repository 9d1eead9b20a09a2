import math

import pytest
import torch
from torch.nn import functional as F

from oclam.slots.videosaur import SlotMixer, VideoSaur, similarity_loss, similarity_target


def small(**changes):
    torch.manual_seed(0)
    sizes = {"slots": 3, "slot_dim": 8, "feature_hidden": 16, "decoder_hidden": 16, "decoder_layers": 2}
    return VideoSaur(12, 16, **sizes | changes)


def clip(frames=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, *shape, generator=generator) for shape in ((frames, 16, 12), (frames, 16, 12), (3, 8))]


@pytest.mark.parametrize("slots", [2, 4, 8])
def test_trainable_parameters_are_the_papers(slots):
    with torch.device("meta"):
        model = VideoSaur(768, 784, slots=slots, slot_dim=128, feature_hidden=1536, decoder_hidden=1024,
                          decoder_layers=4)
    assert sum(p.numel() for p in model.parameters()) == 6_341_392 + 256 * slots


def test_the_published_model_is_what_it_was_before_slotcontrast_shared_its_modules():
    model = small(published=True)
    assert torch.rand(1).item() == pytest.approx(0.67007673)  # as many random numbers
    assert [name for name in model.state_dict() if "init" in name] == ["slots.init.mean", "slots.init.log_std"]
    optimizer, found = torch.optim.SGD(model.parameters(), 3), []
    for _ in range(2):
        found.append(model(*clip(), torch.arange(0, 16, 2))["loss"])
        model.zero_grad()
        found[-1].backward()
        optimizer.step()
    torch.testing.assert_close(torch.stack(found).detach(), torch.tensor((0.27823344, 0.27714038)), rtol=1e-5, atol=0)


def test_similarity_target_in_closed_form():
    keys = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])
    later = torch.tensor([[[5.0, 0.0], [-1.0, 1.0]]])  # cosines: 1, -0.71; 0, 0.71
    target = similarity_target(keys, later, 0.5)[0]
    torch.testing.assert_close(target[0], torch.tensor([1.0, 0.0]))
    odds = math.exp(0.5**0.5 / 0.5)
    torch.testing.assert_close(target[1], torch.tensor([1 / (1 + odds), odds / (1 + odds)]))


def test_similarity_target_follows_a_permutation_of_patches():
    keys = F.normalize(torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(similarity_target(keys, keys[:, order], 0.01).argmax(-1)[0, order], torch.arange(16))


def test_similarity_loss_is_least_at_its_target():
    target = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    entropy = -(target * target.log()).sum(-1).mean()
    torch.testing.assert_close(similarity_loss(target.log() + 3, target), entropy)
    assert similarity_loss(torch.zeros(2, 4, 4), target) > entropy


def test_masks_are_shares_and_do_not_need_the_renderer():
    torch.manual_seed(0)
    mixer, slots = SlotMixer(8, 16, 16, 2, 5), torch.randn(2, 3, 8)
    masks = mixer.masks(slots)
    torch.testing.assert_close(masks.sum(-1), torch.ones(2, 16))
    outputs, same = mixer(slots)
    assert torch.equal(same, masks) and outputs.shape == (2, 16, 5)
    torch.testing.assert_close(mixer.masks(slots[:, [2, 0, 1]]), masks[..., [2, 0, 1]])


def test_attention_masks_are_each_patch_s_shares_of_the_slots():
    features, _, _ = clip()
    model = small(masks="attention")
    projected = model.project(features)
    slots = model.slots(projected)[:, 1]
    attention = model.slots.attention
    query = attention.query(attention.norm_slots(slots))
    key = attention.key(attention.norm_features(projected[:, 1]))
    expected = torch.einsum("bkd,bpd->bkp", query, key).div(query.shape[-1] ** 0.5).exp()
    torch.testing.assert_close(model.masks(slots, projected[:, 1]), expected / expected.sum(1, keepdim=True))
    assert not torch.allclose(small().masks(slots, projected[:, 1]), expected / expected.sum(1, keepdim=True))


def test_loss_weights_add_up():
    features, keys, noise = clip()
    losses = small(similarity_weight=0.1, reconstruction_weight=2.0)(features, keys, noise)
    torch.testing.assert_close(losses["loss"], 0.1 * losses["similarity"] + 2 * losses["reconstruction"])
    assert "reconstruction" not in small()(features, keys, noise)


def test_the_last_frame_is_a_target_only():
    features, keys, noise = clip()
    model, changed = small(), features.clone()
    changed[:, -1] = 0
    assert torch.equal(model(features, keys, noise)["loss"], model(changed, keys, noise)["loss"])
    changed = keys.clone()
    changed[:, -1] = keys[:, 0]
    assert not torch.equal(model(features, keys, noise)["loss"], model(features, changed, noise)["loss"])


def test_losses_on_parts_of_the_patches_average_to_the_full_loss():
    features, keys, noise = clip()
    model = small(reconstruction_weight=1.0)
    parts = [model(features, keys, noise, decoded) for decoded in torch.randperm(16).split(4)]
    for name, value in model(features, keys, noise).items():
        torch.testing.assert_close(sum(part[name] for part in parts) / 4, value)


def test_every_parameter_learns():
    model = small(reconstruction_weight=1.0)
    model(*clip())["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_bfloat16_is_close_to_float32():
    model = small()
    expected = model(*clip())["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        found = model(*clip())["loss"]
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)


def test_a_patch_with_only_negative_similarities_has_a_uniform_target():
    keys, later = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[-1.0, 0.1], [-1, 0.2]])
    target = similarity_target(keys, later, 0.1)
    torch.testing.assert_close(target[0], torch.tensor([0.5, 0.5]))
    cosine = torch.tensor([0.1 / 1.01**0.5, 0.2 / 1.04**0.5])
    torch.testing.assert_close(target[1], (cosine / 0.1).softmax(0))


@pytest.mark.parametrize("published", [True, False])
def test_biases_of_the_published_mlps_start_at_zero(published):
    torch.manual_seed(0)
    model = VideoSaur(16, 9, slots=3, slot_dim=8, feature_hidden=8, decoder_hidden=8, decoder_layers=2,
                      published=published)
    biases = [layer.bias for part in (model.features[1:], model.decoder.renderer) for layer in part
              if isinstance(layer, torch.nn.Linear)]
    assert len(biases) == 5 and all((bias == 0).all() == published for bias in biases)


def test_both_losses_are_of_the_slots_of_their_own_frames():
    (features, keys, noise), model = clip(), small(reconstruction_weight=1.0)
    outputs = model.decode(model.slots(model.project(features), noise=noise), slice(None))
    losses, target = model(features, keys, noise), similarity_target(keys[:, :-1], keys[:, 1:], 0.075)
    torch.testing.assert_close(losses["similarity"], similarity_loss(outputs[:, :-1, :, :16], target))
    torch.testing.assert_close(losses["reconstruction"], (outputs[..., 16:] - features).square().mean())

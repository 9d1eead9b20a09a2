import pytest
import torch
from torch.nn.functional import layer_norm

from oclam.slots.attention import RecurrentSlots, SlotAttention, SlotInit, Transformer, TransformerBlock


@pytest.fixture
def model():
    torch.manual_seed(0)
    return RecurrentSlots(slots=3, dim=8)


@pytest.fixture
def features():
    return torch.randn(2, 5, 16, 8, generator=torch.Generator().manual_seed(1))


def test_resuming_from_previous_slots_equals_one_run(model, features):
    whole = model(features)
    first = model(features[:, :2])
    rest = model(features[:, 2:], previous=first[:, -1])
    torch.testing.assert_close(torch.cat([first, rest], 1), whole)


def test_a_frame_does_not_see_later_ones(model, features):
    changed = features.clone()
    changed[:, 3:] = 0
    assert torch.equal(model(features)[:, :3], model(changed)[:, :3])
    assert not torch.allclose(model(features)[:, 3:], model(changed)[:, 3:])


def test_patches_have_no_order(model, features):
    permuted = features[:, :, torch.randperm(16, generator=torch.Generator().manual_seed(2))]
    torch.testing.assert_close(model(permuted), model(features))


def test_slots_are_equivariant_to_their_initialisation(model, features):
    order, slots = torch.tensor([2, 0, 1]), model(features)
    model.init.mean.data = model.init.mean.data[order]
    torch.testing.assert_close(model(features), slots[:, :, order])


def test_noise_is_scaled_by_each_slots_own_deviation():
    init = SlotInit(3, 4)
    init.log_std.data = torch.arange(3.0)[:, None].expand(3, 4)
    noise = torch.ones(2, 3, 4)
    torch.testing.assert_close(init(2, noise) - init(2), torch.arange(3.0).exp()[None, :, None].expand(2, 3, 4))
    assert torch.equal(init(5)[0], init(5)[4])


def test_queries_shared_by_a_batch_equal_repeated_ones():
    torch.manual_seed(0)
    transformer, query, memory = Transformer(8, 2, 4), torch.randn(1, 6, 8), torch.randn(3, 2, 8)
    torch.testing.assert_close(transformer(query, memory), transformer(query.expand(3, -1, -1), memory))


def test_self_attention_is_equivariant_to_permutation():
    torch.manual_seed(0)
    transformer, x, order = Transformer(8, 1, 4), torch.randn(2, 5, 8), torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(transformer(x[:, order]), transformer(x)[:, order])


@pytest.mark.parametrize("published", [False, True])
def test_an_update_is_the_gru_of_the_mean_value_and_the_slot_or_the_normalised_slot(published):
    torch.manual_seed(0)
    attention, slots, features = SlotAttention(8, published), 3 * torch.randn(2, 3, 8), torch.randn(2, 16, 8)
    key, value = attention.read(features)
    found = attention.step(slots, key, value)
    for b in range(2):
        centred = slots[b] - slots[b].mean(1, keepdim=True)
        normal = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        share = (normal @ attention.query.weight.T @ key[b].T / 8**0.5).softmax(0) + 1e-8
        update = share @ value[b] / share.sum(1, keepdim=True)
        torch.testing.assert_close(found[b], attention.gru(update, normal if published else slots[b]))


@pytest.mark.parametrize(("published", "factor"), [(False, 4**-0.5), (True, 4**0.5)])
def test_attention_logits_are_divided_by_the_root_of_the_head_width_or_multiplied(published, factor):
    torch.manual_seed(0)
    block, x = TransformerBlock(8, 2, published), torch.randn(1, 5, 8)
    y = block.norm1(x)[0]
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        query, key, value = (layer(y)[:, part] for layer in (block.query, block.key, block.value))
        heads.append((factor * query @ key.T).softmax(1) @ value)
    attended = x[0] + block.output(torch.cat(heads, 1))
    torch.testing.assert_close(block(x)[0], attended + block.mlp(block.norm2(attended)))


def test_published_attention_starts_xavier_uniform_without_biases():
    torch.manual_seed(0)
    block, bound = TransformerBlock(128, 4, published=True), (6 / 256) ** 0.5
    for layer in (block.query, block.key, block.value, block.output):
        assert not layer.bias.any() and layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_slots_begin_by_the_similarity_of_normalised_slots_and_patches_and_published_ones_do_not():
    torch.manual_seed(0)
    slots, features = 3 * torch.randn(2, 3, 8), torch.randn(2, 16, 8) + 1
    similarity = layer_norm(slots, (8,)) @ layer_norm(features, (8,)).mT / 8**0.5
    for published in (False, True):
        attention = SlotAttention(8, published)
        found = attention.assignment(slots, attention.read(features)[0])
        assert torch.allclose(found, similarity.softmax(1), atol=1e-5) != published


def test_clusters_are_those_of_normalised_features_in_float32_whatever_their_precision():
    torch.manual_seed(0)
    features, models = torch.randn(2, 3, 15, 32).bfloat16(), [RecurrentSlots(3, 32) for _ in range(2)]
    for model, given in zip(models, (features, features.float()), strict=True):
        model.start_from_clusters(given, seed=0)
    assert torch.equal(models[0].init.mean, models[1].init.mean)


def test_clusters_begin_at_random_by_the_seed():
    torch.manual_seed(0)
    features, models = torch.randn(2, 3, 15, 32), [RecurrentSlots(3, 32) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        model.start_from_clusters(features, seed)
    assert torch.equal(models[0].init.mean, models[1].init.mean)
    assert not torch.allclose(models[0].init.mean, models[2].init.mean)


def test_slots_that_start_from_clusters_divide_patches_by_cluster():
    torch.manual_seed(0)
    model, kinds = RecurrentSlots(3, 32), torch.arange(90) % 3
    features = 5 * torch.randn(3, 32)[kinds] + 0.1 * torch.randn(90, 32) + 2
    model.start_from_clusters(features.view(2, 3, 15, 32), seed=0)
    normalised = layer_norm(features, (32,))
    centres = torch.stack([normalised[kinds == kind].mean(0) for kind in range(3)])
    nearest = torch.cdist(centres, model.init.mean).argmin(1)
    assert sorted(nearest.tolist()) == [0, 1, 2]
    torch.testing.assert_close(model.init.mean[nearest].detach(), centres)
    first = model.attention.assignment(model.init(1), model.attention.read(features[None])[0])[0]  # (K, P)
    assert torch.equal(first.argmax(0), nearest[kinds])


def test_untrained_updates_leave_slots_with_their_clusters():
    torch.manual_seed(0)
    for model in (RecurrentSlots(3, 32), RecurrentSlots(3, 32, residual=True)):
        features = torch.randn(1, 1, 60, 32)  # not divided clearly
        model.start_from_clusters(features, seed=0)
        key, value = model.attention.read(features[0])
        first = model.init(1)
        later = model.attention(first, key, value, iterations=3)
        same = model.attention.assignment(first, key).argmax(1) == model.attention.assignment(later, key).argmax(1)
        assert same.float().mean() >= 0.9

import pytest
import torch

from oclam.slots.attention import RecurrentSlots, SlotInit, Transformer


@pytest.fixture
def model():
    torch.manual_seed(0)
    return RecurrentSlots(slots=3, dim=8)


@pytest.fixture
def features():
    return torch.randn(2, 5, 16, 8, generator=torch.Generator().manual_seed(1))


def test_going_on_from_previous_slots_equals_one_run(model, features):
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

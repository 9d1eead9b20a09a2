import pytest
import torch
from torch.nn import functional as F

from oclam.policies.networks import ActionDecoder, Actor, Policy


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_actor_has_the_papers_size():
    with torch.device("meta"):
        assert count(Actor(channels=9, outputs=8192, scale=32, residual_blocks=2)) == 107_541_504


@pytest.mark.parametrize(("latent", "hidden", "actions"), [(8192, 256, 6), (4, 3, 1)])
def test_decoder_is_three_linear_layers(latent, hidden, actions):
    decoder = ActionDecoder(latent, hidden, actions)
    assert count(decoder) == (latent + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * actions
    x = 10 * torch.randn(5, latent)
    first, second, last = (layer for layer in decoder if hasattr(layer, "weight"))
    hidden_1 = (x @ first.weight.T).clamp(0, 6)  # biases begin at 0
    assert torch.allclose(decoder(x), (hidden_1 @ second.weight.T).clamp(0, 6) @ last.weight.T, atol=1e-5)


def test_an_actor_with_cells_sees_the_mean_of_each():
    actor = Actor(channels=3, outputs=5, scale=1, residual_blocks=0, cells=2)
    assert actor.head.in_features == 4 * actor.encoder.channels
    actor.encoder, actor.head = torch.nn.Identity(), torch.nn.Linear(12, 5)
    x = 20 * torch.randn(2, 3, 4, 4)
    means = torch.stack([x[..., i:i + 2, j:j + 2].mean((2, 3)) for i in (0, 2) for j in (0, 2)], 2)  # (2, 3, 4)
    expected = F.linear(means.flatten(1).clamp(0, 6), actor.head.weight, actor.head.bias)
    torch.testing.assert_close(actor(x), expected)


def test_actor_averages_over_positions():
    actor = Actor(channels=3, outputs=5, scale=1, residual_blocks=0)
    actor.encoder = torch.nn.Identity()  # what remains: mean, ReLU6, linear
    actor.head = torch.nn.Linear(3, 5)
    x = 20 * torch.randn(2, 3, 4, 4)
    shuffled = x.flatten(2)[:, :, torch.randperm(16)].view_as(x)
    expected = F.linear(x.flatten(2).mean(2).clamp(0, 6), actor.head.weight, actor.head.bias)
    assert torch.allclose(actor(x), expected, atol=1e-6) and torch.allclose(actor(shuffled), expected, atol=1e-5)


def test_an_actor_begins_orthogonal():
    weight = Actor(channels=3, outputs=5, scale=1, residual_blocks=0).head.weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(5))


@pytest.mark.parametrize("decoder", [None, ActionDecoder(8, 4, 2)])
def test_rescaling_is_an_affine_map_of_the_actions(decoder):
    policy, x = Policy(Actor(9, 8 if decoder else 2, 1, 1), decoder), torch.randn(3, 9, 16, 16)
    offset, scale = torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.5])
    actions = policy(x)
    for _ in range(2):  # the second time biases are not 0
        actions = offset + scale * actions
        policy.rescale(offset, scale)
        torch.testing.assert_close(policy(x), actions, rtol=1e-5, atol=1e-5)


def test_policy_is_decoder_after_actor_and_actor_alone_without_one():
    actor, decoder = Actor(9, 8, 1, 1), ActionDecoder(8, 4, 2)
    x = torch.randn(3, 9, 16, 16)
    assert torch.equal(Policy(actor, decoder)(x), decoder(actor(x)))
    assert torch.equal(Policy(actor)(x), actor(x))
    assert all(name.startswith("actor.") for name in Policy(actor).state_dict())

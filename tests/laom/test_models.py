import pytest
import torch
from torch import nn
from torch.nn import functional as F

from oclam.laom.models import LaomModel, SlotLaomModel
from oclam.laom.training import follow

SIZES = {"channels": 6, "size": 16, "latent_dim": 5, "scale": 1, "residual_blocks": 1, "hidden_dim": 8, "expansion": 2}
SLOTS = {"slot_dim": 7, "latent_dim": 5, "hidden_dim": 8, "expansion": 2}
on_both = pytest.mark.parametrize("kind, sizes", [(LaomModel, SIZES), (SlotLaomModel, SLOTS)])


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def linear(inputs, outputs):
    return inputs * outputs + outputs


def head(inputs, skip, outputs, hidden=1024):
    block = linear(hidden, 4 * hidden) + linear(4 * hidden, hidden) + 2 * hidden
    return linear(inputs, hidden) + 2 * linear(hidden + skip, hidden) + 3 * block + linear(hidden, outputs)


def test_published_sizes_have_the_published_architecture_s_parameters():
    with torch.device("meta"):
        model = LaomModel(9, 64, 8192, 6, 2, 1024, 4)
    widths, encoder = (9, 96, 192, 192), 0
    for before, after in zip(widths, widths[1:], strict=False):
        encoder += linear(9 * before, after) + 4 * linear(9 * after, after)  # two residual blocks of two convolutions
    assert parameters(model.encoder) == encoder
    assert parameters(model.inverse) == head(2 * 12_288, 2 * 12_288, 8192)
    assert parameters(model.forward_head) == head(12_288 + 8192, 8192, 12_288)
    assert parameters(model) == 192_307_136


def seeded(kind, sizes):
    torch.manual_seed(0)
    model = kind(**sizes)
    for parameter in model.parameters():  # biases too
        nn.init.normal_(parameter, std=0.3)
    model.centre.normal_()
    return model, *torch.rand(2, 3, *((7,) if kind is SlotLaomModel else (6, 16, 16))) * 2 - 1


def naive_embedding(state, images):
    if images.ndim == 2:  # slots
        return images @ state["encoder.weight"].T + state["encoder.bias"]
    for k in range(3):
        def conv(x, name, stride=1, k=k):
            return F.conv2d(x, state[f"encoder.0.{k}.{name}.weight"], state[f"encoder.0.{k}.{name}.bias"], stride, 1)

        images = conv(images, "0", stride=2)
        images = images + conv(F.relu6(conv(F.relu6(images), "1.conv1")), "1.conv2")
    return images.reshape(len(images), -1)


def naive_head(state, name, x, skip):
    def affine(layer, x):
        return x @ state[f"{name}.{layer}.weight"].T + state[f"{name}.{layer}.bias"]

    for k in range(3):
        h = affine(f"linear.{k}", x)
        h = h + affine(f"block.{k}.mlp.2", affine(f"block.{k}.mlp.0", h).clamp(0, 6))
        centred = h - h.mean(1, keepdim=True)
        h = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        h = h * state[f"{name}.block.{k}.norm.weight"] + state[f"{name}.block.{k}.norm.bias"]
        x = torch.cat([h, skip], 1)
    return affine("output", h)


@on_both
def test_heads_begin_orthogonal(kind, sizes):
    model = kind(**sizes)
    for layer in (*model.inverse.linear, *model.forward_head.linear):
        torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(8))


@on_both
def test_forward_pass_is_the_published_equations(kind, sizes):
    model, now, future = seeded(kind, sizes)
    state = {name: value.double() for name, value in model.state_dict().items()}
    e, later = (naive_embedding(state, images.double()) - state["centre"] for images in (now, future))
    both = torch.cat([e, later], 1)
    latent = naive_head(state, "inverse", both, both)
    prediction = naive_head(state, "forward_head", torch.cat([e, latent], 1), latent)
    found = model.double()(now.double(), future.double())
    for ours, naive in zip(found, (latent, prediction, e), strict=True):
        torch.testing.assert_close(ours, naive)
    torch.testing.assert_close(model.idm(now.double(), future.double()), latent)


@on_both
def test_the_prediction_reaches_the_encoder_through_the_latent_alone(kind, sizes):
    model, now, future = seeded(kind, sizes)
    latent, prediction, code = model(now, future)
    assert not code.requires_grad
    weights = list(model.encoder.parameters())
    whole = torch.autograd.grad(prediction.sum(), weights, retain_graph=True)
    to_latent, = torch.autograd.grad(prediction.sum(), latent, retain_graph=True)
    through = torch.autograd.grad((latent * to_latent).sum(), weights)
    assert all(gradient.abs().sum() > 0 for gradient in whole)
    for ours, by_chain in zip(whole, through, strict=True):
        torch.testing.assert_close(ours, by_chain)


def test_the_target_is_the_closed_form_of_an_exponential_average():
    torch.manual_seed(0)
    target, source, rate = nn.Linear(3, 2).double(), nn.Linear(3, 2).double(), 0.3
    expected = target.weight.clone()
    history = [torch.randn(2, 3).double() for _ in range(6)]
    for value in history:
        source.weight.data.copy_(value)
        follow(target, source, rate)
    expected = (1 - rate)**6 * expected + sum(rate * (1 - rate)**(5 - i) * value for i, value in enumerate(history))
    torch.testing.assert_close(target.weight, expected)
    assert torch.equal(source.weight, history[-1])

import pytest
import torch
from torch.nn import functional as F

from oclam.latent_actions.models import (
    ImageLatentActionModel,
    MlpHead,
    SlotLatentActionModel,
    reconstruction_error,
)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("latent, inverse, forward", [(8192, 104_173_088, 107_674_761), (1024, 16_085_536, 19_594_377)])
def test_image_model_has_the_papers_parameters(latent, inverse, forward):
    with torch.device("meta"):
        model = ImageLatentActionModel(9, 64, latent, 6, 2)
    assert (parameters(model.idm), parameters(model.fdm)) == (inverse, forward)
    assert parameters(model) == {8192: 211_847_849, 1024: 35_679_913}[latent]


def test_slot_model_has_the_papers_parameters():
    with torch.device("meta"):
        assert parameters(SlotLatentActionModel(128, 8192, 1024, 4)) == 89_186_432


def small():
    torch.manual_seed(0)
    return ImageLatentActionModel(6, 16, 5, 1, 1), torch.rand(3, 6, 16, 16) * 2 - 1, torch.rand(3, 6, 16, 16) * 2 - 1


def test_image_model_is_the_published_one():
    model, now, future = small()
    idm, fdm = model.idm, model.fdm
    for bias in (idm.head.bias, fdm.latent.bias, fdm.image.bias):
        torch.nn.init.normal_(bias)
    latent = idm.head(F.gelu(idm.encoder(torch.cat([now, future], 1)).flatten(1)))
    code = torch.cat([fdm.encoder(now), fdm.latent(latent).unflatten(1, (-1, 2, 2))], 1)
    expected = latent, fdm.image(F.gelu(fdm.decoder(code))).tanh()
    for ours, theirs in zip(model(now, future), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("model", [ImageLatentActionModel(6, 16, 5, 1, 1), SlotLatentActionModel(7, 5, 8, 2)])
def test_weights_begin_orthogonal_and_biases_at_0(model):
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    for layer in layers:
        weight = layer.weight if len(layer.weight) <= layer.in_features else layer.weight.T
        torch.testing.assert_close(weight @ weight.T, torch.eye(len(weight)))
        assert not layer.bias.any()
    assert layers


def test_slot_heads_see_the_current_slots_first_and_their_skip_input():
    torch.manual_seed(0)
    model, (now, future) = SlotLatentActionModel(7, 5, 8, 2), torch.randn(2, 3, 7)
    both = torch.cat([now, future], 1)
    latent = model.inverse(both, both)
    expected = latent, model.forward_head(torch.cat([now, latent], 1), latent)
    for ours, theirs in zip(model(now, future), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_forward_is_the_inverse_then_the_forward_model():
    model, now, future = small()
    latent, following = model(now, future)
    assert latent.shape == (3, 5) and following.shape == now.shape
    assert torch.equal(latent, model.idm(now, future)) and torch.equal(following, model.fdm(now, latent))
    assert following.abs().max() <= 1


def test_the_future_reaches_the_prediction_through_the_latent_alone():
    model, now, future = small()
    future.requires_grad_()
    latent, following = model(now, future)
    through, = torch.autograd.grad(following.sum(), future, retain_graph=True)
    assert through.abs().sum() > 0
    weight, = torch.autograd.grad(following.sum(), latent, retain_graph=True)
    by_chain, = torch.autograd.grad((latent * weight).sum(), future)
    torch.testing.assert_close(through, by_chain)


def test_order_of_the_two_observations_matters():
    model, now, future = small()
    assert not torch.allclose(model.idm(now, future), model.idm(future, now))


def test_channels_last_changes_nothing():
    model, now, future = small()
    plain = model(now, future)
    fast = model.to(memory_format=torch.channels_last)(now, future)
    for a, b in zip(plain, fast, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_head_follows_the_papers_equations():
    torch.manual_seed(0)
    head, x, skip = MlpHead(7, 4, 3, 8, 2), torch.randn(5, 7), torch.randn(5, 4)

    def block(k, h):
        first, _, second = head.block[k].mlp
        return F.layer_norm(h + second(F.gelu(first(h))), (8,))

    h = block(0, head.linear[0](x))
    h = block(1, head.linear[1](torch.cat([h, skip], 1)))
    h = block(2, head.linear[2](torch.cat([h, skip], 1)))
    torch.testing.assert_close(head(x, skip), head.output(h))


def test_error_without_weight_is_the_mean_squared_error_and_a_constant_weight_changes_nothing():
    prediction, target = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(reconstruction_error(prediction, target), F.mse_loss(prediction, target))
    weighted = reconstruction_error(prediction, target, torch.full_like(target, 0.3))
    torch.testing.assert_close(weighted, F.mse_loss(prediction, target))


def test_weighted_error_is_the_mean_over_the_mask_when_the_background_weighs_nothing():
    prediction, target = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    mask = torch.zeros(2, 3, 4, 4)
    mask[..., 1:3, 1:3] = 1
    inside = F.mse_loss(prediction[..., 1:3, 1:3], target[..., 1:3, 1:3])
    torch.testing.assert_close(reconstruction_error(prediction, target, mask), inside)


def test_weighted_errors_of_equal_shares_average_to_that_of_the_batch():
    prediction, target, weight = torch.randn(4, 3), torch.randn(4, 3), torch.rand(4, 3)
    shares = [reconstruction_error(*rows, weight.mean())
              for rows in zip(prediction.split(1), target.split(1), weight.split(1), strict=True)]
    torch.testing.assert_close(torch.stack(shares).mean(), reconstruction_error(prediction, target, weight))


def test_weights_that_are_all_0_give_0():
    assert reconstruction_error(torch.ones(2, 3), torch.zeros(2, 3), torch.zeros(2, 3)) == 0

from types import SimpleNamespace

import pytest
import torch

from oclam.slots.steve import DiscreteVae, Steve, make_steve, to_unit

VOCABULARY = 512


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Steve(16, slots=3, slot_dim=8, feature_hidden=8, decoder_hidden=16, decoder_layers=2,
                 vocabulary=VOCABULARY)


def test_a_token_is_predicted_from_those_before_it_and_the_slots(model):
    tokens, slots = torch.randint(VOCABULARY, (2, 16)), torch.randn(2, 3, 8)
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % VOCABULARY
    one, other = model.next_token(tokens, slots), model.next_token(changed, slots)
    assert torch.equal(one[:, :8], other[:, :8]) and not torch.allclose(one[:, 8], other[:, 8])
    assert not torch.allclose(one[:, 0], model.next_token(tokens, slots.flip(0))[:, 0])


def test_masks_are_shares_on_the_patch_grid(model):
    images, = to_unit(torch.randint(256, (4, 16, 16, 3), dtype=torch.uint8))
    projected = model.project(images)
    masks = model.masks(model.slots(projected[:, None])[:, 0], projected)
    assert masks.shape == (4, 3, model.grid**2)
    torch.testing.assert_close(masks.sum(1), torch.ones(4, 16))


def test_an_image_is_scaled_and_turned():
    images = torch.zeros(1, 2, 3, 3, dtype=torch.uint8)
    images[0, 1, 2, 0] = 255
    found, = to_unit(images)
    assert found.shape == (1, 3, 2, 3) and found[0, 0, 1, 2] == 1 and found.sum() == 1


def test_every_parameter_has_a_gradient_at_the_first_update(model):
    model(torch.rand(2, 2, 3, 16, 16), torch.randn(2, 3, 8))["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_small_steps_against_the_gradient_lower_the_loss(model):
    images, noise = torch.rand(2, 2, 3, 16, 16), torch.randn(2, 3, 8)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-3), []
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(images, noise)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.96 * sum(losses[:10])


def test_no_few_tokens_take_all():
    torch.manual_seed(0)
    vae, colours = DiscreteVae(16, VOCABULARY), torch.rand(4, 3, 8, 8)
    images = colours.repeat_interleave(4, 2).repeat_interleave(4, 3)  # 256 patches, each of one colour
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(vae(images)[0], images).backward()
        optimizer.step()
    used = vae(images)[1].flatten().bincount(minlength=VOCABULARY)
    assert (used > 0).sum() > 50 and used.max() < 0.2 * used.sum()


@pytest.mark.parametrize("published", [False, True])
def test_features_stand_row_by_row_where_the_image_has_them(published):
    torch.manual_seed(0)
    steve = SimpleNamespace(published=published, feature_hidden=8, decoder_hidden=8, decoder_layers=1, vocabulary=16)
    model, images = make_steve(steve, 64, slots=3, slot_dim=8), torch.rand(2, 3, 64, 64)
    images[1] = images[0]
    images[1, :, 16:20, 44:48] += 1  # around row 18 and column 46
    before, after = model.project(images).unflatten(1, (model.grid, model.grid))
    change, line = (after - before).square().sum(-1), (torch.arange(model.grid) + 0.5) * 64 / model.grid
    place = [(change.sum(axis) * line).sum().item() / change.sum().item() for axis in (1, 0)]
    assert place == pytest.approx([18, 46], abs=5)


def test_a_frame_starts_with_a_token_of_its_own(model):
    slots, tokens = torch.randn(2, 3, 8), torch.zeros(2, 16, dtype=torch.long)
    before = model.next_token(tokens, slots)[:, 0]
    model.token.weight.data[:VOCABULARY] += 1  # of all tokens that an image can have
    assert torch.equal(model.next_token(tokens, slots)[:, 0], before)

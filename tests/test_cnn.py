import pytest
import torch
from torch import nn

from oclam.cnn import DecoderBlock, EncoderBlock, ImageDecoder, ImageEncoder, ResidualBlock, orthogonal


def test_residual_block_is_the_identity_when_its_last_convolution_is_zero():
    block, x = ResidualBlock(4), torch.randn(2, 4, 8, 8)
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    assert torch.equal(block(x), x)


def test_residual_branch_clips_at_zero_and_six():
    block = ResidualBlock(1)
    for conv in (block.conv1, block.conv2):  # both the identity
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    x = torch.tensor([-3.0, 2.0, 9.0]).view(1, 1, 1, 3)
    assert block(x).flatten().tolist() == [-3.0, 4.0, 15.0]


def test_encoder_block_halves_and_decoder_block_doubles():
    x = torch.randn(2, 3, 16, 16)
    assert EncoderBlock(3, 5, 1)(x).shape == (2, 5, 8, 8)
    assert DecoderBlock(3, 5, 1)(x).shape == (2, 5, 32, 32)


@pytest.mark.parametrize("scale", [1, 3])
def test_decoder_mirrors_the_encoder(scale):
    encoder, decoder = ImageEncoder(9, scale, 0), ImageDecoder(7, scale, 0)
    assert [block[0].out_channels for block in encoder] == [16 * scale, 32 * scale, 32 * scale]
    assert [block[0].out_channels for block in decoder] == [32 * scale, 32 * scale, 16 * scale]
    assert (encoder.channels, decoder.channels) == (32 * scale, 16 * scale)
    assert decoder(torch.randn(1, 7, 2, 2)).shape == (1, 16 * scale, 16, 16)


def test_orthogonal_weights_and_zero_biases():
    net = nn.Sequential(nn.Linear(6, 4), nn.Conv2d(2, 3, 3), nn.LayerNorm(4))
    orthogonal(net)
    for layer in net[:2]:
        weight = layer.weight.flatten(1)
        torch.testing.assert_close(weight @ weight.T, torch.eye(len(weight)))
        assert not layer.bias.any()
    assert (net[2].weight == 1).all()

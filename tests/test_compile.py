"""The three large models compile without a break in their graph, and compute the same then."""

import pytest
import torch

from oclam.latent_actions.models import ImageLatentActionModel
from oclam.policies.networks import Actor
from oclam.slots.videosaur import VideoSaur


@pytest.mark.parametrize("make", [
    lambda: (VideoSaur(48, 16, slots=3, slot_dim=8, feature_hidden=8, decoder_hidden=8, decoder_layers=1),
             [torch.randn(2, 3, 16, 48), torch.randn(2, 3, 16, 48), torch.randn(2, 3, 8), torch.arange(5)]),
    lambda: (ImageLatentActionModel(6, 16, 4, 1, 1), [torch.randn(2, 6, 16, 16), torch.randn(2, 6, 16, 16)]),
    lambda: (Actor(6, 4, 1, 1), [torch.randn(2, 6, 16, 16)])], ids=["ocp", "lapo", "bc"])
def test_compiles_as_one_graph(make):
    torch.manual_seed(0)
    model, inputs = make()
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # raises at a break
    torch.testing.assert_close(compiled(*inputs), model(*inputs))

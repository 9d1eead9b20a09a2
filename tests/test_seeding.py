import numpy as np
import torch

from oclam.seeding import numpy_rng, seed_of, torch_rng


def test_seeds_are_the_same_on_every_machine():
    assert seed_of("collect", 0) == 5064456514635991313


def test_purposes_do_not_collide():
    seeds = {seed_of(name, number) for name in ("a", "b", "ab") for number in range(1000)}
    assert len(seeds) == 3000 and seed_of("a", "b") != seed_of("ab") and seed_of("1") != seed_of(1)


def test_generators_depend_on_purpose_alone():
    first = torch.rand(8, generator=torch_rng("noise", 3))
    torch.rand(5)
    assert torch.equal(first, torch.rand(8, generator=torch_rng("noise", 3)))
    assert not torch.equal(first, torch.rand(8, generator=torch_rng("noise", 4)))
    assert np.array_equal(numpy_rng("x").random(8), numpy_rng("x").random(8))

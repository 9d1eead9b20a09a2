import pytest
import torch

from oclam.datasets import Frames
from oclam.seeding import torch_rng
from oclam.slots.clips import Clips, clip_index


def test_clips_are_consecutive_and_stay_within_their_episode():
    index = clip_index(500, episodes=3, steps=7, length=3, generator=torch_rng("test"))
    assert torch.equal(index.diff(dim=1), torch.ones(500, 2, dtype=torch.long))
    assert torch.equal(index[:, 0] // 7, index[:, 2] // 7)
    assert set(index[:, 0].tolist()) == {e * 7 + t for e in range(3) for t in range(5)}  # every start that is possible


@pytest.fixture
def make():
    pixels = torch.randint(256, (2 * 7, 4, 4, 3), dtype=torch.uint8, generator=torch_rng("pixels"))
    passed = []

    def observe(images):
        passed.extend(images)
        return images.float().flatten(1), images.float().mean((1, 2))

    def clips(kept):
        return Clips(Frames(pixels, "cpu"), observe, episodes=2, steps=7, length=3, batch_size=5, kept=kept, seed=0)
    return clips, passed


@pytest.mark.parametrize("kept", [None, 4])
def test_a_step_always_gives_the_same_clips(make, kept):
    clips, _ = make
    features, colours = clips(kept)(3)
    assert features.shape == (5, 3, 48) and colours.shape == (5, 3, 3)
    assert torch.equal(features, clips(kept)(3)[0]) and not torch.equal(features, clips(kept)(4)[0])


def test_kept_clips_pass_the_encoder_once_and_are_all_there_is(make):
    clips, passed = make
    kept = clips(40)  # more clips than there are starts: every frame is among them
    steps = [kept(i)[0] for i in range(20)]
    assert len(passed) == 14
    fresh = torch.cat([clips(None)(i)[0] for i in range(20)]).flatten(1).unique(dim=0)
    assert torch.equal(torch.cat(steps).flatten(1).unique(dim=0), fresh)


@pytest.mark.parametrize("kept", [None, 4])
def test_another_seed_has_other_clips(kept):
    frames = Frames(torch.arange(100 * 7).view(-1, 1), "cpu")
    one, other = (Clips(frames, lambda rows: (rows,), episodes=100, steps=7, length=3, batch_size=5, kept=kept,
                        seed=seed)(0)[0] for seed in (0, 1))
    assert not torch.equal(one, other)


def test_in_time_every_kept_clip_is_given():
    frames = Frames(torch.arange(100 * 7).view(-1, 1), "cpu")
    clips = Clips(frames, lambda rows: (rows,), episodes=100, steps=7, length=3, batch_size=5, kept=8, seed=0)
    given = torch.cat([clips(step)[0] for step in range(20)])
    assert len(given[:, 0].unique()) == 8

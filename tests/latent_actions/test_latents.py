import numpy as np
import pytest
import torch
import zarr

from oclam.errors import UserError
from oclam.latent_actions import latents
from oclam.latent_actions.latents import write_latents
from tests import contents

E, T, D, L = 5, 7, 4, 3


def world():
    torch.manual_seed(0)
    frames, weight = torch.randn(E * T, D), torch.randn(2 * D, L)
    return frames, lambda now, after: torch.cat([now, after], 1) @ weight


def write(path, idm, observe, precision="float32"):
    write_latents(idm, observe, path, episodes=E, steps=T, latent_dim=L, batch_size=4, device=torch.device("cpu"),
                  precision=precision)


def test_every_transition_has_the_latent_of_its_own_two_frames(tmp_path):
    frames, idm = world()
    write(tmp_path / "latents.zarr", idm, lambda t: frames[t])
    array = zarr.open_group(tmp_path / "latents.zarr", mode="r")["latents"]
    assert array.shape == (E, T - 1, L) and array.dtype == np.float16
    for e in range(E):
        for t in range(T - 1):
            now, after = frames[e * T + t], frames[e * T + t + 1]
            np.testing.assert_allclose(array[e, t], idm(now[None], after[None])[0].numpy(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("precision, kind", [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_latents_are_computed_in_the_precision_that_was_asked_for(tmp_path, precision, kind):
    (frames, idm), kinds = world(), set()

    def inferred(now, after):
        latent = idm(now, after)
        kinds.add(latent.dtype)
        return latent

    write(tmp_path / "latents.zarr", inferred, lambda t: frames[t], precision)
    assert kinds == {kind}


def test_a_killed_writing_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "SHARD_BYTES", 2 * 2 * (T - 1) * L)  # two episodes a shard
    frames, idm = world()
    write(tmp_path / "whole.zarr", idm, lambda t: frames[t])
    seen = []

    def killed(t):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(int(t[0]) // T)
        return frames[t]

    def resumes(t):
        seen.append(int(t[0]) // T)
        return frames[t]

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "resumed.zarr", idm, killed)
    write(tmp_path / "resumed.zarr", idm, resumes)
    assert seen == [0, 1, 2, 2, 3, 4]  # the finished shard is not made again
    assert contents(tmp_path / "whole.zarr") == contents(tmp_path / "resumed.zarr")


def test_a_store_that_was_taken_away_is_made_again(tmp_path):
    frames, idm = world()
    write(tmp_path / "latents.zarr", idm, lambda t: frames[t])
    (tmp_path / "latents.zarr").rename(tmp_path / "moved.zarr")
    write(tmp_path / "latents.zarr", idm, lambda t: frames[t])
    assert contents(tmp_path / "latents.zarr") == contents(tmp_path / "moved.zarr")


def test_what_float16_cannot_hold_is_refused(tmp_path):
    frames, idm = world()
    with pytest.raises(UserError, match="float16"):
        write(tmp_path / "latents.zarr", lambda now, after: 1e6 * idm(now, after), lambda t: frames[t])

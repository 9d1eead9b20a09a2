import numpy as np
import pytest
import torch

from oclam.latent_actions import probes
from oclam.latent_actions.probes import OnlineProbe, frame_differences, probe, probe_frames, probe_latents, splits
from oclam.ridge import Moments


def linear_world(noise, episodes=8, steps=101, latent=5, action=2, seed=0):
    """Latents (E, T-1, L) and actions (E, T, A) that are a fixed affine map of them, with noise of known variance."""
    rng = np.random.default_rng(seed)
    latents = rng.normal(size=(episodes, steps - 1, latent)) * [1, 10, 0.1, 1, 1] + 3
    actions = np.zeros((episodes, steps, action), np.float32)
    weight = rng.normal(size=(latent, action))
    actions[:, :-1] = latents @ weight + 0.5 + noise * rng.normal(size=(episodes, steps - 1, action))
    return latents, actions


def test_splits_are_disjoint_and_cover_everything():
    assert [list(split) for split in splits(3, 5)] == [[0, 1, 2], [3, 4], [5, 6, 7]]


def test_moments_of_blocks_are_those_of_the_whole():
    x, y = np.random.default_rng(0).normal(size=(30, 4)), np.random.default_rng(1).normal(size=(30, 2))
    parts = Moments.over([(x[:7], y[:7]), (torch.from_numpy(x[7:]), torch.from_numpy(y[7:]))], "cpu")
    rows = np.concatenate([np.ones((30, 1)), x, y], 1)
    np.testing.assert_allclose(parts.joint, rows.T @ rows)


def test_exact_linear_actions_are_recovered():
    result = probe_latents(*linear_world(noise=0), episodes=4, seed=0, device="cpu")
    assert result["ridge_mse"] < 1e-6 * result["action_variance"] and min(result["ridge_r2_per_dim"]) > 1 - 1e-6


def test_a_constant_action_has_r2_0():
    latents, actions = linear_world(noise=0)
    for value in np.linspace(5, 400, 40):
        actions[..., 1] = value
        found = probe_latents(latents, actions, episodes=4, seed=0, device="cpu")
        assert found["ridge_r2_per_dim"][1] == 0 and found["ridge_r2_per_dim"][0] > 1 - 1e-6
        assert found["ridge_mse_per_dim"][1] < 1e-9


def test_noise_is_what_remains_and_shuffling_leaves_the_variance():
    result = probe_latents(*linear_world(noise=2.0, episodes=24), episodes=16, seed=0, device="cpu")
    assert result["ridge_mse"] == pytest.approx(4.0, rel=0.15)
    assert result["ridge_mse"] == pytest.approx(np.mean(result["ridge_mse_per_dim"]))
    assert result["shuffled_mse"] == pytest.approx(result["action_variance"], rel=0.05)
    assert abs(result["shuffled_r2"]) < 0.05 < result["ridge_r2"]


def test_errors_are_those_of_the_closed_form_on_the_last_trajectories():
    latents, actions = linear_world(noise=1.0)
    result = probe_latents(latents, actions, episodes=4, seed=0, device="cpu")
    x, y = latents[:4].reshape(-1, 5), actions[:4, :-1].reshape(-1, 2)
    mean, deviation = x.mean(0), x.std(0)
    z = (x - mean) / deviation
    weight = np.linalg.solve(z.T @ z / len(z) + result["ridge_penalty"] * np.eye(5), z.T @ (y - y.mean(0)) / len(z))
    wrong = (latents[6:].reshape(-1, 5) - mean) / deviation @ weight + y.mean(0) - actions[6:, :-1].reshape(-1, 2)
    np.testing.assert_allclose(result["ridge_mse_per_dim"], (wrong**2).mean(0), rtol=1e-5)
    variance = actions[6:, :-1].reshape(-1, 2).var(0)
    np.testing.assert_allclose(result["ridge_r2_per_dim"], 1 - (wrong**2).mean(0) / variance, rtol=1e-5)


def test_the_reported_trajectories_are_seen_by_neither_fit_nor_choice():
    latents, actions = linear_world(noise=1.0)
    before = probe_latents(latents, actions, episodes=4, seed=0, device="cpu")
    actions[6:] *= -100
    after = probe_latents(latents, actions, episodes=4, seed=0, device="cpu")
    assert after["ridge_penalty"] == before["ridge_penalty"] and after["ridge_mse"] > 1000 * before["ridge_mse"]


def test_the_penalty_is_the_one_that_does_best_on_the_choosing_trajectories():
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(n, 40)) for n in (45, 200, 200)]  # barely more rows than inputs: no penalty would overfit
    y = [part[:, :1] + 2 * rng.normal(size=(len(part), 1)) for part in x]
    parts = [Moments.over([pair], "cpu") for pair in zip(x, y, strict=True)]
    result = probe(*parts)
    errors = {p: parts[1].mse(parts[0].fit(p)).mean() for p in (1e-6, 1e-2, 1.0, result["penalty"])}
    assert result["penalty"] > 1e-3 and min(errors, key=errors.get) == result["penalty"]


def test_the_seed_is_that_of_the_shuffling_alone():
    first, again, other = (probe_latents(*linear_world(noise=1.0), episodes=4, seed=seed, device="cpu")
                           for seed in (0, 0, 1))
    assert first == again and first["shuffled_mse"] != other["shuffled_mse"]
    assert first["ridge_mse_per_dim"] == pytest.approx(other["ridge_mse_per_dim"])


def test_frame_differences_are_block_means():
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    blocks = frames.reshape(3, 16, 2, 16, 2, 3).mean((2, 4)) / 255  # (T, 16, 16, 3)
    expected = np.diff(blocks, axis=0).transpose(0, 3, 1, 2).reshape(2, -1)
    np.testing.assert_allclose(frame_differences(frames).numpy(), expected, atol=1e-6)


def test_frames_whose_brightness_moves_with_the_action_give_it_away():
    rng = np.random.default_rng(0)
    actions = rng.integers(-4, 5, (6, 40, 1)).astype(np.float32)
    level = 128 + np.cumsum(actions, 1) - actions  # frame t+1 - frame t = action t
    pixels = np.broadcast_to(level[..., None, None], (6, 40, 16, 16, 3)).astype(np.uint8)
    assert probe_frames(pixels, actions, 2, "cpu")["frame_difference_mse"] < 1e-3


def test_the_online_probe_predicts_in_units_of_the_actions():
    actions = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3, 0.1]) + 7
    offset, scale = actions.mean(0), actions.std(0, correction=0)
    network = OnlineProbe(3, actions, (offset, scale))
    torch.nn.init.zeros_(network.weight)
    torch.nn.init.ones_(network.bias)  # predicts the mean and a deviation: errors of the variance twice
    assert network.error(torch.ones(50, 3), actions).item() == pytest.approx((2 * scale**2).mean().item(), rel=1e-4)


def test_trajectories_without_known_actions_take_no_part_in_the_probes():
    (latents, actions), kept = linear_world(noise=1.0), [0, 2, 3, 4, 5, 6, 7]
    pixels = np.random.default_rng(0).integers(0, 256, (8, 101, 16, 16, 3), dtype=np.uint8)
    actions[1, 70] = np.nan  # a single action
    assert probe_frames(pixels, actions, 4, "cpu") == probe_frames(pixels[kept], actions[kept], 3, "cpu")
    found, expected = (probe_latents(latents[those], actions[those], len(those) - 4, seed=0, device="cpu")
                       for those in (list(range(8)), kept))
    assert found["ridge_mse_per_dim"] == expected["ridge_mse_per_dim"]


def test_the_probe_of_frames_is_fitted_on_the_first_known_trajectories(monkeypatch):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 11, 16, 16, 3), dtype=np.uint8)
    actions = rng.normal(size=(8, 11, 2)).astype(np.float32)
    actions[1] = np.nan
    monkeypatch.setattr(probes, "FLOOR_EPISODES", 2)
    kept = [0, 2, 4, 5, 6, 7]
    assert probe_frames(pixels, actions, 4, "cpu") == probe_frames(pixels[kept], actions[kept], 2, "cpu")

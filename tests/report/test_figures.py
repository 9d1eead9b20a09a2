"""Figures: masks where they belong, and the same bytes every time."""

import numpy as np
import pytest

from oclam.report import figures
from oclam.variants import VARIANTS
from tests.report import tree as tree


def test_upsampling_keeps_a_constant_mask_and_the_sum_over_slots():
    constant = np.full((1, 1, 4, 4), 51, np.uint8)
    assert (figures.upsample(constant, 32) == 0.2).all()
    masks = tree.scene(3)[1]
    np.testing.assert_allclose(figures.upsample(masks, 32).sum(1), 1, atol=tree.SLOTS / 255)


def test_overlay_tints_every_pixel_with_its_own_slot():
    frames = np.zeros((1, 2, 2, 3), np.uint8)
    soft = np.zeros((1, 2, 2, 2))
    soft[0, 0, 0], soft[0, 1, 1] = 1, 1  # slot 0 holds the upper row, slot 1 the lower
    tinted = figures.overlay(frames, soft)[0]
    np.testing.assert_array_equal(tinted[0, 0], figures.SLOT_COLORS[0] // 2)
    np.testing.assert_array_equal(tinted[1, 1], figures.SLOT_COLORS[1] // 2)
    shared = figures.overlay(frames, np.full((1, 2, 2, 2), 0.5))[0, 0, 0]  # both slots hold half of the pixel
    np.testing.assert_array_equal(shared, figures.SLOT_COLORS[:2].mean(0) // 2)


def test_animation_shows_frames_and_what_lapo_masks_sees():
    frames, masks, _ = tree.scene(2)
    shown = figures.animation(frames, masks, 255 - frames)
    np.testing.assert_array_equal(shown[:, :, :tree.SIZE], frames)
    np.testing.assert_array_equal(shown[:, :, 2 * tree.SIZE + 4:], 255 - frames)


def test_every_variant_has_its_own_color():
    assert len({figures.COLORS[variant] for variant in VARIANTS}) == len(VARIANTS)


def draw(kind):
    frames, masks, truth = tree.scene(2)
    random = np.random.default_rng(0)
    losses = [{"variant": "lapo", "seed": 0, "step": step, "loss": 1 / step} for step in (1, 2, 3)]
    returns = [{"variant": "lapo", "budget": budget, **dict.fromkeys(("normalised_iqm", "normalised_low",
                                                                     "normalised_high"), budget)} for budget in (2, 8)]
    match kind:
        case "losses":
            return figures.loss_curves(losses, "stamp")
        case "returns":
            return figures.return_curves(returns, "stamp")
        case "slots":
            seen = frames * truth[..., None]
            return figures.slot_grid(frames, masks, [tree.CHOSEN], 255 * truth, seen, "stamp", truth)
        case "models":
            return figures.model_comparison(frames, {"one": masks, "other": masks[:, :2]}, "stamp", truth)
        case "latents":
            return figures.latent_map(random.normal(size=(9, 2)), random.uniform(-1, 1, (9, 1)), "stamp")
        case "reconstructions":
            return figures.reconstructions(frames, frames, frames, frames, "stamp")


@pytest.mark.parametrize("kind", ["losses", "returns", "slots", "models", "latents", "reconstructions"])
@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_same_input_same_bytes(tmp_path, kind, suffix):
    first, second = tmp_path / f"first.{suffix}", tmp_path / f"second.{suffix}"
    for path in (first, second):
        figures.save(draw(kind), path)
    assert first.read_bytes() == second.read_bytes()
    if suffix == "svg":
        assert b"stamp" in first.read_bytes()
    else:  # text in a picture: another stamp gives other pixels in its corner alone
        figure = draw(kind)
        figure.supxlabel("other", x=0.995, ha="right", fontsize=7)
        figures.save(figure, second)
        assert first.read_bytes() != second.read_bytes()


def test_models_stand_side_by_side_on_the_same_frames():
    frames, masks, truth = tree.scene(2)
    figure = figures.model_comparison(frames, {"one": masks, "other": masks[:, ::-1]}, "stamp", truth)
    grid = np.array(figure.axes).reshape(len(frames), -1)
    shown = [[np.asarray(axes.images[0].get_array()) for axes in line] for line in grid]
    titles = [axes.get_title() for axes in grid[0]]
    each = [f"slot {k}" for k in range(tree.SLOTS)]
    assert titles == ["frame", "agent (truth)", "one", *each, "other", *each]
    one, other = titles.index("one") + 1, titles.index("other") + 1
    for frame, agent, line in zip(frames, truth, shown, strict=True):
        np.testing.assert_array_equal(line[0], frame)
        np.testing.assert_array_equal(line[1], np.where(agent[..., None], frame, 245))  # pale where the agent is not
        for k in range(tree.SLOTS):  # the other model's slots are the same ones, counted from the end
            np.testing.assert_array_equal(line[one + k], line[other + tree.SLOTS - 1 - k])


def test_bars_are_means_over_seeds_and_dots_single_seeds():
    rows = [{"variant": "lapo", "ridge_mse": 1 + seed, "online_mse": 5 + seed, "shuffled_mse": 7 + seed,
             "frame_difference_mse": 8 + seed, "action_variance": 9 + seed} for seed in (0, 2)]
    axes = figures.probe_bars(rows, "stamp").axes[0]
    ridge, online, *_ = axes.patches
    assert (ridge.get_width(), online.get_width()) == (2, 6) and ridge.get_y() < online.get_y()
    assert [list(line.get_xdata()) for line in axes.lines] == [[1, 3], [5, 7], [8, 8], [9, 9], [10, 10]]


def test_curves_are_interquartile_means_between_the_ends_of_their_intervals():
    rows = [{"variant": "lapo", "budget": budget, "normalised_iqm": 10 * budget, "normalised_low": 9 * budget,
             "normalised_high": 12 * budget} for budget in (2, 8)]
    axes = figures.return_curves(rows, "stamp").axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[2, 20], [8, 80]]
    band = {tuple(point) for point in axes.collections[0].get_paths()[0].vertices}
    assert band == {(2, 18), (2, 24), (8, 72), (8, 96)}


def test_every_seed_and_variant_has_its_own_loss_curve():
    rows = [{"variant": variant, "seed": seed, "step": step, "loss": step + 10 * seed + 100 * (variant == "laom")}
            for variant in ("lapo", "laom") for seed in (0, 1) for step in (1, 2)]
    lines = figures.loss_curves(rows, "stamp").axes[0].lines
    assert [line.get_xydata().tolist() for line in lines] == [
        [[1, 1 + level], [2, 2 + level]] for level in (0, 10, 100, 110)]


def test_each_panel_of_latents_has_the_color_of_its_own_action():
    random = np.random.default_rng(0)
    latents, actions = random.normal(size=(9, 2)), random.uniform(-1, 1, (9, 3))
    for number, axes in enumerate(figures.latent_map(latents, actions, "stamp").axes[:2]):
        np.testing.assert_array_equal(axes.collections[0].get_offsets(), latents)
        np.testing.assert_array_equal(axes.collections[0].get_array(), actions[:, number])


def test_reconstructions_show_the_distance_to_the_truth_and_to_the_other_prediction():
    images = [np.full((1, 4, 4, 3), level, np.uint8) for level in (0, 30, 10, 35)]  # t, t + 1, prediction, swapped
    axes = figures.reconstructions(*images, "stamp").axes
    assert [int(shown.images[0].get_array().max()) for shown in axes] == [0, 30, 10, 20, 35, 25]


def test_a_normaliser_of_nothing_leaves_an_empty_plot_and_no_error(tmp_path):
    rows = [{"variant": "lapo", "budget": 2, "normalised_iqm": None, "normalised_low": None, "normalised_high": None}]
    figure = figures.return_curves(rows, "stamp")
    figures.save(figure, tmp_path / "plot.svg")
    line, full = figure.axes[0].lines
    assert np.isnan(line.get_ydata()).all() and list(full.get_ydata()) == [100, 100]

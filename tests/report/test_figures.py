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
    for frame, line in zip(frames, shown, strict=True):
        np.testing.assert_array_equal(line[0], frame)
        for k in range(tree.SLOTS):  # the other model's slots are the same ones, counted from the end
            np.testing.assert_array_equal(line[one + k], line[other + tree.SLOTS - 1 - k])


def test_a_normaliser_of_nothing_leaves_an_empty_plot_and_no_error(tmp_path):
    rows = [{"variant": "lapo", "budget": 2, "normalised_iqm": None, "normalised_low": None, "normalised_high": None}]
    figure = figures.return_curves(rows, "stamp")
    figures.save(figure, tmp_path / "plot.svg")
    line, full = figure.axes[0].lines
    assert np.isnan(line.get_ydata()).all() and list(full.get_ydata()) == [100, 100]

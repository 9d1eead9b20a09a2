"""The report's figures, drawn from tables and arrays alone; the same input gives the same bytes."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter
from PIL import Image

from oclam.artifacts import atomic
from oclam.variants import VARIANTS

COLORS = {name: row.color for name, row in VARIANTS.items()} | {
    "ocp": "#222222", "steve": "#E69F00", "slotcontrast": "#009E73"}
SLOT_COLORS = np.array([(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
                        (204, 121, 167), (90, 90, 90)], float)
STYLE = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333", "xtick.color": "#555555", "ytick.color": "#333333", "axes.titlesize": 10,
    "axes.grid": False, "grid.color": "#e4e4e4", "legend.frameon": False, "legend.fontsize": 9,
    "svg.hashsalt": "oclam", "figure.dpi": 100, "lines.linewidth": 1.8,
}
ACCENT = "#D55E00"


@matplotlib.rc_context(STYLE)
def save(figure: Figure, path: Path) -> None:
    """Write a figure as SVG or PNG, without dates or versions in it."""
    metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
    with atomic(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=160, metadata=metadata)


@matplotlib.rc_context(STYLE)
def probe_bars(rows: list[dict], stamp: str) -> Figure:
    """The paper's Figure 2: probe error by variant; bars are means, dots are seeds.

    rows: of one task, one for each seed and variant.
    """
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    figure, axes = _figure(4.7, 1.5 + 0.5 * len(variants), stamp)
    for y, variant in enumerate(variants):
        table = [row for row in rows if row["variant"] == variant]
        for offset, key, alpha in ((-0.19, "ridge_mse", 1.0), (0.19, "online_mse", 0.35)):
            values = [row[key] for row in table]
            axes.barh(y + offset, np.mean(values), 0.34, color=COLORS[variant], alpha=alpha, linewidth=0)
            axes.plot(values, np.full(len(values), y + offset), "o", color="#222222", markersize=2.5)
        for key, style, label in (("shuffled_mse", "-", "shuffled actions"),
                                  ("frame_difference_mse", "--", "ridge on frame differences")):
            axes.plot([np.mean([row[key] for row in table])] * 2, [y - 0.4, y + 0.4], color="#222222", linewidth=1.6,
                      linestyle=style, label=label if y == 0 else None)
    axes.barh(0, 0, color="#555555", label="ridge probe")
    axes.barh(0, 0, color="#555555", alpha=0.35, label="online probe")
    axes.axvline(np.mean([row["action_variance"] for row in rows]), color="#888888", linewidth=1.2, linestyle=":",
                 label="variance of the actions")
    axes.set_yticks(range(len(variants)), variants)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("mean squared error (lower is better)")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@matplotlib.rc_context(STYLE)
def return_curves(rows: list[dict], stamp: str) -> Figure:
    """The paper's Figure 3: normalised return against the number of labelled trajectories.

    Lines are interquartile means, bands their 95% bootstrap intervals; the dashed line is cloning of all labels.
    rows: of one task, budgets above 0.
    """
    figure, axes = _figure(4.7, 3.9, stamp)
    for variant in dict.fromkeys(row["variant"] for row in rows):
        table = [row for row in rows if row["variant"] == variant]
        budgets, middle, low, high = (np.array([row[key] for row in table], float) for key in
                                      ("budget", "normalised_iqm", "normalised_low", "normalised_high"))
        axes.fill_between(budgets, low, high, color=COLORS[variant], alpha=0.13, linewidth=0)
        axes.plot(budgets, middle, color=COLORS[variant], marker=VARIANTS[variant].marker, markersize=5,
                  linestyle="--" if variant == "scratch" else "-", label=variant)
    axes.axhline(100, color="#222222", linewidth=1.2, linestyle=(0, (5, 3)), label="bc, all labels")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({row["budget"] for row in rows}))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.grid(axis="y")
    axes.set_xlabel("labelled trajectories")
    axes.set_ylabel("return, % of bc with all labels")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


@matplotlib.rc_context(STYLE)
def loss_curves(rows: list[dict], stamp: str) -> Figure:
    """Training loss against step, one line a seed and one colour a variant; rows of one task and stage."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    figure, axes = _figure(4.7, 3.2, stamp)
    for variant in variants:
        for number, seed in enumerate(dict.fromkeys(row["seed"] for row in rows)):
            line = [row for row in rows if (row["variant"], row["seed"]) == (variant, seed)]
            axes.plot([row["step"] for row in line], [row["loss"] for row in line], color=COLORS[variant],
                      linewidth=1.3, label=variant if number == 0 and len(variants) > 1 else None)
    if all(row["loss"] > 0 for row in rows):
        axes.set_yscale("log")
    axes.grid(axis="y", which="both")
    axes.set_xlabel("update")
    axes.set_ylabel("training loss")
    if len(variants) > 1:
        figure.legend(loc="outside upper center", ncols=3)
    return figure


@matplotlib.rc_context(STYLE)
def latent_map(latents: np.ndarray, actions: np.ndarray, stamp: str) -> Figure:
    """Latent actions as points (N, 2), coloured by the first two of the true actions (N, A)."""
    panels, limit = min(actions.shape[1], 2), max(1, np.abs(actions).max())
    figure = Figure(figsize=(4.7, 2.6), layout="constrained")
    grid = figure.subplots(1, panels, sharex=True, sharey=True, squeeze=False)[0]
    for number, axes in enumerate(grid):
        points = axes.scatter(*latents.T, c=actions[:, number], s=6, linewidths=0, cmap="viridis", vmin=-limit,
                              vmax=limit)
        axes.set(xticks=[], yticks=[], title=f"true action {number + 1}", xlabel="component 1")
    grid[0].set_ylabel("component 2")
    figure.colorbar(points, ax=list(grid), shrink=0.85)
    _stamp(figure, stamp)
    return figure


@matplotlib.rc_context(STYLE)
def reconstructions(current: np.ndarray, target: np.ndarray, prediction: np.ndarray, swapped: np.ndarray,
                    stamp: str) -> Figure:
    """The forward model's prediction of t+1 with the right and with another latent action; all uint8 (N, H, W, 3)."""
    error, effect = _difference(prediction, target), _difference(swapped, prediction)
    columns = [("frame t", current), ("truth t+1", target), ("prediction", prediction), ("|error|", error),
               ("other latent", swapped), ("|its effect|", effect)]
    return _image_grid(columns, stamp)[0]


@matplotlib.rc_context(STYLE)
def slot_grid(frames: np.ndarray, masks: np.ndarray, chosen: list[int], selected: np.ndarray, seen: np.ndarray,
              stamp: str, segmentation: np.ndarray | None = None, decoded: np.ndarray | None = None) -> Figure:
    """Frames beside the agent, the chosen slots' mask, lapo-masks' view, the slot vector decoded, and every slot.

    Args:
        frames: uint8 (N, H, W, 3).
        masks: every slot's, uint8 (N, K, G, G).
        chosen: slot indices, whose columns are framed.
        selected: the chosen slots' mask, uint8 (N, H, W).
        seen: what lapo-masks observes, uint8 (N, H, W, 3).
        segmentation: the agent in the simulator, (N, H, W) in {0, 1}.
        decoded: the image that the chosen slots' vector holds, uint8 (N, h, w, 3).
    """
    columns = [*_observed(frames, segmentation), ("chosen slots", _fade(frames, selected / 255)), ("lapo-masks", seen),
               *([] if decoded is None else [("slot vector", decoded)]),
               *_slot_columns("all slots", frames, masks, chosen)]
    figure, grid = _image_grid(columns, stamp)
    for column, (title, _) in enumerate(columns):
        if title.endswith("chosen"):
            grid[0, column].title.set(color=ACCENT, weight="bold")
            for axes in grid[:, column]:
                axes.spines[:].set(visible=True, color=ACCENT, linewidth=2)
    return figure


@matplotlib.rc_context(STYLE)
def model_comparison(frames: np.ndarray, models: dict[str, np.ndarray], stamp: str,
                     segmentation: np.ndarray | None = None) -> Figure:
    """The paper's Figure 4: the slots of several models on the same frames.

    models: name -> masks uint8 (N, K, G, G), K and G may differ; all else as in `slot_grid`.
    """
    columns = [*_observed(frames, segmentation)]
    for name, masks in models.items():
        columns += _slot_columns(name, frames, masks)
    return _image_grid(columns, stamp)[0]


def animation(frames: np.ndarray, masks: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Frames (M, H, W, 3), all slots over them and what lapo-masks observes, side by side: uint8 (M, H, 3 W + 4, 3)."""
    gap = np.full((*frames.shape[:2], 2, 3), 255, np.uint8)
    tinted = overlay(frames, upsample(masks, frames.shape[1]))
    return np.concatenate([frames, gap, tinted, gap, seen], 2)


def upsample(masks: np.ndarray, size: int) -> np.ndarray:
    """Bilinear: uint8 masks (N, K, G, G) in 0..255 -> float (N, K, size, size) in 0..1."""
    images = [np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.BILINEAR))
              for mask in masks.reshape(-1, *masks.shape[2:])]
    return np.stack(images).reshape(*masks.shape[:2], size, size) / 255


def overlay(frames: np.ndarray, soft: np.ndarray) -> np.ndarray:
    """Frames (N, H, W, 3) tinted with the colours of the slots, by their masks (N, K, H, W)."""
    colors = SLOT_COLORS[np.arange(soft.shape[1]) % len(SLOT_COLORS)]
    tint = np.einsum("nkhw,kc->nhwc", soft / soft.sum(1, keepdims=True).clip(1e-6), colors)
    return (0.5 * frames + 0.5 * tint).astype(np.uint8)


def _observed(frames, segmentation):
    yield "frame", frames
    if segmentation is not None:
        yield "agent (truth)", _fade(frames, segmentation.astype(float))


def _slot_columns(title, frames, masks, chosen=()):
    soft = upsample(masks, frames.shape[1])
    yield title, overlay(frames, soft)
    for k in range(masks.shape[1]):
        yield f"slot {k}" + (" chosen" if k in chosen else ""), _fade(frames, soft[:, k])


def _fade(frames, soft):
    """Frames where `soft` (N, H, W) is 1, near white where it is 0."""
    return (frames * soft[..., None] + 245 * (1 - soft[..., None])).astype(np.uint8)


def _difference(one, other):
    return np.abs(one.astype(float) - other).mean(-1)


def _figure(width, height, stamp):
    figure = Figure(figsize=(width, height), layout="constrained")
    _stamp(figure, stamp)
    return figure, figure.subplots()


def _image_grid(columns, stamp):
    """Columns (title, images (N, H, W, 3), or (N, H, W) of any range) side by side. Returns figure and axes."""
    rows = len(columns[0][1])
    figure = Figure(figsize=(1.05 * len(columns), 1.05 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, len(columns), squeeze=False, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    for place, (title, images) in zip(grid.T, columns, strict=True):
        gray = {"cmap": "magma", "vmin": 0, "vmax": max(images.max(), 1)} if images.ndim == 3 else {}
        for axes, image in zip(place, images, strict=True):
            axes.imshow(image, interpolation="nearest", **gray)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        place[0].set_title(title, fontsize=8)
    _stamp(figure, stamp)
    return figure, grid


def _stamp(figure, stamp):
    """Write the scale into the picture, so that copies keep it."""
    figure.supxlabel(stamp, x=0.995, ha="right", fontsize=7, color="#777777")

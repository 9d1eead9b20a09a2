"""The report's pictures: the artifact that each is drawn from, its section and its caption."""

from dataclasses import dataclass
from pathlib import Path

from oclam import paths
from oclam.artifacts import is_absent, load_tensors, read_csv
from oclam.report import figures
from oclam.report.results import Results, compared_files, select
from oclam.variants import LATENT, VARIANTS
from oclam.video import FPS, read_gif, write_video

OCP_MODELS = {"videosaur": "VideoSAUR", "steve": "ocp (STEVE)", "slotcontrast": "ocp (SlotContrast)"}
LOSSES = {"ocp": "object-centric pretraining", "lapo": "latent action models", "bc": "behaviour cloning"}


@dataclass(frozen=True)
class Picture:
    """One image or video of the report: its section, caption and file."""

    section: str
    caption: str
    path: Path
    wide: bool = False  # many small images in a row; scrolls on a narrow screen
    pixels: bool = False  # shown enlarged with sharp pixels


def draw(results: Results, folder: Path) -> list[Picture]:
    """The pictures of the report, in order, drawn into `folder`; frames are of the first seed."""
    return [picture for task in results.tasks
            for part in (_charts(results, task, folder), _slots(results, task, folder), _latents(results, task, folder),
                         _policies(results, task, folder)) for picture in part]


def _charts(results, task, folder):
    probes = select(results.probes, task=task)
    returns = [row for row in results.returns if row["task"] == task and row["budget"] > 0]
    if probes:
        yield _saved(figures.probe_bars(probes, results.stamp), folder / f"probes-{task}.svg", "probes",
                     f"{task}: error of the action probes by variant, ridge on held-out trajectories (dark) and online "
                     "on training batches (pale). Bars are means over seeds, dots single seeds.")
    if returns:
        yield _saved(figures.return_curves(returns, results.stamp), folder / f"returns-{task}.svg",
                     _opening(results, task, "returns"),
                     f"{task}: return against the number of labelled trajectories. Lines are interquartile means, "
                     "bands their 95% bootstrap intervals, the dashed line is behaviour cloning on all labels.")
    for stage, name in LOSSES.items():
        rows = select(results.losses, task=task, stage=stage)
        yield _saved(figures.loss_curves(rows, results.stamp), folder / f"losses-{stage}-{task}.svg", "losses",
                     f"{task}: {name}. Losses of different variants are not comparable.")


def _slots(results, task, folder):
    if is_absent(paths.slot_preview(task, results.seeds[0])):
        return
    tensors, metadata = load_tensors(paths.slot_preview(task, results.seeds[0]))
    arrays, chosen = {name: tensor.numpy() for name, tensor in tensors.items()}, metadata["chosen"]
    grid = figures.slot_grid(arrays["frames"], arrays["masks"], chosen, arrays["selected"], arrays["seen"],
                             results.stamp, arrays.get("segmentation"), arrays.get("decoded"))
    yield _saved(grid, folder / f"slots-{task}.png", "slots",
                 f"{task}, seed {results.seeds[0]}: frames of held-out episodes, the input of lapo-masks, the "
                 "image decoded from the chosen slots' vector, and every slot.",
                 wide=True)
    models = {OCP_MODELS[results.selections[0]["model"]]: arrays["masks"]}
    for _, path in compared_files(task, results.seeds[0]):
        tensors, about = load_tensors(path)
        models[about["model"]] = tensors["masks"].numpy()
    if len(models) > 1:
        comparison = figures.model_comparison(arrays["frames"], models, results.stamp, arrays.get("segmentation"))
        yield _saved(comparison, folder / f"models-{task}.png", "slots",
                     f"{task}, seed {results.seeds[0]}: {', '.join(models)} on the same frames (the paper's Figure 4).",
                     wide=True)
    path = folder / f"slots-{task}.mp4"
    moving = [arrays[f"animation_{name}"] for name in ("frames", "masks", "seen")]
    write_video(path, figures.animation(*moving).repeat(4, 1).repeat(4, 2), fps=FPS, exact=True)
    yield Picture(_opening(results, task, "slots"), f"{task}, seed {results.seeds[0]}: a held-out episode as observed, "
                  "all slots, and what lapo-masks sees.", path, pixels=True)


def _latents(results, task, folder):
    for variant in LATENT:
        if is_absent(paths.samples(task, results.seeds[0], variant)):
            continue
        tensors, _ = load_tensors(paths.samples(task, results.seeds[0], variant))
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        if "prediction" in arrays:  # the slot model predicts slots, not images
            figure = figures.reconstructions(*(arrays[key] for key in ("current", "target", "prediction", "swapped")),
                                             results.stamp)
            yield _saved(figure, folder / f"reconstructions-{task}-{variant}.png", "reconstructions",
                         f"{task}, {variant}: predicted and true frame t+1; then the prediction with another "
                         "example's latent action, and the difference.")
        if "actions" in arrays:
            yield _saved(figures.latent_map(arrays["latents"], arrays["actions"], results.stamp),
                         folder / f"latents-{task}-{variant}.png", "latents",
                         f"{task}, {variant}: held-out latent actions on their first two principal components, "
                         "coloured by the true action.")


def _policies(results, task, folder):
    for variant in VARIANTS:
        recorded = paths.episode_video(task, results.seeds[0], variant)
        if is_absent(recorded):
            continue
        video = folder / f"episode-{task}-{variant}.mp4"
        write_video(video, read_gif(recorded, FPS), fps=FPS, exact=True)
        rows = read_csv(paths.evaluation(task, results.seeds[0], variant))
        shown = select(rows, budget=max(row["budget"] for row in rows), episode=0)[-1]["return"]
        yield Picture("policies", f"{task}, {variant}: the episode returned {shown:.0f}.", video, pixels=True)


def _opening(results, task, section):
    """`answer`, the top of the page, for the first task's return chart and slot video; `section` for other tasks'."""
    return "answer" if task == results.tasks[0] else section


def _saved(figure, path, section, caption, wide=False):
    figures.save(figure, path)
    return Picture(section, caption, path, wide)

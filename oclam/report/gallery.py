"""The report's pictures: the artifact that each is drawn from, its section and its caption."""

from dataclasses import dataclass
from pathlib import Path

from oclam import paths
from oclam.artifacts import is_absent, load_tensors
from oclam.report import figures
from oclam.report.results import OCP_MODELS, Results, select
from oclam.variants import LATENT, VARIANTS
from oclam.video import FPS, read_gif, write_video

LOSSES = {"ocp": "object-centric pretraining", "lapo": "latent action models", "bc": "behaviour cloning",
          "finetune": "fine-tuning with the largest label budget"}
PICTURES = {  # the first word of a file's name: section, heading, caption
    "returns": ("returns", "Returns, in % of bc's",
                "100, the dashed line, is what cloning of all true actions in the same view returns, which may be "
                "little; it is not what the demonstrations return. Lines are interquartile means, bands their 95% "
                "bootstrap intervals."),
    "probes": ("probes", "Errors of the action probes",
               "Ridge regression on held-out trajectories (dark) and the paper's online probe, on training batches "
               "(pale). Bars are means over seeds, dots single seeds."),
    "slots": ("slots", "Slots",
              "Frames of held-out episodes, the simulator's mask of the agent where there is one, the chosen slots' "
              "mask, the input of lapo-masks, the image decoded from the vector that lapo-slots observes, and every "
              "slot, of which the chosen are framed; in the video the frame, all slots, and the input of lapo-masks."),
    "models": ("slots", "Slot models",
               "The run's slot model and others, on the same frames (as the paper's Figure 4)."),
    "reconstructions": ("reconstructions", "Predictions of the forward model",
                        "Predicted and true next frame; then the prediction with another example's latent action, and "
                        "the difference."),
    "latents": ("latents", "Latent actions",
                "Held-out latent actions on their first two principal components, coloured by the first two true "
                "actions. Where colours change smoothly, latent actions contain the true ones."),
    "losses": ("losses", "Training losses", "Losses of different variants are not comparable; of fine-tuning those of "
               "the largest label budget."),
    "episode": ("policies", "Policies",
                "The beginning of the first evaluation episode, at the largest label budget."),
}


@dataclass(frozen=True)
class Picture:
    """One image or video of the report: its section, caption and file."""

    section: str
    caption: str
    path: Path
    wide: bool = False  # many small images in a row; scrolls on a narrow screen
    pixels: bool = False  # shown enlarged with sharp pixels


def draw(results: Results, folder: Path) -> list[Picture]:
    """The pictures of the report, in order, drawn into `folder`; frames are of the first seed.

    `answer`, the top of the page, has the first task's return chart and slot video.
    """
    return [picture for task in results.tasks
            for part in (_charts(results, task, folder), _slots(results, task, folder), _latents(results, task, folder),
                         _policies(results, task, folder)) for picture in part]


def _charts(results, task, folder):
    probes = select(results.probes, task=task)
    returns = [row for row in results.returns if row["task"] == task and row["budget"] > 0]
    if probes:
        yield _saved(figures.probe_bars(probes, results.stamp), folder / f"probes-{task}.svg", task)
    if returns:
        yield _saved(figures.return_curves(returns, results.stamp), folder / f"returns-{task}.svg", task,
                     opens=task == results.tasks[0])
    for stage, name in LOSSES.items():
        if rows := select(results.losses, task=task, stage=stage):
            yield _saved(figures.loss_curves(rows, results.stamp), folder / f"losses-{stage}-{task}.svg",
                         f"{task}, {name}")


def _slots(results, task, folder):
    seed = results.seeds[0]
    if is_absent(paths.slot_preview(task, seed)):
        return
    tensors, metadata = load_tensors(paths.slot_preview(task, seed))
    arrays, chosen = {name: tensor.numpy() for name, tensor in tensors.items()}, metadata["chosen"]
    grid = figures.slot_grid(arrays["frames"], arrays["masks"], chosen, arrays["selected"], arrays["seen"],
                             results.stamp, arrays.get("segmentation"), arrays.get("decoded"))
    yield _saved(grid, folder / f"slots-{task}.png", f"{task}, seed {seed}", wide=True)
    models = {OCP_MODELS[results.selections[0]["model"]]: arrays["masks"], **results.masks[task]}
    if len(models) > 1:
        comparison = figures.model_comparison(arrays["frames"], models, results.stamp, arrays.get("segmentation"))
        yield _saved(comparison, folder / f"models-{task}.png", f"{task}, seed {seed}, {', '.join(models)}", wide=True)
    path = folder / f"slots-{task}.mp4"
    moving = [arrays[f"animation_{name}"] for name in ("frames", "masks", "seen")]
    write_video(path, figures.animation(*moving).repeat(4, 1).repeat(4, 2), fps=FPS, exact=True)
    yield _picture(path, f"{task}, seed {seed}", opens=task == results.tasks[0], pixels=True)


def _latents(results, task, folder):
    for variant in LATENT:
        if is_absent(paths.samples(task, results.seeds[0], variant)):
            continue
        tensors, _ = load_tensors(paths.samples(task, results.seeds[0], variant))
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        if "prediction" in arrays:  # the slot model predicts slots, not images
            figure = figures.reconstructions(*(arrays[key] for key in ("current", "target", "prediction", "swapped")),
                                             results.stamp)
            yield _saved(figure, folder / f"reconstructions-{task}-{variant}.png", f"{task}, {variant}")
        if "actions" in arrays:
            yield _saved(figures.latent_map(arrays["latents"], arrays["actions"], results.stamp),
                         folder / f"latents-{task}-{variant}.png", f"{task}, {variant}")


def _policies(results, task, folder):
    for variant in VARIANTS:
        recorded = paths.episode_video(task, results.seeds[0], variant)
        if is_absent(recorded):
            continue
        video = folder / f"episode-{task}-{variant}.mp4"
        write_video(video, read_gif(recorded, FPS), fps=FPS, exact=True)
        firsts = select(results.episodes, task=task, seed=results.seeds[0], variant=variant, episode=0)
        yield _picture(video, f"{task}, {variant}, return {firsts[-1]['return']:.0f}", pixels=True)


def _saved(figure, path, of, **looks):
    figures.save(figure, path)
    return _picture(path, of, **looks)


def _picture(path, of, opens=False, **looks):
    section, _, caption = PICTURES[path.name.split("-")[0]]
    return Picture("answer" if opens else section, f"{of}: {caption}", path, **looks)

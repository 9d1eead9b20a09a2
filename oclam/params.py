"""Typed, frozen parameters: one class for each section of `params.yaml`, checked as a whole before any work.

`params.yaml` is the small scale, `params/paper.yaml` the paper's (Tables 6 to 8). `load` gives a stage exactly the keys
that it declares to DVC. `python -m oclam.params params/study.yaml` makes another scale the pipeline's.
"""

import argparse
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML, YAMLError

from oclam.artifacts import atomic
from oclam.errors import UserError, one_line

# Upper limits catch slips of the keyboard before memory or a day is lost; nothing published comes near them.
Count = Annotated[int, Field(ge=1, le=10**9)]
Size = Annotated[int, Field(ge=1, le=2**16)]  # of a layer or a batch
Natural = Annotated[int, Field(ge=0, le=2**32 - 1)]  # a seed of NumPy at most
Positive = Annotated[float, Field(gt=0, le=1e6)]
Rate = Annotated[float, Field(gt=0, le=10)]
NonNegative = Annotated[float, Field(ge=0, le=1e6)]
Name = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A frozen group of parameters that refuses unknown keys and silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Extras(Section):
    """Comparisons beyond the paper's main ones. false leaves one out, with all that follows from it.

    The defaults are for files from before there was this section, such as those of published runs.
    """

    lapo_focus: bool = True
    laom: bool = True  # laom and laom-masks
    laom_labels: bool = True
    steve: bool = True  # beside ocp's model, as slotcontrast
    slotcontrast: bool = True


class Compute(Section):
    """How the arithmetic is done; the device is a GPU wherever there is one."""

    devices: Annotated[int, Field(ge=1, le=64)]  # processes that train one model of ocp, lapo or bc, each with its GPU
    precision: Literal["float32", "bfloat16"]
    compile: bool
    # CPU threads of one stage: a parameter, since results depend on it. More threads' stacks may not fit in memory.
    threads: Annotated[int, Field(ge=1, le=128)]


class Env(Section):
    """The Distracting Control Suite (arXiv 2101.02722): rendering and the three distractors."""

    image_size: Annotated[int, Field(ge=16, le=1024, multiple_of=8)]
    renderer: Literal["fast", "shadows", "reference"]  # see oclam/envs/rendering.py
    texture_size: Annotated[int, Field(ge=16, le=4096)]  # edge of the background video's texture; the suite uses 800
    background: bool
    background_dynamic: bool
    color: bool
    color_scale: Annotated[float, Field(ge=0, le=1)]
    color_dynamic: bool
    camera: bool
    camera_scale: Annotated[float, Field(ge=0, le=1)]
    camera_dynamic: bool
    humanoid_camera: Literal["back", "front"]  # front: as in the published datasets, by a limit of the package


DEFAULT_ENV = Env(image_size=64, renderer="fast", texture_size=128, background=True, background_dynamic=True,
                  color=True, color_scale=0.1, color_dynamic=True, camera=True, camera_scale=0.1, camera_dynamic=True,
                  humanoid_camera="back")


class Backgrounds(Section):
    """Where background videos come from."""

    source: Literal["generated", "davis", "folder"]
    path: Name  # davis: its archive or folder, downloaded where that is empty; folder: videos or folders of frames
    videos: Count  # how many training videos at most; half as many others are kept for evaluation
    frames: Annotated[int, Field(ge=2)]  # frames kept of each video at most
    seed: Natural


class Training(Section):
    """What sbx needs to train one task's expert."""

    algorithm: Literal["PPO", "SAC", "CrossQ"]
    steps: Count  # environment steps in all
    environments: Count  # stepped together
    episode_steps: Count  # of training episodes: fewer than the suite's 1,000 give more starts
    evaluate_every: Count  # environment steps between two evaluations
    hyperparameters: dict[str, int | float | str | bool | list[int]]
    demonstrator: Name | None = None  # the file of an expert, which acts until SAC's or CrossQ's learning_starts


class Expert(Section):
    """The policy that acts in the dataset: from `folder`, or trained."""

    folder: Name  # holds <task>.safetensors
    train: bool
    evaluation_episodes: Count
    training: dict[str, Training]


class Collect(Section):
    """Demonstrations: whole episodes, with and without distractors from the same seeds, or imported ones.

    For imported ones the counts and steps must be those of the files, and noise, shards and seed do nothing.
    """

    source: Literal["simulator", "files"]
    path: Name  # files: of `python -m oclam.import`, <task>/distracted.zarr and, if there is one, <task>/clean.zarr
    episodes: Count
    # held out, after the first `episodes`: half of them chooses the ridge probe's penalty, the other measures its error
    test_episodes: Annotated[int, Field(ge=2, le=10**9)]
    segmented_episodes: Annotated[int, Field(ge=0, le=10**9)]  # the first held-out ones, whose true masks measure slots
    steps: Annotated[int, Field(ge=16, le=1000)]  # an episode of the suite has 1000
    action_noise: NonNegative  # standard deviation of the noise on the expert's actions; the sum is recorded
    shard_episodes: Count
    seed: Natural


class Encoder(Section):
    """The frozen vision transformer whose features VideoSAUR reads."""

    source: Name  # embedded, hub, distill, or a file in data/encoders with timm's tensor names
    name: Name  # timm's name of the architecture; ignored by embedded and distill
    image_size: Annotated[int, Field(ge=16, le=2048)]  # frames are resized to this
    teacher: Name  # distill only: timm's name of the teacher
    teacher_weights: str | None  # distill only: safetensors, or null for the hub
    distill_frames: Count
    distill_steps: Count
    distill_batch: Annotated[int, Field(ge=2, le=2**16)]  # pairs of neighbouring frames
    distill_learning_rate: Rate


class Ocp(Section):
    """Object-centric pretraining (paper, Table 6; VideoSAUR arXiv 2306.04829, STEVE 2205.14065, SlotContrast
    2412.14295)."""

    model: Literal["videosaur", "steve", "slotcontrast"]
    slots: Annotated[int, Field(ge=2, le=64)]
    slot_dim: Annotated[int, Field(ge=4, le=2**16, multiple_of=4)]
    feature_hidden: Size  # this and the next two are VideoSAUR's and SlotContrast's; STEVE's stand in the section steve
    decoder_hidden: Size
    decoder_layers: Size
    clip_length: Annotated[int, Field(ge=2)]
    kept_clips: Count | None  # draw and encode this many clips once; null encodes fresh ones at every step
    decoded_patches: Count | None  # random patches of a step on which the loss is taken; null takes all
    batch_size: Size
    steps: Count
    learning_rate: Rate
    warmup_steps: Natural
    decay_steps: Count
    clip_norm: Positive
    published: bool  # true: as VideoSAUR's code; false: slots start from clusters (slots/attention.py)
    similarity_weight: NonNegative  # this and the next two are VideoSAUR's
    similarity_temperature: Positive
    reconstruction_weight: NonNegative
    contrast_weight: NonNegative  # this and the next are SlotContrast's, whose reconstruction has weight 1
    contrast_temperature: Positive
    masks: Literal["decoder", "attention"]  # VideoSAUR's are its decoder's; STEVE has only the slot attention's
    window: Count | None  # slots are initialised again after so many frames; null: recurrent through the whole episode


class Steve(Section):
    """STEVE, which the report shows beside the model of ocp (paper, appendix A); all else is as in ocp."""

    published: bool  # STEVE's published form; false: a small variant. These five are also ocp's where it trains STEVE
    feature_hidden: Size  # channels of the convolutions
    decoder_hidden: Size  # channels of the discrete VAE
    decoder_layers: Size  # of the transformer that predicts the tokens
    vocabulary: Size  # tokens
    slot_dim: Annotated[int, Field(ge=4, le=2**16, multiple_of=4)]
    batch_size: Size
    steps: Count
    learning_rate: Rate
    warmup_steps: Natural
    decay_steps: Count


class SlotContrast(Section):
    """SlotContrast, which the report shows beside the model of ocp; all else is as in ocp."""

    steps: Count


class Slots(Section):
    """The vector of every slot in every frame."""

    vectors: Literal["attention", "components"]  # attention: slot attention's own; components: with the pose


class SlotSelect(Section):
    """Which slots are the agent's."""

    method: Literal["auto", "manual"]
    manual: dict[str, list[Natural]]  # task -> slot indices
    labelled_episodes: Annotated[int, Field(ge=2)]  # their true actions choose restart and slots
    max_slots: Count
    combine: Literal["concatenate", "mean"]
    masks: Literal["soft", "refined"]  # refined: patches where a chosen slot's is the highest, then pixels by colour
    registered: bool  # masked frames are turned and scaled to the mean pose of the mask, against a moving camera


class LapoImage(Section):
    """The image latent action model of lapo, lapo-masks, lapo-no-distractors and lapo-focus (paper, Table 8).

    laom has the encoder of these sizes.
    """

    latent_dim: Size  # of every variant
    frame_stack: Size
    future_offset: Count  # k is uniform in 1..future_offset; of every variant
    encoder_scale: Size
    residual_blocks: Size  # 0 would leave nothing nonlinear between the convolutions
    batch_size: Size
    epochs: Positive
    warmup_epochs: NonNegative
    learning_rate: Rate


class Heads(Section):
    """Settings of models whose inverse and forward models are MLPs: lapo-slots and LAOM."""

    hidden_dim: Size
    expansion: Size
    batch_size: Size
    epochs: Positive
    warmup_epochs: NonNegative
    learning_rate: Rate
    target_rate: Annotated[float, Field(gt=0, le=1)]  # laom: share of the way that its target moves at every update


class LapoSlots(Heads):
    """The slot latent action model (paper, Table 7)."""

    model: Literal["lapo", "laom"]  # which one learns from the slots


class LapoFocus(Section):
    """The loss weighting of lapo-focus: 1 inside the chosen slots' masks, `background_weight` outside."""

    background_weight: Annotated[float, Field(ge=0, le=1)]


class Laom(Heads):
    """LAOM (arXiv 2502.00379): laom, laom-masks, laom-labels. Heads as those of lapo-slots; other sizes are lapo's."""

    augmentation: Annotated[float, Field(ge=0, le=1)]  # strength: 1 is the published one, 0 none
    centred: bool  # embeddings less the mean of the first batch; published: false


class LaomLabels(Section):
    """The labels of laom-labels: those of finetune's largest budget."""

    batch_size: Size
    coefficient: NonNegative  # of their error in the loss


class Bc(Section):
    """Behaviour cloning of latent or true actions (paper, Tables 7 and 8)."""

    frame_stack: Size
    encoder_scale: Size
    residual_blocks: Size
    cells: Annotated[int, Field(ge=1, le=64)]  # the actor's last map is pooled to cells x cells; paper: 1
    published: bool = True  # latents as they are, a random head; false: standardised ones, a head that starts at 0
    batch_size: Size
    epochs: Positive
    warmup_epochs: NonNegative
    learning_rate: Rate


class Finetune(Section):
    """The action decoder, trained on few labelled trajectories."""

    budgets: Annotated[list[Count], Field(min_length=1)]
    hidden_dim: Size
    batch_size: Size
    updates: Count  # for each budget: at least these, more where `epochs` passes over its frames take more
    epochs: NonNegative
    loss: Literal["squares", "absolute"]  # of true actions, in finetune, scratch and bc-full
    learning_rate: Rate
    unfreeze: bool
    decoder_init: Literal["orthogonal", "default"]  # initial weights of the action decoder; default: PyTorch's


class Scratch(Section):
    """The control: the policies of finetune's budgets without latent pretraining."""

    updates: Count  # as finetune's, but of the whole policy, so that each costs far more
    epochs: NonNegative


class Eval(Section):
    """Returns in the environment."""

    episodes: Count
    backgrounds: Literal["test", "train"]  # the split of background videos; the paper evaluates on the training split
    seed: Natural


class Params(Section):
    """The whole of params.yaml."""

    scale: Name  # named beside every number of the report
    tasks: Annotated[list[Name], Field(min_length=1)]
    seeds: Annotated[list[Natural], Field(min_length=1)]  # of all training; not of data and evaluation
    restarts: Annotated[list[Natural], Field(min_length=1)]  # initialisations of ocp, of which the best one is kept
    extras: Extras = Extras()
    compute: Compute
    env: Env
    backgrounds: Backgrounds
    expert: Expert
    collect: Collect
    encoder: Encoder
    ocp: Ocp
    steve: Steve
    slotcontrast: SlotContrast
    slots: Slots
    slot_select: SlotSelect
    lapo: LapoImage
    lapo_slots: LapoSlots
    lapo_focus: LapoFocus
    laom: Laom
    laom_labels: LaomLabels
    bc: Bc
    finetune: Finetune
    scratch: Scratch
    eval: Eval

    @model_validator(mode="after")
    def _check_combinations(self):
        def require(holds, key, given, allowed):
            if not holds:
                raise ValueError(f"{key}: {given!r} given, {allowed}")

        collect, select = self.collect, self.slot_select
        for key in ("tasks", "seeds", "restarts"):
            values = getattr(self, key)
            require(len(set(values)) == len(values), key, values, "each value may appear only once")
        for task in self.tasks:
            require(re.fullmatch(r"\w+-\w+", task), "tasks", task, "a task is domain-task, as in cheetah-run")
            if select.method == "manual":
                require(select.manual.get(task), f"slot_select.manual.{task}", select.manual.get(task),
                        "manual selection needs a list of slot indices for every task")
            if self.expert.train:
                require(task in self.expert.training, f"expert.training.{task}", None,
                        "training an expert needs its algorithm and hyperparameters")
        for task, slots in select.manual.items():
            require(task in self.tasks, f"slot_select.manual.{task}", slots, f"tasks are {', '.join(self.tasks)}")
            require(len(set(slots)) == len(slots) and all(k < self.ocp.slots for k in slots),
                    f"slot_select.manual.{task}", slots, f"allowed are distinct indices 0..{self.ocp.slots - 1}")
        require(self.slots.vectors == "attention" or self.ocp.slot_dim >= 8, "ocp.slot_dim", self.ocp.slot_dim,
                "slots.vectors components needs 8 or more")
        require(select.max_slots <= self.ocp.slots, "slot_select.max_slots", select.max_slots,
                f"ocp.slots is {self.ocp.slots}")
        require(select.labelled_episodes <= collect.episodes, "slot_select.labelled_episodes", select.labelled_episodes,
                f"collect.episodes is {collect.episodes}")
        require(collect.segmented_episodes > 0 or collect.source == "files", "collect.segmented_episodes", 0,
                "collect.source: simulator needs at least 1")
        require(collect.segmented_episodes <= collect.test_episodes, "collect.segmented_episodes",
                collect.segmented_episodes, f"collect.test_episodes is {collect.test_episodes}")
        encoder, budgets = self.encoder, self.finetune.budgets
        require(encoder.distill_batch <= encoder.distill_frames, "encoder.distill_batch", encoder.distill_batch,
                f"encoder.distill_frames is {encoder.distill_frames}")
        for task, training in self.expert.training.items():
            require(training.algorithm != "PPO" or not training.demonstrator, f"expert.training.{task}.demonstrator",
                    training.demonstrator, "only SAC and CrossQ can use a demonstrator; remove it")
            watched = Path(training.demonstrator or "").resolve().is_relative_to(Path(self.expert.folder).resolve())
            require(watched or not (training.demonstrator and self.expert.train and task in self.tasks),
                    f"expert.training.{task}.demonstrator", training.demonstrator,
                    f"put it in expert.folder, {self.expert.folder}, where DVC sees its changes")
        require(max(budgets) <= collect.episodes, "finetune.budgets", budgets,
                f"at most collect.episodes = {collect.episodes} trajectories are labelled")
        require(sorted(set(budgets)) == budgets, "finetune.budgets", budgets, "they must increase, without repeats")
        require(self.lapo.future_offset < collect.steps, "lapo.future_offset", self.lapo.future_offset,
                f"an episode has collect.steps = {collect.steps}")
        require(self.ocp.clip_length <= collect.steps, "ocp.clip_length", self.ocp.clip_length,
                f"an episode has collect.steps = {collect.steps}")
        require((self.ocp.window or 1) <= collect.steps, "ocp.window", self.ocp.window,
                f"an episode has collect.steps = {collect.steps}")
        require(self.ocp.similarity_weight + self.ocp.reconstruction_weight > 0, "ocp.similarity_weight",
                self.ocp.similarity_weight, "it and ocp.reconstruction_weight cannot both be 0")
        for name in ("ocp", "steve"):  # else the learning rate would halve at every step after the warm-up
            section = getattr(self, name)
            require(section.warmup_steps < section.decay_steps, f"{name}.decay_steps", section.decay_steps,
                    f"more than {name}.warmup_steps = {section.warmup_steps} is needed")
        steve, devices = self.ocp.model == "steve", self.compute.devices
        require(not steve or self.ocp.masks == "attention", "ocp.masks", self.ocp.masks,
                "ocp.model steve needs attention")
        require(not steve or not self.steve.published or self.ocp.decoded_patches is None,
                "ocp.decoded_patches", self.ocp.decoded_patches, "steve.published needs null, all patches")
        require(devices == 1 or self.ocp.model == "videosaur", "compute.devices", devices,
                f"ocp.model {self.ocp.model} needs its whole batch at once, so it trains on 1")
        for name in ("ocp", "lapo", "lapo_slots", "bc"):
            batch = getattr(self, name).batch_size
            require(batch % devices == 0, f"{name}.batch_size", batch, f"compute.devices = {devices} must divide it")
        for name in ("lapo", "lapo_slots", "laom", "bc"):
            section = getattr(self, name)
            require(section.warmup_epochs <= section.epochs, f"{name}.warmup_epochs", section.warmup_epochs,
                    f"{name}.epochs is {section.epochs}")
        return self


def read(path: str | Path = "params.yaml", changes: Sequence[str] = ()) -> Params:
    """The checked content of a whole parameter file.

    A file that begins with `base: OTHER.yaml` has only what differs from the other file.
    changes, words such as `lapo.latent_dim=1024`, replace what the file says.
    Raises UserError with one line: the key's full name, what was given, what is allowed.
    """
    path = Path(path)
    content = _content(path)
    for change in changes:
        key, _, value = change.partition("=")
        *sections, name = key.split(".")
        section = content
        for part in sections:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise UserError(f"{path}: {key}: unknown parameter; {part} is {section!r}, not a section")
        section[name] = _parsed(value, key)
    return _checked(content, path)


def _content(path, scale=None):
    """The parameters of a file and, where it names one, of its base; scale: of the file that has this as its base."""
    if not path.is_file():
        raise UserError(f"{path}: no such parameter file; run in a clone of oclam's repository, or name one")
    try:
        content = _parsed(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: {type(content).__name__} given, expected sections such as lapo: and ocp:")
    if "base" not in content:
        return content
    if not isinstance(name := content.pop("base"), str):
        raise UserError(f"{path}: base: {name!r} given, should be the path of another parameter file")
    scale = scale or content.get("scale")
    base = _content(path.parent / name, scale)
    if base.get("scale") == scale:  # `replace` has written this very scale there: take the last commit's
        base = _committed(path.parent / name) or base
    held = base.get("scale")
    if held not in (scale, Path(name).stem) and (path.parent / f"{held}.yaml").exists():
        raise UserError(f"{path}: its base holds the scale {held} now; restore it with "
                        "`git checkout params.yaml`, of an earlier commit if need be")
    return _merged(base, content)


def _merged(base, changes):
    """A copy of `base` with the entries of `changes`, section by section."""
    both = {key: _merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
            for key, value in changes.items()}
    return {**base, **both}


def _parsed(text, name):
    """The content of a text in YAML 1.2, as DVC reads it: 1e-5 is a number, `off` is a word, no key stands twice."""
    try:
        return YAML(typ="safe").load(text)
    except (YAMLError, ValueError, LookupError, RecursionError) as error:  # also of impossible dates, numbers and tags
        raise UserError(f"{name}: not valid YAML: {one_line(error)}") from None


def _checked(content, path):
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error.errors()[0])}") from None


def explain(error: dict, kind: type[Section] = Params) -> str:
    """What an error of pydantic, found in a section of `kind`, says: the key, what was given, and what is allowed."""
    given, place = error["input"], []
    for part in error["loc"]:  # up to the parameter's own name; after it pydantic distinguishes a union's members
        if isinstance(kind, type) and issubclass(kind, Section):
            fields = kind.model_fields
            kind = fields[part].annotation if part in fields else None
        elif get_origin(kind) in (dict, list):
            fields, kind = None, get_args(kind)[-1]
        else:
            break
        place.append(str(part))
    key = ".".join(place)
    match error["type"]:
        case "extra_forbidden":
            return f"{key}: unknown parameter; allowed here are {', '.join(fields)}"
        case "missing":
            return f"{key}: missing"
        case "model_type":
            return f"{key}: {given!r} given, should be a section with {', '.join(kind.model_fields)}"
        case "value_error":  # from _check_combinations, which names the key itself
            return str(error["ctx"]["error"])
    if len(place) < len(error["loc"]):
        return f"{key}: {given!r} given, should be one of {kind}"
    message = error["msg"].removeprefix("Input ")
    return f"{key}: {given!r} given, {message[0].lower()}{message[1:]}"


def load(*names: str, path: str | Path = "params.yaml") -> SimpleNamespace:
    """The named sections or keys of a parameter file, which is checked as a whole.

    `load("compute", "lapo.latent_dim")` has all of `compute` and of `lapo` only `latent_dim`, so that a stage cannot
    read what it does not declare to DVC. Raises UserError as `read` does.
    """
    params, chosen = read(path), SimpleNamespace()
    for name in names:
        section, _, key = name.partition(".")
        value = getattr(params, section)
        if key:
            part = getattr(chosen, section, SimpleNamespace())
            setattr(part, key, getattr(value, key))
            value = part
        setattr(chosen, section, value)
    return chosen


def replace(source: Path, target: Path = Path("params.yaml")) -> None:
    """Write the parameters of `source`, resolved against its base, to `target`.

    Raises UserError when that would lose an edit of `target`: values that neither the last commit nor `source` has, nor
    the last call wrote.
    """
    wanted, given = read(source), read(target)
    committed, written = _committed(target), target.parent / ".resume" / target.name
    edited = not written.exists() or written.read_bytes() != target.read_bytes()
    if given != wanted and edited and (
            committed is None or given != _checked(committed, f"{target} of the last commit")):
        raise UserError(f"{target}: it has values that no commit has; commit them or run `git checkout {target}` first")
    text = source.read_text(encoding="utf-8")
    if _parsed(text, source).keys() != Params.model_fields.keys():  # it has a base, or lacks a section
        text = f"# {source}, resolved.\n" + yaml.safe_dump(wanted.model_dump(), sort_keys=False, width=120)
    for path in (written, target):
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _committed(path):
    """The content of a parameter file in the last commit, None where there is none."""
    git = shutil.which("git")
    shown = git and subprocess.run([git, "-C", path.parent, "show", f"HEAD:./{path.name}"], capture_output=True,
                                   text=True)
    return None if not shown or shown.returncode else _parsed(shown.stdout, f"{path} of the last commit")


def main():
    parser = argparse.ArgumentParser(prog="python -m oclam.params",
                                     description="Make the parameters of another scale those of the pipeline.")
    parser.add_argument("source", type=Path, help="such as params/study.yaml; params.yaml becomes a copy of it")
    from oclam.cli import only_one  # which needs this module

    source = parser.parse_args().source
    with only_one("pipeline"):  # whose stages would read the new parameters
        replace(source)


if __name__ == "__main__":
    from oclam.cli import one_line_errors  # which needs this module

    one_line_errors(main)

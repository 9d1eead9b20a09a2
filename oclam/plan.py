"""The cost of a pipeline before it is run: `python -m oclam.plan params/paper.yaml ocp.slots=8`.

Models are built on PyTorch's meta device, without memory, so that parameters, FLOPs and activations of the real code
are counted within seconds.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace

import timm
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from oclam import paths, suite
from oclam.artifacts import load_tensors
from oclam.cli import one_line_errors
from oclam.datasets import FrameSampler, open_dataset
from oclam.encoders.files import check_name
from oclam.encoders.frozen import check_image_size
from oclam.errors import UserError
from oclam.laom.models import SLOT_MODELS, LaomModel
from oclam.latent_actions.models import ImageLatentActionModel
from oclam.params import Ocp, Params, read
from oclam.policies.networks import ActionDecoder, Actor
from oclam.policies.training import updates_of
from oclam.slots.models import check_patches, make_model
from oclam.slots.steve import make_steve
from oclam.training import count_parameters, update_counts
from oclam.variants import ALL_LABELS, LATENT, PAPER_OCP, VARIANTS

# What the paper's durations on one H100 imply for our FLOPs, in 1e12 per second: small layers leave a GPU idle.
# Its behaviour cloning would need 647, more than is plausible.
TFLOPS = {"ocp": 283, "slots": 283, "slotcontrast": 283, "lapo-slots": 9} | {
    name: 55 for name in LATENT if VARIANTS[name].observes != "slots"}
VIEWS = 2  # of datasets: distracted and clean


@dataclass(frozen=True)
class Cost:
    """The cost of one run of a stage.

    Args:
        runs: how many runs the pipeline has.
        samples, unit: what training, collection or evaluation processes.
        trainable, total: parameters.
        disk: bytes of the outputs before compression.
        memory: bytes of weights, gradients, Adam's moments and activations.
        data: bytes of the rows that `oclam.datasets.Frames` keeps.
        rendered: frames.
    """

    stage: str
    runs: int
    unit: str = ""
    trainable: int = 0
    total: int = 0
    samples: int = 0
    flops: int = 0
    disk: int = 0
    memory: int = 0
    data: int = 0
    rendered: int = 0

    def hours(self, flops_per_second: float, frames_per_second: float) -> float:
        """Duration of one run at these throughputs."""
        return (self.flops / flops_per_second + self.rendered / frames_per_second) / 3600


@dataclass(frozen=True)
class Measured:
    """A model's parameters; for one sample, FLOPs forward, FLOPs forward and backward, and bytes of activations."""

    size: int
    forward: int
    both: int
    activations: int


class Plan:
    """The costs of every stage under some parameters (`oclam.params.Params`).

    Raises UserError for a task, imported demonstrations or an encoder that do not exist.
    """

    def __init__(self, params: Params):
        self.params, collect, size = params, params.collect, params.env.image_size
        self.runs = len(params.tasks) * len(params.seeds)
        self.variants = [name for name, row in VARIANTS.items() if not row.extra or getattr(params.extras, row.extra)]
        self.latent = [name for name in LATENT if name in self.variants]
        self.training_frames = collect.episodes * collect.steps
        self.frames = (collect.episodes + collect.test_episodes) * collect.steps
        self.pixels, self.mask = size * size * 3, size * size  # bytes of a frame
        self.action_dim, self.state_dim = map(max, zip(*map(self._widths, params.tasks), strict=True))
        select = params.slot_select
        chosen = select.max_slots if select.method == "auto" else max(map(len, select.manual.values()))
        self.slot_width = params.ocp.slot_dim * (chosen if select.combine == "concatenate" else 1)

    def _widths(self, task):
        """How many numbers an action and a state have."""
        collect = self.params.collect
        if collect.source == "simulator":
            return suite.sizes(suite.load_task(task))
        group = open_dataset(Path(collect.path) / task / "distracted.zarr", task).group
        return group["actions"].shape[2], group["states"].shape[2]

    def costs(self) -> list[Cost]:
        """The cost of every stage, in the pipeline's order."""
        extras = self.params.extras
        with torch.device("meta"):
            return [*self.assets(), self.ocp(), self.slots(), self.slot_select(),
                    *([self.steve()] if extras.steve else []), *([self.slotcontrast()] if extras.slotcontrast else []),
                    *map(self.lapo, self.latent), *self.cloning(), *self.few_labels(), self.evaluation()]

    def assets(self) -> list[Cost]:
        params, tasks = self.params, len(self.params.tasks)
        videos = (params.backgrounds.videos + -(-params.backgrounds.videos // 2)) * params.backgrounds.frames
        simulated = params.collect.source == "simulator"
        trained = simulated and params.expert.train
        experts = max(params.expert.training[task].steps for task in params.tasks) if trained else 0
        encoder = count_parameters(self.encoder)["total"]
        row = self.pixels + 4 * (self.action_dim + self.state_dim + 1)
        masks = params.collect.segmented_episodes * params.collect.steps * self.mask
        return [Cost("backgrounds", 1, "frames", samples=videos, disk=videos * params.env.texture_size**2 * 3),
                Cost("expert", tasks, "steps", samples=experts),
                Cost("encoder", 1, total=encoder, disk=4 * encoder),
                Cost("collect", tasks * VIEWS, "frames", samples=self.frames, disk=self.frames * row + masks,
                     rendered=simulated * self.frames)]

    @cached_property
    def encoder(self) -> nn.Module:
        """The frozen vision transformer, without final norm and head."""
        name, options, settings = self.params.encoder.name, {}, self.params.encoder
        if settings.source != "hub":
            embedded = settings.source in ("embedded", "distill")  # what is distilled has the embedded one's shape
            path = paths.embedded_encoder if embedded else Path(settings.source)
            if not path.is_file():
                raise UserError(f"encoder.source: {settings.source!r} given, {path} does not exist; put it there or "
                                "name another")
            _, about = load_tensors(path)
            name, options = about.get("name", name), about.get("kwargs", {})
        check_name(name)
        vit = timm.create_model(name, num_classes=0, **options | {"img_size": settings.image_size})
        check_image_size(settings.image_size, vit.patch_embed.patch_size[0])
        vit.norm = nn.Identity()
        return vit.requires_grad_(False)

    @cached_property
    def object_centric_model(self) -> tuple:
        """The model of ocp, as `object_centric` measures it."""
        return self.object_centric(self.params.ocp)

    def object_centric(self, ocp: Ocp) -> tuple:
        """The frozen encoder on a frame, the model as it trains on a clip and extracts a frame's slots: measured; the
        inputs of a clip, and patches per side."""
        if ocp.model == "steve":
            frozen, (model, clip) = Measured(0, 0, 0, 0), self.steve_and_clip(ocp.slot_dim)
        else:
            vit, frame = self.encoder, torch.empty(1, 3, *2 * [self.params.encoder.image_size])
            frozen, patches = self.measure(vit, lambda: vit.forward_features(frame)), vit.patch_embed.num_patches
            check_patches(ocp, patches)
            observer = SimpleNamespace(dim=vit.embed_dim, grid=round(patches**0.5))
            model = make_model(ocp, None, observer, self.params.env.image_size)
            clip = 2 * [torch.empty(1, ocp.clip_length, patches, vit.embed_dim)]  # features and keys
        return frozen, *self.slot_model(model, clip, ocp.slot_dim, ocp.decoded_patches), clip, model.grid

    def ocp(self) -> Cost:
        return self.pretraining(self.params.ocp, self.object_centric_model)

    def slotcontrast(self) -> Cost:
        """As ocp with that model, from one initialisation, and then the masks of the segmented episodes."""
        ocp = self.params.ocp.model_copy(update={"model": "slotcontrast", "steps": self.params.slotcontrast.steps})
        measured = frozen, _, extraction, _, _ = self.object_centric(ocp)
        cost = self.pretraining(ocp, measured)
        collect = self.params.collect
        segmented = collect.segmented_episodes * collect.steps
        return replace(cost, stage="slotcontrast", runs=self.runs, disk=0,
                       flops=cost.flops + segmented * (frozen.forward + extraction.forward))

    def pretraining(self, ocp: Ocp, measured: tuple) -> Cost:
        """Training as ocp says of the model that `object_centric` measured."""
        frozen, slots, _, clip, _ = measured
        clips = ocp.steps * ocp.batch_size
        kept = 2 * (ocp.kept_clips or 0) * sum(part.numel() for part in clip)  # in float16
        return Cost("ocp", self.runs * len(self.params.restarts), "frames", slots.size, slots.size + frozen.size,
                    samples=clips * ocp.clip_length,
                    flops=(ocp.kept_clips or clips) * ocp.clip_length * frozen.forward + clips * slots.both,
                    disk=4 * slots.size,
                    memory=4 * frozen.size + 16 * slots.size + ocp.batch_size * slots.activations,
                    data=self.training_frames * self.pixels + kept)

    def slots(self) -> Cost:
        ocp, (frozen, slots, extraction, _, grid) = self.params.ocp, self.object_centric_model
        restarts = len(self.params.restarts)
        labelled = self.params.slot_select.labelled_episodes * self.params.collect.steps if restarts > 1 else 0
        row = ocp.slots * (2 * ocp.slot_dim + grid**2)
        return Cost("slots", self.runs, "frames", total=slots.size + frozen.size, samples=self.frames,
                    flops=(self.frames + labelled) * frozen.forward
                    + (self.frames + restarts * labelled) * extraction.forward,
                    disk=self.frames * row, memory=4 * (frozen.size + restarts * slots.size))

    def steve(self) -> Cost:
        steve, collect = self.params.steve, self.params.collect
        slots, extraction = self.slot_model(*self.steve_and_clip(steve.slot_dim), steve.slot_dim)
        clips, segmented = steve.steps * steve.batch_size, collect.segmented_episodes * collect.steps
        return Cost("steve", self.runs, "frames", slots.size, slots.size, samples=clips * self.params.ocp.clip_length,
                    flops=clips * slots.both + segmented * extraction.forward,
                    memory=16 * slots.size + steve.batch_size * slots.activations,
                    data=self.training_frames * self.pixels)

    def steve_and_clip(self, slot_dim: int) -> tuple:
        ocp, size = self.params.ocp, self.params.env.image_size
        clip = [torch.empty(1, ocp.clip_length, 3, size, size)]
        return make_steve(self.params.steve, size, ocp.slots, slot_dim), clip

    def slot_model(self, model: nn.Module, clip: list[torch.Tensor], slot_dim: int,
                   decoded: int | None = None) -> tuple:
        """A model of slots as it trains on a clip, and as it extracts a frame's slots and masks, measured."""
        noise = torch.empty(1, self.params.ocp.slots, slot_dim)
        decoded = torch.arange(decoded or model.grid**2)

        def extract():
            projected = model.project(clip[0][:, :1])
            return model.masks(model.slots(projected)[:, 0], projected[:, 0]).detach()

        return self.measure(model, lambda: model(*clip, noise, decoded)["loss"]), self.measure(model, extract)

    def slot_select(self) -> Cost:
        return Cost("slot-select", self.runs, "frames", samples=self.frames,
                    disk=self.frames * (2 * self.slot_width + self.mask + self.pixels))

    @cached_property
    def latent_action_models(self) -> dict[str, tuple[Measured, Measured]]:
        """By section of parameters: the model in training, and its inverse model alone, measured."""
        lapo, heads, size = self.params.lapo, self.params.lapo_slots, self.params.env.image_size
        sizes = 3 * lapo.frame_stack, size, lapo.latent_dim, lapo.encoder_scale, lapo.residual_blocks
        images, frames = ImageLatentActionModel(*sizes), torch.empty(1, 3 * lapo.frame_stack, size, size)
        laom = LaomModel(*sizes, self.params.laom.hidden_dim, self.params.laom.expansion)
        slots = SLOT_MODELS[heads.model](self.slot_width, lapo.latent_dim, heads.hidden_dim, heads.expansion)
        measured = {section: (self.measure(model, lambda model=model, x=x: model(x, x)[1]),
                              self.measure(model, lambda model=model, x=x: model.idm(x, x).detach()))
                    for section, model, x in (("lapo", images, frames), ("laom", laom, frames),
                                              ("lapo_slots", slots, torch.empty(1, self.slot_width)))}
        return measured | {"laom_labels": (self.measure(laom, lambda: laom.idm(frames, frames)),
                                           self.measure(laom.encoder, lambda: laom.encoder(frames).detach()))}

    def lapo(self, variant: str) -> Cost:
        row, latent_dim = VARIANTS[variant], self.params.lapo.latent_dim
        data = {"frames": self.pixels, "masked frames": self.pixels, "weighted frames": self.pixels + self.mask,
                "slots": 2 * self.slot_width}[row.observes]
        section = "lapo_slots" if row.observes == "slots" else row.model
        settings, (model, label) = getattr(self.params, section), self.latent_action_models[section]
        samples, flops = self.samples(settings), 0
        if section == "laom":
            few, target = self.latent_action_models["laom_labels"]
            share = self.params.laom_labels.batch_size / settings.batch_size if variant == "laom-labels" else 0
            flops = samples * target.forward + int(share * samples) * few.both
        return Cost(variant, self.runs, "triples", model.size, model.size, samples=samples,
                    flops=flops + samples * model.both + self.frames * label.forward,
                    disk=4 * model.size + 2 * self.frames * latent_dim,
                    memory=16 * model.size + settings.batch_size * model.activations,
                    data=self.frames * data)

    def actor(self, outputs: int) -> Measured:
        bc, size = self.params.bc, self.params.env.image_size
        actor = Actor(3 * bc.frame_stack, outputs, bc.encoder_scale, bc.residual_blocks, bc.cells)
        return self.measure(actor, lambda: actor(torch.empty(1, 3 * bc.frame_stack, size, size)))

    @cached_property
    def latent_actor(self) -> Measured:
        return self.actor(self.params.lapo.latent_dim)

    def cloning(self) -> Iterator[Cost]:
        bc, latent_dim, samples = self.params.bc, self.params.lapo.latent_dim, self.samples(self.params.bc)
        for stage, variants, actor, label in (("bc", self.latent, self.latent_actor, 2 * latent_dim),
                                              ("bc-full", ALL_LABELS, self.actor(self.action_dim),
                                               4 * self.action_dim)):
            yield Cost(stage, self.runs * len(variants), "frames", actor.size, actor.size, samples=samples,
                       flops=samples * actor.both, disk=4 * actor.size,
                       memory=16 * actor.size + bc.batch_size * actor.activations,
                       data=self.training_frames * (self.pixels + label))

    def few_labels(self) -> Iterator[Cost]:
        """finetune and scratch; one run trains all budgets."""
        tune, budgets = self.params.finetune, len(self.params.finetune.budgets)
        labelled = max(tune.budgets) * self.params.collect.steps
        scratch = SimpleNamespace(**vars(self.params.scratch), batch_size=tune.batch_size)
        for stage, variants, actor, latent_dim, settings in (
                ("finetune", self.latent, self.latent_actor, self.params.lapo.latent_dim, tune),
                ("scratch", ["scratch"], self.actor(tune.hidden_dim), tune.hidden_dim, scratch)):
            head = ActionDecoder(latent_dim, tune.hidden_dim, self.action_dim)
            latent = torch.empty(1, latent_dim)
            decoder = self.measure(head, lambda head=head, latent=latent: head(latent))
            frozen = stage == "finetune" and not tune.unfreeze
            trained = [decoder] if frozen else [actor, decoder]
            updates = sum(updates_of(settings, budget * self.params.collect.steps) for budget in tune.budgets)
            samples = updates * tune.batch_size
            size, once = sum(part.size for part in trained), actor.size if frozen else 0
            yield Cost(stage, self.runs * len(variants), "frames", size, actor.size + decoder.size, samples=samples,
                       flops=samples * sum(part.both for part in trained) + frozen * labelled * actor.forward,
                       disk=4 * (budgets * size + once),
                       memory=4 * once + 16 * size + tune.batch_size * sum(part.activations for part in trained),
                       data=labelled * (self.pixels + frozen * 4 * latent_dim))

    def evaluation(self) -> Cost:
        """eval, mean of the variants: policies of all budgets, with background videos the last one twice."""
        rows = [VARIANTS[name] for name in self.variants]
        policies = sum((1 if row.labels == "all" else len(self.params.finetune.budgets))
                       + (row.view == "distracted" and self.params.env.background) for row in rows)
        frames = round(policies / len(rows) * self.params.eval.episodes * self.params.collect.steps)
        actor = self.latent_actor
        acting = len(rows) * len(self.params.seeds) * sum(task in suite.TASKS for task in self.params.tasks)
        return Cost("eval", acting, "frames", total=actor.size, samples=frames, flops=frames * actor.forward,
                    memory=4 * actor.size, rendered=frames)

    def samples(self, settings) -> int:
        """Samples of a whole training, in whole steps."""
        collect = self.params.collect
        sampler = FrameSampler(collect.episodes, collect.steps, settings.batch_size, seed=0)
        return update_counts(settings, sampler.steps_per_epoch)[0] * settings.batch_size

    def measure(self, model: nn.Module, run: Callable) -> Measured:
        """Measure the model on one sample, with the backward pass unless the result is detached."""
        saved = {}

        def remember(tensor):
            if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
                storage = tensor.untyped_storage()
                saved[storage._cdata] = storage  # not its bytes alone: the address of a freed one may come again
            return tensor

        with FlopCounterMode(display=False) as counter, saved_tensors_hooks(remember, lambda tensor: tensor):
            output = run()
            forward = counter.get_total_flops()
            if output.requires_grad:
                output.sum().backward()
        width = 2 if self.params.compute.precision == "bfloat16" else 4  # saved here in float32
        activations = sum(storage.nbytes() for storage in saved.values()) * width // 4
        return Measured(count_parameters(model)["total"], forward, counter.get_total_flops(), activations)


def main():
    parser = argparse.ArgumentParser(prog="python -m oclam.plan", description=__doc__.splitlines()[0])
    parser.add_argument("params", nargs="?", default="params.yaml", metavar="FILE",
                        help="of parameters; default params.yaml")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="such as lapo.latent_dim=1024")
    parser.add_argument("--tflops", type=float, help="of one GPU, for every stage; default: what the paper's durations "
                        "imply, 200 where it has none")
    parser.add_argument("--fps", type=float, default=3200, help="frames rendered a second; default 3200")
    arguments = parser.parse_args()
    for option, given in (("--tflops", arguments.tflops), ("--fps", arguments.fps)):
        if given is not None and not given > 0:
            raise UserError(f"{option}: {given:g} given, more than 0 is needed")
    costs = Plan(read(arguments.params, arguments.changes)).costs()
    sized = partial(tqdm.format_sizeof, suffix="B")
    rates = {cost: arguments.tflops or TFLOPS.get(cost.stage, 200) for cost in costs}
    print(f"One run of each stage at {arguments.fps:g} rendered frames/s; bytes on disk before compression; memory: of "
          "weights, gradients, Adam and activations, + data: and frames; paper: its hours on one H100")
    print(f"{'stage':20}{'runs':>5}{'trainable':>11}{'total':>11}{'samples':>18}{'FLOPs':>10}{'disk':>9}{'memory':>9}"
          f"{'+ data':>9}{'TFLOP/s':>9}{'hours':>8}{'paper':>8}")
    hours = {cost: cost.hours(1e12 * rates[cost], arguments.fps) for cost in costs}
    published = {"ocp": PAPER_OCP.seconds} | {name: row.paper.seconds for name, row in VARIANTS.items()}
    for cost in costs:
        samples = f"{cost.samples:.3g} {cost.unit}" if cost.samples else "-"
        print(f"{cost.stage:20}{cost.runs:5}{cost.trainable:11}{cost.total:11}{samples:>18}{cost.flops:10.2g}"
              f"{sized(cost.disk):>9}{sized(cost.memory):>9}{sized(cost.data):>9}{rates[cost]:9g}{hours[cost]:8.2f}"
              f"{published[cost.stage] / 3600 if published.get(cost.stage) else '-':>8.3}")
    print(f"All runs: {sum(cost.runs * hours[cost] for cost in costs):,.4g} hours, "
          f"{sum(cost.runs * cost.flops for cost in costs):.3g} FLOPs, "
          f"{sized(sum(cost.runs * cost.disk for cost in costs))} on disk before compression")


if __name__ == "__main__":
    one_line_errors(main)

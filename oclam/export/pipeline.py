"""What the pipeline has trained, as models for the hub."""

import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from oclam import paths
from oclam.artifacts import atomic, is_absent, load_tensors, open_zarr, read_csv, read_json
from oclam.datasets import open_dataset
from oclam.encoders.files import load_encoder
from oclam.errors import UserError
from oclam.export.models import HubEncoder, HubLatentActionModel, HubSlotModel
from oclam.export.policies import HubPolicy
from oclam.latent_actions.observations import SlotObservations
from oclam.params import read
from oclam.policies.files import load_policies
from oclam.slots.registration import mask_moments
from oclam.variants import VARIANTS

STEVE = {"published", "feature_hidden", "decoder_hidden", "decoder_layers", "vocabulary"}  # what shapes the model


def export_model(source: Path, target: Path, budget: int | None = None) -> nn.Module:
    """Write the model in an artifact of the pipeline, and its card, to the new folder `target`; returns the model.

    Args:
        source: a folder of policies, a variant's lapo.safetensors, the kept ocp/<restart>.safetensors, or an encoder.
        target: as `save_pretrained` writes it.
        budget: labelled trajectories of the policy, 0 for all labels, None for the largest there is.
    Raises UserError for another source, an existing target and a missing params.yaml.
    """
    if target.exists():
        raise UserError(f"{target}: already there; remove it or name another folder")
    read()  # all that follows needs params.yaml, so a folder without it fails here
    if source.is_dir():
        model = _policy(source, budget)
    else:
        tensors, about = load_tensors(source)
        if "kwargs" in about:
            model = _encoder(source)
        elif "sizes" in about:
            model = _latent_action_model(tensors, about)
        elif "restart" in about:
            model = _slot_model(source, tensors, about)
        else:
            raise UserError(f"{source}: not what oclam exports: a folder of policies, lapo.safetensors, an "
                            "object-centric model, an encoder or a dataset")
    with atomic(target) as temporary:
        model.save_pretrained(temporary)
    return model


def _policy(folder, budget):
    # The card names the environment of params.yaml, and so does the policy that acts from it.
    env = read().env
    policies, cards = load_policies(folder, None if budget is None else [budget], image_size=env.image_size)
    policy, card = policies[-1], cards[-1]
    videos = card.view == "distracted" and env.background
    returns, path = {}, paths.evaluation(card.task, card.seed, card.variant)
    for row in read_csv(path) if _is_there(path) else []:
        if row["budget"] == card.budget:
            name = f"return, {row['backgrounds']} backgrounds" if videos else "return"
            returns.setdefault(name, []).append(row["return"])
    labels = f"{card.budget} trajectories" if card.budget else "all trajectories"
    origin = _origin(card.task, card.seed, card.variant, {name: _mean(of) for name, of in returns.items()},
                     {"true actions": labels})
    return _filled(HubPolicy(card=vars(card), origin=origin), policy.state_dict())


def _latent_action_model(tensors, about):
    task, seed, variant = about["task"], about["seed"], about["variant"]
    row, components, parts = VARIANTS[variant], 0, {}
    if row.observes not in ("frames", "masked frames", "weighted frames", "slots"):
        raise UserError(f"{variant}: an exported model cannot make {row.observes} from frames; add how to "
                        "HubLatentActionModel in oclam/export/models.py")
    if row.observes == "slots":
        selection = open_zarr(paths.selection(task, seed))
        training = open_dataset(paths.dataset(task, row.view), task).episodes
        observed = SlotObservations.load(selection["slots"], training, torch.device("cpu"))
        parts = {"mean": observed.mean, "std": observed.std, "crop_mean": torch.zeros(0),
                 "basis": torch.zeros(0, len(observed.mean))}
        if "basis" in selection:
            parts |= {"crop_mean": torch.from_numpy(selection["mean"][:]),
                      "basis": torch.from_numpy(selection["basis"][:])}
            components = len(parts["basis"])
    path = paths.probe(task, seed, variant)
    probe = read_json(path) if _is_there(path) else {}
    terms = {"ridge_mse": "probe error, held out", "ridge_r2": "probe R², held out", "online_mse": "online probe error",
             "action_variance": "variance of the actions"}
    figures = {term: f"{probe[key]:.3g}" for key, term in terms.items() if key in probe}
    origin = _origin(task, seed, variant, figures, {})
    masked = components or row.observes == "masked frames"
    origin["observes"] = "frames uint8 (T, H, W, 3), masked by HubSlotModel.agent" if masked else (
        "the chosen slots (T, D)" if row.observes == "slots" else "frames uint8 (T, H, W, 3)")
    kind = row.model if row.observes != "slots" else "laom-slots" if "centre" in tensors else "slots"
    model = HubLatentActionModel(model=kind, sizes=about["sizes"], components=components, origin=origin)
    return _filled(model, {f"model.{name}": tensor for name, tensor in tensors.items()} | parts)


def _slot_model(source, tensors, about):
    place = re.search(r"([^/]+)/seed(\d+)/ocp/\d+\.safetensors$", source.as_posix())
    if not place:
        raise UserError(f"{source}: expected data/<task>/seed<seed>/ocp/<restart>.safetensors, beside which the slots "
                        "and their choice lie")
    task, seed, params = place[1], int(place[2]), read()
    kept, selection = open_zarr(paths.slots(task, seed)).attrs["restart"], open_zarr(paths.selection(task, seed))
    if "masks" not in selection.attrs:
        raise UserError(f"{paths.selection(task, seed)}: of an earlier version of oclam; run `dvc repro`")
    if about["restart"] != kept:
        raise UserError(f"{source}: not the restart that the pipeline kept; export {paths.ocp(task, seed, kept)}")
    dataset = open_dataset(paths.dataset(task, "distracted"), task)
    pose = sum(mask_moments(torch.from_numpy(selection["mask"][e]) / 255).mean(0) for e in range(dataset.episodes))
    encoder = None if about["model"] == "steve" else load_encoder(paths.encoder)
    table = read_json(paths.slot_table(task, seed))
    figures = {"probe error of the agent's vector": table["mask"].get("vector_mse"),
               "IoU of mask and agent": table["mask"].get("agent_iou")}
    origin = _origin(task, seed, None, {name: f"{value:.3g}" for name, value in figures.items() if value is not None},
                     {"restart": str(kept)}, encoder and encoder.about["source"])
    model = HubSlotModel(
        ocp={key: value for key, value in about.items() if key != "restart"},
        steve=params.steve.model_dump(include=STEVE), image_size=dataset.pixels.shape[2],
        select={key: selection.attrs[key] for key in ("chosen", "masks", "registered")},
        encoder=encoder and encoder.about, origin=origin)
    weights = {f"model.{name}": tensor for name, tensor in tensors.items()} | {"pose": pose / dataset.episodes}
    vit = encoder.state_dict() if encoder else {}
    return _filled(model, weights | {f"encoder.{name}": tensor for name, tensor in vit.items()})


def _encoder(source):
    encoder = load_encoder(source)
    trained = {"architecture": encoder.about["name"], "weights": encoder.about["source"], "commit": _commit()}
    origin = {"trained": list(trained.items()), "figures": [], "licence": _licence(encoder.about["source"]),
              "version": version("oclam")}
    return _filled(HubEncoder(encoder=encoder.about, origin=origin), encoder.state_dict())


def _origin(task, seed, variant, figures, more, encoder=None):
    """What the card of a model says; `more` of what it was trained on, `encoder` where its weights are from."""
    params, view = read(), VARIANTS[variant].view if variant else "distracted"
    trained = {"task": task, "view": view, "distractors": _distractors(params, view)}
    if (store := paths.dataset(task, view) / "zarr.json").exists():
        attributes = read_json(store)["attributes"]
        if any(getattr(params.env, key, None) != value for key, value in attributes.get("env", {}).items()):
            raise UserError(f"params.yaml: env is not what {store.parent} was collected with; restore it or run "
                            "`dvc repro`")
        trained["data"] = f"{attributes['episodes']} episodes, {attributes['test_episodes']} more held out"
        if "source" in attributes:
            trained |= {"distractors": "those of the data", "data": f"{trained['data']}; imported"}
    trained |= {"scale": params.scale, "seed": str(seed), **more, "commit": _commit()}
    named = {"variant": variant} if variant else {}
    return {"task": task, **named, "trained": list(trained.items()), "figures": list(figures.items()),
            "licence": _licence(encoder), "env": params.env.model_dump(), "version": version("oclam")}


def _distractors(params, view):
    env = params.env
    kinds = [f"{params.backgrounds.source} background videos" if env.background else "",
             f"camera ({env.camera_scale})" if env.camera else "",
             f"colours ({env.color_scale})" if env.color else ""]
    return "none" if view == "clean" else ", ".join(filter(None, kinds)) or "none"


def _is_there(path):
    return path.exists() and not is_absent(path)


def _licence(encoder):
    return "Apache 2.0." + (f" The encoder's weights, {encoder}, keep their own licence." if encoder else "")


def _commit():
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"


def _mean(values: Sequence[float]) -> str:
    error = np.std(values, ddof=1) / len(values)**0.5 if len(values) > 1 else 0
    return f"{np.mean(values):.1f} ± {error:.1f} (standard error, {len(values)} episodes)"


def _filled(model, tensors):
    model.load_state_dict(tensors)
    return model.eval()

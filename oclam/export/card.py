"""The model card of an exported model: what it is, how to load it, what it was trained on, and its figures."""

from huggingface_hub import ModelCard, ModelCardData

KINDS = {  # the title of each class, what it is, and how it is loaded
    "HubPolicy": ("Policy", "A policy, which maps raw frames to actions", """\
from oclam.export.policies import HubPolicy
from oclam.policies.files import Agent

policy = HubPolicy.from_pretrained(".")
agent = Agent(policy, policy.card.frame_stack)  # agent.act: frames of N episodes, uint8 (N, H, W, 3) -> (N, A)"""),
    "HubLatentActionModel": ("Latent action model", "A latent action model: two frames -> latent action", """\
from oclam.export.models import HubLatentActionModel

model = HubLatentActionModel.from_pretrained(".")
latents = model.latents(episode)  # {observes} -> (T - 1, L)"""),
    "HubSlotModel": ("Object-centric model", "An object-centric model, its frozen encoder and the agent's slots", """\
from oclam.export.models import HubSlotModel

model = HubSlotModel.from_pretrained(".")
slots, masks = model(frames)  # of an episode, uint8 (T, H, W, 3)
mask, masked_frames = model.agent(frames)"""),
    "HubEncoder": ("Encoder", "A frozen vision transformer", """\
from oclam.export.models import HubEncoder

encoder = HubEncoder.from_pretrained(".")
features, keys = encoder(frames)  # uint8 (B, H, W, 3) -> two (B, patches, dim)"""),
}
ENVIRONMENT = """

import gymnasium
import oclam.envs

env = gymnasium.make("oclam/{task}-v0", view=policy.card.view, **policy.origin["env"])
frame, _ = env.reset(seed=0)
frame, reward, *_ = env.step(agent.act(frame[None])[0])"""


def model_card(kind: type, origin: dict) -> ModelCard:
    """The card of a model whose class KINDS names.

    origin: trained, pairs of term and text, what it was trained on; figures, likewise; licence, sentences; version, of
    oclam; and where there are, task, variant, and observes, what latent actions are inferred from.
    """
    from oclam import suite  # here, because loading an exported model needs no simulator

    title, what, loading = KINDS[kind.__name__]
    title += "".join(f" {word} {origin[key]}" for word, key in (("of", "variant"), ("on", "task")) if key in origin)
    data = ModelCardData(license="apache-2.0", library_name="oclam", tags=["oclam", "latent-actions", "object-centric"])
    if kind.__name__ == "HubPolicy" and origin.get("task") in suite.TASKS:  # imported data may have no environment
        loading += ENVIRONMENT
    for key in ("task", "observes"):
        loading = loading.replace(f"{{{key}}}", origin.get(key, ""))
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n# {title}",
        f"{what}, exported by oclam, an implementation of Object-Centric Latent Action Learning "
        "([arXiv 2502.09680](https://arxiv.org/abs/2502.09680)).",
        f"## Load it\n\n```python\n{loading}\n```",
        f"`.` is this folder, or the repository's name on the hub. It needs the package `oclam`, {origin['version']}, "
        "and none of its data.",
        f"## Trained on\n\n{_table(origin['trained'])}"]
    if origin["figures"]:
        parts.append(f"## Figures\n\n{_table(origin['figures'])}")
    return ModelCard("\n\n".join([*parts, f"## Licence\n\n{origin['licence']}"]) + "\n", ignore_metadata_errors=True)


def _table(rows):
    return "\n".join(["| | |", "|---|---|", *(f"| {term} | {text} |" for term, text in rows)])

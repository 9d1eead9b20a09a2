"""How often a model's chosen slots are the agent: `python -m tests.bench.slots videosaur slotcontrast --restarts 5`.

Needs stage collect; every model and initialisation is trained as the section ocp says, which words such as
`ocp.steps=300` change, on the same encoded clips. Slots are chosen by labels, as slot-select does.
"""

import argparse
import time
from functools import cache, partial

import numpy as np
import torch

from oclam import paths
from oclam.agent.measures import slot_measures
from oclam.agent.previews import shown_episodes
from oclam.agent.selection import choose_slots, masked_thumbnails
from oclam.agent.store import masked_components
from oclam.checkpoint import Checkpoint
from oclam.datasets import open_dataset
from oclam.params import read
from oclam.seeding import seed_of
from oclam.slots.extraction import find_masks
from oclam.slots.models import make_model, make_observer
from oclam.slots.training import clips_of, train_slots
from oclam.training import autocast, best_device

FOUND = {"agent_recall": 0.85, "agent_iou": 0.5}  # from where on the agent counts as found


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.bench.slots", description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="+", metavar="model | key=value")
    parser.add_argument("--restarts", type=int, default=5)
    arguments = parser.parse_args()
    params = read("params.yaml", [word for word in arguments.words if "=" in word])
    task, seed, select = params.tasks[0], params.seeds[0], params.slot_select
    dataset, device = open_dataset(paths.dataset(task, "distracted"), task), best_device(params.compute.threads)
    forward, observer = partial(autocast, device, params.compute.precision), make_observer(
        params.ocp, paths.encoder, device)
    clips = clips_of(dataset, observer, params.ocp, seed=seed, device=device, forward=forward)
    labelled, shown = dataset.labelled(select.labelled_episodes, seed, "slot_select"), list(shown_episodes(dataset))
    frames, actions = [dataset.pixels[e] for e in labelled], [dataset.group["actions"][e] for e in labelled]

    @cache
    def features(raw, shape):
        images = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(shape).to(device)
        return observer(images)[0].half()

    def remembered(images):  # every frame passes the encoder once for all models
        return (features(images.cpu().numpy().tobytes(), images.shape).float(),)

    for model in [word for word in arguments.words if "=" not in word]:
        ocp, found = params.ocp.model_copy(update={"model": model}), []
        for restart in range(arguments.restarts):
            torch.manual_seed(seed_of("ocp", seed, restart))
            made, start = make_model(ocp, params.steve, observer, params.env.image_size).to(device), time.process_time()
            checkpoint = Checkpoint(f"bench-{model}-{restart}", params)
            rows = train_slots(made, clips, ocp, checkpoint, seed=seed, forward=forward, compiled=False)
            checkpoint.remove()
            seconds = time.process_time() - start
            masks, = find_masks([made], remembered, [*frames, *(dataset.pixels[e] for e in shown)], window=ocp.window,
                                forward=forward)
            views = [masked_thumbnails(*episode) for episode in zip(frames, masks[:len(frames)], strict=True)]
            chosen, _ = choose_slots(views, actions, select.max_slots, partial(
                masked_components, frames, masks[:len(frames)], select, ocp.slot_dim))
            measures = slot_measures(masks[len(frames):], dataset.group["segmentation"][:], chosen)
            found.append(all(measures[key] >= least for key, least in FOUND.items()))
            best = max(row["agent_iou"] for row in measures["slots"])
            print(f"{model} {restart}: slots {chosen}, recall {measures['agent_recall']:.2f}, IoU "
                  f"{measures['agent_iou']:.2f} (best slot {best:.2f}), FG-ARI {measures['fg_ari']:.2f}, last loss "
                  f"{np.mean([row['loss'] for row in rows[-10:]]):.3f}, {seconds:.0f} s of a core", flush=True)
        print(f"{model}: {sum(found)} of {len(found)} found the agent")


if __name__ == "__main__":
    main()

"""Behaviour cloning: samples a second, the share that data takes, and what computing the frozen actor once saves.

`python -m tests.bench.bc`
"""

from itertools import count

import torch
from torch.nn import functional as F

from oclam.datasets import Frames, FrameSampler, FrameStacks, Prefetch
from oclam.machine import keep_freed_memory
from oclam.params import read
from oclam.policies.files import Card
from oclam.policies.networks import Policy
from oclam.training import best_device
from tests.bench import timing

EPISODES, STEPS = 4, 250


def main():
    keep_freed_memory()
    params, device = read(), best_device()
    bc, size = params.bc, params.env.image_size
    card = Card.of(bc, "cheetah-run", "distracted", "lapo", 0, image_size=size, latent_dim=params.lapo.latent_dim,
                   hidden_dim=params.finetune.hidden_dim, action_dim=6)
    frames = Frames(torch.randint(0, 256, (EPISODES * STEPS, size, size, 3), dtype=torch.uint8), device)
    images = FrameStacks(frames, stack=bc.frame_stack, steps=STEPS)
    latents = torch.randn(EPISODES * STEPS, params.lapo.latent_dim, device=device)
    actions = torch.rand(EPISODES * STEPS, 6, device=device)
    sampler = FrameSampler(EPISODES, STEPS, bc.batch_size, "bench")
    policy = Policy(card.actor(), card.decoder()).to(device, memory_format=torch.channels_last)

    def learn(network, x, y, optimizer):
        loss = F.mse_loss(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    adam = torch.optim.Adam(policy.parameters(), lr=bc.learning_rate)
    load, steps = Prefetch(lambda i: images(sampler.batch(i))), count()
    fixed = images(sampler.batch(0))
    cloning = timing.seconds({
        "whole": lambda: learn(policy.actor, load(next(steps)), latents[:bc.batch_size], adam),
        "model": lambda: learn(policy.actor, fixed, latents[:bc.batch_size], adam),
        "data": lambda: images(sampler.batch(0)),
    }, rounds=20)

    decoder = torch.optim.Adam(policy.decoder.parameters(), lr=params.finetune.learning_rate)
    policy.actor.requires_grad_(False)
    t = sampler.batch(0)
    rows = t.to(device)
    tuning = timing.seconds({"through the actor": lambda: learn(policy, images(t), actions[rows], decoder),
                             "stored": lambda: learn(policy.decoder, latents[rows], actions[rows], decoder)}, rounds=20)

    print(f"\nbatches of {bc.batch_size}, scale {bc.encoder_scale}, {bc.residual_blocks} residual blocks, {device}")
    whole, model, data = cloning.values()
    print(f"bc: {bc.batch_size / whole:.0f} samples/s, {max(1 - model / whole, 0):.0%} of the time waiting for data (a "
          f"batch takes {data / model:.0%} of the model's step and is made beside it)")
    naive, once = tuning.values()
    print(f"finetune: {bc.batch_size / naive:.0f} samples/s through the frozen actor, {bc.batch_size / once:.0f} from "
          f"its stored outputs: {naive / once:.0f} times as many")


if __name__ == "__main__":
    main()

"""Object-centric pretraining: `python -m tests.bench.ocp` times the frozen encoder and the trainable part apart.

At the size of params.yaml, and at ViT-B/8 where there is a GPU. Each row beside its naive way, taken in one run.
"""

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from oclam.encoders.frozen import FrozenEncoder
from oclam.machine import keep_freed_memory
from oclam.params import read
from oclam.slots.videosaur import VideoSaur
from oclam.training import autocast, best_device
from tests.bench import timing

SCALES = {"embedded": ("params.yaml", "vit_tiny_patch16_224", {"img_size": 64, "patch_size": 4, "depth": 2}, 8),
          "ViT-B/8": ("params/paper.yaml", "vit_base_patch8_224", {"img_size": 224}, 16)}


def bench(scale):
    path, name, kwargs, batch = SCALES[scale]
    params, device = read(path), best_device()
    ocp, precision = params.ocp, params.compute.precision
    vit = timm.create_model(name, num_classes=0, **kwargs)
    encoder = FrozenEncoder(vit, name=name, kwargs=kwargs, image_size=kwargs["img_size"], mean=[0.5] * 3, std=[0.5] * 3,
                            source="random").to(device)
    model = VideoSaur(encoder.dim, encoder.grid**2, slots=ocp.slots, slot_dim=ocp.slot_dim,
                      feature_hidden=ocp.feature_hidden, decoder_hidden=ocp.decoder_hidden,
                      decoder_layers=ocp.decoder_layers).to(device)
    images = torch.randint(256, (batch * ocp.clip_length, 64, 64, 3), dtype=torch.uint8, device=device)
    features, keys = (x.unflatten(0, (batch, -1)) for x in encoder(images))
    noise = torch.randn(batch, ocp.slots, ocp.slot_dim, device=device)
    some = torch.randperm(encoder.grid**2, device=device)[:ocp.decoded_patches]

    def encode(passes=1):
        with autocast(device, precision):
            for _ in range(passes):
                encoder(images)

    def learn(decoded=slice(None)):
        with autocast(device, precision):
            loss = model(features, keys, noise, decoded)["loss"]
        model.zero_grad()
        loss.backward()

    with torch.no_grad():
        slots = model.slots(model.project(features.float())).flatten(0, 1)

    @torch.no_grad()
    def masks(render):
        with autocast(device, precision):
            model.decoder(slots) if render else model.decoder.masks(slots)

    found = timing.seconds({"encoder, features and keys apart": lambda: encode(2), "encoder, one pass": encode,
                     "step on all patches": learn, "step as in the parameters": lambda: learn(some),
                     "masks with the renderer": lambda: masks(True), "masks alone": lambda: masks(False)})
    print(f"{scale}: {len(images)} frames, {precision}, {device.type}")
    baseline = None
    for i, (row, value) in enumerate(found.items()):
        baseline = value if i % 2 == 0 else baseline
        print(f"  {row:34s} {len(images) / value:10.1f} frames/s {baseline / value:6.2f} x")
    for row, work in (("encoder, one pass", encode), ("step on all patches", learn)):
        with FlopCounterMode(display=False) as counter:
            work()
        flops = counter.get_total_flops()
        share = flops / found[row] / timing.matrix_peak(device, getattr(torch, precision))
        print(f"  {row:34s} {flops / 1e9 / len(images):7.2f} GFLOP a frame, {share:.0%} of the matrix peak")
    if device.type == "cuda":
        print(f"  peak memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")


def main():
    torch.manual_seed(0)
    keep_freed_memory()
    for scale in SCALES if torch.cuda.is_available() else ["embedded"]:
        bench(scale)


if __name__ == "__main__":
    main()

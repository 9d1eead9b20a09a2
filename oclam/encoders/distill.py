"""Distillation of the embedded encoder: a small vision transformer for 64x64 frames learns DINOv2's features.

Teacher and student see the same frame, enlarged for the teacher so that both have the same patches. Linear heads, which
are dropped afterwards, predict the teacher's features and keys from the student's. The cosines between all patches of
neighbouring frames, from which VideoSAUR computes its similarity loss, are learned as well.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional as F

from oclam.artifacts import once
from oclam.checkpoint import Checkpoint
from oclam.encoders.frozen import FrozenEncoder
from oclam.progress import Progress
from oclam.seeding import numpy_rng, seed_of, torch_rng
from oclam.training import best_device, linear_decay, train, update

TASKS = ("cheetah-run", "walker-run", "hopper-hop", "humanoid-walk")
ARCHITECTURE = "vit_tiny_patch16_224"
PATCH, DIM, DEPTH, HEADS, MLP_RATIO = 4, 192, 3, 3, 2.0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as the teacher's
STEPS, STRIDE = 60, 5  # of an episode, and between two frames that are kept
EPISODE_FRAMES = STEPS // STRIDE
CHUNK = 32  # frames whose teacher outputs share a file
WARMUP = 0.05  # share of the steps
RELATION_WEIGHT = 10.0


def new_student(image_size: int) -> FrozenEncoder:
    """The untrained student: a timm ViT with patches of 4 pixels."""
    kwargs = {"img_size": image_size, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS,
              "mlp_ratio": MLP_RATIO, "class_token": False, "global_pool": ""}
    with torch.random.fork_rng():
        torch.manual_seed(seed_of("student", 0))
        vit = timm.create_model(ARCHITECTURE, num_classes=0, **kwargs)
    return FrozenEncoder(vit, name=ARCHITECTURE, kwargs=kwargs, image_size=image_size, mean=MEAN, std=STD,
                         source="random")


def render(environments: Sequence, policies: dict[str, Callable], first: int = 0) -> Iterator[tuple]:
    """Short episodes of every task in turn, without end: pixels and the agent's masks.

    Pixels are uint8 (EPISODE_FRAMES, H, W, 3), masks uint8 (EPISODE_FRAMES, H, W). Every second round acts with the
    expert of a task that has one, all others at random.

    Args:
        environments: one of each task.
        policies: by task, from states to actions.
        first: number of the first round, the seed of its episodes.
    """
    for episode in itertools.count(first):
        for env in environments:
            rng, action = numpy_rng("distill", env.task, episode), 0
            pixels, info = env.reset(seed=episode, options={"segmentation": True})
            frames, masks = [], []
            for step in range(STEPS):
                if step % STRIDE == 0:
                    frames.append(pixels)
                    masks.append(info["segmentation"])
                if episode % 2 and env.task in policies:
                    acting = policies[env.task](info["state"])
                else:  # random, but correlated in time, so that the limbs move far
                    action = 0.8 * action + 0.5 * rng.standard_normal(env.action_space.shape)
                    acting = np.clip(action, -1, 1)
                pixels, _, _, _, info = env.step(acting)
            yield np.stack(frames), np.stack(masks)


def teach(teacher: FrozenEncoder, frames: np.ndarray, folder: Path) -> list[np.ndarray]:
    """The teacher's features and keys of all frames: memory maps float16 (CHUNK, 2, patches, dim) of files in `folder`.

    Files that exist are kept, so that an interrupted call is resumed. frames: uint8 (N, H, W, 3).
    """
    chunks = []
    with Progress(len(frames), "teacher", " frames") as bar:
        for k in range(0, len(frames), CHUNK):
            path = Path(folder) / f"teacher{k // CHUNK}.npy"

            def write(file, part=frames[k:k + CHUNK]):
                outputs = teacher(torch.from_numpy(part).to(teacher.mean.device))
                np.save(file, torch.stack(outputs, 1).half().cpu().numpy())

            chunks.append(np.load(once(path, write), mmap_mode="r"))
            bar.update(len(chunks[-1]))
    return chunks


class Distillation(nn.Module):
    """The student with a linear head for features and one for keys, which only training needs.

    student: becomes trainable; mean and std: float32 (2, dim), of the teacher's outputs.
    """

    def __init__(self, student: FrozenEncoder, mean: torch.Tensor, std: torch.Tensor):
        super().__init__()
        self.student = student
        student.vit.requires_grad_(True)
        self.heads = nn.ModuleList(nn.Linear(student.dim, mean.shape[-1]) for _ in range(2))
        self.register_buffer("target_mean", mean)
        self.register_buffer("target_std", std)

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Losses for uint8 frames (B, H, W, 3), pairs of neighbours, and the teacher's outputs (B, 2, P, dim)."""
        outputs = self.student.encode(images)
        loss = {"prediction": 0, "relation": 0}
        for k, (output, head) in enumerate(zip(outputs, self.heads, strict=True)):
            centred = targets[:, k] - self.target_mean[k]  # DINOv2's raw cosines crowd near 1
            target = centred / self.target_std[k]
            predicted = head(F.layer_norm(output, output.shape[-1:]))
            cosine = 1 - F.cosine_similarity(predicted, target, dim=-1).mean()
            loss["prediction"] += cosine + F.smooth_l1_loss(predicted, target)
            loss["relation"] += F.mse_loss(relations(output), relations(centred))
        return loss | {"loss": loss["prediction"] + RELATION_WEIGHT * loss["relation"]}


def relations(outputs: torch.Tensor) -> torch.Tensor:
    """Cosines between all patches of the two frames of every pair: (B, P, D) -> (B / 2, 2 P, 2 P)."""
    x = F.normalize(outputs, dim=-1).unflatten(0, (-1, 2)).flatten(1, 2)
    return x @ x.mT


def distill(student: FrozenEncoder, frames: np.ndarray, chunks: Sequence[np.ndarray], checkpoint: Checkpoint, *,
            steps: int, batch_size: int, learning_rate: float) -> list[dict]:
    """Train the student in place on frames uint8 (N, H, W, 3) and the chunks of `teach`: rows of the loss."""
    device = best_device()
    sample = torch.from_numpy(np.concatenate(chunks[::max(len(chunks) // 8, 1)])).float()
    with torch.random.fork_rng():
        torch.manual_seed(seed_of("heads", 0))
        model = Distillation(student, sample.mean((0, 2)), sample.std((0, 2))).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=0.02)
    pairs, drawn = len(frames) // 2, batch_size // 2

    def step(i):
        epoch, k = divmod(i, pairs // drawn)
        order = torch.randperm(pairs, generator=torch_rng("distill", 0, epoch))[k * drawn:(k + 1) * drawn]
        index = (2 * order[:, None] + torch.arange(2)).flatten().tolist()  # two neighbours each
        images = torch.from_numpy(frames[index]).to(device)
        targets = torch.from_numpy(np.stack([chunks[n // CHUNK][n % CHUNK] for n in index])).to(device).float()
        if torch.rand((), generator=torch_rng("mirror", 0, i)) < 0.5:
            images, targets = images.flip(2), flip(targets)
        loss = model(images, targets)
        update(optimizer, loss["loss"], learning_rate * linear_decay(i, steps, int(WARMUP * steps)), clip_norm=1.0)
        return loss

    return train(step, steps, {"model": model, "optimizer": optimizer}, checkpoint, samples=batch_size, unit="frames")


def flip(targets: torch.Tensor) -> torch.Tensor:
    """Patches (B, 2, P, D), row by row of a square grid, mirrored from left to right."""
    side = int(targets.shape[2] ** 0.5)
    return targets.unflatten(2, (side, side)).flip(3).flatten(2, 3)

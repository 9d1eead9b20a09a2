from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from oclam.checkpoint import Checkpoint
from oclam.encoders.distill import EPISODE_FRAMES, Distillation, distill, flip, new_student, relations, render, teach


class FakeEnv:
    """Shows the sum of its actions."""

    def __init__(self, task):
        self.task, self.action_space = task, SimpleNamespace(shape=(2,))

    def reset(self, seed, options):
        self.sum = np.zeros(2)
        return self.observe()

    def step(self, action):
        assert np.abs(action).max() <= 1
        self.sum = self.sum + action
        return *self.observe()[:1], 0.0, False, False, self.observe()[1]

    def observe(self):
        shade = int(100 + self.sum[0]) % 256
        return np.full((4, 4, 3), shade, np.uint8), {"state": self.sum, "segmentation": np.ones((4, 4), np.uint8)}


def test_rendering_is_a_function_of_the_episode_and_takes_turns():
    tasks = "a-b", "c-d"
    policies = {"a-b": lambda state: np.ones(2)}
    first, again = (list(islice(render([FakeEnv(task) for task in tasks], policies), 4)) for _ in range(2))
    assert all(np.array_equal(left[0], right[0]) for left, right in zip(first, again, strict=True))
    assert [pixels.shape for pixels, _ in first] == [(EPISODE_FRAMES, 4, 4, 3)] * 4
    expert = first[2][0][:, 0, 0, 0]  # second round, first task
    assert (np.diff(expert.astype(int)) == 5).all()
    later = list(islice(render([FakeEnv(task) for task in tasks], policies, first=1), 2))
    assert np.array_equal(later[1][0], first[3][0])


class FakeTeacher:
    """Knows how bright every patch of 4 pixels is."""

    mean = torch.zeros(1)

    def __init__(self):
        self.calls = 0

    def __call__(self, images):
        self.calls += 1
        brightness = F.avg_pool2d(images.float().mean(-1), 4).flatten(1)[..., None] / 255
        features = brightness - torch.linspace(0, 1, 6)
        return features, features.square()


def test_the_teacher_resumes_where_it_stopped(tmp_path):
    frames, teacher = np.random.default_rng(0).integers(256, size=(80, 16, 16, 3), dtype=np.uint8), FakeTeacher()
    chunks = teach(teacher, frames, tmp_path)
    assert [chunk.shape for chunk in chunks] == [(32, 2, 16, 6), (32, 2, 16, 6), (16, 2, 16, 6)]
    np.testing.assert_array_equal(chunks[2][5, 1], teacher(torch.from_numpy(frames[69:70]))[1][0].half().numpy())
    teacher.calls = 0
    (tmp_path / "teacher1.npy").unlink()
    for left, right in zip(teach(teacher, frames, tmp_path), chunks, strict=True):
        np.testing.assert_array_equal(left, right)
    assert teacher.calls == 1


def test_relations_are_the_cosines_of_pairs():
    outputs = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    found = relations(outputs)
    assert found.shape == (2, 6, 6)
    for pair in range(2):
        patches = torch.cat([outputs[2 * pair], outputs[2 * pair + 1]])
        for i in range(6):
            for j in range(6):
                expected = torch.cosine_similarity(patches[i], patches[j], dim=0)
                assert found[pair, i, j] == pytest.approx(expected.item(), abs=1e-5)


def test_flip_mirrors_the_grid_of_patches():
    grid = torch.arange(9.0).view(1, 1, 9, 1).expand(2, 2, 9, 4)
    assert flip(grid)[1, 1, :, 2].tolist() == [2, 1, 0, 5, 4, 3, 8, 7, 6]
    assert torch.equal(flip(flip(grid)), grid)


def lesson(folder, steps=4):
    colours = np.random.default_rng(0).integers(256, size=(64, 4, 4, 3), dtype=np.uint8)
    student, frames = new_student(16), colours.repeat(4, 1).repeat(4, 2)
    rows = distill(student, frames, teach(FakeTeacher(), frames, folder), Checkpoint("encoder", steps, interval=0),
                   steps=steps, batch_size=8, learning_rate=2e-3)
    return student, rows


def test_the_student_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, rows = lesson(tmp_path, steps=30)
    losses = [row["loss"] for row in rows]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_resumed_it_ends_at_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole, _ = lesson(tmp_path)

    class Interrupted(Exception):
        pass

    save = Checkpoint.save

    def stop(self, parts, **position):
        save(self, parts, **position)
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Checkpoint, "save", stop)
        Checkpoint("encoder", 4).remove()
        lesson(tmp_path)
    resumed, rows = lesson(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(torch.equal(left, right) for left, right in
               zip(whole.vit.state_dict().values(), resumed.vit.state_dict().values(), strict=True))


def test_a_new_student_is_always_the_same_and_small():
    first, second = new_student(64), new_student(64)
    assert all(torch.equal(left, right) for left, right in zip(first.parameters(), second.parameters(), strict=True))
    assert first.grid == 16 and first.about["source"] == "random"


def test_losses_are_of_standardised_outputs_and_of_cosines_between_centred_ones():
    torch.manual_seed(0)
    mean, std, targets = torch.randn(2, 6), torch.rand(2, 6) + 0.5, torch.randn(4, 2, 16, 6)
    model, images = Distillation(new_student(16), mean, std), torch.randint(256, (4, 16, 16, 3), dtype=torch.uint8)
    prediction = relation = 0
    for k, output in enumerate(model.student.encode(images)):
        centred = targets[:, k] - mean[k]
        normal = (output - output.mean(-1, keepdim=True)) / (output.var(-1, False, keepdim=True) + 1e-5).sqrt()
        found = model.heads[k](normal)
        prediction += 1 - F.cosine_similarity(found, centred / std[k], dim=-1).mean()
        prediction += F.smooth_l1_loss(found, centred / std[k])
        relation += (relations(output) - relations(centred)).square().mean()
    torch.testing.assert_close(model(images, targets)["loss"], prediction + 10 * relation)


def test_an_epoch_shows_every_pair_of_neighbours_once_with_what_the_teacher_says_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = np.random.default_rng(0).integers(256, size=(64, 16, 16, 3), dtype=np.uint8)
    energy, seen, forward = np.square(frames, dtype=int).sum((1, 2, 3)).tolist(), [], Distillation.forward

    def watched(model, images, targets):  # some of them mirrored, which keeps a frame's energy
        torch.testing.assert_close(targets, torch.stack(FakeTeacher()(images), 1), rtol=0, atol=1e-3)
        seen.extend(energy.index(image.long().square().sum().item()) for image in images)
        return forward(model, images, targets)

    monkeypatch.setattr(Distillation, "forward", watched)
    distill(new_student(16), frames, teach(FakeTeacher(), frames, tmp_path), Checkpoint("encoder", 8, interval=0),
            steps=8, batch_size=8, learning_rate=2e-3)
    assert sorted(zip(seen[::2], seen[1::2], strict=True)) == [(k, k + 1) for k in range(0, 64, 2)]

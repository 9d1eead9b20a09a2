"""The distractors against the package distracting-control, and what a smaller texture changes."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from distracting_control.background import DistractingBackgroundEnv

from oclam import envs, suite
from oclam.backgrounds import footage
from oclam.backgrounds.generated import dead_leaves
from oclam.envs import distractors
from oclam.errors import UserError

DAVIS = Path("../shared/assets/DAVIS/JPEGImages/480p")
ALONE = envs.DEFAULT.model_copy(update={"color": False, "camera": False})


class PackageVideo(DistractingBackgroundEnv):
    """The package's own stepping through a video of `frames` frames, without its environment."""

    def __init__(self, frames, frame, direction):
        self._video_paths, self._dynamic, self._fix_background = ["video"], True, True
        self._background = distractors.Background
        self._background.textures = range(frames)
        self._current_img_index, self._step_direction = frame, direction
        self._env = type("Still", (), {"step": lambda self, action: self, "first": lambda self: False})()

    def _apply(self):
        pass


@pytest.mark.parametrize("frame, direction", [(0, 1), (0, -1), (4, 1), (2, -1), (4, -1)])
def test_a_video_runs_forth_and_back_as_in_the_package(frame, direction):
    package, ours = PackageVideo(5, frame, direction), (frame, direction)
    for _ in range(23):
        package.step(None)
        ours = distractors.ping_pong(*ours, 5)
        assert ours == (package._current_img_index, package._step_direction)


@pytest.mark.parametrize("task, alpha", [("cheetah-run", 1.0), ("walker-run", 1.0), ("hopper-hop", 1.0),
                                         ("humanoid-walk", 0.3), ("reacher-easy", 0.0)])
def test_the_floor_hides_the_video_as_in_the_published_datasets(task, alpha):
    domain, name = task.split("-")
    physics = suite.load_task(f"{domain}-{name}").physics
    distractors.Background(physics, domain, [np.zeros((2, 16, 16, 3), np.uint8)], True)
    assert physics.named.model.mat_rgba["grid", "a"] == pytest.approx(alpha)


def test_changes_stay_within_the_scale():
    env = suite.load_task("cheetah-run")
    physics = env.physics
    original = physics.model.mat_rgba[:, :3].copy()
    wrapped, wrappers = distractors.distract(env, "cheetah", 0, envs.DEFAULT)
    radii, colours = [], []
    for seed in range(3):
        for name in wrappers:
            distractors.reseed(wrappers[name], seed)
        wrapped.reset()
        for _ in range(60):
            wrapped.step(np.zeros(6))
            radii.append(np.linalg.norm(physics.data.cam_xpos[0] - physics.data.subtree_com[1]))
            colours.append(physics.model.mat_rgba[:, :3].copy())
    camera = wrappers["camera"]
    assert np.all((camera._min_radius - 1e-9 <= radii) & (radii <= camera._max_radius + 1e-9))
    assert camera._max_radius / camera._min_radius == pytest.approx(1.15 / 0.95)  # zoom of -5 % to +15 % at scale 0.1
    deviation = np.abs(np.array(colours) - original)
    assert 0.05 < deviation.max() <= 0.1 + 1e-6


@pytest.mark.parametrize("side", ["back", "front"])
def test_the_humanoids_camera_stays_on_its_side(side):
    env = suite.load_task("humanoid-walk")
    params = envs.DEFAULT.model_copy(update={"humanoid_camera": side})
    wrapped, wrappers = distractors.distract(env, "humanoid", 0, params)
    for seed in range(6):
        distractors.reseed(wrappers["camera"], seed)
        wrapped.reset()
        angles = []
        for _ in range(40):
            wrapped.step(np.zeros(21))
            x, y, _ = env.physics.data.cam_xpos[0] - env.physics.data.subtree_com[1]
            angles.append(np.arctan2(y, -x) if side == "back" else np.arctan2(y, x))  # 0 is on the agent's axis
        assert np.abs(angles).max() <= np.pi / 2 * 0.1 + 1e-9
        assert np.abs(np.diff(angles)).max() < 0.03  # moves without a jump


def test_too_large_a_texture_is_refused_by_its_key():
    physics = suite.load_task("hopper-hop").physics
    with pytest.raises(UserError, match="env.texture_size: 2000"):
        distractors.Background(physics, "hopper", [np.zeros((1, 2000, 2000, 3), np.uint8)], True)


def change_by_a_smaller_texture(task, frame_of, edge, pictures):
    """Mean absolute pixel difference between textures of `edge` and 800 pixels in the same states and frames."""
    env = envs.DistractingEnv(task, "distracted", ALONE.model_copy(update={"background": False}))
    videos = {size: [frame_of(k, size)[None] for k in range(pictures)] for size in (800, edge)}
    env._background = distractors.Background(env._physics, task.split("-")[0], videos[800], False)
    seen = {}
    for size in (800, edge):
        env._background.resize(size)
        env._background._videos = videos[size]
        seen[size] = np.stack([env.reset(seed=seed)[0] for seed in range(pictures)]).astype(int)
    env.close()
    return np.abs(seen[edge] - seen[800]).mean()


@pytest.mark.parametrize("task", ["cheetah-run", "hopper-hop"])
def test_a_small_texture_changes_little_with_generated_video(task):
    change = change_by_a_smaller_texture(
        task, lambda k, size: dead_leaves(np.random.default_rng([0, 0, k]), 1, size)[0], edge=128, pictures=5)
    assert 0 < change < 3


@pytest.mark.skipif(not DAVIS.exists(), reason="real DAVIS frames are extra")
def test_a_small_texture_changes_little_with_real_video():
    files = [sorted(sequence.iterdir())[0] for sequence in sorted(DAVIS.iterdir())]

    def frame_of(k, size):
        return footage.square(cv2.cvtColor(cv2.imread(str(files[k])), cv2.COLOR_BGR2RGB), size)

    assert 0 < change_by_a_smaller_texture("cheetah-run", frame_of, edge=128, pictures=len(files)) < 3


def test_camera_and_colours_have_scales_of_their_own():
    params = envs.DEFAULT.model_copy(update={"camera_scale": 0.3, "color_scale": 0.2})
    _, wrappers = distractors.distract(suite.load_task("cheetah-run"), "cheetah", 0, params)
    camera, color = wrappers["camera"], wrappers["color"]
    camera.reset()
    assert camera._max_radius / camera._min_radius == pytest.approx(1.45 / 0.85)  # -50 % to +150 % of the scale
    assert color._max_delta == pytest.approx(0.2)


def test_an_episode_begins_with_any_video_any_frame_and_in_both_directions():
    videos = [np.full((5, 16, 16, 3), 10 * k, np.uint8) + np.arange(5, dtype=np.uint8)[:, None, None, None]
              for k in range(3)]
    background = distractors.Background(suite.load_task("cheetah-run").physics, "cheetah", videos, True)
    begun = set()
    for seed in range(300):
        background.reset(seed)
        first = int(background._texels[0])
        background.step()
        begun.add((first, int(np.sign(int(background._texels[0]) - first))))
    inside = {(10 * k + t, way) for k in range(3) for t in (1, 2, 3) for way in (-1, 1)}
    assert inside < begun and {first for first, _ in begun} == {10 * k + t for k in range(3) for t in range(5)}

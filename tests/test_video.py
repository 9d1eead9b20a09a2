import av
import numpy as np
import pytest

from oclam.errors import UserError
from oclam.video import caption, read_gif, write_video

FRAMES = np.zeros((12, 16, 16, 3), np.uint8)
FRAMES[..., 0] = 20 * np.arange(12)[:, None, None]


def read_video(path):
    if path.suffix == ".gif":
        return read_gif(path, fps=10)
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_written_frames_come_back(tmp_path, suffix):
    write_video(tmp_path / f"episode{suffix}", FRAMES, fps=10)
    read = read_video(tmp_path / f"episode{suffix}")
    assert read.shape == FRAMES.shape
    assert np.abs(read.astype(int) - FRAMES).mean() < 6


def test_still_frames_of_a_gif_come_back(tmp_path):
    still = np.repeat(FRAMES[[0, 6, 11]], [5, 1, 4], axis=0)
    for frames in (still, still[:5], still[:1]):
        write_video(tmp_path / "still.gif", frames, fps=15)
        assert read_gif(tmp_path / "still.gif", fps=15).shape == frames.shape


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_the_same_frames_give_the_same_bytes(tmp_path, suffix):
    first, second = (tmp_path / f"{name}{suffix}" for name in "ab")
    for path in (first, second):
        write_video(path, FRAMES, fps=10, exact=True)
    assert first.read_bytes() == second.read_bytes()


def test_caption_enlarges_and_writes_the_return_so_far():
    shown = caption(FRAMES, np.full(12, 10.0), "cheetah-run")
    assert shown.shape == (12, 84, 64, 3)
    assert np.array_equal(shown[:, :64:4, ::4], FRAMES)
    assert not np.array_equal(shown[0, 64:], shown[1, 64:])  # 0, then 10


def test_other_formats_are_one_line(tmp_path):
    with pytest.raises(UserError, match="a video is .mp4 or .gif"):
        write_video(tmp_path / "episode.avi", FRAMES, fps=10)


def test_a_gif_that_was_cut_is_named(tmp_path):
    path = tmp_path / "episode.gif"
    write_video(path, np.zeros((3, 16, 16, 3), np.uint8), 15)
    content = path.read_bytes()
    for damaged in (b"", content[:-1], b"\0" + content[1:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{path}: not a GIF, or truncated; delete {path}"):
            read_gif(path, fps=15)
    path.write_bytes(content[:-20] + b"\0;")
    with pytest.raises(UserError, match=f"{path}: damaged"):
        read_gif(path, fps=15)

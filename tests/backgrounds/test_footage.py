"""Real videos: DAVIS by its lists from archive or folder, downloads that break, the user's own files."""

import hashlib
import http.server
import struct
import threading
import weakref
import zipfile
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest

from oclam.backgrounds import footage
from oclam.backgrounds.generated import GeneratedVideos
from oclam.errors import UserError


def picture(value, height=48, width=85):
    return np.full((height, width, 3), value, np.uint8)


def jpeg(value):
    return cv2.imencode(".jpg", picture(value))[1].tobytes()


def parameters(**changes):
    defaults = {"source": "davis", "path": "data/videos", "videos": 60, "frames": 10, "seed": 0}
    return SimpleNamespace(**defaults | changes)


def read(source):
    return {split: {name: video for name, video in videos} for split, videos in source.items()}


@pytest.fixture
def davis_folder(tmp_path):
    for sequence, value in (("bear", 40), ("boat", 80), ("camel", 120), ("unknown", 200)):
        folder = tmp_path / "DAVIS" / "JPEGImages" / "480p" / sequence
        folder.mkdir(parents=True)
        for t in range(3):
            (folder / f"{t:05}.jpg").write_bytes(jpeg(value + t))
    return tmp_path / "DAVIS"


@pytest.fixture
def davis_archive(tmp_path, davis_folder):
    with zipfile.ZipFile(tmp_path / "davis.zip", "w") as archive:
        for file in sorted(davis_folder.rglob("*.jpg")):
            archive.write(file, file.relative_to(tmp_path))
    return tmp_path / "davis.zip"


@pytest.mark.parametrize("kind", ["davis_folder", "davis_archive"])
def test_davis_is_split_by_its_lists(request, kind):
    path = request.getfixturevalue(kind)
    found = read(footage.videos_from(parameters(path=str(path)), 16, None))
    assert {split: sorted(videos) for split, videos in found.items()} == {"train": ["bear", "boat"], "test": ["camel"]}
    assert found["train"]["bear"].shape == (3, 16, 16, 3)
    np.testing.assert_allclose(found["test"]["camel"].mean((1, 2, 3)), [120, 121, 122], atol=1)


def test_a_folder_without_pictures_is_no_video(davis_folder):
    (davis_folder / "JPEGImages" / "480p" / "bmx-bumps").mkdir()  # a training video's
    found = read(footage.videos_from(parameters(path=str(davis_folder)), 16, None))
    assert sorted(found["train"]) == ["bear", "boat"]


def test_a_link_to_a_folder_of_videos_is_refused_since_a_change_there_would_not_be_seen(davis_folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/linked").symlink_to(davis_folder)
    with pytest.raises(UserError, match="mine/linked: a link to a folder"):
        footage.footage(tmp_path / "mine")


def test_videos_and_frames_are_limited(davis_folder):
    found = read(footage.videos_from(parameters(path=str(davis_folder), videos=1, frames=2), 16, None))
    assert list(found["train"]) == ["bear"] and len(found["train"]["bear"]) == 2


def test_the_lists_are_davis_2017s():
    train, test = footage.DAVIS17_TRAINING_VIDEOS, footage.DAVIS17_VALIDATION_VIDEOS
    assert (len(train), len(test), len({*train, *test})) == (60, 30, 90)


@pytest.mark.parametrize("member", ["../outside.jpg", "/etc/outside.jpg", "DAVIS/../../outside.jpg", "..\\outside.jpg"])
def test_a_member_that_leaves_the_folder_is_refused(davis_archive, member):
    with zipfile.ZipFile(davis_archive, "a") as archive:
        archive.writestr(member, b"")
    with pytest.raises(UserError, match="refused"):
        footage.davis(davis_archive)


def test_damage_is_named(davis_folder, davis_archive):
    (davis_folder / "JPEGImages" / "480p" / "bear" / "00001.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match="bear.00001.jpg"):
        read(footage.videos_from(parameters(path=str(davis_folder)), 16, None))
    content = bytearray(davis_archive.read_bytes())
    content[content.index(b"bear/00000.jpg") + 100] ^= 255
    davis_archive.write_bytes(content)
    with pytest.raises(UserError, match="bear.00000.jpg is damaged"):
        read(footage.videos_from(parameters(path=str(davis_archive)), 16, None))
    davis_archive.write_bytes(content[:1000])
    with pytest.raises(UserError, match="no usable archive"):
        footage.davis(davis_archive)


def test_davis_is_downloaded_where_the_folder_has_only_its_readme(davis_archive, tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(footage, "fetch", lambda *given: (fetched.append(given[1]), davis_archive)[1])
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "README.md").write_text("put videos here")
    found = read(footage.videos_from(parameters(path=str(folder)), 16, tmp_path / "downloads"))
    expected = read(footage.videos_from(parameters(path=str(davis_archive)), 16, None))
    assert {split: list(videos) for split, videos in found.items()} == {s: list(v) for s, v in expected.items()}
    np.testing.assert_array_equal(found["train"]["boat"], expected["train"]["boat"])
    assert fetched == [tmp_path / "downloads"]


def test_a_folder_without_davis_is_one_line(tmp_path):
    with pytest.raises(UserError, match="backgrounds.path"):
        footage.davis(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        footage.davis(tmp_path / "nowhere")


def test_generated_videos_are_not_kept():
    """As many and as long as at the paper's scale, at the suite's own size, they would be 21 GB."""
    videos = iter(footage.videos_from(parameters(source="generated", videos=2, frames=2), 16, None)["train"])
    first = weakref.ref(next(videos)[1])
    next(videos)
    assert first() is None


class Unreliable(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, by ranges if told to, and hangs up after BITE bytes."""

    content, bite, ranges, requests = b"", 0, True, 0

    def do_GET(self):
        type(self).requests += 1
        begin = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if self.ranges else 0
        self.send_response(206 if self.ranges else 200)
        self.send_header("Content-Length", str(len(self.content) - begin))
        self.end_headers()
        self.wfile.write(self.content[begin:begin + self.bite])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Unreliable,), {"content": np.random.default_rng(0).bytes(100_000)})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield SimpleNamespace(handler=handler, url=f"http://127.0.0.1:{server.server_port}/archive.zip",
                          sha256=hashlib.sha256(handler.content).hexdigest())
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_broken_download_resumes_where_it_stopped(server, tmp_path):
    server.handler.bite = 30_000
    path = footage.fetch(server.url, tmp_path, 100_000, server.sha256)
    assert path.read_bytes() == server.handler.content
    assert server.handler.requests == 4
    footage.fetch(server.url, tmp_path, 100_000, server.sha256)
    assert server.handler.requests == 4


def test_a_server_without_ranges_restarts(server, tmp_path):
    server.handler.bite, server.handler.ranges = 100_000, False
    (tmp_path / "archive.zip.part").write_bytes(b"x" * 1000)
    assert footage.fetch(server.url, tmp_path, 100_000, server.sha256).read_bytes() == server.handler.content


def test_a_dead_connection_keeps_what_came(server, tmp_path):
    (tmp_path / "archive.zip.part").write_bytes(server.handler.content[:40_000])
    with pytest.raises(UserError, match="backgrounds.path"):
        footage.fetch(server.url, tmp_path, 100_000, server.sha256)
    assert (tmp_path / "archive.zip.part").stat().st_size == 40_000


def test_a_wrong_checksum_is_refused(server, tmp_path):
    server.handler.bite = 100_000
    with pytest.raises(UserError, match="SHA-256"):
        footage.fetch(server.url, tmp_path, 100_000, "0" * 64)
    assert not list(tmp_path.iterdir())


def write_clip(path, values, codec="mpeg4"):
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = 96, 64
        for value in values:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(value, 64, 96), format="rgb24")))
        container.mux(stream.encode())


def test_a_folder_of_videos_and_frames(tmp_path):
    write_clip(tmp_path / "a.mp4", [50, 60, 70, 80])
    write_clip(tmp_path / "b.mp4", [100] * 3)
    (tmp_path / "c").mkdir()
    for t in range(5):
        cv2.imwrite(str(tmp_path / "c" / f"{t}.png"), picture(10 * t, 30 + t, 200))
    (tmp_path / "notes.txt").write_text("not a video")
    found = read(footage.videos_from(parameters(source="folder", path=str(tmp_path)), 16, None))
    assert {split: sorted(videos) for split, videos in found.items()} == {"train": ["a.mp4", "c"], "test": ["b.mp4"]}
    np.testing.assert_allclose(found["train"]["a.mp4"].mean((1, 2, 3)), [50, 60, 70, 80], atol=4)
    np.testing.assert_array_equal(found["train"]["c"].mean((1, 2, 3)), [0, 10, 20, 30, 40])


def test_numbers_in_names_are_counted():
    names = ["a/2.png", "a/10.png", "a01/3.png", "a1/frame2.png", "a1/frame10.png", "a2/3.png", "a10/3.png", "²"]
    assert sorted(reversed(names), key=footage.natural_order) == names


def test_frames_and_videos_come_in_natural_order(tmp_path):
    for video in ("video10", "video2"):
        (tmp_path / video).mkdir()
        for t in range(12):
            cv2.imwrite(str(tmp_path / video / f"frame{t}.png"), picture(10 * t))
    videos = footage.footage(tmp_path)
    assert [name for name, _ in videos] == ["video2", "video10"]
    assert [frame.mean() for frame in videos[0][1]()] == [10 * t for t in range(12)]


@pytest.mark.parametrize(("suffix", "codec"), [("ts", "mpeg2video"), ("mts", "mpeg2video"), ("wmv", "wmv2"),
                                               ("flv", "flv"), ("3gp", "mpeg4")])
def test_other_containers_and_folders_in_folders_are_read(tmp_path, suffix, codec):
    (tmp_path / "class").mkdir()
    write_clip(tmp_path / "class" / f"a.{suffix}", [80] * 30, codec)
    write_clip(tmp_path / "b.mp4", [100] * 3)
    found = read(footage.videos_from(parameters(source="folder", path=str(tmp_path)), 16, None))
    videos = {**found["train"], **found["test"]}
    assert set(videos) == {f"class/a.{suffix}", "b.mp4"}
    np.testing.assert_allclose(videos[f"class/a.{suffix}"].mean((1, 2, 3)), 80, atol=4)


@pytest.mark.parametrize(("matrix", "bright"), [  # x' = a x + c y, y' = b x + d y of ((a, b), (c, d)), y downwards
    ((1, 0, 0, 1), (slice(None), slice(0, 7))), ((0, 1, -1, 0), (slice(0, 7), slice(None))),
    ((-1, 0, 0, -1), (slice(None), slice(9, 16))), ((0, -1, 1, 0), (slice(9, 16), slice(None)))])
def test_a_rotated_clip_stands_upright(tmp_path, matrix, bright):
    path, frame = tmp_path / "a.mp4", np.zeros((64, 64, 3), np.uint8)
    frame[:, :32] = 255  # its left half
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    a, b, c, d = (value << 16 for value in matrix)
    upright, turned = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), \
        struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    of_movie, of_track, rest = path.read_bytes().split(upright)  # the movie's matrix comes first
    path.write_bytes(of_movie + upright + of_track + turned + rest)
    (shown,) = footage.decoded(path)
    shown = footage.square(shown, 16)
    assert shown[bright].mean() > 200 and shown.mean() < 150


@pytest.mark.parametrize("spoil", ["large", "encrypted", "lzma"])
def test_an_archive_s_odd_member_is_refused(davis_archive, spoil, monkeypatch):
    member = "DAVIS/JPEGImages/480p/bear/99999.jpg"
    with zipfile.ZipFile(davis_archive, "a") as archive:
        archive.writestr(member, b"0" * 1000, zipfile.ZIP_LZMA if spoil == "lzma" else zipfile.ZIP_DEFLATED)
    if spoil == "encrypted":
        content = davis_archive.read_bytes()
        entry = content.rindex(b"PK\x01\x02")  # the last member's in the directory; its flags follow 8 bytes on
        davis_archive.write_bytes(content[:entry + 8] + bytes([content[entry + 8] | 1]) + content[entry + 9:])
    if spoil == "large":
        monkeypatch.setattr(footage, "MEMBER", 999)
    with pytest.raises(UserError, match="refused, its member '.*jpg' is encrypted, compressed"):
        footage.davis(davis_archive)


def test_a_folder_without_videos_or_with_a_broken_one_is_one_line(tmp_path):
    with pytest.raises(UserError, match="at least 2"):
        footage.folder(tmp_path)
    (tmp_path / "a.mp4").write_bytes(b"broken")
    (tmp_path / "b.mp4").write_bytes(b"broken")
    with pytest.raises(UserError, match="a.mp4 cannot be decoded"):
        read(footage.videos_from(parameters(source="folder", path=str(tmp_path)), 16, None))
    with pytest.raises(UserError, match="is no folder"):
        footage.folder(tmp_path / "nowhere")


def test_red_stays_red_in_pictures_and_in_videos(tmp_path):
    colour = [200, 40, 90]
    write_clip(tmp_path / "a.mp4", [colour] * 3)
    (tmp_path / "b").mkdir()
    cv2.imwrite(str(tmp_path / "b/0.png"), picture(colour)[..., ::-1])  # OpenCV has blue first
    videos = footage.footage(tmp_path)
    assert len(videos) == 2
    for _, pictures in videos:
        np.testing.assert_allclose(next(iter(pictures())).mean((0, 1)), colour, atol=4)


def test_generated_videos_of_evaluation_are_half_as_many_and_of_their_own_split():
    found = footage.videos_from(parameters(source="generated", videos=3, frames=2), 16, None)
    for split, count in (("train", 3), ("test", 2)):
        for (_, video), expected in zip(found[split], GeneratedVideos(split, count, 2, 16, seed=0), strict=True):
            np.testing.assert_array_equal(video, expected)


def test_a_smaller_square_has_the_means_of_blocks_of_pixels():
    image = np.random.default_rng(0).integers(256, size=(48, 32, 3), dtype=np.uint8)
    blocks = image.reshape(16, 3, 16, 2, 3).mean((1, 3))
    np.testing.assert_allclose(footage.square(image, 16), blocks, atol=0.51)

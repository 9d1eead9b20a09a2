"""Background videos from files: DAVIS 2017, downloaded and verified or a local copy, and the user's own."""

import hashlib
import http.client
import io
import re
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr
from itertools import islice
from pathlib import Path, PurePosixPath

import av
import cv2
import numpy as np

from oclam.artifacts import contents
from oclam.backgrounds.generated import GeneratedVideos
from oclam.errors import UserError, one_line
from oclam.params import Backgrounds
from oclam.progress import Progress

with redirect_stderr(io.StringIO()):  # gym, which the package imports, prints on every import that it is not maintained
    from distracting_control.background import DAVIS17_TRAINING_VIDEOS, DAVIS17_VALIDATION_VIDEOS

ARCHIVE = "https://data.vision.ee.ethz.ch/csergi/share/davis/DAVIS-2017-trainval-480p.zip"
ARCHIVE_SIZE = 832766765  # this and the checksum as TensorFlow Datasets records them (video/davis/checksums.tsv)
MEMBER = 1 << 24  # bytes of a picture in the archive at most; DAVIS's have a fiftieth of that
ARCHIVE_SHA256 = "e3d0b5b77c3d031b000a19e0e25e3e2cac65d183755601bc2cf066df1a2aa492"
VIDEOS = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".gif", ".ts", ".mts", ".wmv", ".flv",
          ".3gp"}
COMPRESSIONS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


def videos_from(params: Backgrounds, size: int, downloads: Path) -> dict[str, Iterable[tuple[str, np.ndarray]]]:
    """The videos that the section backgrounds asks for: split -> (name, uint8 (frames, size, size, 3)).

    The split for evaluation has half as many videos as the one for training. Raises UserError for what is missing or
    damaged.
    """
    counts = {"train": params.videos, "test": -(-params.videos // 2)}
    if params.source == "generated":
        return {split: _generated(split, count, params, size) for split, count in counts.items()}
    if params.source == "folder":
        found = folder(Path(params.path))
    else:
        path = Path(params.path)
        empty = path.is_dir() and all(file.name == "README.md" for file in path.iterdir())
        found = davis(fetch(ARCHIVE, downloads, ARCHIVE_SIZE, ARCHIVE_SHA256) if empty else path)
    for split, count in counts.items():
        print(f"backgrounds: {min(count, len(found[split]))} of {len(found[split])} {params.source} videos, {split}")
    return {split: _resized(found[split][:count], params.frames, size) for split, count in counts.items()}


def _generated(split, count, params, size):
    for k in range(count):  # a sequence of its own each, since one remembers what it made
        yield f"dead leaves {k}", GeneratedVideos(split, count, params.frames, size, params.seed)[k]


def _resized(sources, frames, size):
    for name, pictures in sources:
        yield name, np.stack([square(picture, size) for picture in islice(pictures(), frames)])


def square(picture: np.ndarray, size: int) -> np.ndarray:
    """The picture (H, W[, 3]) resized to a square, its aspect ratio lost as in the package, without aliasing."""
    shrinks = min(picture.shape[:2]) > size
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def natural_order(path: Path | str) -> list:
    """The path's key in an order that counts numbers in names: frame2 comes before frame10."""
    return [([int(piece) if k % 2 else piece for k, piece in enumerate(re.split(r"(\d+)", part))], part)
            for part in Path(path).parts]


def davis(path: Path) -> dict[str, list[tuple[str, Callable]]]:
    """DAVIS 2017's sequences in its archive or a folder: split -> [(name, function that yields its pictures)].

    Pictures are uint8 (H, W, 3); the splits are DAVIS's own lists.
    """
    frames = _archive_frames(path) if path.is_file() else _folder_frames(path)
    splits = {"train": DAVIS17_TRAINING_VIDEOS, "test": DAVIS17_VALIDATION_VIDEOS}
    found = {split: [(name, lambda name=name: (_decode(*frame) for frame in frames[name]))
                     for name in names if frames.get(name)] for split, names in splits.items()}
    for split, names in splits.items():
        if not found[split]:
            raise UserError(f"backgrounds.path: {path} holds none of DAVIS 2017's {len(names)} videos for {split}; "
                            "give the 480p archive or the folder with JPEGImages/480p")
    return found


def _archive_frames(path):
    """Sequence -> [(name, function that reads the bytes)], in order, without unpacking the archive."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: no usable archive ({error}); remove it to download it again") from None
    frames = {}
    for info in sorted(archive.infolist(), key=lambda info: natural_order(info.filename)):
        member = info.filename
        if member.startswith("/") or ".." in PurePosixPath(member).parts or "\\" in member:
            raise UserError(f"{path}: refused, its member {member!r} leaves the folder; get the official archive")
        if match := re.search(r"(?:^|/)JPEGImages/480p/([^/]+)/[^/]+\.jpg$", member):
            if info.flag_bits & 1 or info.file_size > MEMBER or info.compress_type not in COMPRESSIONS:
                raise UserError(f"{path}: refused, its member {member!r} is encrypted, compressed in another way than "
                                f"by deflate, or larger than {MEMBER >> 20} MiB; get the official archive")
            frames.setdefault(match[1], []).append((f"{path}: {member}", lambda member=member: archive.read(member)))
    return frames


def _folder_frames(path):
    for root in (path / "JPEGImages" / "480p", path / "DAVIS" / "JPEGImages" / "480p", path):
        if root.is_dir():
            return {sequence.name: _images(sequence) for sequence in sorted(root.iterdir()) if sequence.is_dir()}
    raise UserError(f"backgrounds.path: {path} does not exist; give DAVIS 2017's archive or folder, or an empty folder "
                    "to download it")


def _images(path):
    files = sorted(path.iterdir(), key=natural_order)
    return [(str(file), file.read_bytes) for file in files if file.suffix.lower() in IMAGES]


def _decode(name, read):
    try:
        picture = cv2.imdecode(np.frombuffer(read(), np.uint8), cv2.IMREAD_COLOR)
    except (zipfile.BadZipFile, cv2.error) as error:
        raise UserError(f"{name} is damaged ({one_line(error)}); get it again") from None
    if picture is None:
        raise UserError(f"{name} is damaged or no picture; get it again")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def folder(path: Path) -> dict[str, list[tuple[str, Callable]]]:
    """The videos of `footage` as `davis` returns them; every third is kept for evaluation."""
    if not path.is_dir():
        raise UserError(f"backgrounds.path: {path} is no folder; give the one with your videos or folders of frames")
    found = footage(path)
    if len(found) < 2:
        raise UserError(f"backgrounds.path: {path} has {len(found)} videos or folders of frames, at least 2 are needed "
                        "(every third is kept for evaluation)")
    return {"train": [video for k, video in enumerate(found) if k % 3 != 1], "test": found[1::3]}


def footage(path: Path) -> list[tuple[str, Callable]]:
    """The videos in a folder and its folders, files that PyAV decodes and folders of frames, in natural order.

    Each is a name and a function that yields its pictures, uint8 (H, W, 3).
    """
    found = []
    for entry in sorted(contents(path), key=natural_order):
        name = entry.relative_to(path).as_posix()
        if entry.suffix.lower() in VIDEOS:
            found.append((name, lambda entry=entry: decoded(entry)))
        elif entry.is_dir() and (frames := _images(entry)):
            found.append((name, lambda frames=frames: (_decode(*frame) for frame in frames)))
    return found


def decoded(path: Path) -> Iterator[np.ndarray]:
    """The frames of a video file, upright, uint8 (H, W, 3). Raises UserError where it cannot be decoded."""
    try:
        with av.open(path) as container:
            count = 0
            for frame in container.decode(video=0):
                count += 1
                yield np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))  # as players show it
    except (av.error.FFmpegError, IndexError) as error:
        raise UserError(f"{path} cannot be decoded ({error}); convert or remove it") from None
    if not count:
        raise UserError(f"{path} has no frames; remove it")


def fetch(url: str, into: Path, size: int, sha256: str) -> Path:
    """Download a file into the folder `into` and verify it; returns its path. A broken download is resumed.

    Raises UserError when it cannot be downloaded or its checksum differs.
    """
    path = into / url.rpartition("/")[2]
    part = path.with_name(f"{path.name}.part")
    if path.exists():
        return path
    into.mkdir(parents=True, exist_ok=True)
    while (begin := part.stat().st_size if part.exists() else 0) < size:
        try:
            _download(url, part, begin, size)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = str(error)
        else:
            reason = "the connection closed early"
        if (part.stat().st_size if part.exists() else 0) <= begin:
            raise UserError(f"{url}: no download ({reason}); what came is kept and the next run resumes, or set "
                            "backgrounds.path to a local copy")
    with part.open("rb") as file:
        given = hashlib.file_digest(file, "sha256").hexdigest()
    if given != sha256:
        part.unlink()
        raise UserError(f"{url}: the download's SHA-256 is {given}, {sha256} expected; run again, or set "
                        "backgrounds.path to a copy that you trust")
    return part.replace(path)


def _download(url, part, begin, size):
    request = urllib.request.Request(url, headers={"Range": f"bytes={begin}-"})
    with urllib.request.urlopen(request, timeout=60) as response:
        resumes = response.status == http.client.PARTIAL_CONTENT
        with part.open("ab" if resumes else "wb") as file, \
                Progress(size, f"download {part.stem}", "B", initial=begin if resumes else 0) as bar:
            while block := response.read(1 << 20):
                file.write(block)
                bar.update(len(block))

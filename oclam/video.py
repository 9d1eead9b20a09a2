"""An episode as a video file: mp4, or a GIF."""

from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageSequence

from oclam.artifacts import atomic
from oclam.errors import UserError

FPS = 15  # of the report's videos
GIF_COLOURS = 128


def check_name(path: Path) -> None:
    """Raise UserError unless the name ends in .mp4 or .gif."""
    if path.suffix not in (".mp4", ".gif"):
        raise UserError(f"{path}: a video is .mp4 or .gif")


def caption(frames: np.ndarray, rewards: np.ndarray, title: str) -> np.ndarray:
    """Enlarged frames with the return so far and the title below: uint8 (N, H', W', 3), both even.

    frames: uint8 (N, H, W, 3); rewards: (N,), of the action at each frame.
    """
    height, width = (4 * edge for edge in frames.shape[1:3])
    pictures = []
    for frame, so_far in zip(frames, np.cumsum([0.0, *rewards]), strict=False):
        picture = Image.new("RGB", (width, height + 20))
        picture.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST))
        ImageDraw.Draw(picture).text((4, height + 4), f"return {so_far:.0f}   {title}", fill="white")
        pictures.append(np.asarray(picture))
    return np.stack(pictures)


def write_video(path: Path, frames: np.ndarray, fps: int, exact: bool = False) -> None:
    """Write frames uint8 (N, H, W, 3) as .mp4 (even edges) or .gif.

    exact: the same frames give the same mp4, but slower: with assembler, or more threads, x264's bytes differ.
    """
    check_name(path)
    with atomic(path) as temporary:
        if path.suffix == ".gif":
            strip = Image.fromarray(np.concatenate(frames[::max(len(frames) // 16, 1)]))
            palette = strip.quantize(GIF_COLOURS, method=Image.Quantize.MEDIANCUT)
            images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
            images[0].save(temporary, format="GIF", save_all=True, append_images=images[1:], loop=0,
                           duration=_milliseconds(fps))
        else:
            with av.open(str(temporary), "w", format="mp4") as file:
                stream = file.add_stream("libx264", rate=fps, options={"x264-params": "asm=0"} if exact else {})
                stream.codec_context.thread_count = 1 if exact else 0
                stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
                for frame in frames:
                    file.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
                file.mux(stream.encode())


def _milliseconds(fps):
    return round(100 / fps) * 10  # the format counts in hundredths of a second


def read_gif(path: Path, fps: int) -> np.ndarray:
    """The frames that `write_video` wrote as a GIF: uint8 (N, H, W, 3). Raises UserError where one is damaged."""
    content = path.read_bytes() if path.exists() else b""
    if not (content.startswith(b"GIF8") and content.endswith(b"\0;")):
        raise UserError(f"{path}: not a GIF, or truncated; delete {path} and run `dvc repro`")
    try:
        frames = [(np.asarray(frame.convert("RGB")), frame.info.get("duration", 0))
                  for frame in ImageSequence.Iterator(Image.open(path))]
        # Equal frames are stored once, with their duration together.
        return np.concatenate([frame[None].repeat(max(round(duration / _milliseconds(fps)), 1), 0)
                               for frame, duration in frames])
    except OSError as error:
        raise UserError(f"{path}: damaged ({error}); delete {path} and run `dvc repro`") from None

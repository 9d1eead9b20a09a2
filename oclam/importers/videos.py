"""Videos without actions: what latent actions can be learned from, but not probed or decoded on."""

from pathlib import Path

from oclam.backgrounds.footage import footage
from oclam.errors import UserError
from oclam.importers.store import Episode, Source


def from_videos(path: Path) -> Source:
    """The video files and folders of frames in a folder and its folders, one trajectory each."""
    videos = footage(path)
    if not videos:
        raise UserError(f"{path}: neither a LeRobot dataset, nor Parquet files, nor videos or folders of frames")
    lengths = [sum(1 for _ in frames()) for _, frames in videos]
    return Source(path.name, lengths, lambda index: Episode(videos[index][1]()), 0, 0,
                  {"videos": [name for name, _ in videos]})

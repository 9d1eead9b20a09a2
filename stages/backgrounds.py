"""Reads nothing, an archive or the user's videos; writes the backgrounds' store."""

from oclam import paths
from oclam.backgrounds.footage import videos_from
from oclam.backgrounds.store import texture_edge, write_store
from oclam.cli import arguments, run
from oclam.params import load


def main():
    arguments()
    params = load("backgrounds", "env.renderer", "env.texture_size")
    edge = texture_edge(params.env.renderer, params.env.texture_size)
    videos = videos_from(params.backgrounds, edge, paths.downloads)
    write_store(paths.backgrounds, videos, params.backgrounds.source)


if __name__ == "__main__":
    run(main)

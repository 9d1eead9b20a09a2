"""The frozen encoder: reads what encoder.source names, or distils it, and writes data/encoder.safetensors."""

from oclam import paths
from oclam.cli import run
from oclam.encoders import make_encoder
from oclam.params import load


def main():
    params = load("encoder")
    options = params.encoder
    source = paths.embedded_encoder if options.source == "embedded" else options.source
    make_encoder(source, options.name, options.image_size).save(paths.encoder)


if __name__ == "__main__":
    run(main)

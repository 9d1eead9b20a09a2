"""Other people's demonstrations as datasets of this pipeline, one module a format; see `python -m oclam.import`."""

"""Latent action models: training, labels and probes."""

"""Latent action models: training, latent actions and probes."""

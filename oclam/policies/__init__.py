"""Policies that are cloned from latent or true actions."""

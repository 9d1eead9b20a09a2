"""Frozen vision transformers and their files."""

"""Random numbers that depend on what they are for, never on what ran before."""

import hashlib

import numpy as np

__all__ = ["numpy_rng", "seed_of", "torch_rng"]


def seed_of(*purpose):
    """A 63-bit seed from any mix of strings and integers, the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(repr(purpose).encode()).digest()[:8], "little") >> 1


def torch_rng(*purpose, device="cpu"):
    """A fresh torch generator for this purpose."""
    import torch  # not at the top: workers that only simulate do without

    return torch.Generator(device).manual_seed(seed_of(*purpose))


def numpy_rng(*purpose):
    """A fresh NumPy generator for this purpose."""
    return np.random.default_rng(seed_of(*purpose))

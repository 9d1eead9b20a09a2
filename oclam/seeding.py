"""Random numbers that depend on their purpose alone, never on what ran before."""

import hashlib

import numpy as np


def seed_of(*purpose: str | int) -> int:
    """A 63-bit seed from strings and integers, the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(repr(purpose).encode()).digest()[:8], "little") >> 1


def torch_rng(*purpose: str | int):
    """A new torch generator for this purpose."""
    import torch  # here, because workers that only simulate start faster without it

    return torch.Generator().manual_seed(seed_of(*purpose))


def numpy_rng(*purpose: str | int) -> np.random.Generator:
    """A new NumPy generator for this purpose."""
    return np.random.default_rng(seed_of(*purpose))

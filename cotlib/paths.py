"""Decoded paths as numbers and as text: what each step predicted, and which tokens it left unknown."""

from __future__ import annotations

import base64
import zlib

import numpy as np


def signed(codes: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """codes int [..., L] and masked bool [..., L] in one array int16: a token that is still unknown as -1 - code."""
    return np.where(masked, -1 - codes, codes).astype(np.int16)


def whole(path: np.ndarray) -> np.ndarray:
    """The predictions of a signed path, unknown tokens included: int64."""
    return np.where(path < 0, -1 - path, path).astype(np.int64)


def pack(path: np.ndarray) -> str:
    """int16 [T, L] as text, compressed, T in front."""
    return f"{len(path)}:{base64.b64encode(zlib.compress(path.astype('<i2').tobytes(), 6)).decode()}"


def unpack(text: str) -> np.ndarray:
    """What `pack` was given."""
    n_steps, _, packed = text.partition(":")
    return np.frombuffer(zlib.decompress(base64.b64decode(packed)), "<i2").reshape(int(n_steps), -1)

"""One seed per (run seed, prompt, candidate, stage), the same on every machine and in every batch.

`hash()` of a string changes from process to process, so the seed is read from a sha256 digest instead.
"""

from __future__ import annotations

import hashlib

import torch


def sample_seed(run_seed: int, prompt_id: str, candidate: int, stage: str) -> int:
    """A 63-bit seed that depends on all four arguments and on nothing else."""
    text = f"{run_seed}\x1f{prompt_id}\x1f{candidate}\x1f{stage}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generators(seeds: list[int]) -> list[torch.Generator]:
    """One CPU generator per sample, so that a sample's noise does not depend on who shares its batch."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]

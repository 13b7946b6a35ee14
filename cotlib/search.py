"""Best-of-N over a pool of candidates that is decoded once (Sec. 3.1, arXiv:2501.13926).

Candidates are decoded for the largest N; every smaller N is a subset. The expected result of best-of-n is exact, a sum
over all subsets of size n instead of one draw, so that curves are smooth without more decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import torch

from .batches import Batches
from .decode import DecodeOptions, Generator, decode, final
from .progress import progress
from .prompts import Prompt
from .seeds import sample_seed
from .store import Ledger


@dataclass(frozen=True)
class Pool:
    """Candidates of each prompt, as codes int64 [K, L] by prompt id; candidate k is the same image for every K > k."""

    prompts: tuple[Prompt, ...]
    codes: Mapping[str, torch.Tensor]

    @property
    def n_candidates(self) -> int:
        return len(next(iter(self.codes.values())))


def decode_pool(
    generator: Generator,
    prompts: Sequence[Prompt],
    n_candidates: int,
    seed: int,
    options: DecodeOptions,
    ledger: Ledger,
    image: int = 0,
    batch_size: int = 64,
) -> Pool:
    """Decode `n_candidates` per prompt, candidates of many prompts in one batch; finished prompts come from the ledger.

    `image` tells pools of the same prompts apart: the i-th image of a prompt is chosen from its i-th pool.
    Where memory runs out the batch is halved and the images stay the same; the ledger's notes say so.
    Before any compute, raises ValueError for fewer than one candidate and for a prompt outside the vocabulary; later
    OutOfMemoryError if not even one candidate fits.
    """
    if n_candidates < 1 or batch_size < 1:
        raise ValueError(f"n_candidates and batch_size must be at least 1, got {n_candidates} and {batch_size}")
    for prompt in prompts:
        generator.text_ids([prompt.text])
    missing = [p for p in prompts if p.id not in ledger]
    per_batch = max(1, batch_size // n_candidates)
    in_batches = Batches(batch_size, "decoding")

    def finish(candidates: Sequence[tuple[Prompt, int]]) -> list[torch.Tensor]:
        texts = [p.text for p, _ in candidates]
        seeds = [sample_seed(seed, p.id, k, f"pool-{image}") for p, k in candidates]
        return list(final(decode(generator, texts, seeds, options, candidates=[k for _, k in candidates])).codes)

    with progress(len(missing), "decoding", "prompts") as advance:
        for group in _chunks(missing, per_batch):
            rows = iter(in_batches(finish, [(p, k) for p in group for k in range(n_candidates)]))
            for prompt in group:
                ledger.append({"prompt": prompt.id, "codes": [next(rows).tolist() for _ in range(n_candidates)]})
            advance(len(group))
    if in_batches.size < batch_size:
        ledger.notes.append(
            f"decoding: memory ran out at {batch_size} candidates a batch, went on at {in_batches.size}"
        )
        print(ledger.notes[-1], flush=True)
    return Pool(tuple(prompts), {p.id: torch.tensor(ledger.get(p.id)["codes"]) for p in prompts})


def score_pool(
    pool: Pool,
    paint: Callable[[torch.Tensor], np.ndarray],
    score: Callable[[np.ndarray, list[Prompt]], list],
    ledger: Ledger,
    what: str,
    group: int = 8,
) -> dict[str, list]:
    """Ask about every candidate of every prompt; finished prompts come from the ledger.

    `paint` turns codes [B, L] into pictures; `score` answers one value per (picture, prompt), stored as field `what`.
    """
    missing = [p for p in pool.prompts if p.id not in ledger]
    with progress(len(missing), what, "prompts") as advance:
        for chunk in _chunks(missing, group):
            codes = torch.cat([pool.codes[p.id] for p in chunk])
            asked = [p for p in chunk for _ in range(pool.n_candidates)]
            answers = score(paint(codes), asked)
            for i, prompt in enumerate(chunk):
                mine = answers[i * pool.n_candidates : (i + 1) * pool.n_candidates]
                ledger.append({"prompt": prompt.id, what: mine})
            advance(len(chunk))
    return {p.id: ledger.get(p.id)[what] for p in pool.prompts}


def _chunks(items: list, n: int) -> Iterator[list]:
    for start in range(0, len(items), n):
        yield items[start : start + n]


# --- Best-of-n from one pool ------------------------------------------------------------------------------------


def _check_n(n: int, n_candidates: int) -> None:
    if not 1 <= n <= n_candidates:
        raise ValueError(
            f"best-of-n: n must lie in 1..{n_candidates}, the size of the pool, got {n}; decode more first"
        )


def best_of_n(scores: Sequence[float], n: int) -> int:
    """Index of the best of the first n candidates; the earliest wins a tie, as in the released code."""
    _check_n(n, len(scores))
    return int(np.argmax(np.asarray(scores, float)[:n]))


def expected_best_of_n(scores: Sequence[float], correct: Sequence[bool], n: int) -> float:
    """P(the best-scored of n candidates is correct), exactly, over all subsets of size n; ties go to the earliest.

    The candidate of rank r (0 = best of K) is the best of a subset in C(K-1-r, n-1) of C(K, n) cases.
    """
    K = len(scores)
    _check_n(n, K)
    order = np.argsort(-np.asarray(scores, float), kind="stable")
    weights = np.array([comb(K - 1 - rank, n - 1) for rank in range(K)], float) / comb(K, n)
    return float(weights @ np.asarray(correct, float)[order])


def oracle_best_of_n(correct: Sequence[bool], n: int) -> float:
    """P(any of n candidates is correct): what a perfect verifier could reach."""
    return expected_best_of_n(np.asarray(correct, float), correct, n)


def random_best_of_n(correct: Sequence[bool], n: int) -> float:
    """P(a random one of n candidates is correct): the mean, whatever n."""
    _check_n(n, len(correct))
    return float(np.mean(np.asarray(correct, float)))

"""Search: best-of-N over a pool of candidates that is decoded once, and step-wise best-of-N (Sec. 3, arXiv:2501.13926).

Candidates are decoded for the largest N; every smaller N is a subset. The expected result of best-of-n is exact, a sum
over all subsets of size n instead of one draw, so that curves are smooth without more decoding. The whole path of each
candidate is kept, so that a verifier can look at any step later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb
from typing import Any

import numpy as np
import torch

from . import paths
from .batches import Batches
from .decode import DecodeOptions, Generator, Step, branch, decode, nothing_known, read_prompts
from .progress import progress
from .prompts import Prompt
from .seeds import sample_seed
from .store import Ledger

Paint = Callable[[torch.Tensor], np.ndarray]  # codes [B, L] -> pictures uint8 [B, H, W, 3]
Score = Callable[[np.ndarray, list[Prompt]], list]  # one value per (picture, prompt)


@dataclass(frozen=True)
class Pool:
    """Candidates of each prompt; candidate k is the same path for every K > k.

    paths: int16 [K, T, L] by prompt id, the prediction of the whole picture after each of T steps, signed as in
    `paths.signed`.
    """

    prompts: tuple[Prompt, ...]
    paths: Mapping[str, np.ndarray]

    @property
    def n_candidates(self) -> int:
        return len(next(iter(self.paths.values())))

    @property
    def n_steps(self) -> int:
        return next(iter(self.paths.values())).shape[1]

    @cached_property
    def codes(self) -> dict[str, torch.Tensor]:
        """The finished pictures: int64 [K, L] by prompt id."""
        return self.at(self.n_steps - 1)

    def at(self, step: int) -> dict[str, torch.Tensor]:
        """The predictions after a step 0..T-1: int64 [K, L] by prompt id."""
        return {id: torch.from_numpy(paths.whole(path[:, step])) for id, path in self.paths.items()}

    def steps(self, prompt: str) -> torch.Tensor:
        """The predictions of one prompt's candidates after every step: int64 [K, T, L]."""
        return torch.from_numpy(paths.whole(self.paths[prompt]))

    def state(self, prompt: str, candidate: int, step: int) -> Step:
        """Where decoding stood after a step, as `decode(start=...)` takes it; one row."""
        row = self.paths[prompt][candidate, step][None]
        masked = torch.from_numpy(row < 0)
        return Step(step, torch.from_numpy(paths.whole(row)), masked, 1 - masked.float())


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

    def finish(candidates: Sequence[tuple[Prompt, int]]) -> list[str]:
        texts = [p.text for p, _ in candidates]
        seeds = [sample_seed(seed, p.id, k, f"pool-{image}") for p, k in candidates]
        steps = list(decode(generator, texts, seeds, options, candidates=[k for _, k in candidates]))
        codes, masked = (torch.stack([getattr(s, name) for s in steps], 1).numpy() for name in ("codes", "masked"))
        return [paths.pack(path) for path in paths.signed(codes, masked)]

    with progress(len(missing), "decoding", "prompts") as advance:
        for group in chunks(missing, per_batch):
            rows = iter(in_batches(finish, [(p, k) for p in group for k in range(n_candidates)]))
            for prompt in group:
                ledger.append({"prompt": prompt.id, "paths": [next(rows) for _ in range(n_candidates)]})
            advance(len(group))
    if in_batches.size < batch_size:
        ledger.notes.append(
            f"decoding: memory ran out at {batch_size} candidates a batch, went on at {in_batches.size}"
        )
        print(ledger.notes[-1], flush=True)
    return Pool(
        tuple(prompts),
        {p.id: np.stack([paths.unpack(text) for text in ledger.get(p.id)["paths"]]) for p in prompts},
    )


def score_pool(
    prompts: Sequence[Prompt],
    codes: Mapping[str, torch.Tensor],
    paint: Paint,
    score: Score,
    ledger: Ledger,
    what: str,
    group: int = 8,
) -> dict[str, list]:
    """Ask about every candidate of every prompt; finished prompts come from the ledger.

    codes: int64 [K, L] by prompt id. `score` answers one value per (picture, prompt), stored as field `what`.
    """
    missing = [p for p in prompts if p.id not in ledger]
    with progress(len(missing), what, "prompts") as advance:
        for chunk in chunks(missing, group):
            asked = [p for p in chunk for _ in codes[p.id]]
            answers = iter(score(paint(torch.cat([codes[p.id] for p in chunk])), asked))
            for prompt in chunk:
                ledger.append({"prompt": prompt.id, what: [next(answers) for _ in codes[prompt.id]]})
            advance(len(chunk))
    return {p.id: ledger.get(p.id)[what] for p in prompts}


def stepwise(
    generator: Generator,
    prompts: Sequence[Prompt],
    n: int,
    seed: int,
    options: DecodeOptions,
    paint: Paint,
    score: Score,
    ledger: Ledger,
    image: int = 0,
    group: int = 8,
) -> dict[str, dict[str, Any]]:
    """Step-wise best-of-n (PRM, Sec. 3.2): at each step draw n continuations, keep the best scored, go on from it.

    By prompt id: `codes` [L] of the picture, `scores` [T][n] of every continuation (None: unscored) and `distance` [T],
    how unlike the n pictures of a step are (`picture_distance`). Finished prompts come from the ledger. The first n
    draws from a state are the same for every larger n. The network reads one state a step, not n.
    """
    if n < 1:
        raise ValueError(f"stepwise: n must be at least 1, got {n}")
    for prompt in prompts:
        generator.text_ids([prompt.text])
    missing = [p for p in prompts if p.id not in ledger]
    with progress(len(missing), f"step-wise, {n} branches", "prompts") as advance:
        for chunk in chunks(missing, group):
            for record in _climb(generator, chunk, n, seed, options, paint, score, image):
                ledger.append(record)
            advance(len(chunk))
    return {p.id: ledger.get(p.id) for p in prompts}


def _climb(
    generator: Generator,
    prompts: list[Prompt],
    n: int,
    seed: int,
    options: DecodeOptions,
    paint: Paint,
    score: Score,
    image: int,
) -> list[dict[str, Any]]:
    """Some prompts together, one record each."""
    prefix = read_prompts(generator, [p.text for p in prompts], options)
    state = nothing_known(len(prompts), generator.config.num_vq_tokens)
    asked = [p for p in prompts for _ in range(n)]
    records = [{"prompt": p.id, "scores": [], "distance": []} for p in prompts]
    for step in range(options.steps):
        seeds = [sample_seed(seed, p.id, i % n, f"step-{image}-{step}") for i, p in enumerate(asked)]
        drawn = branch(generator, prefix, state, seeds, options, n)
        first, like = _distinct(drawn.codes, n)  # late branches are often equal: each picture is asked about once
        pictures = paint(drawn.codes[first])
        answers = list(score(pictures, [asked[i] for i in first]))
        pictures, answers = pictures[like], [answers[i] for i in like]
        kept = []
        for i, record in enumerate(records):
            rows = slice(i * n, (i + 1) * n)
            kept.append(rows.start + best_of_n(answers[rows], n))
            record["scores"].append(answers[rows])
            record["distance"].append(picture_distance(pictures[rows]))
        state = drawn.rows(kept)
    return [{**record, "codes": state.codes[i].tolist()} for i, record in enumerate(records)]


def _distinct(codes: torch.Tensor, n: int) -> tuple[list[int], list[int]]:
    """Of codes [B * n, L], n of a prompt side by side: the first row of each kind, and of each row the place in those
    of its like."""
    place: dict[tuple[int, ...], int] = {}
    first, like = [], []
    for i, row in enumerate(codes.tolist()):
        key = (i // n, *row)
        if key not in place:
            place[key] = len(first)
            first.append(i)
        like.append(place[key])
    return first, like


def picture_distance(images: np.ndarray) -> float:
    """Root mean square difference over all pairs of pictures uint8 [n, H, W, 3], in grey levels; 0 for one picture."""
    n = len(images)
    variance = images.astype(np.float32).var(axis=0).mean()  # the mean over pairs of d^2 is 2 n / (n - 1) variances
    return float(np.sqrt(2 * n / max(1, n - 1) * variance))


def chunks(items: list, n: int) -> Iterator[list]:
    for start in range(0, len(items), n):
        yield items[start : start + n]


# --- Best-of-n from one pool ------------------------------------------------------------------------------------


def _check_n(n: int, n_candidates: int) -> None:
    if n_candidates < 1:
        raise ValueError("best-of-n: no candidates to choose from; decode some first")
    if not 1 <= n <= n_candidates:
        raise ValueError(
            f"best-of-n: n must lie in 1..{n_candidates}, the size of the pool, got {n}; decode more first"
        )


def best_of_n(scores: Sequence[float | None], n: int) -> int:
    """Index of the best of the first n candidates; the earliest wins a tie, as in the released code.

    A candidate without a score (None or NaN) loses to any with one.
    """
    _check_n(n, len(scores))
    return int(np.argmax(_ranked(scores)[:n]))


def _ranked(scores: Sequence[float | None]) -> np.ndarray:
    return np.nan_to_num(np.asarray(scores, float), nan=-np.inf)


def best_first(scores: Sequence[float | None]) -> list[int]:
    """Indices in the order in which `best_of_n` prefers them."""
    return np.argsort(-_ranked(scores), kind="stable").tolist()


def expected_best_of_n(scores: Sequence[float | None], correct: Sequence[bool], n: int) -> float:
    """P(the best-scored of n candidates is correct), exactly, over all subsets of size n; ties go to the earliest.

    The candidate of rank r (0 = best of K) is the best of a subset in C(K-1-r, n-1) of C(K, n) cases.
    """
    K = len(scores)
    _check_n(n, K)
    order = best_first(scores)
    weights = np.array([comb(K - 1 - rank, n - 1) for rank in range(K)], float) / comb(K, n)
    return float(weights @ np.asarray(correct, float)[order])


def oracle_best_of_n(correct: Sequence[bool], n: int) -> float:
    """P(any of n candidates is correct): what a perfect verifier could reach."""
    return expected_best_of_n(np.asarray(correct, float), correct, n)


def random_best_of_n(correct: Sequence[bool], n: int) -> float:
    """P(a random one of n candidates is correct): the mean, whatever n."""
    _check_n(n, len(correct))
    return float(np.mean(np.asarray(correct, float)))

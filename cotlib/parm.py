"""PARM: judge a path only when its picture is clear, stop it if it has no potential (Sec. 4, arXiv:2501.13926).

N candidates are decoded together. After each step, those whose picture was not clear yet are asked about clarity; at
the first clear step, once, about potential; a path without potential is stopped and its place in the batch is free.
Among those that reach the end with potential the outcome question chooses (best-of-N'). If there is none, the path with
the highest potential is finished and taken, as the released code does (parm.py: the lowest P(no), 1 for a path that
never was clear). A finished picture counts as clear.

The released code stops nothing, decides by sampled answers, and leaves out what never was clear: `RELEASED`. Not in
the paper is `keep`: every path counts as clear after one step that is set beforehand, is asked about potential there,
and the most promising ones go on, however many have potential. It asks for a ranking only, and asks less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .batches import Batches
from .decode import DecodeOptions, Generator, Step, decode, nothing_known
from .progress import progress
from .prompts import Prompt
from .search import Paint, Pool, Score, best_first, best_of_n, chunks, expected_best_of_n
from .seeds import sample_seed
from .store import Ledger

ANSWERS = ("threshold", "sampled")
ANSWERED = ("clear", "potential", "promising", "outcome")  # of a path, by the judge


@dataclass(frozen=True)
class Parm:
    """A judge's three answers, P(yes) of each (picture, prompt)."""

    clarity: Score
    potential: Score
    outcome: Score


@dataclass(frozen=True)
class ParmOptions:
    clear: float = 0.5  # P(yes) from which on a picture is clear
    promising: float = 0.5  # P(yes) from which on a path has potential
    stop: bool = True  # False: paths without potential are decoded to their end all the same, as released
    answers: str = "threshold"  # "sampled": yes with probability P(yes), as released; both limits are unused
    first: int = 0  # the first step 0..T-1 whose picture is asked about
    end_is_clear: bool = True  # a finished picture is, unasked; False, as released: a path may never be clear
    keep: int | None = None  # so many paths of each prompt go on, those of the highest potential after step
    keep_after: int = 2  # 0..T-1, where every path counts as clear; the other fields but `stop` are unused

    def __post_init__(self) -> None:
        for name in ("clear", "promising"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"PARM: {name} is a probability, in 0..1, got {getattr(self, name)}")
        if self.answers not in ANSWERS:
            raise ValueError(f"PARM: unknown answers {self.answers!r}; known: {', '.join(ANSWERS)}")
        if self.first < 0:
            raise ValueError(f"PARM: first must be a step, 0 or later, got {self.first}")
        if self.keep is not None and not (self.keep >= 1 and self.keep_after >= 0):
            raise ValueError(
                f"PARM: at least 1 path must be kept, after step 0 or later, got keep={self.keep} and "
                f"keep_after={self.keep_after}"
            )


RELEASED = ParmOptions(stop=False, answers="sampled", end_is_clear=False)


@dataclass
class _Path:
    """What is known of one candidate."""

    prompt: Prompt
    candidate: int
    image: int = 0
    steps: int = 0  # decoded
    clear: int | None = None  # the first clear step
    potential: float | None = None
    promising: bool = False
    stopped: bool = False
    outcome: float | None = None
    calls: int = 0  # of the judge


# --- The same decisions, decoding or looking at decoded paths -----------------------------------------------------


def search(
    generator: Generator,
    prompts: Sequence[Prompt],
    n: int,
    seed: int,
    decoding: DecodeOptions,
    paint: Paint,
    parm: Parm,
    options: ParmOptions,
    ledger: Ledger,
    image: int = 0,
    batch_size: int = 64,
    group: int = 8,
) -> dict[str, dict[str, Any]]:
    """PARM's choice among n candidates of each prompt, which are those of `decode_pool`; one record a prompt:

    steps [n] decoded, clear [n] first clear step or None, potential [n] and outcome [n] P(yes) or None where not asked,
    promising [n], chosen, fallback (no path had potential), codes [L] of the chosen picture, token_steps, judge_calls,
    seconds. `group` prompts are decoded together, `batch_size` candidates at a time. Finished prompts come from the
    ledger. Raises ValueError for fewer than one candidate and for a prompt outside the vocabulary.
    """
    if n < 1:
        raise ValueError(f"PARM: n must be at least 1, got {n}")
    for prompt in prompts:
        generator.text_ids([prompt.text])
    in_batches, L = Batches(batch_size, "decoding"), generator.config.num_vq_tokens

    def walk(chunk: list[Prompt]) -> list[dict[str, Any]]:
        paths = [_Path(prompt, k, image) for prompt in chunk for k in range(n)]
        known = nothing_known(len(paths), L)
        codes, masked = known.codes, known.masked

        def decoded(rows: list[int], step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
            state = Step(step - 1, codes[rows], masked[rows], 1 - masked[rows].float())
            texts, seeds = zip(*((paths[i].prompt.text, _seed(seed, paths[i])) for i in rows), strict=True)
            places = [paths[i].candidate for i in rows]
            after = next(decode(generator, list(texts), seeds, decoding, start=state, candidates=places))
            return list(zip(after.codes, after.masked, strict=True))

        def advance(rows: list[int], step: int) -> torch.Tensor:
            for i, (code, mask) in zip(rows, in_batches(lambda part: decoded(part, step), rows), strict=True):
                codes[i], masked[i] = code, mask
            return codes[rows]

        return _walk(paths, n, decoding.steps, advance, paint, parm, options, seed)

    return _recorded(prompts, walk, ledger, f"PARM, {n} candidates", group)


def replay(
    pool: Pool,
    paint: Paint,
    parm: Parm,
    options: ParmOptions,
    ledger: Ledger,
    seed: int,
    image: int = 0,
    group: int = 8,
) -> dict[str, dict[str, Any]]:
    """What `search` with the pool's seed and image would do, from its decoded paths: the same records, not decoding."""

    def walk(chunk: list[Prompt]) -> list[dict[str, Any]]:
        n = pool.n_candidates
        paths = [_Path(prompt, k, image) for prompt in chunk for k in range(n)]
        decoded = torch.cat([pool.steps(prompt.id) for prompt in chunk])

        def advance(rows: list[int], step: int) -> torch.Tensor:
            return decoded[rows, step]

        return _walk(paths, n, pool.n_steps, advance, paint, parm, options, seed)

    return _recorded(pool.prompts, walk, ledger, "PARM", group)


def _seed(seed: int, path: _Path) -> int:
    return sample_seed(seed, path.prompt.id, path.candidate, f"pool-{path.image}")


def _recorded(
    prompts: Sequence[Prompt],
    walk: Callable[[list[Prompt]], list[dict[str, Any]]],
    ledger: Ledger,
    what: str,
    group: int,
) -> dict[str, dict[str, Any]]:
    missing = [p for p in prompts if p.id not in ledger]
    with progress(len(missing), what, "prompts") as advance:
        for chunk in chunks(missing, group):
            start = time.perf_counter()
            for record in walk(chunk):
                ledger.append({**record, "seconds": round((time.perf_counter() - start) / len(chunk), 4)})
            advance(len(chunk))
    return {p.id: ledger.get(p.id) for p in prompts}


def _walk(
    paths: list[_Path],
    n: int,
    n_steps: int,
    advance: Callable[[list[int], int], torch.Tensor],
    paint: Paint,
    parm: Parm,
    options: ParmOptions,
    seed: int,
) -> list[dict[str, Any]]:
    """Some prompts together. advance(rows, step): decode these paths by one step; their predictions [len(rows), L]."""
    going = list(range(len(paths)))
    for step in range(n_steps):
        codes = advance(going, step)
        for i in going:
            paths[i].steps += 1
        if options.keep is None and step >= options.first:
            _look(paths, going, codes, step, step + 1 == n_steps, paint, parm, options, seed)
        elif options.keep is not None and step == min(options.keep_after, n_steps - 1):
            _rank(paths, n, codes, step, paint, parm, options)
        if step + 1 < n_steps:
            kept = [r for r, i in enumerate(going) if not paths[i].stopped]
            going, codes = [going[r] for r in kept], codes[kept]
        if not going:
            break
    ends = dict(zip(going, codes, strict=True))
    _ask_outcome(paths, [i for i in going if paths[i].promising], ends, paint, parm)
    return [_record(paths, start, n, n_steps, ends, advance) for start in range(0, len(paths), n)]


def _rank(
    paths: list[_Path], n: int, codes: torch.Tensor, step: int, paint: Paint, parm: Parm, options: ParmOptions
) -> None:
    """Potential of every path; of each prompt the most promising `keep` go on."""
    for path, p in zip(paths, parm.potential(paint(codes), [path.prompt for path in paths]), strict=True):
        path.clear, path.potential, path.calls = step, p, path.calls + 1
    for start in range(0, len(paths), n):
        mine = paths[start : start + n]
        kept = best_first([path.potential for path in mine])[: options.keep]
        for k, path in enumerate(mine):
            path.promising = k in kept
            path.stopped = options.stop and not path.promising


def _look(
    paths: list[_Path],
    going: list[int],
    codes: torch.Tensor,
    step: int,
    is_end: bool,
    paint: Paint,
    parm: Parm,
    options: ParmOptions,
    seed: int,
) -> None:
    """Clarity of the paths that were not clear yet, and potential of those that now are."""
    rows = [r for r, i in enumerate(going) if paths[i].clear is None]
    if not rows:
        return
    pictures, mine = paint(codes[rows]), [paths[going[r]] for r in rows]
    newly = list(range(len(rows)))
    if not (is_end and options.end_is_clear):
        answers = parm.clarity(pictures, [path.prompt for path in mine])
        newly = [r for r in newly if _says_yes(answers[r], options.clear, mine[r], f"clarity-{step}", options, seed)]
        for path in mine:
            path.calls += 1
    for r in newly:
        mine[r].clear = step
    if newly:
        for r, p in zip(newly, parm.potential(pictures[newly], [mine[r].prompt for r in newly]), strict=True):
            mine[r].calls += 1
            mine[r].potential = p
            mine[r].promising = _says_yes(p, options.promising, mine[r], "potential", options, seed)
            mine[r].stopped = options.stop and not mine[r].promising


def _says_yes(p: float | None, limit: float, path: _Path, what: str, options: ParmOptions, seed: int) -> bool:
    """An answer that is neither yes nor no (None) is no."""
    if p is None:
        return False
    if options.answers == "sampled":
        stage = f"{what}-image-{path.image}"
        limit = np.random.default_rng(sample_seed(seed, path.prompt.id, path.candidate, stage)).random()
    return p >= limit


def _ask_outcome(paths: list[_Path], rows: list[int], ends: dict[int, torch.Tensor], paint: Paint, parm: Parm) -> None:
    if rows:
        pictures = paint(torch.stack([ends[i] for i in rows]))
        for i, p in zip(rows, parm.outcome(pictures, [paths[i].prompt for i in rows]), strict=True):
            paths[i].calls += 1
            paths[i].outcome = p


def _record(
    paths: list[_Path],
    start: int,
    n: int,
    n_steps: int,
    ends: dict[int, torch.Tensor],
    advance: Callable[[list[int], int], torch.Tensor],
) -> dict[str, Any]:
    mine = paths[start : start + n]
    record = {
        "prompt": mine[0].prompt.id,
        **{name: [getattr(p, name) for p in mine] for name in ("steps", *ANSWERED)},
    }
    chosen = best_of_n(scores(record), n)
    i, n_decoded = start + chosen, sum(path.steps for path in mine)
    if i not in ends:  # every path was stopped: finish the one that is taken
        for step in range(paths[i].steps, n_steps):
            ends[i], n_decoded = advance([i], step)[0], n_decoded + 1
    return {
        **record,
        "chosen": chosen,
        "fallback": not any(path.promising for path in mine),
        "codes": ends[i].tolist(),
        "token_steps": n_decoded * len(ends[i]),
        "judge_calls": sum(path.calls for path in mine),
    }


def scores(record: dict[str, Any]) -> list[float]:
    """One number a candidate, whose order is PARM's choice within any subset of them.

    1 + P(yes) of the outcome for a path with potential, P(yes) of the potential less 1 for one without, -1 for one that
    never was clear.
    """
    return [
        1.0 + (outcome or 0.0) if promising else (potential or 0.0) - 1.0
        for promising, outcome, potential in zip(
            record["promising"], record["outcome"], record["potential"], strict=True
        )
    ]


def in_words(record: dict[str, Any], candidate: int, clarity: Sequence[float | None]) -> list[str]:
    """What was said of a candidate after each step, in words; clarity: P(yes) after each of the T steps."""

    def number(p: float | None) -> str:
        return "no answer" if p is None else f"{p:.2f}"

    clear, promising, outcome = (record[name][candidate] for name in ("clear", "promising", "outcome"))
    said = [f"clear? {number(p)}" if clear is None or step <= clear else "" for step, p in enumerate(clarity)]
    if clear is not None:
        said[clear] += f"\npotential? {number(record['potential'][candidate])}" + ("" if promising else "\nstopped")
    if promising:
        said[-1] += f"\noutcome? {number(outcome)}" + (" chosen" if candidate == record["chosen"] else "")
    return said


def expected_cost(record: dict[str, Any], n: int, n_steps: int) -> tuple[float, float]:
    """Decoded steps and judge calls of a search over n of the record's candidates, the exact mean over all subsets.

    The fewer candidates, the more often none has potential and a stopped path is finished after all.
    """
    share = n / len(record["steps"])
    to_finish = [0 if p else n_steps - s for p, s in zip(record["promising"], record["steps"], strict=True)]
    finished = expected_best_of_n(scores(record), to_finish, n)
    return share * sum(record["steps"]) + finished, share * record["judge_calls"]


def with_limit(record: dict[str, Any], promising: float) -> dict[str, Any]:
    """What the record would be for another limit of potential; from one of `search` or `replay` with promising=0 and
    stop=False, where every clear path went to its end. The chosen picture's codes and seconds are left out."""
    T, L = max(record["steps"]), record["token_steps"] // sum(record["steps"])
    keeps = [p is not None and p >= promising for p in record["potential"]]
    clear = [T if step is None else step + 1 for step in record["clear"]]
    changed = {
        **{name: record[name] for name in ("prompt", "clear", "potential")},
        "promising": keeps,
        "outcome": [p if keep else None for p, keep in zip(record["outcome"], keeps, strict=True)],
        "steps": [T if keep else step for keep, step in zip(keeps, clear, strict=True)],
    }
    chosen = best_of_n(scores(changed), len(keeps))
    finished = 0 if any(keeps) else T - changed["steps"][chosen]
    asked = record["judge_calls"] - sum(p is not None for p in record["outcome"])
    return {
        **changed,
        "chosen": chosen,
        "fallback": not any(keeps),
        "token_steps": L * (sum(changed["steps"]) + finished),
        "judge_calls": asked + sum(keeps),
    }


def with_keep(record: dict[str, Any], keep: int) -> dict[str, Any]:
    """What the record would be with fewer paths kept, likewise without codes and seconds."""
    N, T, L = len(record["steps"]), max(record["steps"]), record["token_steps"] // sum(record["steps"])
    kept = best_first(record["potential"])[: min(keep, sum(record["promising"]))]
    changed = {
        **{name: record[name] for name in ("prompt", "clear", "potential")},
        "promising": [k in kept for k in range(N)],
        "outcome": [p if k in kept else None for k, p in enumerate(record["outcome"])],
        "steps": [T if k in kept else step + 1 for k, step in enumerate(record["clear"])],
    }
    return {
        **changed,
        "chosen": best_of_n(scores(changed), N),
        "fallback": False,
        "token_steps": L * sum(changed["steps"]),
        "judge_calls": N + len(kept),
    }


def released_loop(
    generator: Generator,
    prompt: Prompt,
    n: int,
    seed: int,
    decoding: DecodeOptions,
    paint: Paint,
    parm: Parm,
    image: int = 0,
    options: ParmOptions = RELEASED,
    decoder: Callable[..., Iterator[Step]] = decode,
) -> int:
    """The candidate that `search` chooses with the same options, found in the shape of the released code.

    One candidate after the other, every step painted, one question at a time, nothing stopped: what PARM's speed is
    compared with.
    """
    paths, ends = [_Path(prompt, k, image) for k in range(n)], {}
    for i, path in enumerate(paths):
        place = [path.candidate]
        for after in decoder(generator, [prompt.text], [_seed(seed, path)], decoding, candidates=place):
            pictures = paint(after.codes)
            if path.clear is None:
                at_end = after.index + 1 == decoding.steps
                _look([path], [0], after.codes, after.index, at_end, lambda _: pictures, parm, options, seed)  # noqa: B023
        if path.promising:
            ends[i] = after.codes[0]
            _ask_outcome(paths, [i], ends, paint, parm)
    return best_of_n(scores({name: [getattr(p, name) for p in paths] for name in ANSWERED}), n)


# --- Another shape: prune, branch, prune ------------------------------------------------------------------------------


def prune_and_branch(
    generator: Generator,
    prompts: Sequence[Prompt],
    n: int,
    keep: int,
    seed: int,
    decoding: DecodeOptions,
    paint: Paint,
    parm: Parm,
    ledger: Ledger,
    image: int = 0,
    group: int = 8,
) -> dict[str, dict[str, Any]]:
    """Hierarchical search in the manner of dMLLM-TTS (arXiv:2512.19433): n paths to a quarter of the steps, the `keep`
    best of them branched into n again, these to a half, the `keep` best of them to the end, the best of those chosen.

    Potential is asked both times, the outcome at the end. By prompt id: codes [L], token_steps, judge_calls, seconds.
    Raises ValueError unless 1 <= keep <= n and there are at least four steps.
    """
    if not 1 <= keep <= n or decoding.steps < 4:
        raise ValueError(f"prune_and_branch: expected 1 <= keep <= n and 4 steps or more, got {keep}, {n}, {decoding}")
    quarter, half = decoding.steps // 4, decoding.steps // 2

    def walk(chunk: list[Prompt]) -> list[dict[str, Any]]:
        asked = [p for p in chunk for _ in range(n)]
        seeds = [sample_seed(seed, p.id, r % n, f"pool-{image}") for r, p in enumerate(asked)]
        state = _until(generator, asked, seeds, decoding, None, quarter)
        rows = _best(parm.potential, paint, state, asked, n, keep)
        state = state.rows([rows[b * keep + k % keep] for b in range(len(chunk)) for k in range(n)])
        seeds = [sample_seed(seed, p.id, r % n, f"branch-{image}") for r, p in enumerate(asked)]
        state = _until(generator, asked, seeds, decoding, state, half)
        rows = _best(parm.potential, paint, state, asked, n, keep)
        asked, seeds = [asked[r] for r in rows], [seeds[r] for r in rows]
        state = _until(generator, asked, seeds, decoding, state.rows(rows), decoding.steps)
        tokens = state.codes.shape[1] * (n * half + keep * (decoding.steps - half))
        return [
            {"prompt": p.id, "codes": state.codes[r].tolist(), "token_steps": tokens, "judge_calls": 2 * n + keep}
            for p, r in zip(chunk, _best(parm.outcome, paint, state, asked, keep, 1), strict=True)
        ]

    return _recorded(prompts, walk, ledger, f"prune and branch, {n} and {keep}", group)


def _until(
    generator: Generator,
    prompts: list[Prompt],
    seeds: list[int],
    decoding: DecodeOptions,
    state: Step | None,
    n_steps: int,
) -> Step:
    """Decode until n_steps are done."""
    steps = decode(generator, [p.text for p in prompts], seeds, decoding, start=state)
    return next(step for step in steps if step.index + 1 == n_steps)


def _best(score: Score, paint: Paint, state: Step, prompts: list[Prompt], n: int, keep: int) -> list[int]:
    """Rows of the `keep` best of each n."""
    answers = list(score(paint(state.codes), prompts))
    return [start + k for start in range(0, len(answers), n) for k in best_first(answers[start : start + n])[:keep]]

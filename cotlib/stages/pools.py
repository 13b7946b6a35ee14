"""Pools of candidates, what the evaluator and the judges say of them, and step-wise search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from .. import store
from ..config import suggest
from ..loaders import load_generator, load_tokenizer, trusted_evaluator
from ..parm import RELEASED, ParmOptions, prune_and_branch, replay, scores
from ..run import Run
from ..search import Pool, Score, decode_pool, score_pool, stepwise
from ..verifiers import VERIFIERS, named
from .generators import source
from .judges import parm_scores, verifier_score
from .sources import base, decode_options, weights_digest


@dataclass(frozen=True)
class Pools:
    """Candidates by one generator, one pool per image of a prompt, and what they depend on."""

    generator: str
    pools: list[Pool]
    identity: Mapping[str, Any]

    def __iter__(self):
        return iter(self.pools)

    def __getitem__(self, image: int) -> Pool:
        return self.pools[image]

    def __len__(self) -> int:
        return len(self.pools)


def pools_of(run: Run, generator: str = "base", n_candidates: int | None = None) -> Pools:
    """One pool of candidates per image of a prompt, by a generator of any name."""
    K = n_candidates or run.params["n_candidates"]
    made = source(run, generator)
    identity = {"n_candidates": K, **made.made_by}
    model = load_generator(run.scale, made.folder)
    decoded = [
        decode_pool(
            model,
            run.prompts,
            K,
            run.seed,
            decode_options(run),
            run.ledger(f"{generator}-{image}", image=image, **identity),
            image=image,
            batch_size=run.params["batch_size"],
        )
        for image in range(run.params["n_images"])
    ]
    return Pools(generator, decoded, identity)


def verdicts(run: Run, pools: Pools) -> list[dict[str, list[dict]]]:
    """Per pool and prompt id, the evaluator's verdict on each candidate: {"correct": bool, "reasons": [text, ...]}.

    Raises DetectorError where the evaluator fails its canary.
    """
    return _scored(run, pools, "verdicts", verdict_score(run), weights_digest(run, "tokenizer", "detector"))


def verdict_score(run: Run) -> Score:
    """The evaluator's verdict {"correct": bool, "reasons": [text, ...]} on each (picture, prompt)."""
    evaluator = trusted_evaluator(run.scale)
    return lambda images, prompts: [asdict(verdict) for verdict in evaluator.evaluate(images, prompts)]


def outcome_scores(run: Run, pools: Pools, verifier: str = "orm-zero-shot") -> list[dict[str, list]]:
    """Per pool and prompt id, an outcome verifier's P(yes) on each candidate's final picture; None where unscored."""
    score, identity = verifier_score(run, named(verifier))
    return _scored(run, pools, verifier, score, identity)


def known_verifiers() -> tuple[str, ...]:
    """The verifiers of Tables 2 and 3 that exist here: those that choose from a pool."""
    return tuple(name for name in ("orm-zero-shot", "orm", "parm") if name in VERIFIERS)


def scores_of(run: Run, pools: Pools, verifier: str) -> list[dict[str, list]]:
    """Per pool and prompt id, one score a candidate, whose order over any subset is the verifier's choice of it.

    Raises ValueError for a verifier that searches step by step, and so chooses from no pool.
    """
    if verifier in PARM_SEARCHES:
        return [
            {id: scores(record) for id, record in records.items()} for records in parm_records(run, pools, verifier)
        ]
    if named(verifier).every_step:
        raise ValueError(f"{verifier} chooses at every step and not from a pool; use stages.climb")
    return outcome_scores(run, pools, verifier)


PARM_SEARCHES = ("parm", "parm-released", "parm-keep")


def parm_options(run: Run, verifier: str, n_candidates: int) -> ParmOptions:
    """How PARM searches among so many candidates: "parm" as in the paper, "parm-released" as in its code, "parm-keep"
    with a rank instead of a limit: after half of the steps the most promising quarter goes on, three paths at least.

    Raises ValueError for another verifier.
    """
    if verifier not in PARM_SEARCHES:
        raise ValueError(f"{verifier!r} is no way to use PARM; {suggest(verifier, PARM_SEARCHES)}")
    if verifier == "parm-keep":
        return ParmOptions(keep=max(3, n_candidates // 4), keep_after=max(0, run.params["steps"] // 2 - 1))
    return RELEASED if verifier == "parm-released" else ParmOptions()


def parm_records(run: Run, pools: Pools, verifier: str = "parm", **changes: Any) -> list[dict[str, dict]]:
    """Per pool and prompt id, what PARM does with the candidates and what that costs (see `parm.search`).

    `changes` to the options, such as promising=0.3, are another search. Raises ValueError for another verifier.
    """
    options = replace(parm_options(run, verifier, pools[0].n_candidates), **changes)
    answers, identity = parm_scores(run)
    paint = load_tokenizer(run.scale).decode
    name = verifier if not changes else f"{verifier}-{store.digest(changes)[:8]}"
    return [
        replay(
            pool,
            paint,
            answers,
            options,
            run.ledger(f"{pools.generator}-{i}-{name}", image=i, **pools.identity, **identity, parm=asdict(options)),
            run.seed,
            image=i,
        )
        for i, pool in enumerate(pools)
    ]


def _scored(run: Run, pools: Pools, what: str, score: Score, identity: Mapping[str, str]) -> list[dict]:
    paint = load_tokenizer(run.scale).decode
    return [
        score_pool(
            pool.prompts,
            pool.codes,
            paint,
            score,
            run.ledger(f"{pools.generator}-{image}-{what}", image=image, **pools.identity, **identity),
            what,
        )
        for image, pool in enumerate(pools)
    ]


def process_scores(run: Run, pools: Pools, verifier: str, n_candidates: int) -> list[dict[str, list]]:
    """A process verifier's P(yes) on the first candidates' pictures after each step: [T] of {prompt id: [K]}."""
    score, identity = verifier_score(run, named(verifier))
    paint, pool = load_tokenizer(run.scale).decode, pools[0]
    return [
        score_pool(
            run.prompts,
            {id: codes[:n_candidates] for id, codes in pool.at(step).items()},
            paint,
            score,
            run.ledger(
                f"{pools.generator}-0-{verifier}-step-{step}", image=0, asked=n_candidates, **pools.identity, **identity
            ),
            verifier,
        )
        for step in range(pool.n_steps)
    ]


@dataclass(frozen=True)
class Climbed:
    """What step-wise best-of-n chose for each prompt, and what it saw on the way (see `search.stepwise`)."""

    codes: Mapping[str, torch.Tensor]  # int64 [L]
    correct: Mapping[str, bool]
    scores: Mapping[str, list]  # [T][n]
    distance: Mapping[str, list[float]]  # [T], grey levels


def climb(run: Run, verifier: str, n: int) -> list[Climbed]:
    """Step-wise best-of-n with a process verifier, for each image of a prompt. Raises ValueError for another one."""
    if not named(verifier).every_step:
        raise ValueError(f"{verifier} looks at finished pictures only; climb with prm-zero-shot or prm")
    score, identity = verifier_score(run, named(verifier))
    made_by = {"n": n, **base(run).made_by, **identity}
    paint, searched = load_tokenizer(run.scale).decode, []
    for image in range(run.params["n_images"]):
        found = stepwise(
            load_generator(run.scale),
            run.prompts,
            n,
            run.seed,
            decode_options(run),
            paint,
            score,
            run.ledger(f"step-{image}-{verifier}-{n}", image=image, **made_by),
            image=image,
        )
        codes = {id: torch.tensor([record["codes"]]) for id, record in found.items()}
        ledger = run.ledger(
            f"step-{image}-{verifier}-{n}-verdicts", image=image, **made_by, **weights_digest(run, "detector")
        )
        judged = score_pool(run.prompts, codes, paint, verdict_score(run), ledger, "verdicts")
        searched.append(
            Climbed(
                {id: rows[0] for id, rows in codes.items()},
                {id: row[0]["correct"] for id, row in judged.items()},
                {id: record["scores"] for id, record in found.items()},
                {id: record["distance"] for id, record in found.items()},
            )
        )
    return searched


def pruned(run: Run, n: int, keep: int) -> list[dict[str, dict]]:
    """Prune and branch with PARM's judge, for each image of a prompt (see `parm.prune_and_branch`).

    By prompt id: correct, token_steps, judge_calls.
    """
    answers, identity = parm_scores(run)
    made_by = {"n": n, "keep": keep, **base(run).made_by, **identity}
    paint, searched = load_tokenizer(run.scale).decode, []
    for image in range(run.params["n_images"]):
        name = f"prune-{image}-{n}-{keep}"
        found = prune_and_branch(
            load_generator(run.scale),
            run.prompts,
            n,
            keep,
            run.seed,
            decode_options(run),
            paint,
            answers,
            run.ledger(name, image=image, **made_by),
            image=image,
        )
        codes = {id: torch.tensor([record["codes"]]) for id, record in found.items()}
        ledger = run.ledger(f"{name}-verdicts", image=image, **made_by, **weights_digest(run, "detector"))
        judged = score_pool(run.prompts, codes, paint, verdict_score(run), ledger, "verdicts")
        kept = ("token_steps", "judge_calls")
        searched.append(
            {id: {"correct": judged[id][0]["correct"], **{k: r[k] for k in kept}} for id, r in found.items()}
        )
    return searched

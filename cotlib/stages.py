"""What several notebooks need of one run: the pools of candidates, what the evaluator and a judge say of them.

Each stage is kept in a ledger under `pools/`, keyed by the weights and options it depends on, one line per prompt; a
notebook that finds it there reads it, one that does not makes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from . import hub, stats, store
from .batches import Batches
from .decode import DecodeOptions, decode, final
from .judge import outcome_question
from .loaders import (
    load_evaluator,
    load_generator,
    load_judge,
    load_tokenizer,
    trusted_evaluator,
    weights_folder,
)
from .prompts import TASKS, Prompt
from .run import Run
from .search import Pool, best_of_n, decode_pool, expected_best_of_n, score_pool
from .seeds import sample_seed
from .stats import Estimate

ALSO_READ = {"generator": ("text-tokenizer",), "detector": ("clip",)}  # where weights do not ship with the package


def weights_digest(run: Run, *parts: str) -> dict[str, str | None]:
    """The first 12 hex digits of each part's weights."""
    if not run.scale.offline:
        return hub.digests(run.scale, [read for part in parts for read in (part, *ALSO_READ.get(part, ()))])
    files = {part: sorted(weights_folder(run.scale, part).glob("*.safetensors")) for part in parts}
    return {part: store.digest([store.sha256(file) for file in found])[:12] for part, found in files.items()}


def decode_options(run: Run) -> DecodeOptions:
    return DecodeOptions(
        steps=run.params["steps"], guidance=run.params["guidance"], temperature=run.params["temperature"]
    )


def _pool_identity(run: Run, image: int) -> dict:
    made_by = {**asdict(decode_options(run)), **weights_digest(run, "generator")}
    return {"n_candidates": run.params["n_candidates"], "image": image, **made_by}


def base_pools(run: Run) -> list[Pool]:
    """One pool of candidates per image of a prompt, by the base generator."""
    generator = load_generator(run.scale, "base")
    return [
        decode_pool(
            generator,
            run.prompts,
            run.params["n_candidates"],
            run.seed,
            decode_options(run),
            run.ledger(f"base-{image}", **_pool_identity(run, image)),
            image=image,
            batch_size=run.params["batch_size"],
        )
        for image in range(run.params["n_images"])
    ]


def verdicts(run: Run, pools: Sequence[Pool]) -> list[dict[str, list[dict]]]:
    """Per pool and prompt id, the evaluator's verdict on each candidate: {"correct": bool, "reasons": [text, ...]}.

    Raises DetectorError where the evaluator fails its canary.
    """
    evaluator = trusted_evaluator(run.scale)

    def score(images: np.ndarray, prompts: list[Prompt]) -> list[dict]:
        return [asdict(verdict) for verdict in evaluator.evaluate(images, prompts)]

    return _scored(run, pools, "verdicts", ("tokenizer", "detector"), score)


def outcome_scores(run: Run, pools: Sequence[Pool], judge: str = "zero-shot") -> list[dict[str, list[float]]]:
    """Per pool and prompt id, the judge's P(yes) to the outcome question on each candidate's final picture."""
    judge_model = load_judge(run.scale, judge)

    def score(images: np.ndarray, prompts: list[Prompt]) -> list[float]:
        return judge_model.p_yes(images, [outcome_question(p.text) for p in prompts]).tolist()

    return _scored(run, pools, f"orm-{judge}", ("tokenizer", "judge"), score)


def _scored(run: Run, pools: Sequence[Pool], what: str, parts: tuple[str, ...], score: Callable) -> list[dict]:
    paint = load_tokenizer(run.scale).decode
    return [
        score_pool(
            pool,
            paint,
            score,
            run.ledger(f"base-{image}-{what}", **_pool_identity(run, image), **weights_digest(run, *parts)),
            what,
        )
        for image, pool in enumerate(pools)
    ]


def measure_speed(run: Run) -> dict[str, tuple[float, int]]:
    """Pictures a second on this machine, {name: (rate, pictures)}: one batch of candidates as the pools have it.

    The judge of photographs is no part of it: notebooks that judge nothing do not read its weights.
    """
    tokenizer, per_prompt, n = load_tokenizer(run.scale), run.params["n_candidates"], run.params["batch_size"]
    prompts = [run.prompts[k // per_prompt % len(run.prompts)] for k in range(n)]
    generator, evaluator = load_generator(run.scale), load_evaluator(run.scale)
    seeds = [sample_seed(run.seed, p.id, k, "speed") for k, p in enumerate(prompts)]
    texts, in_batches = [p.text for p in prompts], Batches(n, "decoding")

    def finish(requests: Sequence[tuple[str, int]]) -> list[torch.Tensor]:
        return list(final(decode(generator, *map(list, zip(*requests, strict=True)), decode_options(run))).codes)

    codes, decoding = _timed(lambda: in_batches(finish, list(zip(texts, seeds, strict=True))))
    images = tokenizer.decode(torch.stack(codes))
    _, evaluating = _timed(lambda: evaluator.evaluate(images, prompts))
    seconds = {"speed/decode": decoding, "speed/evaluate": evaluating}
    if run.scale.offline:
        judge, questions = load_judge(run.scale), [outcome_question(text) for text in texts]
        _, seconds["speed/judge"] = _timed(lambda: judge.p_yes(images, questions))
    return {name: (n / spent, n) for name, spent in seconds.items()}


def _timed(job: Callable[[], Any]) -> tuple[Any, float]:
    """Result and median wall time, s, of three calls after a first that fills caches."""
    result, seconds = job(), []
    for _ in range(3):
        start = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - start)
    return result, float(np.median(seconds))


# --- From verdicts to estimates ---------------------------------------------------------------------------------


def correct_of(judged: Mapping[str, list[dict]]) -> dict[str, list[bool]]:
    return {prompt: [verdict["correct"] for verdict in row] for prompt, row in judged.items()}


def chosen(
    run: Run, correct: Sequence[Mapping[str, list[bool]]], scores: Sequence[Mapping[str, Sequence[float]]], n: int
) -> dict[str, float]:
    """Expected accuracy of best-of-n by prompt, averaged over its images."""
    return {
        p.id: float(np.mean([expected_best_of_n(s[p.id], c[p.id], n) for s, c in zip(scores, correct, strict=True)]))
        for p in run.prompts
    }


def mean_of(run: Run, correct: Sequence[Mapping[str, list[bool]]]) -> dict[str, float]:
    """Accuracy of the generator alone by prompt: the mean over every candidate of every pool."""
    return {p.id: float(np.mean([c[p.id] for c in correct])) for p in run.prompts}


def estimates(run: Run, per_prompt: Mapping[str, float]) -> dict[str, Estimate]:
    """Each task and overall, with intervals by bootstrap over prompts."""
    by_task = {task: stats.task(run.prompts, per_prompt, task, seed=run.seed) for task in TASKS}
    return {**by_task, "overall": stats.overall(run.prompts, per_prompt, seed=run.seed)}


def record_estimates(run: Run, generator: str, verifier: str, by_task: Mapping[str, Estimate]) -> None:
    for task, e in by_task.items():
        run.record(f"geneval/{generator}/{verifier}/{task}", e.value, e.low, e.high, e.n)


@dataclass(frozen=True)
class Choice:
    """A verifier's favourite among the candidates of one prompt."""

    prompt: Prompt
    candidate: int
    p_yes: float
    correct: bool


def disagreements(run: Run, correct: Mapping[str, list[bool]], scores: Mapping[str, Sequence[float]]) -> list[Choice]:
    """The judge's favourite of each prompt, those that it rates most unlike the evaluator first."""
    choices = []
    for p in run.prompts:
        k = best_of_n(scores[p.id], len(scores[p.id]))
        choices.append(Choice(p, k, float(scores[p.id][k]), bool(correct[p.id][k])))
    # Wrong and sure first (-1 .. 0), then right, the sure ones before the unsure (0 .. 1).
    return sorted(choices, key=lambda c: 1 - c.p_yes if c.correct else -c.p_yes)


def answers(
    run: Run, correct: Sequence[Mapping[str, list[bool]]], scores: Sequence[Mapping[str, Sequence[float]]]
) -> pd.DataFrame:
    """One row per candidate: prompt, task, p_yes, correct."""
    rows = [
        {"prompt": p.id, "task": p.task, "p_yes": score, "correct": right}
        for of_pool, judged in zip(scores, correct, strict=True)
        for p in run.prompts
        for score, right in zip(of_pool[p.id], judged[p.id], strict=True)
    ]
    return pd.DataFrame(rows)


def auc_by_task(answered: pd.DataFrame, seed: int) -> dict[str, Estimate]:
    """AUC of P(yes) within each task and overall, intervals over prompts; a task of one kind only is left out."""
    parts = {"overall": answered, **{task: answered[answered.task == task] for task in TASKS}}
    return {
        name: stats.auc_interval(part.p_yes, part.correct, part.prompt, seed=seed)
        for name, part in parts.items()
        if part.correct.nunique() == 2
    }

"""From verdicts to numbers: accuracies with their intervals, disagreements, diversity, speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from .. import stats
from ..batches import Batches
from ..decode import decode, final
from ..geneval import THRESHOLD
from ..judge import outcome_question
from ..loaders import load_evaluator, load_generator, load_judge, load_tokenizer, trusted_evaluator
from ..prompts import TASKS, Prompt
from ..run import Run
from ..search import Pool, best_of_n, decode_pool, expected_best_of_n, picture_distance
from ..seeds import sample_seed
from ..stats import Estimate
from .generators import aligned
from .pools import Climbed, Pools, verdicts
from .sources import decode_options, decoded_by

PAPER_N = 20  # candidates of every search in the paper


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


def climbed_accuracy(run: Run, searched: Sequence[Climbed]) -> dict[str, float]:
    """Accuracy by prompt, averaged over its images."""
    return {p.id: float(np.mean([found.correct[p.id] for found in searched])) for p in run.prompts}


def accuracy_of_seed(run: Run, name: str, seed: int, n_candidates: int) -> dict[str, float]:
    """Accuracy by prompt of the same alignment with another training seed; every candidate of one pool counts."""
    model = aligned(run, name, seed=seed)
    made_by = {"n_candidates": n_candidates, **decoded_by(run), "generator": model.key}
    pool = decode_pool(
        load_generator(run.scale, model.folder),
        run.prompts,
        n_candidates,
        run.seed,
        decode_options(run),
        run.ledger(f"{name}-seed-{seed}-0", image=0, **made_by),
        batch_size=run.params["batch_size"],
    )
    return mean_of(run, [correct_of(row) for row in verdicts(run, Pools(f"{name}-seed-{seed}", [pool], made_by))])


def estimates(run: Run, per_prompt: Mapping[str, float]) -> dict[str, Estimate]:
    """Each task and overall, with intervals by bootstrap over prompts."""
    by_task = {task: stats.task(run.prompts, per_prompt, task, seed=run.seed) for task in TASKS}
    return {**by_task, "overall": stats.overall(run.prompts, per_prompt, seed=run.seed)}


def record_estimates(
    run: Run, generator: str, verifier: str, by_task: Mapping[str, Estimate], n_candidates: int = PAPER_N
) -> None:
    """Under `geneval/<generator>/<verifier>/<task>`, with @N where fewer or more than 20 candidates were searched."""
    for task, e in by_task.items():
        run.record(f"geneval/{generator}/{verifier}/{task}{_at(n_candidates)}", e.value, e.low, e.high, e.n)


def _at(n_candidates: int) -> str:
    return "" if n_candidates == PAPER_N else f"@{n_candidates}"


def recorded(
    metrics: Mapping[str, Mapping[str, Any]], generator: str, verifier: str
) -> tuple[dict[str, Estimate], int | None]:
    """What `record_estimates` left among metrics by name, at the largest N there is, and that N; ({}, None) for none.

    A generator without a verifier has no N.
    """
    found: dict[int, dict[str, Estimate]] = {}
    for name, m in metrics.items():
        kind, _, task = name.rpartition("/")
        if kind == f"geneval/{generator}/{verifier}":
            task, _, n = task.partition("@")
            found.setdefault(int(n or PAPER_N), {})[task] = Estimate(m["value"], m["low"], m["high"], m["n"])
    if not found:
        return {}, None
    return found[max(found)], None if verifier == "none" else max(found)


def record_ordering(
    run: Run,
    better: tuple[str, str],
    worse: tuple[str, str],
    accuracy: Mapping[tuple[str, str], Mapping[str, float]],
    n_candidates: int,
) -> Estimate:
    """The paired difference of two (generator, verifier) pairs that search as many candidates each, recorded.

    accuracy: by prompt, of each pair. Two generators without a verifier go by their own names.
    """
    alone = better[1] == worse[1] == "none"
    names = [
        generator if alone else f"{generator}/{verifier}" + ("" if verifier == "none" else _at(n_candidates))
        for generator, verifier in (better, worse)
    ]
    gain = stats.paired(run.prompts, accuracy[better], accuracy[worse], seed=run.seed)
    run.record(f"ordering/{names[0]} > {names[1]}", gain.value, gain.low, gain.high, gain.n)
    return gain


@dataclass(frozen=True)
class Choice:
    """A verifier's favourite among the candidates of one prompt."""

    prompt: Prompt
    candidate: int
    p_yes: float
    correct: bool


def disagreements(run: Run, correct: Mapping[str, list[bool]], scores: Mapping[str, Sequence[float]]) -> list[Choice]:
    """The judge's favourite of each prompt, those that it rates most unlike the evaluator first.

    A prompt without a scored candidate has no favourite and is left out.
    """
    choices = []
    for p in run.prompts:
        k = best_of_n(scores[p.id], len(scores[p.id]))
        if scores[p.id][k] is None:
            continue
        choices.append(Choice(p, k, float(scores[p.id][k]), bool(correct[p.id][k])))
    # Wrong and sure first (-1 .. 0), then right, the sure ones before the unsure (0 .. 1).
    return sorted(choices, key=lambda c: 1 - c.p_yes if c.correct else -c.p_yes)


def answers(
    run: Run, correct: Sequence[Mapping[str, list[bool]]], scores: Sequence[Mapping[str, Sequence[float | None]]]
) -> pd.DataFrame:
    """One row per scored candidate: prompt, task, p_yes, correct. Unscored ones are left out; `verifiers.unscored`
    counts them."""
    rows = [
        {"prompt": p.id, "task": p.task, "p_yes": score, "correct": right}
        for of_pool, judged in zip(scores, correct, strict=True)
        for p in run.prompts
        for score, right in zip(of_pool[p.id], judged[p.id], strict=False)  # fewer scores: the first candidates'
        if score is not None
    ]
    return pd.DataFrame(rows, columns=["prompt", "task", "p_yes", "correct"])


def auc_by_task(answered: pd.DataFrame, seed: int) -> dict[str, Estimate]:
    """AUC of P(yes) within each task and overall, intervals over prompts; a task of one kind or one prompt only is left
    out."""
    parts = {"overall": answered, **{task: answered[answered.task == task] for task in TASKS}}
    return {
        name: stats.auc_interval(part.p_yes, part.correct, part.prompt, seed=seed)
        for name, part in parts.items()
        if part.correct.nunique() == 2 and part.prompt.nunique() > 1
    }


def diversity(run: Run, pool: Pool, n_candidates: int, places: int = 3) -> pd.DataFrame:
    """How unlike the first candidates of each prompt are: columns prompt, distance (grey levels), distinct (scenes).

    Two scenes are the same if the detector sees the same classes in the same of `places` x `places` parts.
    """
    paint, evaluator = load_tokenizer(run.scale).decode, trusted_evaluator(run.scale)
    rows = []
    for prompt in run.prompts:
        images = paint(pool.codes[prompt.id][:n_candidates])
        side = images.shape[1] / places
        scenes = {
            tuple(sorted((d.cls, *(int((a + b) / 2 // side) for a, b in (d.box[::2], d.box[1::2]))) for d in found))
            for found in ([d for d in one if d.score > THRESHOLD] for one in evaluator.detect(images))
        }
        rows.append({"prompt": prompt.id, "distance": picture_distance(images), "distinct": len(scenes)})
    return pd.DataFrame(rows)


def measure_speed(run: Run) -> dict[str, tuple[float, int]]:
    """Pictures a second on this machine, {name: (rate, pictures)}: one batch of at most four prompts, at smoke of one.

    The judge of photographs is no part of it: notebooks that judge nothing do not read its weights.
    """
    tokenizer, per_prompt = load_tokenizer(run.scale), run.params["n_candidates"]
    n_prompts, rounds = (1, 1) if run.effort.watermark else (4, 3)
    n = min(run.params["batch_size"], n_prompts * per_prompt)
    prompts = [run.prompts[k // per_prompt % len(run.prompts)] for k in range(n)]
    generator, evaluator = load_generator(run.scale), load_evaluator(run.scale)
    seeds = [sample_seed(run.seed, p.id, k, "speed") for k, p in enumerate(prompts)]
    texts, in_batches = [p.text for p in prompts], Batches(n, "decoding")

    def finish(requests: Sequence[tuple[str, int]]) -> list[torch.Tensor]:
        return list(final(decode(generator, *map(list, zip(*requests, strict=True)), decode_options(run))).codes)

    codes, decoding = _timed(lambda: in_batches(finish, list(zip(texts, seeds, strict=True))), rounds)
    images = tokenizer.decode(torch.stack(codes))
    _, evaluating = _timed(lambda: evaluator.evaluate(images, prompts), rounds)
    seconds = {"speed/decode": decoding, "speed/evaluate": evaluating}
    if run.scale.offline:
        judge, questions = load_judge(run.scale), [outcome_question(text) for text in texts]
        _, seconds["speed/judge"] = _timed(lambda: judge.p_yes(images, questions), rounds)
    return {name: (n / spent, n) for name, spent in seconds.items()}


def _timed(job: Callable[[], Any], rounds: int) -> tuple[Any, float]:
    """Result and median wall time, s, of some calls after a first that fills caches."""
    result, seconds = job(), []
    for _ in range(rounds):
        start = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - start)
    return result, float(np.median(seconds))

"""Intervals for GenEval scores: percentile bootstrap over prompts within each task, on `scipy.stats.bootstrap`.

Prompts are what is resampled, never images: the images of one prompt succeed or fail together. Each task keeps its own
number of prompts in every resample, as the six-task mean weighs tasks and not prompts. Where nothing varies within any
task the interval has zero width; that says that the sample shows no variation, not that there is none.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import DegenerateDataWarning, binomtest, bootstrap, rankdata

from .prompts import TASKS, Prompt, check_known

N_RESAMPLES = 2000
Statistic = Callable[..., np.ndarray]  # (groups [..., G], axis) -> [...]


@dataclass(frozen=True)
class Estimate:
    value: float
    low: float
    high: float
    n: int  # of prompts, or of what else was counted

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {(self.high - self.low) / 2:.2f} (n={self.n})"


def overall(
    prompts: Sequence[Prompt], per_prompt: Mapping[str, float], confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Mean of the six task means of a per-prompt score; only prompts in `per_prompt` count.

    Raises ValueError if a task has none, for an id that is not among the prompts and for a value that is no number.
    """
    return _estimate(_by_task(prompts, per_prompt), TASKS, confidence, seed)


def task(
    prompts: Sequence[Prompt], per_prompt: Mapping[str, float], name: str, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Mean of one task; raises as `overall` does."""
    check_known(name, TASKS, "task")
    return _estimate(_by_task(prompts, per_prompt), (name,), confidence, seed)


def mean(
    prompts: Sequence[Prompt], per_prompt: Mapping[str, float], confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Mean over all prompts alike, whatever their task; raises as `overall` does, but for tasks without any."""
    by_task = {name: scores for name, scores in _by_task(prompts, per_prompt).items() if len(scores)}
    return _estimate(by_task, tuple(by_task), confidence, seed, weights=[len(scores) for scores in by_task.values()])


def paired(
    prompts: Sequence[Prompt],
    a: Mapping[str, float],
    b: Mapping[str, float],
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Overall of a minus overall of b, paired by prompt. Raises ValueError unless both hold the same prompts."""
    if odd := sorted(a.keys() ^ b.keys()):
        raise ValueError(
            f"a paired comparison needs the same prompts on both sides; {len(odd)} are on one only, "
            f"the first {odd[0]!r}; drop them from it or score them on the other"
        )
    by_task_a, by_task_b = _by_task(prompts, a), _by_task(prompts, b)
    return _estimate({name: by_task_a[name] - by_task_b[name] for name in TASKS}, TASKS, confidence, seed)


def _by_task(prompts: Sequence[Prompt], per_prompt: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Each task's scores, in the order of `prompts`, so that the interval does not depend on that of the mapping."""
    if strangers := per_prompt.keys() - {prompt.id for prompt in prompts}:
        raise ValueError(
            f"scores of {len(strangers)} unknown prompts, the first {min(strangers)!r}; pass their prompts"
        )
    groups: dict[str, list[float]] = {name: [] for name in TASKS}
    for prompt in prompts:
        if prompt.id not in per_prompt:
            continue
        score = per_prompt[prompt.id]
        if score is None or not math.isfinite(score):
            raise ValueError(f"the score of prompt {prompt.id!r} is {score}; leave unscored prompts out and count them")
        groups[prompt.task].append(score)
    return {name: np.array(scores, float) for name, scores in groups.items()}


def _estimate(
    by_task: Mapping[str, np.ndarray],
    names: Sequence[str],
    confidence: float,
    seed: int,
    weights: Sequence[float] | None = None,
) -> Estimate:
    """Mean of the named tasks' means, by `weights` if any."""
    if empty := [name for name in names if not len(by_task[name])]:
        raise ValueError(f"no scored prompt of task {', '.join(empty)}; the mean is over {', '.join(names)}")
    groups = [by_task[name] for name in names]

    def statistic(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.average([sample.mean(axis=axis) for sample in samples], axis=0, weights=weights)

    value, n = float(statistic(*groups)), sum(map(len, groups))
    # scipy wants two observations; a lone prompt, twice itself, resamples to itself and adds no width
    padded = [group if len(group) > 1 else np.repeat(group, 2) for group in groups]
    interval = bootstrap(
        padded,
        statistic,
        vectorized=True,
        n_resamples=N_RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high), n)


def ratio(
    parts: Sequence[float],
    wholes: Sequence[float],
    groups: Sequence[Hashable],
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Sum of parts over sum of wholes, its interval by resampling groups (prompt ids) whole; n is the number of groups.

    Raises ValueError for fewer than two groups, for wholes that sum to nothing and where the three differ in length.
    """
    if not len(parts) == len(wholes) == len(groups):
        raise ValueError(f"expected as many parts as wholes and groups, got {len(parts)}, {len(wholes)}, {len(groups)}")
    names, group = np.unique(list(groups), return_inverse=True)
    if len(names) < 2 or not sum(wholes):
        raise ValueError(f"a ratio needs two groups and something to divide by, got {len(names)} and {sum(wholes)}")
    sums = np.zeros((2, len(names)))
    np.add.at(sums, (slice(None), group), [parts, wholes])

    def statistic(chosen: np.ndarray, axis: int = -1) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.divide(*sums[:, chosen].sum(axis))

    value = sums[0].sum() / sums[1].sum()
    return Estimate(float(value), *_over_groups(statistic, len(names), confidence, seed), len(names))


def _over_groups(statistic: Statistic, n_groups: int, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile interval of a statistic of chosen groups [..., n_groups]; resamples where it is NaN are left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        resampled = bootstrap(
            (np.arange(n_groups),),
            statistic,
            vectorized=True,
            n_resamples=N_RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


def proportion(hits: Sequence[bool], confidence: float = 0.95) -> Estimate:
    """Fraction of independent trials that hit, with Wilson's interval; n is the number of trials.

    Raises ValueError if there are none.
    """
    if not len(hits):
        raise ValueError("a proportion needs at least one trial, got none")
    test = binomtest(int(np.sum(hits)), len(hits))
    low, high = test.proportion_ci(confidence, method="wilson")
    return Estimate(float(test.statistic), float(low), float(high), len(hits))


# --- Ranking ----------------------------------------------------------------------------------------------------


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Area under the ROC curve: how often a positive outscores a negative, ties half.

    Raises ValueError where all labels are alike, as it is then undefined.
    """
    scores, labels = _checked(scores, labels)
    n_positive, n_negative = int(labels.sum()), int((~labels).sum())
    u = rankdata(scores)[labels].sum() - n_positive * (n_positive + 1) / 2  # Mann and Whitney's
    return float(u / (n_positive * n_negative))


def auc_interval(
    scores: Sequence[float],
    labels: Sequence[bool],
    groups: Sequence[Hashable],
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """AUC over all candidates, its interval by resampling groups (prompt ids) whole; n is the number of groups.

    Resamples in which all labels are alike have no AUC and are left out. Raises as `auc` does.
    """
    scores, labels = _checked(scores, labels)
    if len(groups) != len(scores):
        raise ValueError(f"expected a group for each of {len(scores)} scores, got {len(groups)}")
    members: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    if len(members) < 2:
        raise ValueError(f"an interval over groups needs at least two of them, got {len(members)}; use auc")
    wins, n_positive, n_negative = _wins(scores, labels, list(members.values()))

    def statistic(chosen: np.ndarray, axis: int = -1) -> np.ndarray:
        times = np.apply_along_axis(np.bincount, axis, chosen, minlength=len(members))  # how often each group is in
        pairs = (times @ n_positive) * (times @ n_negative)
        with np.errstate(invalid="ignore"):
            return ((times @ wins) * times).sum(-1) / pairs

    return Estimate(auc(scores, labels), *_over_groups(statistic, len(members), confidence, seed), len(members))


def _checked(scores: Sequence[float], labels: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, float), np.asarray(labels, bool)
    if scores.shape != labels.shape or scores.ndim != 1:
        raise ValueError(f"expected one label per score, got shapes {scores.shape} and {labels.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {len(scores)} scores are no numbers; leave them out first")
    if labels.all() or not labels.any():
        raise ValueError(f"AUC needs positives and negatives; got {labels.sum()} positives among {len(labels)} labels")
    return scores, labels


def _wins(
    scores: np.ndarray, labels: np.ndarray, groups: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often positives of one group outscore negatives of another, ties half [G, G]; positives, negatives [G].

    A resample of whole groups is a number of times for each group, so its AUC is a quadratic form in those numbers.
    """
    positives = [scores[of_group][labels[of_group]] for of_group in groups]
    negatives = [np.sort(scores[of_group][~labels[of_group]]) for of_group in groups]
    n_positive, n_negative = np.array([*map(len, positives)]), np.array([*map(len, negatives)])
    one_by_one, group = np.concatenate(positives), np.repeat(np.arange(len(groups)), n_positive)
    wins = np.empty((len(groups), len(groups)))
    for i, of_group in enumerate(negatives):
        below = (of_group.searchsorted(one_by_one) + of_group.searchsorted(one_by_one, "right")) / 2
        wins[:, i] = np.bincount(group, below, minlength=len(groups))
    return wins, n_positive, n_negative

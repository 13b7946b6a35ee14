"""Intervals: their width, their strata, their pairs, and the samples that have none."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from cotlib.prompts import TASKS, geneval_prompts, take
from cotlib.stats import Estimate, auc, auc_interval, overall, paired, proportion, ratio, task

PROMPTS = geneval_prompts()


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def coin(p: float, seed: int = 0, prompts=PROMPTS) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    return {prompt.id: float(rng.random() < p) for prompt in prompts}


def by_task(**values: float) -> dict[str, float]:
    return {p.id: values.get(p.task, 0.0) for p in PROMPTS}


def test_an_estimate_prints_as_a_table_cell():
    assert str(Estimate(0.527, 0.51, 0.55, 553)) == "0.53 ± 0.02 (n=553)"


def test_overall_weighs_tasks_and_not_prompts():
    assert overall(PROMPTS, by_task(single_object=1.0, position=1.0)).value == pytest.approx(2 / 6)


def test_the_interval_is_as_wide_as_theory_says():
    estimate = overall(PROMPTS, coin(0.5))
    sizes = [sum(p.task == name for p in PROMPTS) for name in TASKS]
    expected = 1.96 * math.sqrt(sum(0.25 / n for n in sizes)) / 6
    assert (estimate.high - estimate.low) / 2 == pytest.approx(expected, rel=0.1)
    assert estimate.low < estimate.value < estimate.high and estimate.n == 553


def test_prompts_are_resampled_within_their_task_only():
    estimate = overall(PROMPTS, by_task(single_object=1.0, two_object=1.0, counting=1.0))
    assert (estimate.low, estimate.value, estimate.high) == (0.5, 0.5, 0.5)  # unstratified it would be wide


def test_a_higher_confidence_is_wider():
    narrow, wide = (overall(PROMPTS, coin(0.5), confidence=c) for c in (0.8, 0.99))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_the_interval_depends_on_the_seed_and_not_on_the_order_of_the_scores():
    scores = coin(0.5)
    shuffled = dict(reversed(scores.items()))
    assert overall(PROMPTS, scores) == overall(PROMPTS, shuffled)
    assert overall(PROMPTS, scores, seed=1) != overall(PROMPTS, scores, seed=2)


def test_a_task_is_estimated_from_its_own_prompts():
    scores = by_task(position=0.25) | {p.id: float(i % 2) for i, p in enumerate(PROMPTS) if p.task == "counting"}
    assert task(PROMPTS, scores, "position") == Estimate(0.25, 0.25, 0.25, 100)
    counting = task(PROMPTS, scores, "counting")
    assert (counting.value, counting.n) == (0.5, 80) and 0.3 < counting.low < 0.45 < 0.55 < counting.high < 0.7


def test_only_scored_prompts_count():
    scores = coin(0.5, prompts=take(PROMPTS, 10))
    assert overall(PROMPTS, scores).n == 60
    assert task(PROMPTS, scores, "colors").n == 10


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1.0])
@pytest.mark.parametrize("n", [1, 3, 80])
def test_a_sample_without_variation_has_no_width_and_no_nan(value, n):
    prompts = take(PROMPTS, n)
    estimate = overall(prompts, dict.fromkeys((p.id for p in prompts), value))
    assert estimate.low == estimate.value == estimate.high == pytest.approx(value)


def test_a_lone_prompt_in_one_task_leaves_the_others_their_width():
    prompts = take(PROMPTS, 20)
    others = [p for p in prompts if p.task != "colors"]
    lone = next(p.id for p in prompts if p.task == "colors")
    scores = {p.id: float(i % 2) for i, p in enumerate(others)} | {lone: 1.0}
    estimate = overall(prompts, scores)
    assert estimate.n == 101 and estimate.low < estimate.value < estimate.high


def test_pairing_removes_what_both_share():
    a = coin(0.5)
    improved = {id: max(v, float(i % 10 == 0)) for i, (id, v) in enumerate(a.items())}
    difference = paired(PROMPTS, improved, a)
    assert difference.value == pytest.approx(overall(PROMPTS, improved).value - overall(PROMPTS, a).value)
    assert 0 < difference.low < difference.high
    unpaired = overall(PROMPTS, a)
    assert difference.high - difference.low < 0.5 * (unpaired.high - unpaired.low)


def test_a_comparison_turns_its_sign_with_its_sides():
    a, b = coin(0.6, 1), coin(0.5, 2)
    assert paired(PROMPTS, a, b).value == pytest.approx(-paired(PROMPTS, b, a).value)
    assert paired(PROMPTS, a, a) == Estimate(0.0, 0.0, 0.0, 553)


def test_missing_tasks_are_named():
    scores = {p.id: 1.0 for p in PROMPTS if p.task not in ("counting", "position")}
    with pytest.raises(ValueError, match="no scored prompt of task counting, position"):
        overall(PROMPTS, scores)
    with pytest.raises(ValueError, match="no scored prompt of task position"):
        task(PROMPTS, scores, "position")


def test_bad_requests_are_refused():
    scores = coin(0.5)
    with pytest.raises(ValueError, match="nearest known: 'counting'"):
        task(PROMPTS, scores, "count")
    with pytest.raises(ValueError, match="1 unknown prompts, the first 'elsewhere'"):
        overall(PROMPTS, scores | {"elsewhere": 1.0})
    for value in (None, math.nan):
        with pytest.raises(ValueError, match="'00007' is .*leave unscored prompts out"):
            overall(PROMPTS, scores | {"00007": value})
    with pytest.raises(ValueError, match="1 are on one only, the first '00552'"):
        paired(PROMPTS, scores, {id: v for id, v in scores.items() if id != "00552"})


# --- AUC ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "labels", "value"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 1.0),
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], 0.0),
        ([0.5, 0.5, 0.5], [0, 1, 1], 0.5),
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),
        ([0.3, 0.3, 0.7], [0, 1, 1], 0.75),
    ],
)
def test_auc_is_how_often_a_positive_outscores_a_negative(scores, labels, value):
    assert auc(scores, labels) == pytest.approx(value)


def test_auc_equals_a_count_over_all_pairs():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 10, 200), rng.random(200) < 0.3
    gap = scores[labels][:, None] - scores[~labels][None]
    assert auc(scores, labels) == pytest.approx(((gap > 0) + 0.5 * (gap == 0)).mean())


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [1, 1], "got 2 positives among 2"),
        ([0.1, 0.2], [0, 0], "got 0 positives among 2"),
        ([], [], "got 0 positives among 0"),
        ([0.1, math.nan], [0, 1], "1 of 2 scores are no numbers"),
        ([0.1], [0, 1], "one label per score"),
    ],
)
def test_an_undefined_auc_is_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        auc(scores, labels)


def test_candidates_of_one_prompt_stand_or_fall_together():
    rng = np.random.default_rng(3)
    labels = np.repeat(rng.random(60) < 0.5, 10)
    scores = labels + np.repeat(rng.normal(0, 1.5, 60), 10)
    grouped = auc_interval(scores, labels, np.repeat(np.arange(60), 10))
    alone = auc_interval(scores, labels, range(600))
    assert grouped.value == alone.value == pytest.approx(auc(scores, labels))
    assert (grouped.n, alone.n) == (60, 600)
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)
    assert grouped.low < grouped.value < grouped.high
    surer = auc_interval(scores, labels, np.repeat(np.arange(60), 10), confidence=0.999)
    assert surer.high - surer.low > 1.3 * (grouped.high - grouped.low)


def test_the_interval_of_an_auc_is_that_of_resampled_groups_counted_pair_by_pair():
    rng = np.random.default_rng(5)
    scores, labels, groups = rng.integers(0, 9, 40), rng.random(40) < 0.4, rng.permutation(np.repeat(np.arange(8), 5))
    aucs = []
    for chosen in rng.integers(0, 8, (4000, 8)):
        picked = np.concatenate([np.flatnonzero(groups == group) for group in chosen])
        aucs.append(auc(scores[picked], labels[picked]))
    found = auc_interval(scores, labels, list(groups))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(aucs, [0.025, 0.975])), abs=0.03)


def test_the_ratio_of_two_counts_has_the_interval_of_resampled_groups():
    rng = np.random.default_rng(6)
    wholes, groups = rng.integers(0, 4, 60), np.repeat(np.arange(20), 3)
    parts = wholes * rng.integers(0, 2, 20)[groups]  # all or nothing of a group
    found, alone = ratio(parts, wholes, list(groups)), ratio(parts, wholes, range(60))
    assert found.value == alone.value == pytest.approx(parts.sum() / wholes.sum()) and found.n == 20
    assert found.low < found.value < found.high and found.high - found.low > 1.3 * (alone.high - alone.low)
    for bad in (([1], [2], ["a"]), ([0, 0], [0, 0], "ab"), ([1], [2, 3], "ab")):
        with pytest.raises(ValueError, match="a ratio needs two groups|expected as many parts"):
            ratio(*bad)


def test_resamples_of_one_kind_only_do_not_spoil_the_interval():
    estimate = auc_interval([0.1, 0.9, 0.5], [0, 1, 0], ["a", "b", "c"])
    assert (estimate.low, estimate.value, estimate.high) == (1.0, 1.0, 1.0)


def test_groups_must_fit_the_scores():
    with pytest.raises(ValueError, match="a group for each of 2 scores, got 1"):
        auc_interval([0.1, 0.9], [0, 1], ["a"])
    with pytest.raises(ValueError, match="at least two"):
        auc_interval([0.1, 0.9], [0, 1], ["a", "a"])


def test_a_proportion_has_wilsons_interval():
    e = proportion([True] * 98 + [False] * 2)
    assert (e.value, e.n) == (0.98, 100)
    assert (e.low, e.high) == (pytest.approx(0.930, abs=1e-3), pytest.approx(0.9945, abs=1e-3))
    assert proportion([True] * 50).low < 1
    with pytest.raises(ValueError, match="at least one trial"):
        proportion([])

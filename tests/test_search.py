"""Best-of-N from one pool."""

from itertools import combinations

import numpy as np
import pytest
import torch
from test_decode import ToyGenerator

from cotlib.decode import DecodeOptions
from cotlib.prompts import geneval_prompts, take
from cotlib.search import best_of_n, decode_pool, expected_best_of_n, oracle_best_of_n, random_best_of_n, score_pool
from cotlib.store import Ledger

SCORES = [0.2, 0.9, 0.9, 0.1, 0.5]
CORRECT = [True, False, True, False, True]
PROMPTS = take(geneval_prompts(), 1)
OPTIONS = DecodeOptions(steps=3)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_the_expectation_equals_the_mean_over_all_subsets(n):
    subsets = list(combinations(range(5), n))
    chosen = [CORRECT[max(s, key=lambda i: (SCORES[i], -i))] for s in subsets]
    assert expected_best_of_n(SCORES, CORRECT, n) == pytest.approx(np.mean(chosen))
    anyone = [any(CORRECT[i] for i in s) for s in subsets]
    assert oracle_best_of_n(CORRECT, n) == pytest.approx(np.mean(anyone))


def test_at_full_n_it_is_the_best_scored_and_the_earliest_wins_a_tie():
    assert best_of_n(SCORES, 5) == 1
    assert expected_best_of_n(SCORES, CORRECT, 5) == CORRECT[1]


def test_random_choice_does_not_depend_on_n():
    assert random_best_of_n(CORRECT, 1) == random_best_of_n(CORRECT, 5) == 0.6


@pytest.mark.parametrize("n", [0, -1, 6])
def test_n_outside_the_pool_is_refused(n):
    with pytest.raises(ValueError, match=r"1\.\.5"):
        expected_best_of_n(SCORES, CORRECT, n)


def pool_in(path, n_candidates=4, prompts=PROMPTS, generator=None):
    ledger = Ledger(path, "k")
    return decode_pool(generator or ToyGenerator(), prompts, n_candidates, 0, OPTIONS, ledger, batch_size=8)


def test_a_pool_does_not_depend_on_order_or_interruption(tmp_path):
    whole = pool_in(tmp_path / "a.jsonl")
    pool_in(tmp_path / "b.jsonl", prompts=PROMPTS[3:5])  # stopped early, other prompts first
    resumed = pool_in(tmp_path / "b.jsonl")
    assert all(torch.equal(whole.codes[p.id], resumed.codes[p.id]) for p in PROMPTS)


def test_finished_prompts_are_not_decoded_again(tmp_path):
    pool_in(tmp_path / "a.jsonl")

    class Refuses(ToyGenerator):
        def hidden_after(self, *_):
            raise AssertionError("decoded again")

    pool_in(tmp_path / "a.jsonl", generator=Refuses())


def test_no_candidates_are_refused_before_any_compute(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        pool_in(tmp_path / "a.jsonl", n_candidates=0)
    assert not (tmp_path / "a.jsonl").exists()


def test_scores_stand_beside_the_candidate_they_belong_to(tmp_path):
    pool = pool_in(tmp_path / "a.jsonl")

    def score(pictures, prompts):
        return [float(picture.sum()) for picture in pictures]

    scores = score_pool(pool, lambda codes: codes.numpy(), score, Ledger(tmp_path / "s.jsonl", "k"), "sum", group=2)
    assert all(scores[p.id] == pool.codes[p.id].sum(1).tolist() for p in PROMPTS)

"""Best-of-N from one pool."""

from itertools import combinations

import numpy as np
import pytest
import torch
from test_decode import ToyGenerator

from cotlib.decode import DecodeOptions, decode
from cotlib.prompts import geneval_prompts, take
from cotlib.search import (
    best_of_n,
    decode_pool,
    expected_best_of_n,
    oracle_best_of_n,
    picture_distance,
    random_best_of_n,
    score_pool,
    stepwise,
)
from cotlib.seeds import sample_seed
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

    scores = score_pool(
        PROMPTS, pool.codes, lambda codes: codes.numpy(), score, Ledger(tmp_path / "s.jsonl", "k"), "sum", group=2
    )
    assert all(scores[p.id] == pool.codes[p.id].sum(1).tolist() for p in PROMPTS)


def test_a_pool_keeps_the_whole_path_and_decoding_can_go_on_from_any_step(tmp_path):
    pool = pool_in(tmp_path / "a.jsonl", n_candidates=2)
    p = PROMPTS[1]
    seeds = [sample_seed(0, p.id, k, "pool-0") for k in range(2)]
    steps = list(decode(ToyGenerator(), [p.text] * 2, seeds, OPTIONS))
    assert pool.n_steps == 3 and pool.n_candidates == 2
    for step in steps:
        assert torch.equal(pool.at(step.index)[p.id], step.codes)
        state = pool.state(p.id, 1, step.index)
        assert torch.equal(state.masked[0], step.masked[1]) and torch.equal(state.codes[0], step.codes[1])
    again = list(decode(ToyGenerator(), [p.text], seeds[1:], OPTIONS, start=pool.state(p.id, 1, 0)))
    assert torch.equal(again[-1].codes[0], pool.codes[p.id][1])


def test_a_candidate_without_a_score_loses_to_any_with_one():
    assert best_of_n([None, 0.1, float("nan"), 0.0], 4) == 1
    assert best_of_n([None, None], 2) == 0
    assert expected_best_of_n([None, 0.0], [True, False], 2) == 0.0


def test_no_candidates_to_choose_from_are_refused():
    with pytest.raises(ValueError, match="no candidates"):
        best_of_n([], 1)


# --- Step-wise search ---


def climb(path, n=3, score=None, prompts=PROMPTS, **options):
    def likes_large_codes(pictures, prompts):
        return [float(picture.sum()) for picture in pictures]

    ledger = Ledger(path, "k")
    paint = lambda codes: codes.numpy().astype(np.uint8)  # noqa: E731
    return stepwise(
        ToyGenerator(), prompts, n, 0, OPTIONS, paint, score or likes_large_codes, ledger, group=2, **options
    )


def test_at_each_step_the_favourite_is_kept_and_the_next_ones_branch_from_it(tmp_path):
    found = climb(tmp_path / "s.jsonl")
    for p in PROMPTS:
        state = None
        for step in range(3):
            seeds = [sample_seed(0, p.id, k, f"step-0-{step}") for k in range(3)]
            drawn = [next(decode(ToyGenerator(), [p.text], [s], OPTIONS, start=state)) for s in seeds]
            scores = [float(d.codes.sum()) for d in drawn]
            assert found[p.id]["scores"][step] == scores
            state = drawn[int(np.argmax(scores))]
        assert found[p.id]["codes"] == state.codes[0].tolist()


def test_one_branch_is_plain_decoding_and_more_branches_please_the_verifier_more(tmp_path):
    one, many = climb(tmp_path / "a.jsonl", 1), climb(tmp_path / "b.jsonl", 16)
    assert all(len(record["scores"]) == 3 and len(record["scores"][0]) == 1 for record in one.values())
    assert sum(sum(r["codes"]) for r in many.values()) > sum(sum(r["codes"]) for r in one.values())


def test_a_step_wise_search_resumes_and_depends_on_nothing_but_its_prompt(tmp_path):
    whole = climb(tmp_path / "a.jsonl")
    climb(tmp_path / "b.jsonl", prompts=PROMPTS[3:5])

    def refuses(pictures, prompts):
        assert not {p.id for p in prompts} & {p.id for p in PROMPTS[3:5]}
        return [float(picture.sum()) for picture in pictures]

    assert climb(tmp_path / "b.jsonl", score=refuses) == whole


def test_branches_that_are_alike_are_asked_about_once_and_answered_alike(tmp_path):
    asked = []

    def score(pictures, prompts):
        asked.append([(p.id, *picture.tolist()) for p, picture in zip(prompts, pictures, strict=True)])
        return [float(picture.sum()) for picture in pictures]

    found = climb(tmp_path / "a.jsonl", 16, score=score)
    assert all(len(set(pictures)) == len(pictures) for pictures in asked)
    assert sum(map(len, asked)) < sum(len(step) for record in found.values() for step in record["scores"])
    assert found == climb(tmp_path / "b.jsonl", 16)


def test_a_step_without_any_score_goes_on_with_the_first_branch_and_says_so(tmp_path):
    found = climb(tmp_path / "a.jsonl", 2, score=lambda pictures, prompts: [None] * len(pictures))
    assert all(record["scores"] == [[None, None]] * 3 for record in found.values())


def test_no_branches_are_refused_before_any_compute(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        climb(tmp_path / "a.jsonl", 0)
    assert not (tmp_path / "a.jsonl").exists()


def test_picture_distance_is_the_root_mean_square_over_pairs():
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), np.uint8)
    pairs = [((a.astype(float) - b) ** 2).mean() for a, b in combinations(images, 2)]
    assert picture_distance(images) == pytest.approx(np.sqrt(np.mean(pairs)), rel=1e-5)
    assert picture_distance(images[:1]) == 0

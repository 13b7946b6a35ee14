"""PARM: which paths are stopped, what is chosen, what it costs; and what its judge learns from."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_decode import ToyGenerator

from cotlib import parm, parm_data
from cotlib.decode import DecodeOptions
from cotlib.errors import CotlibError
from cotlib.judge import clarity_question, potential_question
from cotlib.parm import Parm, ParmOptions, prune_and_branch, replay, search
from cotlib.prompts import geneval_prompts, take
from cotlib.search import Pool, decode_pool
from cotlib.stages import judges
from cotlib.store import Ledger
from cotlib.verifiers import PARM_TASKS, parm_of, remembered

PROMPTS = take(geneval_prompts(), 1)
OPTIONS, DEFAULT = DecodeOptions(steps=4), ParmOptions()
N = 5


def paint(codes):
    return codes.numpy()


def pseudo(salt):
    """A judge's answers that depend on the picture and the question only."""
    return lambda pictures, prompts: [(int(p.sum()) * 7 + salt * 13) % 101 / 100 for p in pictures]


JUDGE = Parm(pseudo(1), pseudo(2), pseudo(3))


class Counting(ToyGenerator):
    rows = 0

    def hidden_after(self, prefix, codes, masked):
        Counting.rows += len(codes)
        return super().hidden_after(prefix, codes, masked)


def searched(path, prompts=PROMPTS, judge=JUDGE, options=DEFAULT, **others):
    others = {"batch_size": 4, "group": 3, **others}
    return search(Counting(), prompts, N, 0, OPTIONS, paint, judge, options, Ledger(path, "k"), **others)


def the_pool(path):
    return decode_pool(ToyGenerator(), PROMPTS, N, 0, OPTIONS, Ledger(path, "k"))


def timeless(records):
    return {id: {k: v for k, v in record.items() if k != "seconds"} for id, record in records.items()}


@pytest.mark.parametrize(
    "options",
    [
        ParmOptions(),
        ParmOptions(clear=0.8, promising=0.7),
        ParmOptions(promising=1.0),
        ParmOptions(first=2),
        parm.RELEASED,
    ],
    ids=str,
)
def test_a_live_search_and_its_replay_from_the_pool_are_the_same(tmp_path, options):
    live = searched(tmp_path / "a.jsonl", options=options)
    replayed = replay(the_pool(tmp_path / "p.jsonl"), paint, JUDGE, options, Ledger(tmp_path / "b.jsonl", "k"), 0)
    assert timeless(live) == timeless(replayed)


def test_the_chosen_picture_is_that_of_the_pool_and_stopped_paths_are_not_decoded(tmp_path):
    pool = the_pool(tmp_path / "p.jsonl")
    Counting.rows = 0
    records = searched(tmp_path / "a.jsonl")
    for p in PROMPTS:
        r = records[p.id]
        assert r["codes"] == pool.codes[p.id][r["chosen"]].tolist()
        for steps, clear, promising in zip(r["steps"], r["clear"], r["promising"], strict=True):
            assert steps == (4 if promising or clear is None else clear + 1)
    L = len(records[PROMPTS[0].id]["codes"])
    batches = [[p for p in PROMPTS[i : i + 3] for _ in range(N)] for i in range(0, len(PROMPTS), 3)]
    batches = [paths[i : i + 4] for paths in batches for i in range(0, len(paths), 4)]
    shared = sum(len(batch) - len({p.id for p in batch}) for batch in batches)  # the first step of equal prompts
    steps = sum(r["token_steps"] for r in records.values()) // L
    assert Counting.rows == 2 * (steps - shared)  # guidance reads twice
    assert Counting.rows < 2 * len(PROMPTS) * N * 4


def test_answers_decide_as_the_paper_says(tmp_path):
    """Clear at the second step; potential by candidate; the best outcome among those with potential is chosen."""
    pool = Pool(PROMPTS[:1], {PROMPTS[0].id: np.arange(N * 4).reshape(N, 4, 1).astype(np.int16)})
    seen = lambda picture: (int(picture[0]) // 4, int(picture[0]) % 4)  # noqa: E731 (candidate, step)
    judge = Parm(
        clarity=lambda pictures, _: [0.9 if seen(p)[1] >= 1 else 0.1 for p in pictures],
        potential=lambda pictures, _: [(0.2, 0.6, 0.9, 0.4, 0.7)[seen(p)[0]] for p in pictures],
        outcome=lambda pictures, _: [(1.0, 0.3, 0.2, 1.0, 0.8)[seen(p)[0]] for p in pictures],
    )
    (record,) = replay(pool, paint, judge, ParmOptions(), Ledger(tmp_path / "a.jsonl", "k"), 0).values()
    assert record["clear"] == [1] * N and record["promising"] == [False, True, True, False, True]
    assert record["steps"] == [2, 4, 4, 2, 4] and record["token_steps"] == 16
    assert record["outcome"] == [None, 0.3, 0.2, None, 0.8] and record["chosen"] == 4 and not record["fallback"]
    assert record["judge_calls"] == 2 * N + N + 3
    clarity = [0.1, 0.9, 0.9, None]
    assert parm.in_words(record, 0, clarity) == ["clear? 0.10", "clear? 0.90\npotential? 0.20\nstopped", "", ""]
    assert parm.in_words(record, 4, clarity)[1:] == ["clear? 0.90\npotential? 0.70", "", "\noutcome? 0.80 chosen"]


def test_all_paths_stopped_the_one_of_highest_potential_is_finished(tmp_path):
    pool = the_pool(tmp_path / "p.jsonl")
    judge = Parm(lambda x, _: [1.0] * len(x), lambda x, _: [float(p.sum() % 7) / 100 for p in x], JUDGE.outcome)
    for id, r in searched(tmp_path / "a.jsonl", judge=judge).items():
        assert r["fallback"] and r["steps"] == [1] * N and r["outcome"] == [None] * N
        assert r["potential"][r["chosen"]] == max(r["potential"])
        assert r["codes"] == pool.codes[id][r["chosen"]].tolist()
        assert r["token_steps"] == len(r["codes"]) * (N + 3)


@pytest.mark.parametrize("answer", [0.0, None])
def test_no_clear_step_ever_takes_the_first_path(tmp_path, answer):
    judge = Parm(lambda x, _: [answer] * len(x), None, None)
    for r in searched(tmp_path / "a.jsonl", judge=judge, options=ParmOptions(end_is_clear=False)).values():
        assert r["clear"] == [None] * N and r["potential"] == [None] * N and r["fallback"] and r["chosen"] == 0
        assert r["steps"] == [4] * N and r["judge_calls"] == 4 * N


def test_a_finished_picture_is_clear_unasked(tmp_path):
    judge = Parm(lambda x, _: [0.0] * len(x), JUDGE.potential, JUDGE.outcome)
    for r in searched(tmp_path / "a.jsonl", judge=judge).values():
        assert r["clear"] == [3] * N and None not in r["potential"]
        assert r["judge_calls"] == 3 * N + N + sum(r["promising"])


def test_scores_order_every_subset_as_a_search_over_it_would_choose(tmp_path):
    for r in searched(tmp_path / "a.jsonl").values():
        order = parm.scores(r)
        for subset in combinations(range(N), 3):
            promising = [k for k in subset if r["promising"][k]]
            by = (lambda k: r["outcome"][k]) if promising else (lambda k: r["potential"][k] or 0.0)  # noqa: B023
            assert max(subset, key=lambda k: order[k]) == max(promising or subset, key=by)  # noqa: B023


@pytest.mark.parametrize("limit", [0.2, 0.5, 0.9, 1.0])
def test_another_limit_of_potential_needs_no_other_search(tmp_path, limit):
    pool = the_pool(tmp_path / "p.jsonl")

    def found(name, **options):
        return replay(pool, paint, JUDGE, ParmOptions(**options), Ledger(tmp_path / name, "k"), 0)

    everything, wanted = found("a.jsonl", promising=0.0, stop=False), found("b.jsonl", promising=limit)
    for p in PROMPTS:
        made = parm.with_limit(everything[p.id], limit)
        assert made == {name: wanted[p.id][name] for name in made}


@pytest.mark.parametrize("keep", [1, 2, N, N + 1])
@pytest.mark.parametrize("keep_after", [0, 2, 3])
def test_the_most_promising_paths_alone_go_on(tmp_path, keep, keep_after):
    options = ParmOptions(keep=keep, keep_after=keep_after)
    found = searched(tmp_path / "a.jsonl", options=options)
    whole = searched(tmp_path / "b.jsonl", options=ParmOptions(keep=N, keep_after=keep_after))
    pool = the_pool(tmp_path / "p.jsonl")
    assert timeless(replay(pool, paint, JUDGE, options, Ledger(tmp_path / "r.jsonl", "k"), 0)) == timeless(found)
    for p in PROMPTS:
        r, potential = found[p.id], JUDGE.potential(pool.at(keep_after)[p.id], [p] * N)
        assert r["potential"] == potential and r["judge_calls"] == N + min(keep, N)
        kept = sorted(range(N), key=lambda k: -potential[k])[:keep]  # noqa: B023
        assert [k for k in range(N) if r["promising"][k]] == sorted(kept)
        outcome = JUDGE.outcome(pool.codes[p.id], [p] * N)
        assert r["chosen"] == max(sorted(kept), key=lambda k: outcome[k])  # noqa: B023
        assert r["steps"] == [4 if k in kept else keep_after + 1 for k in range(N)]
        made = parm.with_keep(whole[p.id], keep)
        assert made == {name: r[name] for name in made}


def test_a_path_without_an_answer_about_its_potential_is_kept_last(tmp_path):
    silent = Parm(JUDGE.clarity, lambda x, _: [None if int(p.sum()) % 2 else 0.0 for p in x], JUDGE.outcome)
    whole = searched(tmp_path / "a.jsonl", judge=silent, options=ParmOptions(keep=2))
    for r in whole.values():
        answered = r["potential"].count(0.0)
        assert sum(r["promising"][k] for k in range(N) if r["potential"][k] is None) == max(0, 2 - answered)


def test_nothing_to_keep_and_no_step_to_keep_after_are_refused():
    for wrong in ({"keep": 0}, {"keep": 2, "keep_after": -1}):
        with pytest.raises(ValueError, match="at least 1 path must be kept"):
            ParmOptions(**wrong)


def test_released_stops_nothing_and_samples_its_answers(tmp_path):
    sure = Parm(lambda x, _: [0.5] * len(x), lambda x, _: [0.5] * len(x), JUDGE.outcome)
    records = searched(tmp_path / "a.jsonl", judge=sure, options=parm.RELEASED).values()
    assert all(r["steps"] == [4] * N for r in records)
    promising = [p for r in records for p in r["promising"]]
    assert 0 < sum(promising) < len(promising)


def test_the_released_loop_makes_the_same_choice_one_candidate_at_a_time(tmp_path):
    records = searched(tmp_path / "a.jsonl", options=parm.RELEASED)
    for p in PROMPTS:
        chosen = parm.released_loop(ToyGenerator(), p, N, 0, OPTIONS, paint, JUDGE)
        assert chosen == records[p.id]["chosen"]
    assert len({r["chosen"] for r in records.values()}) > 1


def test_a_killed_search_goes_on_and_asks_finished_prompts_nothing(tmp_path):
    whole = searched(tmp_path / "a.jsonl")
    searched(tmp_path / "b.jsonl", prompts=PROMPTS[2:4])

    def refuses(pictures, prompts):
        assert not {p.id for p in prompts} & {p.id for p in PROMPTS[2:4]}
        return JUDGE.clarity(pictures, prompts)

    again = searched(tmp_path / "b.jsonl", judge=Parm(refuses, JUDGE.potential, JUDGE.outcome), group=2)
    assert timeless(again) == timeless(whole)


def test_a_judge_that_remembers_is_asked_once_about_a_picture_and_a_text():
    asked = []

    def score(pictures, prompts):
        asked.extend((int(p[0]), prompt.text) for p, prompt in zip(pictures, prompts, strict=True))
        return [None if p[0] == 2 else float(p[0]) for p in pictures]

    answer, (p, q) = remembered(score), PROMPTS[:2]
    pictures = np.array([[1], [2], [1], [3]])
    assert answer(pictures, [p, p, p, p]) == [1.0, None, 1.0, 3.0]
    assert answer(pictures[::-1], [p, p, q, p]) == [3.0, 1.0, None, 1.0]
    assert asked == [(1, p.text), (2, p.text), (3, p.text), (2, q.text)]


def test_searches_by_a_judge_that_remembers_are_the_same_and_ask_only_what_is_new(tmp_path):
    n_asked = []

    def counted(salt):
        score = pseudo(salt)
        return remembered(lambda pictures, prompts: n_asked.append(len(pictures)) or score(pictures, prompts))

    judge, pool = Parm(counted(1), counted(2), counted(3)), the_pool(tmp_path / "pool.jsonl")
    stopping_nothing = ParmOptions(promising=0.0, stop=False)

    def replayed(judge, options, name):
        return timeless(parm.replay(pool, paint, judge, options, Ledger(tmp_path / name, "k"), 0))

    assert replayed(judge, stopping_nothing, "a") == replayed(JUDGE, stopping_nothing, "b")
    n_asked.clear()
    assert replayed(judge, DEFAULT, "c") == replayed(JUDGE, DEFAULT, "d")
    assert not n_asked  # a search that stops paths asks nothing that the one that stops none has not asked


@pytest.mark.parametrize(
    "options", [{"clear": 1.2}, {"promising": -0.1}, {"clear": float("nan")}, {"answers": "x"}, {"first": -1}]
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ParmOptions(**options)


def test_no_candidates_are_refused_before_any_compute(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        search(ToyGenerator(), PROMPTS, 0, 0, OPTIONS, paint, JUDGE, ParmOptions(), Ledger(tmp_path / "a.jsonl", "k"))
    assert not (tmp_path / "a.jsonl").exists()


def test_a_judge_without_parms_training_is_refused():
    judge = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(trained_for=["outcome"])))
    with pytest.raises(CotlibError, match="trained for outcome.*stages.parm_judge"):
        parm_of(judge)
    judge.model.config.trained_for = list(PARM_TASKS)
    assert isinstance(parm_of(judge), Parm)


def test_prune_and_branch_keeps_the_best_and_its_account(tmp_path):
    judge = Parm(None, *[lambda pictures, prompts: [float(p.sum()) for p in pictures]] * 2)
    Counting.rows = 0
    found = prune_and_branch(
        Counting(), PROMPTS, 6, 2, 0, OPTIONS, paint, judge, Ledger(tmp_path / "a.jsonl", "k"), group=4
    )
    L = len(found[PROMPTS[0].id]["codes"])
    shared = (6 - 1) * len(PROMPTS)  # the first step of a prompt's paths is one
    assert Counting.rows == 2 * (sum(r["token_steps"] for r in found.values()) // L - shared)
    assert all(r["token_steps"] == L * (6 * 2 + 2 * 2) and r["judge_calls"] == 14 for r in found.values())
    plain = the_pool(tmp_path / "p.jsonl")
    assert sum(sum(r["codes"]) for r in found.values()) > sum(int(plain.codes[p.id][0].sum()) for p in PROMPTS)
    with pytest.raises(ValueError, match="keep"):
        prune_and_branch(ToyGenerator(), PROMPTS, 2, 3, 0, OPTIONS, paint, judge, Ledger(tmp_path / "b.jsonl", "k"))


# --- What the judge learns from ---


@pytest.mark.parametrize(("verdicts", "step"), [("1111", 0), ("0111", 1), ("1010", 3), ("0001", 3), ("0000", 0)])
def test_a_verdict_is_settled_from_the_step_on_which_it_stands(verdicts, step):
    assert parm_data.settled_from(verdicts) == step


def test_static_clarity_is_the_papers_rule_by_step():
    of_18 = [parm_data.static_clarity(step, 18) for step in range(18)]
    assert of_18 == [False] * 9 + [None, None] + [True] * 7
    assert [parm_data.static_clarity(step, 8) for step in range(8)] == [False] * 4 + [True] * 4


def test_step_examples_ask_potential_and_clarity_with_the_labels_of_the_path():
    (prompt,) = PROMPTS[:1]
    pool = Pool((prompt,), {prompt.id: np.arange(2 * 4).reshape(2, 4, 1).astype(np.int16)})
    labels = {prompt.id: {"asked": [prompt.text, "other"], "right": [[True, False], [False, True]]}}
    examples = parm_data.step_examples(pool, labels, {prompt.id: [2, 0]}, 0, n_paths=2, n_steps=4, n_questions=3)
    assert [e["codes"] for e in examples] == [[i] for i in range(8)]
    questions = [potential_question(prompt.text), clarity_question(prompt.text), potential_question("other")]
    assert all(e["questions"] == questions for e in examples)
    assert [e["answers"] for e in examples[:4]] == [["yes", "no", "no"]] * 2 + [["yes", "yes", "no"]] * 2
    assert [e["answers"] for e in examples[4:]] == [["no", "yes", "yes"]] * 4


def test_without_neighbours_parms_judge_learns_clarity_all_the_same(monkeypatch):
    (prompt,) = PROMPTS[:1]
    pool = Pool((prompt,), {prompt.id: np.arange(2 * 4).reshape(2, 4, 1).astype(np.int16)})
    data = SimpleNamespace(
        pool=pool, labels={prompt.id: {"asked": [prompt.text], "right": [[True], [False]]}}, identity={}
    )
    monkeypatch.setattr(judges, "ranking_data", lambda run: data)
    monkeypatch.setattr(judges, "settled", lambda run: {prompt.id: [2, 0]})
    monkeypatch.setattr(judges, "outcome_judge", lambda run: SimpleNamespace(folder=None))
    monkeypatch.setattr(judges, "_tuned", lambda run, name, examples, *rest: examples)
    examples = judges.parm_judge(SimpleNamespace(seed=0, made={}))
    assert {len(e["questions"]) for e in examples} == {len(e["answers"]) for e in examples} == {2}
    assert sum([clarity_question(prompt.text)] in e["questions"] for e in examples) == 2 * judges.PARM_STEPS


def test_settling_asks_the_evaluator_about_every_step_and_resumes(tmp_path):
    pool = Pool(PROMPTS[:3], {p.id: np.arange(2 * 4).reshape(2, 4, 1).astype(np.int16) for p in PROMPTS[:3]})

    class Evaluator:
        def evaluate(self, images, prompts):
            at = [int(image[0]) % 4 for image in images]
            return [SimpleNamespace(correct=False, reasons=["none"] if step < 2 else ["found 2"]) for step in at]

    ledger = tmp_path / "s.jsonl"
    found = parm_data.settle(pool, paint, Evaluator(), Ledger(ledger, "k"), n_paths=9, group=2)
    assert found == {p.id: [2, 2] for p in PROMPTS[:3]}
    assert parm_data.settle(pool, paint, None, Ledger(ledger, "k"), n_paths=9) == found


def test_clear_and_promising_paths_are_torch_free_records(tmp_path):
    (record,) = searched(tmp_path / "a.jsonl", prompts=PROMPTS[:1]).values()
    assert not any(isinstance(value, torch.Tensor) for value in record.values())


def test_expected_cost_is_the_mean_over_searches_of_every_subset(tmp_path):
    pool, some_fallback = the_pool(tmp_path / "p.jsonl"), False
    whole = replay(pool, paint, JUDGE, ParmOptions(), Ledger(tmp_path / "a.jsonl", "k"), 0)
    for n in (1, 2, N):
        spent = {p.id: [] for p in PROMPTS}
        for i, subset in enumerate(combinations(range(N), n)):
            part = Pool(PROMPTS, {id: path[list(subset)] for id, path in pool.paths.items()})
            ledger = Ledger(tmp_path / f"{n}-{i}.jsonl", "k")
            for r in replay(part, paint, JUDGE, ParmOptions(), ledger, 0).values():
                spent[r["prompt"]].append((r["token_steps"] / len(r["codes"]), r["judge_calls"]))
                some_fallback |= r["fallback"] and max(r["steps"]) < 4
        for p in PROMPTS:
            assert parm.expected_cost(whole[p.id], n, 4) == pytest.approx(np.mean(spent[p.id], axis=0))
    assert some_fallback


def test_sampled_answers_of_two_images_are_drawn_apart_and_upstreams_carried_temperature_is_searched(tmp_path):
    sure = Parm(lambda x, _: [0.5] * len(x), lambda x, _: [0.5] * len(x), JUDGE.outcome)
    pool = the_pool(tmp_path / "p.jsonl")
    made = [
        replay(pool, paint, sure, parm.RELEASED, Ledger(tmp_path / f"{i}.jsonl", "k"), 0, image=i) for i in range(2)
    ]
    assert any(made[0][p.id]["promising"] != made[1][p.id]["promising"] for p in PROMPTS)
    carried = DecodeOptions(steps=4, remask_temperature="upstream-carry")
    ledgers = [Ledger(tmp_path / name, "k") for name in ("carried-pool", "carried")]
    pool = decode_pool(ToyGenerator(), PROMPTS, N, 0, carried, ledgers[0])
    found = search(ToyGenerator(), PROMPTS, N, 0, carried, paint, JUDGE, ParmOptions(), ledgers[1])
    assert all(found[p.id]["codes"] == pool.codes[p.id][found[p.id]["chosen"]].tolist() for p in PROMPTS)

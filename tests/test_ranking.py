"""Ranking data: prompts one clause away, labels, roll-outs, examples; and the verifiers that learn from them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_decode import ToyGenerator

from cotlib import load, ranking, stages, verifiers
from cotlib.decode import DecodeOptions
from cotlib.geneval import Verdict
from cotlib.judge import outcome_question, process_question
from cotlib.prompts import Clause, compose, evaluation_texts, training_prompts
from cotlib.search import decode_pool
from cotlib.store import Ledger

PROMPTS = training_prompts(1, 2)
OPTIONS = DecodeOptions(steps=4)


class Even:
    """Calls a picture right if its codes have an even sum, whatever the prompt; remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def evaluate(self, images, prompts):
        self.asked += [p.text for p in prompts]
        return [Verdict(bool(image.sum() % 2 == 0), ()) for image in images]


def paint(codes):
    return codes.numpy()


@pytest.fixture
def pool(tmp_path):
    return decode_pool(ToyGenerator(), PROMPTS, 3, 0, OPTIONS, Ledger(tmp_path / "pool.jsonl", "k"))


# --- Neighbours ---


@pytest.mark.parametrize(
    ("include", "texts"),
    [
        ((Clause("dog", 3),), {"two dogs", "four dogs"}),
        (
            (Clause("toaster"), Clause("bus", position=("above", 0))),
            {f"a bus {r} a toaster" for r in ("left of", "right of", "below")},
        ),
    ],
)
def test_neighbours_change_one_clause(include, texts):
    found = {p.text.removeprefix("a photo of ") for p in ranking.neighbours(compose("x", include), 0)}
    assert found <= texts and found | {t.removeprefix("a photo of ") for t in evaluation_texts()} >= texts


def test_colours_are_exchanged_first_of_all():
    prompt = compose("x", (Clause("bus", color="red"), Clause("tie", color="blue")))
    found = [p.text for p in ranking.neighbours(prompt, 0)]
    assert "a photo of a blue bus and a red tie" in found and len(found) == 2


@pytest.mark.parametrize("prompt", training_prompts(3, 20), ids=lambda p: p.text)
def test_no_neighbour_is_the_prompt_itself_or_an_evaluation_prompt(prompt):
    found = [p.text for p in ranking.neighbours(prompt, 5)]
    assert not {prompt.text, *evaluation_texts()} & set(found) and len(set(found)) == len(found)
    assert found == [p.text for p in ranking.neighbours(prompt, 5)]


# --- Labels ---


def test_labels_are_the_evaluator_s_on_the_finished_pictures(pool, tmp_path):
    labels = ranking.label_pool(pool, paint, Even(), Ledger(tmp_path / "l.jsonl", "k"), n_neighbours=2, seed=0)
    for p in PROMPTS:
        assert labels[p.id]["asked"][0] == p.text and 1 <= len(labels[p.id]["asked"]) <= 3
        even = (pool.codes[p.id].sum(1) % 2 == 0).tolist()
        assert [row[0] for row in labels[p.id]["right"]] == even
    again = Even()
    assert ranking.label_pool(pool, paint, again, Ledger(tmp_path / "l.jsonl", "k"), 2, 0) == labels
    assert again.asked == []  # all of it was in the ledger


def test_a_roll_out_goes_on_from_the_step_and_keeps_what_was_known(pool, tmp_path):
    seen = []

    class Watches(Even):
        def evaluate(self, images, prompts):
            seen.extend(zip(images, prompts, strict=True))
            return super().evaluate(images, prompts)

    ledger = Ledger(tmp_path / "r.jsonl", "k")
    made = ranking.roll_out(
        pool, ToyGenerator(), OPTIONS, paint, Watches(), ledger, seed=0, n_paths=2, n_steps=2, n=4, group=3
    )
    by_prompt = {p.id: iter([image for image, q in seen if q is p]) for p in PROMPTS}
    for p in PROMPTS:
        assert [m["candidate"] for m in made[p.id]] == [0, 0, 1, 1]
        assert all(0 <= m["step"] < OPTIONS.steps - 1 for m in made[p.id])
        for m in made[p.id]:
            state = pool.state(p.id, m["candidate"], m["step"])
            known = ~state.masked[0].numpy()
            ends = [next(by_prompt[p.id]) for _ in range(4)]
            assert all((end[known] == state.codes[0].numpy()[known]).all() for end in ends)
            assert len({end.tobytes() for end in ends}) > 1  # fresh noise each time
            assert m["right"] == [bool(end.sum() % 2 == 0) for end in ends]


def test_a_path_of_one_step_has_no_middle_to_go_on_from(tmp_path):
    once = DecodeOptions(steps=1)
    made = decode_pool(ToyGenerator(), PROMPTS, 2, 0, once, Ledger(tmp_path / "p.jsonl", "k"))
    ends = ranking.roll_out(made, ToyGenerator(), once, paint, Even(), Ledger(tmp_path / "r.jsonl", "k"), 0, 2, 1)
    assert ends == {p.id: [] for p in PROMPTS}
    labels = {p.id: {"right": [[True], [False]]} for p in PROMPTS}
    examples = ranking.process_examples(made, ends, labels, process_question)
    assert [e["answers"] for e in examples] == [["yes"], ["no"]] * len(PROMPTS)


def test_roll_outs_do_not_depend_on_their_batch(pool, tmp_path):
    def made(name, group):
        ledger = Ledger(tmp_path / name, "k")
        return ranking.roll_out(pool, ToyGenerator(), OPTIONS, paint, Even(), ledger, 0, 2, 3, group=group)

    assert made("a", 1) == made("b", 7)


# --- Examples ---


def test_outcome_examples_ask_about_the_own_prompt_first_and_as_many_questions_everywhere(pool, tmp_path):
    labels = ranking.label_pool(pool, paint, Even(), Ledger(tmp_path / "l.jsonl", "k"), n_neighbours=3, seed=0)
    examples = ranking.outcome_examples(pool, labels, outcome_question)
    assert len(examples) == 3 * len(PROMPTS) and len({len(e["questions"]) for e in examples}) == 1
    first = iter(examples)
    for p in PROMPTS:
        for k in range(3):
            e = next(first)
            assert e["questions"][0] == outcome_question(p.text) and e["codes"] == pool.codes[p.id][k].tolist()
            right = dict(zip(map(outcome_question, labels[p.id]["asked"]), labels[p.id]["right"][k], strict=True))
            assert e["answers"] == ["yes" if right[q] else "no" for q in e["questions"]]


def test_a_step_is_promising_if_any_of_its_ends_is_right(pool):
    roll_outs = {p.id: [{"candidate": 1, "step": 0, "right": [False, True]}] for p in PROMPTS}
    labels = {p.id: {"right": [[True], [False], [True]]} for p in PROMPTS}
    examples = ranking.process_examples(pool, roll_outs, labels, process_question)
    assert [e["answers"][0] for e in examples] == ["yes", "no"] * len(PROMPTS)  # the step, then the end of its path
    assert examples[0]["codes"] == pool.at(0)[PROMPTS[0].id][1].tolist()
    assert examples[1]["codes"] == pool.codes[PROMPTS[0].id][1].tolist()


def example(task, answer, i):
    return {"task": task, "codes": [i], "questions": ["q"], "answers": [answer]}


def test_balanced_repeats_the_rarer_answer_of_each_task_and_loses_nothing(tmp_path):
    rows = [example("counting", "no", i) for i in range(9)] + [example("counting", "yes", 9)]
    rows += [example("colors", "yes", 10)]  # one kind only: left as it is
    data = ranking.balanced(rows, 0)
    counts = {
        (t, a): sum(r["task"] == t and r["answers"] == [a] for r in data)
        for t in ("counting", "colors")
        for a in ("yes", "no")
    }
    assert counts == {("counting", "yes"): 9, ("counting", "no"): 9, ("colors", "yes"): 1, ("colors", "no"): 0}
    assert {r["codes"][0] for r in data} == set(range(11))
    assert data.to_list() == ranking.balanced(rows, 0).to_list() != ranking.balanced(rows, 1).to_list()
    ranking.save(data, tmp_path / "d", {"suite": 1000})
    card = (tmp_path / "d" / "README.md").read_text()
    assert "| counting | 9 | 9 |" in card and "**suite**: 1000" in card


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="no examples"):
        ranking.balanced([], 0)


# --- Verifiers ---


class Says:
    def __init__(self, *p):
        self.p, self.asked = np.array(p, np.float32), []

    def p_yes(self, images, questions):
        self.asked += questions
        return self.p[: len(images)]


def test_a_verifier_asks_its_own_question_and_unscored_is_none_not_zero():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    for name, question in (("orm", outcome_question), ("prm-zero-shot", process_question)):
        judge = Says(0.25, np.nan)
        assert verifiers.named(name).scorer(judge)(images, PROMPTS[:2]) == [0.25, None]
        assert judge.asked == [question(p.text) for p in PROMPTS[:2]]
    assert verifiers.unscored([[0.1, None], [None, None]]) == 3


def test_an_unknown_verifier_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'orm-zero-shot'"):
        verifiers.named("orm-zeroshot")


def test_only_process_verifiers_look_at_every_step():
    assert {n: v.every_step for n, v in verifiers.VERIFIERS.items()} == {
        "orm-zero-shot": False,
        "orm": False,
        "prm-zero-shot": True,
        "prm": True,
        "parm": False,
        "parm-clarity": True,
        "parm-potential": True,
    }
    assert replace(verifiers.named("orm"), name="x").question("p") == outcome_question("p")


def test_a_pool_s_paths_survive_the_ledger(pool, tmp_path):
    again = decode_pool(ToyGenerator(), PROMPTS, 3, 0, OPTIONS, Ledger(tmp_path / "pool.jsonl", "k"))
    assert all(np.array_equal(pool.paths[p.id], again.paths[p.id]) for p in PROMPTS)
    assert torch.equal(pool.codes[PROMPTS[0].id], again.codes[PROMPTS[0].id])


def test_what_was_completed_for_some_training_prompts_serves_when_there_are_more(tmp_path, monkeypatch):
    monkeypatch.setenv("COTLIB_OUTPUTS", str(tmp_path))
    monkeypatch.setattr(ranking, "roll_out", lambda *args: args[5].key)
    for name in ("load_generator", "load_tokenizer", "trusted_evaluator"):
        monkeypatch.setattr(stages.data, name, lambda *_: SimpleNamespace(decode=None))
    run = load("03_process_verifier", scale="pocket", effort="smoke", seed=0)
    few, more, others = (
        stages.rolled_out(run, stages.data.Ranking(None, {}, {"suite": suite, "prompts": n}))
        for suite, n in ((1000, 15), (1000, 30), (1001, 15))
    )
    assert few == more != others

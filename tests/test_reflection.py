"""PARM++: what an answer says, what a judge learns from, and rounds of correction."""

import numpy as np
import pytest
import torch

from cotlib import reflection
from cotlib.judge import outcome_question, reflection_question
from cotlib.prompts import geneval_prompts, take, training_prompts
from cotlib.reflection import Reflection, agreement, confusion, in_words, read, reflection_examples, rounds
from cotlib.search import Pool
from cotlib.store import Ledger

PROMPTS = take(geneval_prompts(), 1)
L = 4


@pytest.mark.parametrize(
    ("answer", "right", "faults"),
    [
        ("yes", True, ()),
        ("Yes.", True, ()),
        ("yes, but there are three dogs", True, ()),
        ("expected 2 dogs , found 3", False, ("expected 2 dogs, found 3",)),
        (
            "expected 2 dogs, found 3, expected a cat left of a dog, found no such dog",
            False,
            ("expected 2 dogs, found 3", "expected a cat left of a dog, found no such dog"),
        ),
        ("No, there are three dogs, not two.", False, ("there are three dogs, not two.",)),
        ("no", False, ()),
        ("", False, ()),
        ("yesterday it rained", False, ("yesterday it rained",)),
    ],
)
def test_what_an_answer_says(answer, right, faults):
    assert read(answer) == Reflection(right, faults)


def test_an_answer_in_words():
    assert in_words(read("expected 2 dogs , found 3")) == (
        "The image does not match the prompt: expected 2 dogs, found 3."
    )
    assert in_words(read("no")) == "The image does not match the prompt: no reason given."
    assert in_words(read("yes")) == "The image matches the prompt."


def test_faults_are_counted_that_the_evaluator_states_too():
    said = ["expected 2 dogs, found 3", "expected a cat, found none, expected a red bus, found blue", "yes"]
    true = [["expected 2 dogs, found 1"], ["expected a red bus, found blue"], ["expected a tie, found none"]]
    assert agreement(said, true) == {"stated": 3, "exact": 1, "clause": 2, "missed": 1}


def test_four_in_five_reflections_are_about_what_is_wrong():
    prompts = training_prompts(1, 4)
    rng = np.random.default_rng(0)
    pool = Pool(prompts, {p.id: rng.integers(0, 9, (20, 2, L)).astype(np.int16) for p in prompts})
    labels = {
        p.id: {
            "asked": [p.text, "another"],
            "right": [[k % 2 == 0, k % 2 == 1] for k in range(20)],
            "reasons": [[["its fault"], []] if k % 2 else [[], ["its fault"]] for k in range(20)],
        }
        for p in prompts
    }
    examples = reflection_examples(pool, labels, outcome_question, seed=0)
    assert len(examples) == 20 * len(prompts)
    assert reflection_examples(pool, labels, outcome_question, seed=0) == examples
    first = examples[1]
    assert first["questions"][0] == outcome_question(prompts[0].text) and first["answers"][0] == "no"
    assert set(first["questions"][1:]) <= {reflection_question(t) for t in labels[prompts[0].id]["asked"]}
    for e in examples[:20]:
        assert all(a in ("yes", "its fault") for a in e["answers"][1:])
        is_own = [q == reflection_question(prompts[0].text) for q in e["questions"][1:]]
        own_right = e["answers"][0] == "yes"
        assert [a == "yes" for a in e["answers"][1:]] == [own == own_right for own in is_own]
    share = np.mean([a != "yes" for e in examples for a in e["answers"][1:]])
    assert 0.75 < share < 0.85


# --- Rounds ---


class World:
    """A picture's first token says how right it is; 9 is right. Corrections follow a plan of tokens by round."""

    def __init__(self, tmp_path, plan):
        self.tmp_path, self.plan, self.asked = tmp_path, plan, []

    def record(self, token):
        return {"codes": [token] * L, "token_steps": 10, "judge_calls": 3}

    def first(self, tokens):
        return {p.id: self.record(t) for p, t in zip(PROMPTS, tokens, strict=True)}

    def look(self, pictures, prompts):
        return ["yes" if p[0] == 9 else f"expected 9, found {p[0]}" for p in pictures]

    def outcome(self, pictures, prompts):
        return [int(p[0]) / 10 for p in pictures]

    def correct(self, prompts, notes, i):
        self.asked.append({p.text: notes[p.text].reasons for p in prompts})
        return {p.id: self.record(self.plan[i - 1]) for p in prompts}

    def run(self, tokens, **options):
        return rounds(
            PROMPTS,
            self.first(tokens),
            self.look,
            self.outcome,
            self.correct,
            lambda codes: codes.numpy(),
            lambda what, i: Ledger(self.tmp_path / f"{what}-{i}.jsonl", "k"),
            **options,
        )


def tokens_of(done):
    return [[int(r.codes[p.id][0]) for p in PROMPTS] for r in done]


def test_what_is_called_right_is_left_and_the_rest_corrected_with_its_reason(tmp_path):
    world = World(tmp_path, plan=[5, 9])
    done = world.run([9, 9, 3, 9, 4, 9])
    assert tokens_of(done) == [[9, 9, 3, 9, 4, 9], [9, 9, 5, 9, 5, 9], [9] * 6]
    assert world.asked[0] == {PROMPTS[2].text: "expected 9, found 3", PROMPTS[4].text: "expected 9, found 4"}
    assert set(world.asked[1].values()) == {"expected 9, found 5"}
    assert sum(done[1].token_steps.values()) == 20 and done[1].token_steps[PROMPTS[0].id] == 0


def test_endless_correction_is_bounded(tmp_path):
    world = World(tmp_path, plan=[4, 4, 4, 4, 4])
    assert len(world.run([3] * 6)) == 1 + reflection.ROUNDS == 4
    assert len(world.asked) == 3
    none = World(tmp_path / "none", plan=[])
    assert len(none.run([3] * 6, n_rounds=0)) == 1


def test_a_worse_correction_is_not_taken_unless_the_last_one_is_asked_for(tmp_path):
    best = World(tmp_path / "a", plan=[2, 2, 2]).run([6] * 6)
    assert tokens_of(best)[-1] == [6] * 6
    assert sum(best[1].token_steps.values()) == 60  # paid for all the same
    last = World(tmp_path / "b", plan=[2, 1, 0]).run([6] * 6, keep="last")
    assert tokens_of(last)[-1] == [0] * 6


def test_rounds_go_on_from_their_ledgers(tmp_path):
    done = World(tmp_path, plan=[5, 9]).run([3] * 6)
    again = World(tmp_path, plan=[5, 9])
    again.look = again.outcome = None  # never asked
    assert tokens_of(again.run([3] * 6)) == tokens_of(done)


def test_bad_options_are_refused(tmp_path):
    with pytest.raises(ValueError, match="n_rounds must be 0 or more"):
        World(tmp_path, []).run([3] * 6, n_rounds=-1)
    with pytest.raises(ValueError, match="unknown keep 'first'"):
        World(tmp_path, []).run([3] * 6, keep="first")


def test_the_confusion_of_a_round(tmp_path):
    world = World(tmp_path, plan=[9, 9, 9])
    before, after = world.run([9, 9, 3, 9, 4, 2], n_rounds=1)
    was = {p.id: t for p, t in zip(PROMPTS, (True, False, False, True, True, False), strict=True)}
    now = {p.id: t for p, t in zip(PROMPTS, (True, False, True, True, False, True), strict=True)}
    assert confusion(before, after, (was, now)) == {
        "wrong": 3,
        "noticed": 2,
        "mended": 2,
        "right": 3,
        "doubted": 1,
        "spoilt": 1,
    }
    assert torch.equal(after.codes[PROMPTS[0].id], before.codes[PROMPTS[0].id])

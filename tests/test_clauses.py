"""What is wrong, clause by clause: facts held against the prompt, and the shipped judge asked for them."""

from dataclasses import replace

import numpy as np
import pytest

from cotlib import clauses, config, loaders
from cotlib.clauses import NUMBERS, reasons, reflect_by_clause
from cotlib.pocket import world
from cotlib.pocket.checks import pictures
from cotlib.prompts import COLORS, Clause, compose, geneval_prompts, take
from cotlib.reflection import agreement
from cotlib.seeds import sample_seed

POCKET = config.SCALES["pocket"]


def sure(words, word):
    return {w: 0.9 if w == word else 0.1 / (len(words) - 1) for w in words}


def told_of(prompt, there, n=None, color=None, place=None):
    """Facts of a picture by class: there (bool), number, colour, and one place for all."""
    told = {}
    for fact in clauses.facts_of(prompt):
        if fact.words == clauses.YES_NO:
            cls = next(c.cls for c in prompt.include if fact == clauses.presence(c.cls))
            told[fact] = sure(fact.words, "yes" if there[cls] else "no")
        elif fact.words == NUMBERS:
            cls = next(c.cls for c in prompt.include if fact == clauses.number(c.cls))
            told[fact] = sure(fact.words, (n or {}).get(cls, "one"))
        else:
            told[fact] = sure(fact.words, color if set(COLORS) < set(fact.words) else place)
    return told


TWO_DOGS = compose("p", (Clause("dog", 2),))
RED_CAR = compose("p", (Clause("car", 1, "red"),))
LEFT = compose("p", (Clause("cat"), Clause("dog", position=("left of", 0))))


@pytest.mark.parametrize(
    ("prompt", "facts", "said"),
    [
        (TWO_DOGS, {"there": {"dog": True}, "n": {"dog": "two"}}, []),
        (TWO_DOGS, {"there": {"dog": True}}, ["expected 2 dogs, found 1"]),
        (TWO_DOGS, {"there": {"dog": False}}, ["expected 2 dogs, found none"]),
        (TWO_DOGS, {"there": {"dog": True}, "n": {"dog": "four"}}, ["expected at most 2 dogs, found 4"]),
        (RED_CAR, {"there": {"car": True}, "color": "blue"}, ["expected a red car, found blue"]),
        (RED_CAR, {"there": {"car": False}, "color": "blue"}, ["expected a car, found none"]),
        (
            LEFT,
            {"there": {"cat": True, "dog": True}, "place": "above"},
            ["expected a dog left of a cat, found it above it"],
        ),
        (
            LEFT,
            {"there": {"cat": False, "dog": True}, "place": "above"},
            ["expected a cat, found none", "expected a dog left of a cat, found no such cat"],
        ),
    ],
)
def test_reasons_are_the_evaluator_s_words(prompt, facts, said):
    assert reasons(prompt, told_of(prompt, **facts)) == said


def test_what_must_not_be_there_is_asked_for_as_well():
    prompt = replace(RED_CAR, exclude=(Clause("dog"),))
    told = told_of(RED_CAR, {"car": True}, color="red")
    told |= {clauses.presence("dog"): sure(clauses.YES_NO, "yes"), clauses.number("dog"): sure(NUMBERS, "two")}
    assert set(clauses.facts_of(prompt)) == set(told)
    assert reasons(prompt, told) == ["expected no dog, found 2"]


def test_where_everything_seems_to_hold_the_least_likely_clause_is_named_if_one_must_be():
    told = told_of(RED_CAR, {"car": True}, color="red")
    told[clauses.color("car")] |= {"red": 0.55, "orange": 0.4}
    assert reasons(RED_CAR, told) == []
    assert reasons(RED_CAR, told, at_least_one=True) == ["expected a red car, found orange"]


def test_the_shipped_judge_says_what_is_wrong_with_clean_scenes():
    prompts = take(geneval_prompts(), 8)
    others = [prompts[(i + 1) % len(prompts)] for i in range(len(prompts))]
    scenes = [world.scene_of(p, sample_seed(0, p.id, 0, "true")) for p in prompts]
    images, evaluator = pictures(scenes), loaders.load_evaluator(POCKET)
    look = reflect_by_clause(loaders.load_judge(POCKET), lambda images, prompts: [1.0] * len(prompts))
    assert np.mean([answer == "yes" for answer in look(images, list(prompts))]) > 0.9
    true = [v.reasons for v in evaluator.evaluate(images, others)]
    count = agreement(look(images, others), true)
    assert count["missed"] <= sum(not of for of in true) and count["exact"] / count["stated"] > 0.85


def test_words_that_begin_alike_are_refused():
    judge = loaders.load_judge(POCKET)
    with pytest.raises(ValueError, match="do not begin with different tokens"):
        judge.probabilities(np.zeros((1, 96, 96, 3), np.uint8), [clauses.number("dog").question], [("one", "one")])

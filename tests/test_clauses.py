"""What is wrong, clause by clause: facts held against the prompt, and the shipped judge asked for them."""

from dataclasses import replace

import numpy as np
import pytest

from cotlib import clauses, config, loaders, ranking
from cotlib.clauses import NUMBERS, reasons, reflect_by_clause
from cotlib.geneval import relative_position
from cotlib.pocket import world
from cotlib.pocket.checks import pictures
from cotlib.prompts import COLORS, Clause, compose, geneval_prompts, take, training_prompts
from cotlib.reflection import agreement
from cotlib.search import Pool
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
        (
            LEFT,
            {"there": {"cat": True, "dog": True}, "place": "too close to tell"},
            ["expected a dog left of a cat, found them too close to tell"],
        ),
    ],
)
def test_reasons_are_the_evaluator_s_words(prompt, facts, said):
    assert reasons(prompt, told_of(prompt, **facts)) == said


def test_what_seems_to_lie_in_two_directions_is_said_to_lie_in_both():
    told = told_of(LEFT, {"cat": True, "dog": True}, place="below")
    told[clauses.place("dog", "cat")] = {"below": 0.5, "right of": 0.3, "left of": 0.1, "above": 0.1}
    assert reasons(LEFT, told) == ["expected a dog left of a cat, found it right of and below it"]


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


THREE_CATS = compose("p", (Clause("cat", 3),))
BLUE_CATS = compose("p", (Clause("cat", 2, "blue"),))


@pytest.mark.parametrize(
    ("prompt", "said", "told"),
    [
        (THREE_CATS, [], {clauses.presence("cat"): ("yes",), clauses.number("cat"): ("three",)}),
        (
            THREE_CATS,
            ["expected 3 cats, found 2"],
            {clauses.presence("cat"): ("yes",), clauses.number("cat"): ("two",)},
        ),
        (THREE_CATS, ["expected 3 cats, found none"], {clauses.presence("cat"): ("no",)}),
        (
            THREE_CATS,
            ["expected at most 3 cats, found 4"],
            {clauses.presence("cat"): ("yes",), clauses.number("cat"): ("four",)},
        ),
        (THREE_CATS, ["expected at most 3 cats, found 9"], {clauses.presence("cat"): ("yes",)}),
        (compose("p", (Clause("cat", 7),)), ["expected 7 cats, found 6"], {clauses.presence("cat"): ("yes",)}),
        (RED_CAR, [], {clauses.presence("car"): ("yes",), clauses.color("car"): ("red",)}),
        (
            RED_CAR,
            ["expected a red car, found natural"],
            {clauses.presence("car"): ("yes",), clauses.color("car"): ("natural",)},
        ),
        (
            BLUE_CATS,
            ["expected 2 blue cats, found blue and pink"],
            {
                clauses.presence("cat"): ("yes",),
                clauses.number("cat"): ("two",),
                clauses.color("cat"): ("blue", "pink"),
            },
        ),
        (
            LEFT,
            ["expected a dog left of a cat, found it right of and above it"],
            {
                clauses.presence("cat"): ("yes",),
                clauses.presence("dog"): ("yes",),
                clauses.place("dog", "cat"): ("right of", "above"),
            },
        ),
        (
            LEFT,
            ["expected a cat, found none", "expected a dog left of a cat, found no such cat"],
            {clauses.presence("cat"): ("no",), clauses.presence("dog"): ("yes",)},
        ),
        (
            LEFT,
            ["expected a dog left of a cat, found them too close to tell"],
            {
                clauses.presence("cat"): ("yes",),
                clauses.presence("dog"): ("yes",),
                clauses.place("dog", "cat"): ("too close to tell",),
            },
        ),
        (LEFT, ["ugly"], {}),
    ],
)
def test_reasons_tell_facts(prompt, said, told):
    assert clauses.told_by(prompt, said) == told


def test_facts_that_reasons_tell_are_those_of_the_scene():
    """The evaluator's reasons for other prompts, about scenes whose facts are known."""
    evaluator, prompts = loaders.load_evaluator(POCKET), take(training_prompts(3, 12), 12)
    scenes = [world.scene_of(p, sample_seed(0, p.id, 0, "true")) for p in prompts]
    for prompt, scene, image in zip(prompts, scenes, pictures(scenes), strict=True):
        asked = ranking.asked_about(prompt, 3, 0)
        verdicts = evaluator.evaluate(np.stack([image] * len(asked)), asked)
        for other, verdict in zip(asked, verdicts, strict=True):
            for fact, words in clauses.told_by(other, verdict.reasons).items():
                assert set(words) <= true_words(scene, fact), (prompt.text, other.text, verdict.reasons)


def test_facts_are_asked_beside_the_outcome_and_answered_by_the_evaluator_s_reasons():
    prompt = THREE_CATS
    pool = Pool((prompt,), {prompt.id: np.zeros((2, 1, 1), np.int16)})
    texts = [p.text for p in ranking.asked_about(prompt, 1, 0)]
    rows = [[["expected 3 cats, found none"], ["expected 2 cats, found none"]], [["ugly"], ["ugly"]]]
    labels = {prompt.id: {"asked": texts, "right": [[False, False]] * 2, "reasons": rows}}
    known, unknown = clauses.ask_facts(ranking.outcome_examples(pool, labels, str), pool, labels, seed=0, n=3)
    assert known["questions"] == [*texts, *[clauses.presence("cat").question] * 3]
    assert known["answers"] == ["no"] * 5
    assert unknown["questions"] == [*texts, *texts, texts[0]]  # nothing is told: the first ones again


def true_words(scene, fact):
    """What may answer a fact about a scene."""
    for thing in scene.things:
        like = [t for t in scene.things if t.cls == thing.cls]
        if fact == clauses.number(thing.cls):
            return {NUMBERS[len(like) - 1]}
        if fact == clauses.color(thing.cls):
            return {t.color or "natural" for t in like}
        for other in scene.things:
            if fact == clauses.place(thing.cls, other.cls):
                return relative_position(thing.box, other.box)
    there = {clauses.presence(thing.cls) for thing in scene.things}
    return {"yes" if fact in there else "no"}

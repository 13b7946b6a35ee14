"""What is wrong with a picture, clause by clause: a judge is asked for facts and they are held against the prompt.

The paper's judge writes its reason in one go, after training on reasons (`reflection.reflect`). A judge that can count
and tell colours and places needs no training: it is asked whether a thing is there, how many, of which colour, where,
one word each, and GenEval's rules make the reason of it, in the evaluator's words. The outcome question is asked as
well, as not everything that can be wrong is a fact of this kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .geneval import NATURAL, some
from .judge import ARE_IN_IMAGE, COLOR, COUNT, IN_IMAGE, PRESENCE, RELATIVE_TO, WHERE, Judge
from .prompts import COLORS, NUMBER_WORDS, RELATIONS, Clause, Prompt, plural, with_article
from .search import Score

YES_NO = ("yes", "no")
NUMBERS = NUMBER_WORDS[1:5]  # none is what presence is asked for; the pocket judge counts to four


@dataclass(frozen=True)
class Fact:
    """One question about a picture and the words that may answer it."""

    question: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Fault:
    """A clause, how likely it is to hold, and the reason if it does not."""

    holds: float
    reason: str


Told = dict[Fact, dict[str, float]]  # probabilities of each fact's words, adding up to 1


def presence(cls: str) -> Fact:
    return Fact(f"{PRESENCE} {with_article(cls)} {IN_IMAGE}", YES_NO)


def number(cls: str) -> Fact:
    return Fact(f"{COUNT} {plural(cls)} {ARE_IN_IMAGE}", NUMBERS)


def color(cls: str) -> Fact:
    return Fact(f"{COLOR} {with_article(cls)} {IN_IMAGE}", (*COLORS, NATURAL))


def place(cls: str, anchor: str) -> Fact:
    return Fact(f"{WHERE} {with_article(cls)} {RELATIVE_TO} {with_article(anchor)} {IN_IMAGE}", RELATIONS)


def facts_of(prompt: Prompt) -> list[Fact]:
    """What has to be known of a picture to say which clauses of its prompt hold."""
    facts = []
    for clause in prompt.include:
        facts += [presence(clause.cls), number(clause.cls)]
        if clause.color is not None:
            facts.append(color(clause.cls))
        if clause.position is not None:
            facts.append(place(clause.cls, prompt.include[clause.position[1]].cls))
    for clause in prompt.exclude:
        facts += [presence(clause.cls), number(clause.cls)]
    return list(dict.fromkeys(facts))


def reasons(prompt: Prompt, told: Told, at_least_one: bool = False) -> list[str]:
    """Why the picture is not what the prompt says, at most one reason a clause, in the order and words of
    `geneval.evaluate`; with `at_least_one`, that of the least likely clause where all are likely to hold."""
    found, unsure, failed = [], [], set()
    for i, clause in enumerate(prompt.include):
        faults = [_too_few(clause, told)]
        if clause.color is not None:
            faults.append(_other_color(clause, told[color(clause.cls)]))
        if clause.position is not None:
            anchor = clause.position[1]
            faults.append(_elsewhere(clause, prompt.include[anchor].cls, anchor in failed, told))
        if wrong := [fault for fault in faults if fault.holds < 0.5][:1]:
            failed.add(i)
        found += wrong
        unsure += faults
    unsure += [_too_many(clause, told) for clause in prompt.exclude]
    found += [fault for fault in unsure[len(unsure) - len(prompt.exclude) :] if fault.holds < 0.5]
    if not found and at_least_one:
        found = [min(unsure, key=lambda fault: fault.holds)]
    return [fault.reason for fault in found]


def _too_few(clause: Clause, told: Told) -> Fault:
    there, count = told[presence(clause.cls)]["yes"], told[number(clause.cls)]
    fewer = {
        "none": 1 - there,
        **{str(n): there * count[word] for n, word in enumerate(NUMBERS[: clause.count - 1], 1)},
    }
    seen = max(fewer, key=fewer.get)
    return Fault(1 - sum(fewer.values()), f"expected {some(clause.cls, clause.count)}, found {seen}")


def _too_many(clause: Clause, told: Told) -> Fault:
    """Of a clause that must not hold: as many of a class, or more."""
    more = dict(list(told[number(clause.cls)].items())[clause.count - 1 :])
    if not more:  # the judge cannot count so far
        return Fault(1.0, "")
    allowed = f"at most {some(clause.cls, clause.count - 1)}" if clause.count > 1 else f"no {clause.cls}"
    seen = NUMBERS.index(max(more, key=more.get)) + 1
    return Fault(1 - sum(more.values()) * told[presence(clause.cls)]["yes"], f"expected {allowed}, found {seen}")


def _other_color(clause: Clause, seen: dict[str, float]) -> Fault:
    others = {word: p for word, p in seen.items() if word != clause.color}
    expected = some(f"{clause.color} {clause.cls}", clause.count)
    return Fault(seen[clause.color], f"expected {expected}, found {max(others, key=others.get)}")


def _elsewhere(clause: Clause, anchor: str, is_anchor_wrong: bool, told: Told) -> Fault:
    relation, seen = clause.position[0], told[place(clause.cls, anchor)]
    others = {word: p for word, p in seen.items() if word != relation}
    expected = f"expected {with_article(clause.cls)} {relation} {with_article(anchor)}"
    if is_anchor_wrong:
        return Fault(0.0, f"{expected}, found no such {anchor}")
    return Fault(seen[relation], f"{expected}, found it {max(others, key=others.get)} it")


def reflect_by_clause(judge: Judge, outcome: Score, batch_size: int = 64) -> Score:
    """A yes, or the reasons, about each (picture, prompt), as `reflection.reflect` answers.

    judge: knows the facts. outcome: P(yes) of the outcome question. A picture is wrong if a clause does not hold or if
    the outcome question says so.
    """

    def look(images: np.ndarray, prompts: list[Prompt]) -> list[str]:
        asked = [(i, fact) for i, prompt in enumerate(prompts) for fact in facts_of(prompt)]
        rows, facts = zip(*asked, strict=True)
        known = judge.probabilities(
            images[list(rows)], [f.question for f in facts], [f.words for f in facts], batch_size
        )
        told: list[Told] = [{} for _ in prompts]
        for i, fact, p in zip(rows, facts, known, strict=True):
            told[i][fact] = dict(zip(fact.words, p, strict=True))
        p_yes = outcome(images, prompts)
        found = [reasons(*row, not (p or 0.0) >= 0.5) for *row, p in zip(prompts, told, p_yes, strict=True)]
        return [", ".join(of) or "yes" for of in found]

    return look

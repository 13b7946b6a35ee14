"""What is wrong with a picture, clause by clause: a judge is asked for facts and they are held against the prompt.

The paper's judge writes its reason in one go, after training on reasons (`reflection.reflect`). Here it is asked
whether a thing is there, how many, of which colour, where, one word each, and GenEval's rules make the reason of it, in
the evaluator's words. The outcome question is asked as well, as not everything that can be wrong is a fact of this
kind. `told_by` goes the other way, from the evaluator's reasons to the facts that a judge learns from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .geneval import NATURAL, TOO_CLOSE, some
from .judge import ARE_IN_IMAGE, COLOR, COUNT, IN_IMAGE, PRESENCE, RELATIVE_TO, WHERE, Judge
from .prompts import COLORS, NUMBER_WORDS, RELATIONS, Clause, Prompt, plural, with_article
from .ranking import asked_about
from .search import Pool, Score
from .seeds import sample_seed

YES_NO = ("yes", "no")
NUMBERS = NUMBER_WORDS[1:5]  # none is what presence is asked for; the pocket judge counts to four
PLACES = (*RELATIONS, TOO_CLOSE)
AS_WELL = 1 / 2  # a second relation is said to hold if it is at least this share as likely as the likeliest


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
    return Fact(f"{WHERE} {with_article(cls)} {RELATIVE_TO} {with_article(anchor)} {IN_IMAGE}", PLACES)


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
    likeliest = max(others, key=others.get)
    if likeliest == TOO_CLOSE:
        return Fault(seen[relation], f"{expected}, found them {TOO_CLOSE}")
    hold = [word for word in RELATIONS if others.get(word, 0.0) >= AS_WELL * others[likeliest]]
    return Fault(seen[relation], f"{expected}, found it {' and '.join(hold)} it")


# --- From reasons to facts ----------------------------------------------------------------------------------------


def told_by(prompt: Prompt, reasons: Iterable[str]) -> dict[Fact, tuple[str, ...]]:
    """What the reasons of a verdict on this prompt tell of the picture: by fact, the words that answer it, several for
    what lies left of and above something. Facts that they leave open are left out; all are where a reason is in other
    words than `geneval.evaluate`'s."""
    parts = [reason.split(", found ") for reason in reasons]
    if any(len(part) != 2 for part in parts):
        return {}
    found, told = dict(parts), {}  # found: by what was expected
    for clause in prompt.include:
        n = found.get(f"expected {some(clause.cls, clause.count)}")
        told[presence(clause.cls)] = ("no" if n == "none" else "yes",)
        if n is None:
            told |= _told_if_enough(clause, prompt, found)
        elif n != "none" and int(n) <= len(NUMBERS):
            told[number(clause.cls)] = (NUMBERS[int(n) - 1],)
    return told


def _told_if_enough(clause: Clause, prompt: Prompt, found: Mapping[str, str]) -> dict[Fact, tuple[str, ...]]:
    """Of a clause whose objects are there, as many as it says or more."""
    told: dict[Fact, tuple[str, ...]] = {}
    for limit in (c.count - 1 for c in prompt.exclude if c.cls == clause.cls):
        n = int(found.get(f"expected at most {some(clause.cls, limit)}", limit))
        if n <= len(NUMBERS):
            told[number(clause.cls)] = (NUMBERS[n - 1],)
    if clause.color is not None:
        seen = found.get(f"expected {some(f'{clause.color} {clause.cls}', clause.count)}")
        told[color(clause.cls)] = (clause.color,) if seen is None else tuple(seen.split(" and "))
        if seen is not None:
            return told  # where it lies was not looked at
    if clause.position is not None:
        relation, anchor = clause.position[0], prompt.include[clause.position[1]].cls
        seen = found.get(f"expected {with_article(clause.cls)} {relation} {with_article(anchor)}", f"it {relation} it")
        words = tuple(word for word in PLACES if f" {word}" in seen)
        if words:  # none where there is no such anchor
            told[place(clause.cls, anchor)] = words
    return told


def ask_facts(examples: Sequence[dict], pool: Pool, labels: Mapping[str, dict], seed: int, n: int) -> list[dict]:
    """`ranking.outcome_examples` with n more questions: about facts, as far as the evaluator's reasons for the texts
    that the picture is labelled for tell them, and else the first ones again.

    Number, colour and place come more often than presence, which is easy.
    """
    rows, asked = iter(examples), []
    for prompt in pool.prompts:
        texts = asked_about(prompt, len(labels[prompt.id]["asked"]) - 1, seed)
        for k, reasons in enumerate(labels[prompt.id]["reasons"]):
            row, rng = next(rows), np.random.default_rng(sample_seed(seed, prompt.id, k, "facts"))
            told: dict[Fact, set[str]] = {}
            for fact, words in (pair for row in zip(texts, reasons, strict=True) for pair in told_by(*row).items()):
                told.setdefault(fact, set()).update(words)
            rank = {fact: rng.random() + 0.5 * (fact.words == YES_NO) for fact in told}
            facts = [(fact.question, str(rng.choice(sorted(told[fact])))) for fact in sorted(told, key=rank.get)]
            more = facts or list(zip(row["questions"], row["answers"], strict=True))
            questions, answers = zip(*(more[i % len(more)] for i in range(n)), strict=True)
            asked.append({**row, "questions": [*row["questions"], *questions], "answers": [*row["answers"], *answers]})
    return asked


def reflect_by_clause(judge: Judge, outcome: Score) -> Score:
    """A yes, or the reasons, about each (picture, prompt), as `reflection.reflect` answers.

    judge: knows the facts. outcome: P(yes) of the outcome question. A picture is wrong if a clause does not hold or if
    the outcome question says so.
    """

    def look(images: np.ndarray, prompts: list[Prompt]) -> list[str]:
        asked = [(i, fact) for i, prompt in enumerate(prompts) for fact in facts_of(prompt)]
        rows, facts = zip(*asked, strict=True)
        known = judge.probabilities(images[list(rows)], [f.question for f in facts], [f.words for f in facts])
        told: list[Told] = [{} for _ in prompts]
        for i, fact, p in zip(rows, facts, known, strict=True):
            told[i][fact] = dict(zip(fact.words, p, strict=True))
        p_yes = outcome(images, prompts)
        found = [reasons(*row, not (p or 0.0) >= 0.5) for *row, p in zip(prompts, told, p_yes, strict=True)]
        return [", ".join(of) or "yes" for of in found]

    return look

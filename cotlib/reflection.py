"""PARM++: say what is wrong with the chosen picture, correct it, choose again (Sec. 5, arXiv:2501.13926).

After best-of-N' the judge is asked whether the picture is right, and what is wrong if not. On a "yes" the search is
over. Otherwise the generator decodes new candidates from the prompt, the picture and the reason (`correction.py`), and
they go through PARM again; at most three times. None of this was released; the question is
`judge.reflection_question`, and reasons are the evaluator's own in words ("expected 2 dogs, found 3"), where the paper
has GPT-4o write them.

A new picture is kept if it is called right or has a higher P(yes) of the outcome question, `keep="best"`. The paper
does not say which is kept; `keep="last"` takes the last one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .correction import Note
from .judge import Judge, reflection_question
from .prompts import Prompt
from .search import Paint, Pool, score_pool
from .seeds import sample_seed
from .store import Ledger

ROUNDS = 3
KEEPS = ("best", "last")
WRONG_SHARE = 0.8  # of the reflections that the judge learns from, as in the paper
CLAUSE = re.compile(r",\s*(?=expected\b)")  # between two faults of one answer

Look = Callable[[np.ndarray, list[Prompt]], list]  # pictures and prompts -> one answer each


# --- Answers in words -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reflection:
    """What an answer says."""

    right: bool
    faults: tuple[str, ...] = ()  # "expected 2 dogs, found 3"; empty where right, or where nothing can be read

    @property
    def reasons(self) -> str:
        return ", ".join(self.faults)


def read(answer: str) -> Reflection:
    """An answer in words. One that begins with yes is a yes, whatever it goes on to explain; any other is a no, and one
    fault if it is not in the evaluator's words."""
    text = re.sub(r"\s+([,.])", r"\1", answer.strip())
    if re.match(r"yes\b", text, re.IGNORECASE):
        return Reflection(True)
    text = re.sub(r"^no\b[\s,.]*", "", text, flags=re.IGNORECASE).strip()
    return Reflection(False, tuple(part.strip() for part in CLAUSE.split(text) if part.strip()))


def in_words(reflection: Reflection) -> str:
    if reflection.right:
        return "The image matches the prompt."
    return f"The image does not match the prompt: {reflection.reasons or 'no reason given'}."


def reflect(judge: Judge, batch_size: int = 64) -> Look:
    """The judge's answer to the reflection question about each (picture, prompt)."""

    def look(images: np.ndarray, prompts: list[Prompt]) -> list[str]:
        said = []
        for start in range(0, len(images), batch_size):
            asked = [reflection_question(p.text) for p in prompts[start : start + batch_size]]
            said += judge.say(images[start : start + batch_size], asked)
        return said

    return look


def agreement(said: Sequence[str], true: Sequence[Sequence[str]]) -> dict[str, int]:
    """Of wrong pictures: "stated" faults, how many of them are "exact" the evaluator's, and how many name the right
    "clause" at least, whatever they say was found; "missed": wrong pictures that were called right."""
    count: Counter[str] = Counter(stated=0, exact=0, clause=0, missed=0)
    for answer, reasons in zip(said, true, strict=True):
        reflection = read(answer)
        count["missed"] += reflection.right
        expected = {reason.split(", found")[0] for reason in reasons}
        for fault in reflection.faults:
            count["stated"] += 1
            count["exact"] += fault in reasons
            count["clause"] += fault.split(", found")[0] in expected
    return dict(count)


# --- What the judge learns from -----------------------------------------------------------------------------------


def reflection_examples(
    pool: Pool, labels: Mapping[str, dict], question: Callable[[str], str], seed: int
) -> list[dict[str, Any]]:
    """One example a picture in the form of `ranking.outcome_examples`: first `question` about its own prompt, yes or
    no, then a reflection for as many texts as it is labelled for, one in five about a text it is right for.

    Where a picture is right for none (or wrong for none) of its texts, all are of the other kind.
    """
    Q = max(len(label["asked"]) for label in labels.values())
    examples = []
    for prompt in pool.prompts:
        label = labels[prompt.id]
        for k, codes in enumerate(pool.codes[prompt.id].tolist()):
            rng = np.random.default_rng(sample_seed(seed, prompt.id, k, "reflections"))
            kinds = {kind: np.flatnonzero(np.array(label["right"][k]) == kind) for kind in (False, True)}
            asked = []
            for _ in range(Q):
                kind = bool(rng.random() >= WRONG_SHARE)
                of_kind = kinds[kind] if len(kinds[kind]) else kinds[not kind]
                asked.append(int(of_kind[rng.integers(len(of_kind))]))
            says = ["yes" if label["right"][k][q] else ", ".join(label["reasons"][k][q]) for q in asked]
            examples.append(
                {
                    "task": prompt.task,
                    "codes": codes,
                    "questions": [question(prompt.text), *(reflection_question(label["asked"][q]) for q in asked)],
                    "answers": ["yes" if label["right"][k][0] else "no", *says],
                }
            )
    return examples


# --- Rounds -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Round:
    """Where the prompts stand after a round: the picture that is offered, and what the judge says of it."""

    codes: Mapping[str, torch.Tensor]  # int64 [L] by prompt id
    said: Mapping[str, Reflection]
    p_yes: Mapping[str, float | None]  # of the outcome question
    token_steps: Mapping[str, int]  # of the generator, this round alone; 0 where nothing was corrected
    judge_calls: Mapping[str, int]

    def open(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Those whose picture was not called right."""
        return [p for p in prompts if not self.said[p.id].right]


Correct = Callable[[list[Prompt], Mapping[str, Note], int], Mapping[str, Mapping[str, Any]]]


def rounds(
    prompts: Sequence[Prompt],
    first: Mapping[str, Mapping[str, Any]],
    look: Look,
    outcome: Look,
    correct: Correct,
    paint: Paint,
    ledger: Callable[[str, int], Ledger],
    n_rounds: int = ROUNDS,
    keep: str = "best",
) -> list[Round]:
    """The first choice and up to `n_rounds` corrections of it, fewer where every picture is called right.

    first: records of `parm.search` or `parm.replay` by prompt id ("codes", "token_steps", "judge_calls"). correct:
    prompts, the note on each and the round, 1 the first, to such records. ledger: of a kind of answer and a round.
    Raises ValueError for a negative number of rounds and for an unknown `keep`.
    """
    if n_rounds < 0:
        raise ValueError(f"reflection: n_rounds must be 0 or more, got {n_rounds}")
    if keep not in KEEPS:
        raise ValueError(f"reflection: unknown keep {keep!r}; known: {', '.join(KEEPS)}")

    def offered(asked: list[Prompt], made: Mapping[str, Mapping[str, Any]], i: int) -> Round:
        codes = {p.id: torch.tensor(made[p.id]["codes"]) for p in asked}
        rows = {id: row[None] for id, row in codes.items()}
        said = score_pool(asked, rows, paint, look, ledger("said", i), "said") if asked else {}
        p_yes = score_pool(asked, rows, paint, outcome, ledger("outcome", i), "p_yes") if asked else {}
        return Round(
            codes,
            {id: read(row[0]) for id, row in said.items()},
            {id: row[0] for id, row in p_yes.items()},
            {p.id: made[p.id]["token_steps"] for p in asked},
            {p.id: made[p.id]["judge_calls"] + 2 for p in asked},
        )

    done = [offered(list(prompts), first, 0)]
    for i in range(1, n_rounds + 1):
        now = done[-1]
        asked = now.open(prompts)
        if not asked:
            break
        notes = {p.text: Note(now.codes[p.id], now.said[p.id].reasons) for p in asked}
        done.append(_after(now, offered(asked, correct(asked, notes, i), i), keep))
    return done


def _after(before: Round, new: Round, keep: str) -> Round:
    """The round before, with the corrected pictures where they are taken."""
    taken = {
        id
        for id, p in new.p_yes.items()
        if keep == "last" or new.said[id].right or (p or 0.0) > (before.p_yes[id] or 0.0)
    }

    def merged(name: str) -> dict[str, Any]:
        return {**getattr(before, name), **{id: v for id, v in getattr(new, name).items() if id in taken}}

    nothing = dict.fromkeys(before.codes, 0)
    return Round(
        merged("codes"),
        merged("said"),
        merged("p_yes"),
        {**nothing, **new.token_steps},
        {**nothing, **new.judge_calls},
    )


def confusion(before: Round, after: Round, correct: Sequence[Mapping[str, bool]]) -> dict[str, int]:
    """What a round did, in prompts; correct: by prompt id, of the pictures before and after it.

    "wrong" before it, of them "noticed", of those "mended"; "right" before it, of them "doubted", of those "spoilt".
    """
    was, now = correct
    doubted = {id for id, said in before.said.items() if not said.right}
    return {
        "wrong": sum(not c for c in was.values()),
        "noticed": sum(not was[id] for id in doubted),
        "mended": sum(now[id] and not was[id] for id in was),
        "right": sum(was.values()),
        "doubted": sum(was[id] for id in doubted),
        "spoilt": sum(was[id] and not now[id] for id in was),
    }

"""Verifiers: which judge is asked which question at which steps, and what follows from the answers.

ORM (outcome reward model): the finished picture is asked about once; the candidate with the highest P(yes) is chosen.
PRM (process reward model): the picture of every step is asked about; the continuation with the highest P(yes) is kept
and decoding branches from it (`search.stepwise`). PARM asks three questions of its own (`parm.py`). Sec. 3 and 4 of
arXiv:2501.13926. An answer that is neither yes nor no is unscored (None): it loses to every answer that is, and is
counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .config import suggest
from .errors import CotlibError
from .judge import Judge, Question, clarity_question, outcome_question, potential_question, process_question
from .parm import Parm
from .prompts import Prompt
from .search import Score


@dataclass(frozen=True)
class Verifier:
    """One row of the paper's tables."""

    name: str
    judge: str  # a name of `stages.judge`: "zero-shot", or the fine-tuning it comes from
    question: Callable[[str], Question]  # about a prompt
    every_step: bool  # False: asked about the finished picture only

    def scorer(self, judge: Judge) -> Score:
        """P(yes) to this verifier's question on each picture; None where the judge answers something else."""

        return ask(judge, self.question)


def ask(judge: Judge, question: Callable[[str], Question]) -> Score:
    """P(yes) to a question about each (picture, prompt); None where the judge answers something else."""

    def score(images: np.ndarray, prompts: Sequence[Prompt]) -> list[float | None]:
        answers = judge.p_yes(images, [question(p.text) for p in prompts])
        return [None if np.isnan(p) else p for p in answers.tolist()]

    return score


def remembered(score: Score) -> Score:
    """The same answers; about an equal picture and an equal text nobody is asked twice."""
    known: dict[bytes, Any] = {}

    def answer(images: np.ndarray, prompts: Sequence[Prompt]) -> list[Any]:
        keys = [
            hashlib.sha256(image.tobytes() + p.text.encode()).digest() for image, p in zip(images, prompts, strict=True)
        ]
        new: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            if key not in known:
                new.setdefault(key, i)
        if new:
            rows = list(new.values())
            known.update(zip(new, score(images[rows], [prompts[i] for i in rows]), strict=True))
        return [known[key] for key in keys]

    return answer


VERIFIERS = {
    v.name: v
    for v in (
        Verifier("orm-zero-shot", "zero-shot", outcome_question, every_step=False),
        Verifier("orm", "orm", outcome_question, every_step=False),
        Verifier("prm-zero-shot", "zero-shot", process_question, every_step=True),
        Verifier("prm", "prm", process_question, every_step=True),
        Verifier("parm", "parm", outcome_question, every_step=False),  # its last question; `parm.search` asks all three
        Verifier("parm-clarity", "parm", clarity_question, every_step=True),
        Verifier("parm-potential", "parm", potential_question, every_step=True),
    )
}


PARM_TASKS = ("outcome", "clarity", "potential")
REFLECTING_TASKS = (*PARM_TASKS, "reflection")


def parm_of(judge: Judge, untrained: bool = False) -> Parm:
    """PARM's three answers by a judge. Raises CotlibError for one that was not trained for them, unless `untrained`."""
    known = getattr(judge.model.config, "trained_for", ())
    if not untrained and not set(PARM_TASKS) <= set(known):
        raise CotlibError(
            f"this judge was trained for {', '.join(known) or 'no question of PARM'}, PARM asks about "
            f"{', '.join(PARM_TASKS)}; make one with stages.parm_judge, or pass untrained=True to ask it all the same"
        )
    return Parm(ask(judge, clarity_question), ask(judge, potential_question), ask(judge, outcome_question))


def named(name: str) -> Verifier:
    """Raises ValueError for an unknown name, naming the nearest."""
    if name not in VERIFIERS:
        raise ValueError(f"unknown verifier {name!r}; {suggest(name, VERIFIERS)}")
    return VERIFIERS[name]


def unscored(scores: Sequence[Sequence[float | None]]) -> int:
    """How many candidates were left without a score."""
    return sum(score is None for row in scores for score in row)

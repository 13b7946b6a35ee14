"""Verifiers: which judge is asked which question at which steps, and what follows from the answers.

ORM (outcome reward model): the finished picture is asked about once; the candidate with the highest P(yes) is chosen.
PRM (process reward model): the picture of every step is asked about; the continuation with the highest P(yes) is kept
and decoding branches from it (`search.stepwise`). Sec. 3 of arXiv:2501.13926. An answer that is neither yes nor no is
unscored (None): it loses to every answer that is, and is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .config import suggest
from .judge import Judge, Question, outcome_question, process_question
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

        def score(images: np.ndarray, prompts: Sequence[Prompt]) -> list[float | None]:
            answers = judge.p_yes(images, [self.question(p.text) for p in prompts])
            return [None if np.isnan(p) else p for p in answers.tolist()]

        return score


VERIFIERS = {
    v.name: v
    for v in (
        Verifier("orm-zero-shot", "zero-shot", outcome_question, every_step=False),
        Verifier("orm", "orm", outcome_question, every_step=False),
        Verifier("prm-zero-shot", "zero-shot", process_question, every_step=True),
        Verifier("prm", "prm", process_question, every_step=True),
    )
}


def named(name: str) -> Verifier:
    """Raises ValueError for an unknown name, naming the nearest."""
    if name not in VERIFIERS:
        raise ValueError(f"unknown verifier {name!r}; {suggest(name, VERIFIERS)}")
    return VERIFIERS[name]


def unscored(scores: Sequence[Sequence[float | None]]) -> int:
    """How many candidates were left without a score."""
    return sum(score is None for row in scores for score in row)

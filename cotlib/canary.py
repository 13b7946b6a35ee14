"""A canary: pictures whose answers are known. An evaluator that gets them wrong scores nothing.

A detector on a GPU that its kernels were not built for, or with weights of another network, does not fail: it answers,
and every score is near zero. So it is asked first what everybody knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import DetectorError
from .geneval import Evaluator, Verdict
from .prompts import Prompt


@dataclass(frozen=True)
class Labelled:
    """A picture, a prompt, and whether the one fulfils the other."""

    image: np.ndarray  # uint8 [H, W, 3]
    prompt: Prompt
    correct: bool
    where: str  # a name for messages


def check(evaluator: Evaluator, pictures: Sequence[Labelled], what: str, remedy: str) -> None:
    """Ask the evaluator about every picture. DetectorError unless each answer is right, naming the first wrong one.

    what: the evaluator in words; remedy: what to do about it, both for the message.
    """
    said = [evaluator.evaluate(p.image[None], [p.prompt])[0] for p in pictures]
    wrong = [(p, verdict) for p, verdict in zip(pictures, said, strict=True) if verdict.correct != p.correct]
    if not wrong:
        return
    picture, verdict = wrong[0]
    raise DetectorError(
        f"{what} is wrong about {len(wrong)} of {len(pictures)} pictures whose answers are known. "
        f"{picture.where}, {picture.prompt.text!r}: expected {_words(Verdict(picture.correct, ()))}, "
        f"got {_words(verdict)}. Nothing was scored; {remedy}"
    )


def _words(verdict: Verdict) -> str:
    reasons = f" ({'; '.join(verdict.reasons)})" if verdict.reasons else ""
    return ("right" if verdict.correct else "wrong") + reasons

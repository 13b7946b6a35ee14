"""Questions about scenes and their answers in one word, for the judge to learn from.

Most are asked as the verifiers ask: does the picture show this prompt, yes or no. A few ask for the fact itself (how
many, which colour, where): a picture says more in an answer of many words than of two, and what is hard to see, numbers
and relations, is learnt from those answers much sooner.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np

from ..geneval import NATURAL, relative_position
from ..judge import (
    ARE_IN_IMAGE,
    COLOR,
    COUNT,
    IN_IMAGE,
    PRESENCE,
    RELATIVE_TO,
    WHERE,
    outcome_question,
    process_question,
)
from ..prompts import CLASSES, NUMBER_WORDS, geneval_prompts, plural, with_article
from . import world


@cache
def _evaluation_contents() -> frozenset[str]:
    return frozenset(prompt.text.removeprefix(world.OPENING) for prompt in geneval_prompts())


def unseen(caption: str, scene: world.Scene) -> bool:
    """Whether training may read this caption of a scene: not one of the 553, nor what one of them says."""
    content = caption.removeprefix(world.OPENING).removeprefix(world.OTHER_OPENING)
    return content not in _evaluation_contents() or (scene.kind == "single" and caption.startswith(world.OTHER_OPENING))


def about(scene: world.Scene, rng: np.random.Generator, n: int) -> tuple[list[str], list[str]]:
    """n questions about a scene and their answers, each one word of the judge's vocabulary.

    Two of three are whole prompts, half of them wrong in one clause, in the words of the outcome question or, every
    third, of the process question. The others are about presence, number, colour and place.
    """
    asked, answers = [], []
    while len(asked) < n:
        made = _whole_prompt(scene, rng) if rng.random() < 0.64 else _fact(scene, rng)
        if made:
            asked.append(made[0])
            answers.append(made[1])
    return asked, answers


def _whole_prompt(scene: world.Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    yes, of_process = rng.random() < 0.5, rng.random() < 1 / 3
    text = world.describe(scene, rng) if yes else world.misdescribe(scene, rng)
    if scene.kind == "single":
        text = text.replace(world.OPENING, world.OTHER_OPENING)
    if not unseen(text, scene):
        return None
    return (process_question if of_process else outcome_question)(text), "yes" if yes else "no"


def _fact(scene: world.Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    """About presence, number, colour or place; None where the drawn question has no single answer."""
    count, choice = Counter(t.cls for t in scene.things), rng.random()
    thing = scene.things[rng.integers(len(scene.things))]
    if choice < 0.25:
        cls = thing.cls if rng.random() < 0.5 else CLASSES[rng.integers(len(CLASSES))]
        return f"{PRESENCE} {with_article(cls)} {IN_IMAGE}", "yes" if cls in count else "no"
    if choice < 0.5:
        return f"{COUNT} {plural(thing.cls)} {ARE_IN_IMAGE}", NUMBER_WORDS[count[thing.cls]]
    if choice < 0.6:
        color = thing.color or NATURAL
        return (f"{COLOR} {with_article(thing.cls)} {IN_IMAGE}", color) if count[thing.cls] == 1 else None
    other = scene.things[rng.integers(len(scene.things))]
    held = relative_position(thing.box, other.box)
    if len(held) != 1 or count[thing.cls] != 1 or count[other.cls] != 1:
        return None
    return f"{WHERE} {with_article(thing.cls)} {RELATIVE_TO} {with_article(other.cls)} {IN_IMAGE}", held.pop()

"""A dozen scenes of every task with what is true of them, and what is nearly true and wrong."""

from __future__ import annotations

from functools import cache

from ..canary import Labelled
from ..prompts import Clause, compose
from . import world

SEED = 7
# (what is drawn, what is asked as well and does not hold): each pair differs in one fact.
PAIRS = (
    ((Clause("dog"),), (Clause("cat"),)),
    ((Clause("bicycle"),), (Clause("pizza"),)),
    ((Clause("elephant"), Clause("cup")), (Clause("elephant"), Clause("clock"))),
    ((Clause("car"), Clause("banana")), (Clause("bus"), Clause("banana"))),
    ((Clause("apple", 3),), (Clause("apple", 2),)),
    ((Clause("bear", 2),), (Clause("bear", 3),)),
    ((Clause("car", color="blue"),), (Clause("car", color="red"),)),
    ((Clause("chair", color="green"),), (Clause("chair", color="pink"),)),
    ((Clause("bus"), Clause("cow", position=("left of", 0))), (Clause("bus"), Clause("cow", position=("right of", 0)))),
    ((Clause("bed"), Clause("kite", position=("above", 0))), (Clause("bed"), Clause("kite", position=("below", 0)))),
    (
        (Clause("vase", color="red"), Clause("horse", color="blue")),
        (Clause("vase", color="blue"), Clause("horse", color="red")),
    ),
    (
        (Clause("boat", color="yellow"), Clause("clock", color="purple")),
        (Clause("boat", color="purple"), Clause("clock", color="yellow")),
    ),
)


@cache
def labelled_scenes() -> tuple[Labelled, ...]:
    """Every scene twice: with the prompt it was drawn for, and with the one that it does not fulfil."""
    labelled = []
    for i, (drawn, other) in enumerate(PAIRS):
        prompt = compose(f"canary-{i}", drawn)
        image, where = world.scene_of(prompt, SEED).image, f"pocket scene {i}"
        labelled += [Labelled(image, prompt, True, where), Labelled(image, compose(prompt.id, other), False, where)]
    return tuple(labelled)

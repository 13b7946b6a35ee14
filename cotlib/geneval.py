"""GenEval's rules, for any detector: which clauses of a prompt a picture fulfils, and why not (arXiv:2310.11513).

The rules are those of evaluate_images.py (Dhruba Ghosh, Hanna Hajishirzi, Ludwig Schmidt; MIT licence,
github.com/djghosh13/geneval at af4902f), written anew:
a detection counts above a score of 0.3, of 0.9 in counting prompts (strictly above); at most 16 objects a class, the
most confident first; a clause wants its count of objects, then their colours, then their positions; the overall score
is the unweighted mean of the six tasks' image accuracies. Overlapping boxes are kept: upstream's suppression is off
by default.

Differences from upstream
1. Of equal scores the first detection comes first; upstream leaves their order to numpy's sort.
2. The reasons are other words; their number and cause are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .prompts import CLASSES, COLORS, RELATIONS, TASKS, Clause, Prompt, check_known, plural, with_article

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
MAX_PER_CLASS = 16
POSITION_SLACK = 0.1  # of the two objects' size, taken off the distance between their centres
DIRECTION = 0.5  # of a unit vector: within 60 degrees of the axis

NATURAL = "natural"  # what a classifier may answer beside GenEval's ten: nobody painted this
# What reasons say beside the words of prompts.
TOO_CLOSE = "too close to tell"
REASON_WORDS = (
    *("expected", "found", "none", "at most", TOO_CLOSE, "it", "them", "no such", ",", NATURAL),
    *map(str, range(1, MAX_PER_CLASS + 1)),
)

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in px


@dataclass(frozen=True)
class Detection:
    """One object that a detector found. Raises ValueError for an unknown class and for an impossible score or box."""

    cls: str
    score: float
    box: Box

    def __post_init__(self) -> None:
        check_known(self.cls, CLASSES, "class")
        x0, y0, x1, y1 = self.box
        if not all(map(math.isfinite, (self.score, *self.box))) or x1 < x0 or y1 < y0:
            raise ValueError(
                f"detection of {self.cls!r}: expected a finite score and x0 <= x1, y0 <= y1 in px, "
                f"got score {self.score}, box {self.box}"
            )


@dataclass(frozen=True)
class Verdict:
    correct: bool
    reasons: tuple[str, ...]  # in words, one per clause that does not hold; empty where correct


ColorOf = Callable[[Detection], str]


class Evaluator(Protocol):
    """Any detector with a colour classifier that can apply the rules. Images are uint8 [B, H, W, 3]."""

    def detect(self, images: np.ndarray) -> list[list[Detection]]: ...

    def evaluate(self, images: np.ndarray, prompts: Sequence[Prompt]) -> list[Verdict]: ...


def runs(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of equal pictures in a row: the index of the first of each, and which run each picture is in [B]."""
    is_first = np.array([i == 0 or not np.array_equal(images[i], images[i - 1]) for i in range(len(images))], bool)
    return np.flatnonzero(is_first), np.cumsum(is_first) - 1


def evaluate(prompt: Prompt, detections: Sequence[Detection], color_of: ColorOf) -> Verdict:
    """Apply the rules to one picture's detections. `color_of` is asked only about objects whose colour matters.

    Raises ValueError where `color_of` answers anything but one of the ten colours.
    """
    objects = _confident(detections, COUNTING_THRESHOLD if prompt.task == "counting" else THRESHOLD)
    reasons: list[str] = []
    matched: list[list[Detection] | None] = []  # per include clause, the objects that fulfil it
    for clause in prompt.include:
        found = objects.get(clause.cls, [])[: clause.count]
        reason = _count_reason(clause, found) or _color_reason(clause, found, color_of)
        if reason is None and clause.position is not None:
            reason = _position_reason(clause, found, matched, prompt)
        if reason is not None:
            reasons.append(reason)
        matched.append(found if reason is None else None)
    for clause in prompt.exclude:
        n = len(objects.get(clause.cls, []))
        if n >= clause.count:
            allowed = f"at most {some(clause.cls, clause.count - 1)}" if clause.count > 1 else f"no {clause.cls}"
            reasons.append(f"expected {allowed}, found {n}")
    return Verdict(not reasons, tuple(reasons))


def _confident(detections: Sequence[Detection], threshold: float) -> dict[str, list[Detection]]:
    """Per class, the detections above the threshold, most confident first, at most 16."""
    objects: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        if detection.score > threshold and len(objects.setdefault(detection.cls, [])) < MAX_PER_CLASS:
            objects[detection.cls].append(detection)
    return objects


def some(name: str, n: int) -> str:
    return with_article(name) if n == 1 else f"{n} {plural(name)}"


def _count_reason(clause: Clause, found: list[Detection]) -> str | None:
    if len(found) >= clause.count:
        return None
    return f"expected {some(clause.cls, clause.count)}, found {len(found) or 'none'}"


def _color_reason(clause: Clause, found: list[Detection], color_of: ColorOf) -> str | None:
    if clause.color is None:
        return None
    colors = [check_known(color_of(detection), (*COLORS, NATURAL), "colour") for detection in found]
    if colors.count(clause.color) >= clause.count:
        return None
    return f"expected {some(f'{clause.color} {clause.cls}', clause.count)}, found {' and '.join(colors)}"


def _position_reason(
    clause: Clause, found: list[Detection], matched: list[list[Detection] | None], prompt: Prompt
) -> str | None:
    relation, target = clause.position
    anchor = prompt.include[target].cls
    expected = f"expected {with_article(clause.cls)} {relation} {with_article(anchor)}"
    if matched[target] is None:
        return f"{expected}, found no such {anchor}"
    for detection in found:
        for other in matched[target]:
            relations = relative_position(detection.box, other.box)
            if relation not in relations:
                seen = " and ".join(r for r in RELATIONS if r in relations)
                return f"{expected}, found it {seen} it" if seen else f"{expected}, found them {TOO_CLOSE}"
    return None


def relative_position(a: Box, b: Box) -> set[str]:
    """How a lies relative to b; y grows downwards.

    A tenth of both sizes is taken off the distance on each axis, but not off the length it is divided by. So of two
    equal boxes side by side, |dx| must exceed 0.4 widths, and about a diagonal two relations hold.
    """
    (ax, ay, aw, ah), (bx, by, bw, bh) = _center(a), _center(b)
    dx, dy = ax - bx, ay - by
    x = math.copysign(max(abs(dx) - POSITION_SLACK * (aw + bw), 0.0), dx)
    y = math.copysign(max(abs(dy) - POSITION_SLACK * (ah + bh), 0.0), dy)
    if abs(x) < 1e-3 and abs(y) < 1e-3:
        return set()
    distance = math.hypot(dx, dy)  # the whole distance, not the shortened one: as upstream
    x, y = x / distance, y / distance
    held = {"left of": x < -DIRECTION, "right of": x > DIRECTION, "above": y < -DIRECTION, "below": y > DIRECTION}
    return {relation for relation, holds in held.items() if holds}


def _center(box: Box) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box
    return (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0


# --- Summary ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    per_task: dict[str, float]  # accuracy over the task's scored images
    overall: float  # unweighted mean of the six
    images: float  # fraction of scored images that are correct
    prompts_any: float  # fraction of prompts with at least one correct image
    n_images: int  # scored
    n_prompts: int  # with at least one scored image
    n_unscored: int  # images without a verdict (None): in no mean above, to be shown beside them


def accuracy_by_task(prompts: Sequence[Prompt], correct: Mapping[str, Sequence[bool | None]]) -> Summary:
    """GenEval's summary of per-image verdicts by prompt id; prompts that are not in `correct` do not count.

    Raises ValueError where a task has no scored image, and for ids that are not among the prompts.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    if strangers := [id for id in correct if id not in by_id]:
        raise ValueError(
            f"verdicts of {len(strangers)} unknown prompts, the first {strangers[0]!r}; pass their prompts"
        )
    scored = {id: [bool(v) for v in verdicts if v is not None] for id, verdicts in correct.items()}
    scored = {id: verdicts for id, verdicts in scored.items() if verdicts}
    of_task: dict[str, list[bool]] = {task: [] for task in TASKS}
    for id, verdicts in scored.items():
        of_task[by_id[id].task] += verdicts
    if empty := [task for task, verdicts in of_task.items() if not verdicts]:
        raise ValueError(f"no scored image of task {', '.join(empty)}: the overall score is the mean of all six tasks")
    per_task = {task: float(np.mean(verdicts)) for task, verdicts in of_task.items()}
    n_images = sum(map(len, scored.values()))
    return Summary(
        per_task=per_task,
        overall=float(np.mean(list(per_task.values()))),
        images=sum(map(sum, scored.values())) / n_images,
        prompts_any=float(np.mean([any(verdicts) for verdicts in scored.values()])),
        n_images=n_images,
        n_prompts=len(scored),
        n_unscored=sum(map(len, correct.values())) - n_images,
    )

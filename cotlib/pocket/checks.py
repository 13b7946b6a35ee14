"""Instruments measured against ground truth, which the pocket world knows: every scene says what it holds.

Scenes are made for the evaluation prompts, several of each, with seeds of their own that no training sees. An
evaluator's verdict is compared with what GenEval's rules say of the scene itself (`truth_of`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from ..geneval import NATURAL, Detection, Evaluator, Verdict, evaluate
from ..prompts import CLASSES, COLORS, RELATIONS, Clause, Prompt, compose, geneval_prompts
from ..seeds import sample_seed
from . import world

Distort = Callable[[np.ndarray], np.ndarray]  # uint8 [B, H, W, 3] -> the same


@dataclass(frozen=True)
class Case:
    """A scene, the prompt it is asked about, and whether it fulfils it."""

    scene: world.Scene
    prompt: Prompt
    truth: bool


def pictures(scenes: Sequence[world.Scene]) -> np.ndarray:
    """uint8 [B, SIZE, SIZE, 3]."""
    return np.stack([scene.image for scene in scenes])


def truth_of(scene: world.Scene, prompt: Prompt) -> bool:
    """What GenEval's rules say of the scene itself, with a perfect detector."""
    things = {Detection(t.cls, 1.0, t.box): t.color or NATURAL for t in scene.things}
    return evaluate(prompt, list(things), things.__getitem__).correct


# --- Questions with known answers ---------------------------------------------------------------------------------


def mixed_cases(n: int, seed: int = 0) -> list[Case]:
    """n scenes of the evaluation prompts in turn; every other one is asked another prompt of its task.

    Raises ValueError for fewer scenes than prompts, as these come task by task.
    """
    prompts, cases = geneval_prompts(), []
    _check_enough(n, len(prompts))
    for i in range(n):
        own = prompts[i % len(prompts)]
        scene = world.scene_of(own, sample_seed(seed, own.id, i, "agreement"))
        rng = np.random.default_rng(sample_seed(seed, own.id, i, "others"))
        asked = own if i % 2 == 0 else shuffled_prompts([own], rng)[0]  # 553 is odd: another time the other way round
        cases.append(Case(scene, asked, truth_of(scene, asked)))
    return cases


def violating_cases(n: int, seed: int = 0) -> list[Case]:
    """n scenes, each of an evaluation prompt with one clause changed, asked about the prompt as it was: all wrong.

    Raises ValueError for fewer scenes than prompts, as these come task by task.
    """
    _check_enough(n, len(geneval_prompts()))

    def endless():
        prompts = geneval_prompts()
        i = 0
        while True:
            prompt = prompts[i % len(prompts)]
            rng = np.random.default_rng(sample_seed(seed, prompt.id, i, "violation"))
            drawn = world.scene_of(violate(prompt, rng), int(rng.integers(2**62)))
            if not truth_of(drawn, prompt):  # an added object may by chance fulfil the clause that was changed
                yield Case(drawn, prompt, False)
            i += 1

    return list(islice(endless(), n))


def _check_enough(n: int, prompts: int) -> None:
    if n < prompts:
        raise ValueError(
            f"expected at least one scene of each of the {prompts} prompts, got n = {n}; ask for {prompts}"
        )


def violate(prompt: Prompt, rng: np.random.Generator) -> Prompt:
    """The prompt with one of its clauses changed: another class, colour, relation, or one object more or fewer."""
    clauses = list(prompt.include)
    i = int(rng.integers(len(clauses)))
    clause, present = clauses[i], {c.cls for c in clauses}
    changes: list[Clause] = [replace(clause, cls=_other(rng, CLASSES, present | {world.UNTINTED}))]
    if clause.color:
        changes.append(replace(clause, color=_other(rng, COLORS, {c.color for c in clauses})))
    if clause.position:
        opposite = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))
        changes.append(replace(clause, position=(opposite[clause.position[0]], clause.position[1])))
    if prompt.task == "counting":
        changes = [replace(clause, count=n) for n in (clause.count - 1, clause.count + 1) if n <= MOST]
    clauses[i] = changes[int(rng.integers(len(changes)))]
    return compose(prompt.id, tuple(clauses))


MOST = 4  # objects of 3 x 3 cells that always find room


def shuffled_prompts(prompts: Sequence[Prompt], rng: np.random.Generator) -> list[Prompt]:
    """For each prompt another one of the same task: a picture of the one is almost always wrong for the other."""
    out = []
    for prompt in prompts:
        same = [p for p in geneval_prompts() if p.task == prompt.task and p.include != prompt.include]
        out.append(same[rng.integers(len(same))])
    return out


def _other(rng: np.random.Generator, options: Sequence[str], than: set) -> str:
    left = [option for option in options if option not in than]
    return left[int(rng.integers(len(left)))]


# --- Verdicts compared ----------------------------------------------------------------------------------------------


def verdicts_on(evaluator: Evaluator, cases: Sequence[Case], distort: Distort | None = None) -> list[Verdict]:
    """What the evaluator says of every case, its picture distorted first."""
    said = []
    for start in range(0, len(cases), 256):
        chunk = cases[start : start + 256]
        images = pictures([case.scene for case in chunk])
        said += evaluator.evaluate(distort(images) if distort else images, [case.prompt for case in chunk])
    return said


def agreement(cases: Sequence[Case], said: Sequence[Verdict]) -> dict[str, float]:
    """Fraction of verdicts that equal the truth: of each task, and "overall" over all cases."""
    right: dict[str, list[bool]] = {}
    for case, verdict in zip(cases, said, strict=True):
        right.setdefault(case.prompt.task, []).append(verdict.correct == case.truth)
    by_task = {task: float(np.mean(values)) for task, values in right.items()}
    return {**by_task, "overall": float(np.mean([v for values in right.values() for v in values]))}


def damaged(images: np.ndarray, psnr_db: float = 26.0, seed: int = 0) -> np.ndarray:
    """Blur and noise, scaled so that every picture stands exactly `psnr_db` from its original (before rounding).

    What happens to a picture depends on it alone, so that one that was misjudged can be shown as it was judged.
    """
    seeds = ([seed, zlib.crc32(image.tobytes())] for image in images)
    noise = np.stack([np.random.default_rng(s).standard_normal(images.shape[1:], np.float32) for s in seeds])
    sharp = images.astype(np.float32)
    soft = sum(np.roll(sharp, shift, (1, 2)) for shift in ((0, 0), (1, 0), (0, 1), (1, 1))) / 4
    error = soft - sharp + 12 * noise
    wanted = 255 * 10 ** (-psnr_db / 20)
    scale = wanted / np.sqrt(np.square(error).mean((1, 2, 3), keepdims=True))
    return (sharp + scale * error + 0.5).clip(0, 255).astype(np.uint8)

"""The 553 GenEval prompts with their metadata, and training prompts made by the same rules.

GenEval (Dhruba Ghosh, Hanna Hajishirzi, Ludwig Schmidt, arXiv:2310.11513; MIT licence,
github.com/djghosh13/geneval at af4902f) draws its prompts from six templates with numpy's generator at seed 43. This is
our own implementation of those rules; its output equals the official `evaluation_metadata.jsonl` byte for byte, which
a digest checks. Other seeds give training prompts, and `free_prompts` combinations that no template makes; any overlap
with the 553 is removed from both.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CorruptError
from .store import atomic_write

CLASSES = tuple(
    name.strip()
    for name in """
    person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|stop sign|parking meter|
    bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|backpack|umbrella|handbag|tie|suitcase|frisbee|skis|
    snowboard|sports ball|kite|baseball bat|baseball glove|skateboard|surfboard|tennis racket|bottle|wine glass|cup|
    fork|knife|spoon|bowl|banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|
    potted plant|bed|dining table|toilet|tv|laptop|computer mouse|tv remote|computer keyboard|cell phone|microwave|oven|
    toaster|sink|refrigerator|book|clock|vase|scissors|teddy bear|hair drier|toothbrush""".split("|")
)
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

EVALUATION_SEED = 43
EVALUATION_DIGEST = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"


def with_article(name: str) -> str:
    """GenEval's article goes by the first letter: "an orange orange"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plural(name: str) -> str:
    """GenEval's plural, quirks included: "two sheeps", "two toothbrushs"."""
    return f"{name}es" if name.endswith("s") else f"{name}s"


def check_known(value: Any, known: Sequence[str], what: str) -> str:
    """The value if it is known. Otherwise a ValueError that names the nearest, names that contain the word first."""
    if value in known:
        return value
    word = str(value)
    containing = [name for name in known if word.strip() and word.lower() in name]
    near = (containing or difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.0))[0]
    listing = ", ".join(known) if len(known) <= 10 else f"{len(known)}, see cotlib.prompts.CLASSES"
    raise ValueError(f"unknown {what} {value!r}; nearest known: {near!r} (known: {listing})")


def _check_whole(value: Any, least: int, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{what} must be a whole number of at least {least}, got {value!r}")
    return value


# --- Records ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clause:
    """At least `count` objects of class `cls`, in `color`, standing in relation to the objects of an earlier clause.

    Raises ValueError for an unknown class, colour or relation, naming the nearest known one.
    """

    cls: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None  # (relation, index of an earlier include clause)

    def __post_init__(self) -> None:
        check_known(self.cls, CLASSES, "class")
        _check_whole(self.count, 1, f"count of {self.cls!r}")
        if self.color is not None:
            check_known(self.color, COLORS, "colour")
        if self.position is not None:
            relation, target = self.position
            check_known(relation, RELATIONS, "relation")
            _check_whole(target, 0, f"position target of {self.cls!r}")

    def metadata(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"class": self.cls, "count": self.count}
        if self.color is not None:
            fields["color"] = self.color
        if self.position is not None:
            fields["position"] = list(self.position)
        return fields

    @classmethod
    def from_metadata(cls, fields: dict[str, Any]) -> Clause:
        _check_keys(fields, ("class", "count"), ("color", "position"), "clause")
        position = fields.get("position")
        if position is not None:
            if not isinstance(position, (list, tuple)) or len(position) != 2:
                raise ValueError(f'position must be [relation, index], e.g. ["left of", 0], got {position!r}')
            position = tuple(position)
        return cls(fields["class"], fields["count"], fields.get("color"), position)


@dataclass(frozen=True)
class Prompt:
    """One prompt: every clause of `include` must hold; an `exclude` clause must find fewer than its count."""

    id: str
    text: str
    task: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise ValueError(f"prompt {self.id}: expected some words, got {self.text!r}")
        check_known(self.task, TASKS, "task")
        if not self.include:
            raise ValueError(f"prompt {self.id}: include is empty; name at least one object")
        for i, clause in enumerate(self.include):
            if clause.position is not None and clause.position[1] >= i:
                raise ValueError(
                    f"prompt {self.id}: clause {i} ({clause.cls}) stands relative to clause {clause.position[1]}; "
                    "the anchor must come before it in include"
                )
        for clause in self.exclude:
            if clause.color is not None or clause.position is not None:
                raise ValueError(f"prompt {self.id}: exclude counts objects; drop colour and position of {clause.cls}")

    def metadata(self) -> dict[str, Any]:
        """The official form, keys in the official order."""
        fields: dict[str, Any] = {"tag": self.task, "include": [c.metadata() for c in self.include]}
        if self.exclude:
            fields["exclude"] = [c.metadata() for c in self.exclude]
        return {**fields, "prompt": self.text}

    @classmethod
    def from_metadata(cls, fields: dict[str, Any], id: str) -> Prompt:
        """Raises ValueError for missing and unknown keys and for unknown values."""
        _check_keys(fields, ("tag", "include", "prompt"), ("exclude",), f"prompt {id}")
        clauses: dict[str, tuple[Clause, ...]] = {}
        for key in ("include", "exclude"):
            rows = fields.get(key, [])
            if not isinstance(rows, list):
                raise ValueError(f"prompt {id}: {key} must be a list of clauses, got {rows!r}")
            clauses[key] = tuple(Clause.from_metadata(row) for row in rows)
        return cls(id, fields["prompt"], fields["tag"], **clauses)


def _check_keys(fields: Any, required: Sequence[str], optional: Sequence[str], where: str) -> None:
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: expected an object with {', '.join(required)}, got {fields!r}")
    if missing := [key for key in required if key not in fields]:
        raise ValueError(f"{where}: missing {', '.join(missing)}; expected {', '.join(required)}")
    for key in fields:
        check_known(key, (*required, *optional), f"key in {where}:")


# --- From clauses to a prompt -----------------------------------------------------------------------------------


def phrase(clause: Clause) -> str:
    """Clause(dog) -> "a dog"; Clause(dog, 3, red) -> "three red dogs"."""
    color = f"{clause.color} " if clause.color else ""
    if clause.count == 1:
        return with_article(f"{color}{clause.cls}")
    number = NUMBER_WORDS[clause.count] if clause.count < len(NUMBER_WORDS) else str(clause.count)
    return f"{number} {color}{plural(clause.cls)}"


def compose(id: str, include: tuple[Clause, ...]) -> Prompt:
    """The prompt that says these clauses: GenEval's wording, the nearest of the six tasks, exact counts above one."""
    positioned = [clause for clause in include if clause.position is not None]
    if positioned and (len(include) != 2 or include[1].position is None):
        raise ValueError(
            f"prompt {id}: a relation is between two clauses, the anchor first; got {len(include)} clauses"
        )
    if positioned:
        anchor, subject = include
        text = f"{phrase(subject)} {subject.position[0]} {phrase(anchor)}"
    else:
        text = " and ".join(phrase(clause) for clause in include)
    exclude = tuple(Clause(clause.cls, clause.count + 1) for clause in include if clause.count > 1)
    return Prompt(id, f"a photo of {text}", _task(include), include, exclude)


def _task(include: tuple[Clause, ...]) -> str:
    is_colored = any(clause.color for clause in include)
    if any(clause.position for clause in include):
        return "position"
    if any(clause.count > 1 for clause in include):
        return "counting"
    if len(include) == 1:
        return "colors" if is_colored else "single_object"
    return "color_attr" if is_colored else "two_object"


# --- GenEval's templates, each taking numpy's numbers in the official order -------------------------------------

Template = Callable[[np.random.Generator], tuple[Clause, ...]]
TINTABLE = CLASSES[1:]  # GenEval steps over `person`, the first class, where it gives a colour


def _pair(rng: np.random.Generator, names: Sequence[str]) -> tuple[str, str]:
    a, b = rng.choice(len(names), size=2, replace=False)
    return names[a], names[b]


def _two_object(rng: np.random.Generator) -> tuple[Clause, ...]:
    a, b = _pair(rng, CLASSES)
    return Clause(a), Clause(b)


def _counting(rng: np.random.Generator) -> tuple[Clause, ...]:
    name = CLASSES[rng.choice(len(CLASSES))]
    return (Clause(name, int(rng.integers(2, 4, endpoint=True))),)


def _colors(rng: np.random.Generator) -> tuple[Clause, ...]:
    name = TINTABLE[rng.choice(len(TINTABLE))]
    return (Clause(name, color=COLORS[rng.choice(len(COLORS))]),)


def _position(rng: np.random.Generator) -> tuple[Clause, ...]:
    subject, anchor = _pair(rng, CLASSES)
    relation = RELATIONS[rng.choice(len(RELATIONS))]
    return Clause(anchor), Clause(subject, position=(relation, 0))


def _color_attr(rng: np.random.Generator) -> tuple[Clause, ...]:
    a, b = _pair(rng, TINTABLE)
    color_a, color_b = _pair(rng, COLORS)
    return Clause(a, color=color_a), Clause(b, color=color_b)


TEMPLATES: tuple[Template, ...] = (_two_object, _counting, _colors, _position, _color_attr)


def _suite(seed: int, n_per_task: int) -> list[tuple[Clause, ...]]:
    """GenEval's suite at a seed: every class once, then n of each template, duplicates dropped."""
    rng = np.random.default_rng(_check_whole(seed, 0, "seed"))
    order = rng.choice(len(CLASSES), size=len(CLASSES), replace=False)
    drawn = [(Clause(CLASSES[i]),) for i in order]
    for template in TEMPLATES:
        drawn += [template(rng) for _ in range(n_per_task)]
    return list(dict.fromkeys(drawn))


@cache
def geneval_prompts() -> tuple[Prompt, ...]:
    """The 553 evaluation prompts in official order, ids "00000".."00552".

    Raises CorruptError if numpy's random stream should ever change.
    """
    prompts = tuple(compose(f"{i:05}", include) for i, include in enumerate(_suite(EVALUATION_SEED, 100)))
    if digest(prompts) != EVALUATION_DIGEST:
        raise CorruptError(
            f"the GenEval prompts came out with digest {digest(prompts)[:12]}, expected {EVALUATION_DIGEST[:12]}: "
            f"numpy {np.__version__} draws other numbers; install the numpy of requirements.lock"
        )
    return prompts


@cache
def evaluation_texts() -> frozenset[str]:
    """The texts that nothing may be trained on."""
    return frozenset(prompt.text for prompt in geneval_prompts())


SUITE = 60  # prompts of each template in one suite of training prompts
APART = 100_000  # between the seeds of the suites of one seed


def training_prompts(seed: int, n_per_task: int = 100) -> tuple[Prompt, ...]:
    """GenEval's suite at other seeds without any text of the 553, at most n of each task; fewer are among the first of
    more, so that what was made for some of them serves when there are more.

    They are drawn suite by suite, `SUITE` a template. The 80 single-object texts are all among the 553, so none is
    left; duplicates fall out too, so a task may hold fewer than n. Raises ValueError for the evaluation seed.
    """
    if seed == EVALUATION_SEED:
        raise ValueError(f"seed {seed} makes the evaluation prompts; choose another seed for training prompts")
    _check_whole(seed, 0, "seed")
    found: dict[str, Prompt] = {}
    drawn = 0  # texts so far, those that fall out among them: the number in the next id
    for before in range(0, _check_whole(n_per_task, 1, "prompts per task"), SUITE):
        suite = _suite(seed + before // SUITE * APART, SUITE)
        prompts = (compose(f"train-{seed}-{drawn + i}", include) for i, include in enumerate(suite))
        new = (prompt for prompt in prompts if prompt.text not in evaluation_texts() and prompt.text not in found)
        found |= {prompt.text: prompt for prompt in take(new, n_per_task - before)}
        drawn += len(suite)
    return tuple(found.values())


# --- Combinations that no template makes ------------------------------------------------------------------------


def _colored_count(rng: np.random.Generator) -> tuple[Clause, ...]:
    (counted,), (colored,) = _counting(rng), _colors(rng)
    return (Clause(colored.cls, counted.count, colored.color),)


def _color_and_count(rng: np.random.Generator) -> tuple[Clause, ...]:
    a, b = _pair(rng, TINTABLE)
    return Clause(a, color=COLORS[rng.choice(len(COLORS))]), Clause(b, int(rng.integers(2, 4, endpoint=True)))


def _colored_position(rng: np.random.Generator) -> tuple[Clause, ...]:
    anchor, subject = _color_attr(rng)
    relation = RELATIONS[rng.choice(len(RELATIONS))]
    return anchor, Clause(subject.cls, color=subject.color, position=(relation, 0))


FREE_SHAPES: tuple[Template, ...] = (_colored_count, _color_and_count, _colored_position)


def free_prompts(seed: int, n: int) -> tuple[Prompt, ...]:
    """n different prompts, ids free-<seed>-<i>, of three shapes:

    "three red dogs", "a red dog and two cats", "a blue car above a pink bird".
    A smaller n is a prefix of a larger one. No text of the 553 is among them.
    """
    rng = np.random.default_rng(_check_whole(seed, 0, "seed"))
    _check_whole(n, 1, "number of prompts")
    prompts: dict[str, Prompt] = {}  # by text
    while len(prompts) < n:
        include = FREE_SHAPES[rng.choice(len(FREE_SHAPES))](rng)
        prompt = compose(f"free-{seed}-{len(prompts)}", include)
        if prompt.text not in evaluation_texts():
            prompts.setdefault(prompt.text, prompt)
    return tuple(prompts.values())


def take(prompts: Iterable[Prompt], n_per_task: int | None) -> tuple[Prompt, ...]:
    """The first n prompts of each task, order kept; None keeps all. Raises ValueError for n < 1."""
    if n_per_task is None:
        return tuple(prompts)
    left = dict.fromkeys(TASKS, _check_whole(n_per_task, 1, "prompts per task"))
    kept = []
    for prompt in prompts:
        left[prompt.task] -= 1
        if left[prompt.task] >= 0:
            kept.append(prompt)
    return tuple(kept)


# --- Files ------------------------------------------------------------------------------------------------------


def to_jsonl(prompts: Iterable[Prompt]) -> str:
    """The official file's bytes: one JSON object a line."""
    return "".join(json.dumps(prompt.metadata()) + "\n" for prompt in prompts)


def digest(prompts: Iterable[Prompt]) -> str:
    return hashlib.sha256(to_jsonl(prompts).encode()).hexdigest()


def write_metadata(path: Path, prompts: Iterable[Prompt]) -> Path:
    """Write GenEval's metadata file. Ids are not stored: a reader numbers the lines."""
    return atomic_write(Path(path), to_jsonl(prompts))


def read_metadata(path: Path) -> tuple[Prompt, ...]:
    """Prompts of a GenEval metadata file; the first line is prompt "00000".

    Raises ValueError with the line number (from 1) for anything malformed, an empty line included.
    """
    prompts = []
    for i, line in enumerate(Path(path).read_bytes().splitlines()):
        try:
            prompts.append(Prompt.from_metadata(json.loads(line), f"{i:05}"))
        except ValueError as error:  # bad JSON and bad UTF-8 are ValueErrors too
            raise ValueError(f"{path}, line {i + 1}: {error}; mend the line or drop it") from error
    if not prompts:
        raise ValueError(f"{path} holds no prompts; expected one JSON object a line")
    return tuple(prompts)

"""Ranking data: what verifiers (and DPO) learn from, labelled by the evaluator (Sec. 3.2 and 3.4, arXiv:2501.13926).

Prompts come from GenEval's own generator at other seeds, never from the 553. Each has K candidates whose whole paths
are kept. A finished picture is labelled by the evaluator; a step by roll-outs: the path is completed `n` times from
there, and the answer is yes if any of the ends is right (Math-Shepherd's rule, as the paper uses it).

Beyond the paper: a picture is also asked about prompts that differ from its own in one clause, which the same rules
label. What is "no" for two dogs is often "yes" for three, and a judge that must tell them apart learns to count.
`n_neighbours=0` is the paper's protocol.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from .decode import DecodeOptions, Generator, Step, decode, final
from .geneval import Evaluator
from .progress import progress
from .prompts import CLASSES, COLORS, RELATIONS, TASKS, Clause, Prompt, compose, evaluation_texts
from .search import Paint, Pool
from .seeds import sample_seed
from .store import Ledger, atomic_write

COUNTS = (2, 3, 4)  # those that GenEval asks for


# --- Prompts one clause away ------------------------------------------------------------------------------------


def neighbours(prompt: Prompt, seed: int) -> list[Prompt]:
    """Prompts that differ from this one in one clause, in a random order; none of the 553, none twice.

    Counting: the other counts. Position: the other relations. Colours: exchanged, or one replaced by each other colour.
    Two objects: either replaced by ten other classes.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, Prompt] = {}
    for include in _variants(prompt.include, rng):
        other = compose(f"{prompt.id}~{len(found)}", include)
        if other.text != prompt.text and other.text not in evaluation_texts():
            found.setdefault(other.text, other)
    return [list(found.values())[i] for i in rng.permutation(len(found))]


def _variants(include: tuple[Clause, ...], rng: np.random.Generator) -> list[tuple[Clause, ...]]:
    if any(c.position for c in include):
        anchor, subject = include
        return [(anchor, replace(subject, position=(relation, 0))) for relation in RELATIONS]
    if any(c.count > 1 for c in include):
        return [_changed(include, i, count=n) for i, c in enumerate(include) if c.count > 1 for n in COUNTS]
    if any(c.color for c in include):
        colored = [i for i, c in enumerate(include) if c.color]
        made = [_changed(include, i, color=color) for i in colored for color in COLORS]
        if len(colored) == 2:  # the exchange, as often as all other changes: binding is what is hard
            i, j = colored
            exchanged = _changed(_changed(include, i, color=include[j].color), j, color=include[i].color)
            made = [exchanged, made[rng.integers(len(made))]]
        return made
    others = [CLASSES[i] for i in rng.permutation(len(CLASSES)) if CLASSES[i] not in {c.cls for c in include}][:10]
    return [_changed(include, i, cls=cls) for i in range(len(include)) for cls in others]


def _changed(include: tuple[Clause, ...], i: int, **fields) -> tuple[Clause, ...]:
    return (*include[:i], replace(include[i], **fields), *include[i + 1 :])


def asked_about(prompt: Prompt, n_neighbours: int, seed: int) -> list[Prompt]:
    """The prompts that a run with this seed labels a picture for: its own, then up to n_neighbours others."""
    return [prompt, *neighbours(prompt, sample_seed(seed, prompt.id, 0, "neighbours"))[:n_neighbours]]


# --- Labels -----------------------------------------------------------------------------------------------------


def label_pool(
    pool: Pool, paint: Paint, evaluator: Evaluator, ledger: Ledger, n_neighbours: int, seed: int, group: int = 8
) -> dict[str, dict]:
    """The evaluator's verdict on every finished picture, by prompt id: {"asked": Q texts, "right": bool [K][Q],
    "reasons": [K][Q], why not in words, a list}.

    The first text is the picture's own prompt, then up to `n_neighbours` others. Finished prompts come from the ledger.
    """
    missing = [p for p in pool.prompts if p.id not in ledger]
    K = pool.n_candidates
    with progress(len(missing), "labelling", "prompts") as advance:
        for start in range(0, len(missing), group):
            for prompt in missing[start : start + group]:
                asked = asked_about(prompt, n_neighbours, seed)
                images = np.repeat(paint(pool.codes[prompt.id]), len(asked), axis=0)
                verdicts = evaluator.evaluate(images, asked * K)
                rows = [verdicts[start : start + len(asked)] for start in range(0, len(verdicts), len(asked))]
                label = {
                    "right": [[v.correct for v in row] for row in rows],
                    "reasons": [[list(v.reasons) for v in row] for row in rows],
                }
                ledger.append({"prompt": prompt.id, "asked": [p.text for p in asked], **label})
            advance(len(missing[start : start + group]))
    return {p.id: ledger.get(p.id) for p in pool.prompts}


def roll_out(
    pool: Pool,
    generator: Generator,
    options: DecodeOptions,
    paint: Paint,
    evaluator: Evaluator,
    ledger: Ledger,
    seed: int,
    n_paths: int,
    n_steps: int,
    n: int = 4,
    group: int = 16,
) -> dict[str, list[dict]]:
    """Complete paths from the middle: [{"candidate", "step", "right": bool [n]}, ...] by prompt id.

    Of each prompt the first `n_paths` candidates, each at `n_steps` random steps but the last, each completed `n` times
    with fresh noise. Finished prompts come from the ledger.
    """
    missing = [p for p in pool.prompts if p.id not in ledger]
    with progress(len(missing), "roll-outs", "prompts") as advance:
        for start in range(0, len(missing), group):
            chunk = missing[start : start + group]
            rows = [
                (prompt, candidate, int(step))
                for prompt in chunk
                for candidate in range(min(n_paths, pool.n_candidates))
                for step in sorted(_steps_of(prompt, candidate, seed, options.steps, n_steps))
            ]
            asked = [prompt for prompt, _, _ in rows for _ in range(n)]
            right = []
            if rows:  # a path of one step has no middle
                ends = _completed(rows, pool, generator, options, seed, n)
                right = [v.correct for v in evaluator.evaluate(paint(ends), asked)]
            for prompt in chunk:
                mine = [
                    {"candidate": k, "step": step, "right": right[i * n : (i + 1) * n]}
                    for i, (p, k, step) in enumerate(rows)
                    if p is prompt
                ]
                ledger.append({"prompt": prompt.id, "roll_outs": mine})
            advance(len(chunk))
    return {p.id: ledger.get(p.id)["roll_outs"] for p in pool.prompts}


def _steps_of(prompt: Prompt, candidate: int, seed: int, steps: int, n_steps: int) -> np.ndarray:
    rng = np.random.default_rng(sample_seed(seed, prompt.id, candidate, "roll-out steps"))
    return rng.permutation(steps - 1)[:n_steps]


def _completed(
    rows: Sequence[tuple[Prompt, int, int]],
    pool: Pool,
    generator: Generator,
    options: DecodeOptions,
    seed: int,
    n: int,
) -> torch.Tensor:
    """n ends of each (prompt, candidate, step): codes int64 [len(rows) * n, L]. Rows of one step share a batch."""
    ends: dict[int, torch.Tensor] = {}
    for step in sorted({step for _, _, step in rows}):
        here = [i for i, row in enumerate(rows) if row[2] == step for _ in range(n)]
        states = [pool.state(rows[i][0].id, rows[i][1], step) for i in here]
        state = Step(step, *(torch.cat([getattr(s, f) for s in states]) for f in ("codes", "masked", "confidence")))
        seeds = [
            sample_seed(seed, rows[i][0].id, rows[i][1] * n + j % n, f"roll-out-{step}") for j, i in enumerate(here)
        ]
        codes = final(decode(generator, [rows[i][0].text for i in here], seeds, options, start=state)).codes
        ends |= {i: codes[j : j + n] for j, i in enumerate(here) if j % n == 0}
    return torch.cat([ends[i] for i in range(len(rows))])


# --- Data sets --------------------------------------------------------------------------------------------------


def outcome_examples(pool: Pool, labels: Mapping[str, dict], question: Callable[[str], str]) -> list[dict]:
    """One example a finished picture: {"task", "codes" [L], "questions" [Q], "answers" [Q] of yes and no}.

    Q is the same in all: where a prompt has fewer neighbours, some are asked twice.
    """
    Q = max(len(label["asked"]) for label in labels.values())
    examples = []
    for prompt in pool.prompts:
        label = labels[prompt.id]
        order = [0, *(1 + i % (len(label["asked"]) - 1) for i in range(Q - 1))] if len(label["asked"]) > 1 else [0] * Q
        for codes, right in zip(pool.codes[prompt.id], label["right"], strict=True):
            examples.append(
                {
                    "task": prompt.task,
                    "codes": codes.tolist(),
                    "questions": [question(label["asked"][i]) for i in order],
                    "answers": ["yes" if right[i] else "no" for i in order],
                }
            )
    return examples


def process_examples(
    pool: Pool, roll_outs: Mapping[str, list[dict]], labels: Mapping[str, dict], question: Callable[[str], str]
) -> list[dict]:
    """One example a step that was rolled out, and one for the end of each such path, whose label is known.

    In the form of `outcome_examples`, with one question. Of paths of one step there is the end only.
    """
    by_step, last = [pool.at(step) for step in range(pool.n_steps)], pool.n_steps - 1
    examples = []
    for prompt in pool.prompts:
        made = [(m["candidate"], m["step"], any(m["right"])) for m in roll_outs[prompt.id]]
        paths = sorted({k for k, _, _ in made}) or range(pool.n_candidates)
        ends = [(k, last, labels[prompt.id]["right"][k][0]) for k in paths]
        examples += [
            {
                "task": prompt.task,
                "codes": by_step[step][prompt.id][k].tolist(),
                "questions": [question(prompt.text)],
                "answers": ["yes" if right else "no"],
            }
            for k, step, right in [*made, *ends]
        ]
    return examples


def balanced(examples: Sequence[dict], seed: int) -> Dataset:
    """All examples, the rarer answer to the first question repeated until each task has as many yes as no; shuffled.

    Raises ValueError for no examples, and where a task knows one answer only it is left as it is.
    """
    if not examples:
        raise ValueError("no examples to learn from: decode and label some training prompts first")
    rng = np.random.default_rng(seed)
    rows: list[dict] = []
    for task in TASKS:
        kinds = [[e for e in examples if e["task"] == task and e["answers"][0] == answer] for answer in ("yes", "no")]
        most = max(map(len, kinds))
        for kind in kinds:
            rows += kind
            if kind:
                rows += [kind[i] for i in rng.integers(len(kind), size=most - len(kind))]
    return Dataset.from_list([rows[i] for i in rng.permutation(len(rows))])


def save(data: Dataset, folder: Path, made: Mapping[str, object]) -> None:
    """The data set on disk, with a card that says what it is, how it was made and how its answers are spread."""
    data.save_to_disk(str(folder))
    count = Counter((row["task"], row["answers"][0]) for row in data.select_columns(["task", "answers"]))
    tasks = [task for task in TASKS if count[task, "yes"] + count[task, "no"]]
    lines = [
        "# Ranking data",
        "",
        "Pictures by the generator as codes, yes/no questions about them, and the answers of the evaluator.",
        "None of GenEval's 553 evaluation prompts is among the questions.",
        "",
        *(f"- **{name}**: {value}" for name, value in made.items()),
        f"- **Examples**: {len(data)}, {len(data[0]['questions'])} questions each; rarer answers repeated",
        "",
        "| task | yes | no |",
        "|---|---|---|",
        *(f"| {task} | {count[task, 'yes']} | {count[task, 'no']} |" for task in tasks),
    ]
    atomic_write(Path(folder) / "README.md", "\n".join(lines) + "\n")

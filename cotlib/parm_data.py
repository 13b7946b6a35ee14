"""What PARM's judge learns from: when a picture is clear, and which paths have potential (Sec. 4, arXiv:2501.13926).

From the paths of the ranking data. Clarity has two kinds of labels: "static", the paper's rule by step (of 18, yes
after the 11th, no before the 10th), and "settled", measured: yes from the step on which the evaluator says of the
picture what it will say of the finished one, its reasons included: right or wrong alone would call the mush of a first
step clear wherever the end is wrong. Potential is the verdict on the finished picture, asked about at any step (in the
paper after the 11th). Both are one conversation, clarity first.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch

from .geneval import Evaluator
from .judge import Question, clarity_question, potential_question
from .progress import progress
from .prompts import Prompt
from .search import Paint, Pool, chunks
from .seeds import sample_seed
from .store import Ledger

CLARITY_LABELS = ("settled", "static")
LATE, EARLY = 11 / 18, 10 / 18  # shares of the steps: later than one is clear, earlier than the other is not


def settle(
    pool: Pool, paint: Paint, evaluator: Evaluator, ledger: Ledger, n_paths: int, group: int = 8
) -> dict[str, list[int]]:
    """By prompt id, of each of the first n_paths candidates the step 0..T-1 from which the evaluator's verdict stands,
    its reasons included.

    Finished prompts come from the ledger.
    """
    missing, T = [p for p in pool.prompts if p.id not in ledger], pool.n_steps
    n_paths = min(n_paths, pool.n_candidates)
    with progress(len(missing), "settling", "prompts") as advance:
        for chunk in chunks(missing, group):
            codes = torch.cat([pool.steps(p.id)[:n_paths].flatten(0, 1) for p in chunk])
            asked = [p for p in chunk for _ in range(n_paths * T)]
            said = [(v.correct, tuple(v.reasons)) for v in evaluator.evaluate(paint(codes), asked)]
            paths = [settled_from(said[start : start + T]) for start in range(0, len(said), T)]
            for i, prompt in enumerate(chunk):
                ledger.append({"prompt": prompt.id, "settled": paths[i * n_paths : (i + 1) * n_paths]})
            advance(len(chunk))
    return {p.id: ledger.get(p.id)["settled"] for p in pool.prompts}


def settled_from(verdicts: Sequence[Hashable]) -> int:
    """The first step from which on every verdict is the last one."""
    return max((step + 1 for step, verdict in enumerate(verdicts) if verdict != verdicts[-1]), default=0)


def static_clarity(step: int, n_steps: int) -> bool | None:
    """The paper's rule for step 0..n_steps-1, scaled to n_steps; None between its two limits."""
    share = (step + 1) / n_steps
    return True if share > LATE else False if share < EARLY else None


def step_examples(
    pool: Pool,
    labels: Mapping[str, dict],
    settled: Mapping[str, list[int]] | None,
    seed: int,
    n_paths: int,
    n_steps: int,
    n_questions: int,
) -> list[dict]:
    """Examples from the middle of paths, in the form of `ranking.outcome_examples`, n_questions each.

    Of each prompt the first n_paths candidates at n_steps random steps. The first question is of potential; then comes
    clarity (left out where the static rule is silent), and potential for the neighbouring prompts that the picture is
    labelled for. settled: as `settle` gives it, or None for static clarity.
    """
    examples, T = [], pool.n_steps
    for prompt in pool.prompts:
        label, codes = labels[prompt.id], pool.steps(prompt.id)
        for k in range(min(n_paths, pool.n_candidates)):
            rng = np.random.default_rng(sample_seed(seed, prompt.id, k, "parm steps"))
            for step in sorted(rng.permutation(T)[:n_steps].tolist()):
                clear = static_clarity(step, T) if settled is None else step >= settled[prompt.id][k]
                asked = _asked(prompt, label, k, clear)
                asked = [asked[i % len(asked)] for i in range(n_questions)]
                examples.append(
                    {
                        "task": prompt.task,
                        "codes": codes[k, step].tolist(),
                        "questions": [question for question, _ in asked],
                        "answers": ["yes" if answer else "no" for _, answer in asked],
                    }
                )
    return examples


def _asked(prompt: Prompt, label: dict, candidate: int, clear: bool | None) -> list[tuple[Question, bool]]:
    right = label["right"][candidate]
    clarity = [] if clear is None else [(clarity_question(prompt.text), clear)]
    potential = [(potential_question(text), right[q]) for q, text in enumerate(label["asked"])]
    return [potential[0], *clarity, *potential[1:]]

"""Finished runs beside each other, read from their artefacts: what was chosen for each prompt, and what is said of it.

A run is a folder of one scale and effort (`outputs/<scale>/<effort>`), a generator and a verifier. Its pool, verdicts
and scores lie in ledgers under `pools/`; nothing is decoded and nothing is judged here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from . import paths
from .errors import CorruptError, IncompleteError
from .prompts import Prompt, geneval_prompts
from .provenance import command, seed_of
from .store import Ledger

if TYPE_CHECKING:
    from .search import Paint


@dataclass(frozen=True)
class Pick:
    """What a run chose for one prompt."""

    prompt: Prompt
    candidate: int
    codes: np.ndarray  # int64 [L], of the finished picture
    correct: bool
    reasons: tuple[str, ...]  # the evaluator's, where it is wrong
    score: float | None  # the verifier's P(yes); None without a verifier, or where it gave none

    @property
    def disagreement(self) -> float:
        """How far the verifier is from the evaluator, 0..1; 0 where it said nothing."""
        return 0.0 if self.score is None else abs(self.score - self.correct)

    @property
    def caption(self) -> str:
        return f"{self.prompt.text}: P(yes) {'not given' if self.score is None else f'{self.score:.2f}'}."


@dataclass(frozen=True)
class Picks:
    """A run's choices by prompt id."""

    name: str
    by_prompt: Mapping[str, Pick]


def read(folder: Path, generator: str = "base", verifier: str = "none", image: int = 0, name: str = "") -> Picks:
    """What a verifier chose from a generator's candidates; "none" takes the first. name: for figures.

    Raises IncompleteError where a ledger is missing, naming what there is; CorruptError for a damaged one, and for one
    that another version has written.
    """
    pool = _ledger(folder, f"{generator}-{image}")
    verdicts = _ledger(folder, f"{generator}-{image}-verdicts")
    scores = None if verifier == "none" else _ledger(folder, f"{generator}-{image}-{verifier}")
    known = {prompt.id: prompt for prompt in geneval_prompts()}
    found = {}
    try:
        for id in (id for id in pool if id in verdicts and id in known and (scores is None or id in scores)):
            k, score = (0, None) if scores is None else _favourite(scores[id], verifier)
            codes = paths.whole(paths.unpack(pool[id]["paths"][k])[-1])
            verdict = verdicts[id]["verdicts"][k]
            found[id] = Pick(known[id], k, codes, bool(verdict["correct"]), tuple(verdict["reasons"]), score)
    except (KeyError, IndexError, TypeError) as error:
        raise CorruptError(
            f"{folder / 'pools'}: the ledgers of {generator!r} and {verifier!r} were made by another version "
            f"({type(error).__name__}: {error}); make them again with: {_command(folder)} --force"
        ) from error
    return Picks(name or f"{generator}, {verifier}", found)


def _ledger(folder: Path, name: str) -> dict[str, dict]:
    path = Path(folder) / "pools" / f"{name}.jsonl"
    try:
        return Ledger.existing(path).by_prompt()
    except FileNotFoundError:
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.jsonl"))) or "nothing"
        raise IncompleteError(f"no {path}; there is {there}. Make it with: {_command(Path(folder))}") from None


def _command(folder: Path) -> str:
    return command("", folder.parent.name, folder.name, seed_of(folder))


def _favourite(record: dict, verifier: str) -> tuple[int, float | None]:
    """The chosen candidate and the verifier's P(yes) of it."""
    from . import parm  # these load torch, which figures alone do not need
    from .search import best_of_n

    if "promising" in record:
        ranked = parm.scores(record)
        k = best_of_n(ranked, len(ranked))
        return k, record["outcome"][k] if record["promising"][k] else record["potential"][k]
    k = best_of_n(record[verifier], len(record[verifier]))
    return k, record[verifier][k]


def by_disagreement(picks: Picks) -> list[Pick]:
    """The choices, those on which verifier and evaluator disagree most first."""
    return sorted(picks.by_prompt.values(), key=lambda pick: (-pick.disagreement, pick.prompt.id))


def differing(a: Picks, b: Picks) -> list[tuple[Pick, Pick]]:
    """Both choices of each prompt that the two runs share and of which the evaluator says different things."""
    shared = (id for id in a.by_prompt if id in b.by_prompt)
    pairs = [(a.by_prompt[id], b.by_prompt[id]) for id in shared]
    return [(one, other) for one, other in pairs if one.correct != other.correct]


def table(a: Picks, b: Picks) -> pd.DataFrame:
    """A row for each prompt where the runs differ: task, prompt, which run is right, what is wrong with the other."""
    rows = [
        {
            "task": one.prompt.task,
            "prompt": one.prompt.text,
            "right": a.name if one.correct else b.name,
            "wrong because": "; ".join(other.reasons if one.correct else one.reasons),
        }
        for one, other in differing(a, b)
    ]
    return pd.DataFrame(rows, columns=["task", "prompt", "right", "wrong because"])


def compare(run_a: Picks | Path, run_b: Picks | Path, paint: Paint, at_most: int = 8) -> Figure:
    """The prompts where two runs differ, a column each: a's choice above b's; solid = right, dashed = wrong.

    A run is what `read` gives, or a folder, of which its base generator without a verifier is taken.
    """
    a, b = (run if isinstance(run, Picks) else read(Path(run), name=str(run)) for run in (run_a, run_b))
    pairs = differing(a, b)
    shown = pairs[:at_most]
    fig, axes = plt.subplots(2, max(1, len(shown)), figsize=(1.6 * max(3, len(shown)), 4.2), squeeze=False)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
    n_better = [sum(pair[i].correct for pair in pairs) for i in (0, 1)]
    n_shared = len(set(a.by_prompt) & set(b.by_prompt))
    fig.suptitle(
        f"of {n_shared} prompts, only {a.name} is right in {n_better[0]}, only {b.name} in {n_better[1]}", fontsize=9
    )
    if shown:
        pictures = paint_all([pick for pair in shown for pick in pair], paint)
        for column, pair in enumerate(shown):
            for row, pick in enumerate(pair):
                axes[row, column].imshow(pictures[2 * column + row], interpolation="nearest")
                frame(axes[row, column], pick.correct)
            axes[0, column].set_title(fill(pair[0].prompt.text.removeprefix("a photo of "), 20), fontsize=7)
    axes[0, 0].set_ylabel(fill(a.name, 18), fontsize=8)
    axes[1, 0].set_ylabel(fill(b.name, 18), fontsize=8)
    fig.tight_layout(pad=0.5)
    return fig


def frame(ax: plt.Axes, is_solid: bool) -> None:
    """Solid blue: right, chosen. Dashed orange: wrong, stopped."""
    ax.spines[:].set(visible=True, linewidth=2.5, color="#0072B2" if is_solid else "#D55E00")
    ax.spines[:].set_linestyle("-" if is_solid else (0, (3, 2)))


def paint_all(picks: Sequence[Pick], paint: Paint) -> np.ndarray:
    """The chosen pictures: uint8 [n, H, W, 3]."""
    import torch

    return paint(torch.from_numpy(np.stack([pick.codes for pick in picks])))


def finished_verifiers(folder: Path, generator: str = "base", image: int = 0) -> list[str]:
    """The verifiers whose choices from a generator's pool can be read here; empty where it has no verdicts yet."""
    pools = Path(folder) / "pools"
    if not (pools / f"{generator}-{image}-verdicts.jsonl").is_file():
        return []
    names = ("orm-zero-shot", "orm", "parm", "parm-released")
    return ["none", *(name for name in names if (pools / f"{generator}-{image}-{name}.jsonl").is_file())]

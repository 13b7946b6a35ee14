"""Figures and tables. Everything is drawn statically; the same method has the same colour and marker everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from . import paper
from .prompts import TASKS
from .stats import Estimate

# Okabe and Ito's colours, told apart by every common kind of colour vision; markers and dashes tell them apart in grey.
METHODS = {
    "none": ("#000000", "o", "-", "base generator"),
    "random": ("#999999", "s", ":", "random choice"),
    "orm-zero-shot": ("#0072B2", "^", "-", "ORM, zero-shot"),
    "oracle": ("#D55E00", "v", "--", "oracle (the evaluator chooses)"),
}
TASK_NAMES = {
    "single_object": "single object",
    "two_object": "two objects",
    "counting": "counting",
    "colors": "colours",
    "position": "position",
    "color_attr": "attribute binding",
    "overall": "overall",
}


def _bare(ax: plt.Axes) -> plt.Axes:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    return ax


def grid(
    images: Sequence[np.ndarray],
    captions: Sequence[str] | None = None,
    columns: int = 8,
    marks: Sequence[bool | None] | None = None,
    size: float = 1.5,
) -> Figure:
    """Pictures uint8 [H, W, 3] in rows; a mark frames a picture: solid blue = correct, dashed orange = wrong."""
    rows = -(-len(images) // columns)
    titles = [fill(caption.removeprefix("a photo of "), 22) for caption in captions or []]
    most_lines = max((title.count("\n") + 1 for title in titles), default=0)
    tall = 1.05 * size + 0.15 * most_lines  # inches: a line of a title is 7 points and its leading
    fig, axes = plt.subplots(rows, columns, figsize=(size * columns, tall * rows), squeeze=False)
    for i, ax in enumerate(axes.flat):
        _bare(ax)
        if i >= len(images):
            continue
        ax.imshow(images[i], interpolation="nearest")
        if titles:
            ax.set_title(titles[i], fontsize=7)
        if marks is not None and marks[i] is not None:
            ax.spines[:].set(visible=True, linewidth=2.5)
            dashes = "-" if marks[i] else (0, (3, 2))
            ax.spines[:].set(color="#0072B2" if marks[i] else "#D55E00", linestyle=dashes, capstyle="butt")
    fig.tight_layout(pad=0.4)
    return fig


def contact_sheet(patches: np.ndarray, rows: Sequence[str], columns: Sequence[str], halves: int = 2) -> Figure:
    """Every class in every colour. patches: uint8 [R, C, H, W, 3]; the rows are folded into `halves` columns."""
    R, C, H, W, _ = patches.shape
    per = -(-R // halves)
    fig, axes = plt.subplots(1, halves, figsize=(6.6 * halves, 0.52 * per))
    for h, ax in enumerate(np.atleast_1d(axes)):
        part = patches[h * per : (h + 1) * per]
        ax.imshow(part.transpose(0, 2, 1, 3, 4).reshape(len(part) * H, C * W, 3), interpolation="nearest")
        ax.set_yticks([(i + 0.5) * H for i in range(len(part))], rows[h * per : h * per + len(part)], fontsize=8)
        ax.set_xticks([(i + 0.5) * W for i in range(C)], columns, fontsize=8, rotation=60)
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    fig.tight_layout()
    return fig


def filmstrip(frames: np.ndarray, masked: np.ndarray, captions: Sequence[str]) -> Figure:
    """The steps of some candidates. frames: uint8 [S, B, H, W, 3]; masked: bool [S, B, grid, grid], True = unknown.

    Cells that are still unknown after a step are veiled: the picture below the veil is the step's guess.
    """
    S, B, H = frames.shape[:3]
    fig, axes = plt.subplots(B, S, figsize=(1.25 * S, 1.45 * B), squeeze=False)
    for b in range(B):
        for s in range(S):
            ax = _bare(axes[b, s])
            ax.imshow(frames[s, b], interpolation="nearest")
            veil = np.kron(masked[s, b], np.ones((H // masked.shape[2],) * 2))
            ax.imshow(np.ones((*veil.shape, 3)), alpha=0.55 * veil)
            if b == 0:
                ax.set_title(f"step {s + 1}", fontsize=8)
        axes[b, 0].set_ylabel(fill(captions[b].removeprefix("a photo of "), 16), fontsize=7)
    fig.tight_layout(pad=0.4)
    return fig


def task_bars(estimates: Mapping[str, Mapping[str, Estimate]], generator: str = "base") -> Figure:
    """GenEval by task for some verifiers {verifier: {task: Estimate}}; the paper's values as open diamonds."""
    fig, ax = plt.subplots(figsize=(8, 3.6))
    columns, width = (*TASKS, "overall"), 0.8 / len(estimates)
    for i, (verifier, by_task) in enumerate(estimates.items()):
        color, _, _, label = METHODS[verifier]
        x = np.arange(len(columns)) + (i - (len(estimates) - 1) / 2) * width
        values = np.array([by_task[t].value for t in columns])
        spread = [
            [by_task[t].value - by_task[t].low for t in columns],
            [by_task[t].high - by_task[t].value for t in columns],
        ]
        ax.bar(x, values, width * 0.92, color=color, alpha=0.75, label=label, yerr=spread, capsize=2)
        published = [paper.value(generator, verifier, t) for t in columns]
        if any(v is not None for v in published):
            ax.plot(x, published, "D", mfc="white", mec="black", ms=5, label=f"paper, {label}")
    ax.set_xticks(range(len(columns)), [TASK_NAMES[t] for t in columns], rotation=15)
    ax.set(ylabel="GenEval accuracy (fraction of images)", ylim=(0, 1.02))
    ax.legend(fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    fig.tight_layout()
    return fig


def n_curve(curves: Mapping[str, Mapping[int, Estimate]]) -> Figure:
    """Overall against N for each verifier {verifier: {n: Estimate}}, band = 95 % interval; paper's N=20 as diamonds."""
    fig, ax = plt.subplots(figsize=(6.4, 4))
    for verifier, curve in curves.items():
        color, marker, dash, label = METHODS[verifier]
        ns = sorted(curve)
        ax.plot(ns, [curve[n].value for n in ns], color=color, marker=marker, ms=4, ls=dash, label=label)
        ax.fill_between(ns, [curve[n].low for n in ns], [curve[n].high for n in ns], color=color, alpha=0.15, lw=0)
        published = paper.value("base", verifier, "overall")
        if published is not None:
            ax.plot([20], [published], "D", mfc="white", mec=color, ms=7, label=f"paper, {label}")
    n = next(iter(next(iter(curves.values())).values())).n
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="N, candidates per image", ylabel="GenEval overall", title=f"n = {n} prompts, band: 95 % interval")
    ax.legend(fontsize=7)
    fig.tight_layout()
    return fig


def reliability(p: np.ndarray, correct: np.ndarray, bins: int = 10) -> tuple[Figure, float]:
    """How often a picture is correct where the judge says P(yes) = p, and the expected calibration error.

    The error is the mean over pictures of |mean P(yes) - fraction correct| of the bin they fall in.
    """
    fig, ax = plt.subplots(figsize=(4, 4))
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.digitize(p, edges) - 1, 0, bins - 1)
    used = [b for b in range(bins) if (which == b).any()]
    ax.plot([0, 1], [0, 1], color="0.7", ls=":")
    ax.plot([p[which == b].mean() for b in used], [correct[which == b].mean() for b in used], "o-", color="#0072B2")
    for b in used:
        ax.annotate(f"{(which == b).sum()}", (p[which == b].mean(), correct[which == b].mean()), fontsize=6)
    ax.set(xlabel="judge's P(yes)", ylabel="fraction correct (evaluator)", xlim=(0, 1), ylim=(0, 1))
    fig.tight_layout()
    gap = sum((which == b).mean() * abs(p[which == b].mean() - correct[which == b].mean()) for b in used)
    return fig, float(gap)


def beside_paper(estimates: Mapping[tuple[str, str], Mapping[str, Estimate]]) -> pd.DataFrame:
    """One row per (generator, verifier): each task `ours ± half-width [paper]`, and the difference of overall."""
    rows = []
    for (generator, verifier), by_task in estimates.items():
        row: dict[str, object] = {"row": paper.ROW_NAMES.get((generator, verifier), f"{generator} / {verifier}")}
        for task in paper.COLUMNS:
            estimate = by_task.get(task)
            published = paper.value(generator, verifier, task)
            ours = "–" if estimate is None else f"{estimate.value:.2f} ± {(estimate.high - estimate.low) / 2:.2f}"
            row[TASK_NAMES[task]] = ours + ("" if published is None else f"  [{published:.2f}]")
        total, published = by_task.get("overall"), paper.value(generator, verifier, "overall")
        row["ours - paper"] = "" if total is None or published is None else f"{total.value - published:+.2f}"
        row["n"] = "" if total is None else total.n
        rows.append(row)
    return pd.DataFrame(rows)

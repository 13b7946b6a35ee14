"""Figures and tables. Everything is drawn statically; the same method has the same colour and marker everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogFormatter, MaxNLocator, NullLocator, ScalarFormatter

from . import paper
from .compare import compare as compare
from .compare import frame
from .player import gallery as gallery
from .player import player as player
from .prompts import TASKS
from .stats import Estimate

# Okabe and Ito's colours, told apart by every common kind of colour vision; markers and dashes tell them apart in grey.
METHODS = {
    "none": ("#000000", "o", "-", "base generator"),
    "random": ("#999999", "s", ":", "random choice"),
    "orm-zero-shot": ("#56B4E9", "^", "-", "ORM, zero-shot"),
    "orm": ("#0072B2", "D", "-", "ORM, fine-tuned"),
    "prm-zero-shot": ("#CC79A7", "<", "-.", "PRM, zero-shot"),
    "prm": ("#009E73", ">", "-.", "PRM, fine-tuned"),
    "parm": ("#E69F00", "P", "-", "PARM"),
    "parm-keep": ("#8B4500", "*", ":", "PARM, most promising kept"),
    "parm-released": ("#999933", "X", "--", "PARM as released (stops nothing)"),
    "prune-and-branch": ("#882255", "d", ":", "prune and branch"),
    "parm++-no-reflection": ("#661100", "p", ":", "PARM++ without reflection"),
    "parm++": ("#661100", "h", "-", "PARM++ with reflection"),
    "oracle": ("#D55E00", "v", "--", "oracle (the evaluator chooses)"),
}
GENERATORS = {
    "base": ("#000000", "o", ":", "base"),
    "dpo": ("#E69F00", "s", "-", "DPO"),
    "it-dpo": ("#D55E00", "^", "--", "iterative DPO"),
    "it-dpo-orm": ("#0072B2", "D", "-", "iterative DPO guided by ORM"),
    "it-dpo-parm": ("#CC79A7", "v", "-", "iterative DPO guided by PARM"),
    "reflect": ("#661100", "h", "-", "self-correction fine-tuning"),
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
        _bars(ax, x, width, [by_task[t] for t in columns], color, label)
        published = [paper.value(generator, verifier, t) for t in columns]
        if any(v is not None for v in published):
            ax.plot(x, published, "D", mfc="white", mec="black", ms=5, label=f"paper, {label}")
    return _task_axes(fig, ax, columns)


def _bars(ax: plt.Axes, x: np.ndarray, width: float, estimates: Sequence[Estimate], color: str, label: str) -> None:
    values = [e.value for e in estimates]
    spread = [[e.value - e.low for e in estimates], [e.high - e.value for e in estimates]]
    ax.bar(x, values, width * 0.92, color=color, alpha=0.75, label=label, yerr=spread, capsize=2)


def _task_axes(fig: Figure, ax: plt.Axes, columns: Sequence[str]) -> Figure:
    ax.set_xticks(range(len(columns)), [TASK_NAMES[t] for t in columns], rotation=15)
    ax.set(ylabel="GenEval accuracy (fraction of images)", ylim=(0, 1.02))
    ax.legend(fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    fig.tight_layout()
    return fig


def n_curve(curves: Mapping[str, Mapping[int, Estimate]]) -> Figure:
    """Overall against N for each verifier {verifier: {n: Estimate}}, band = 95 % interval; paper's N=20 as diamonds."""
    fig, ax = plt.subplots(figsize=(7.6, 4))
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
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    fig.tight_layout()
    return fig


def reliability(
    answered: Mapping[str, tuple[np.ndarray, np.ndarray]], bins: int = 10
) -> tuple[Figure, dict[str, float]]:
    """How often a picture is correct where a judge says P(yes) = p, and each judge's expected calibration error.

    answered: {verifier: (P(yes) [n], correct bool [n])}. The error is the mean over pictures of |mean P(yes) - fraction
    correct| of the bin they fall in.
    """
    fig, ax = plt.subplots(figsize=(4.4, 4.4))
    ax.plot([0, 1], [0, 1], color="0.7", ls=":")
    gaps = {}
    for verifier, (p, correct) in answered.items():
        color, marker, _, label = METHODS[verifier]
        which = np.clip((p * bins).astype(int), 0, bins - 1)
        used = [(which == b) for b in range(bins) if (which == b).any()]
        points = [(p[here].mean(), correct[here].mean(), here.sum()) for here in used]
        ax.plot([x for x, _, _ in points], [y for _, y, _ in points], color=color, marker=marker, ms=5, label=label)
        for x, y, n in points:
            ax.annotate(f"{n}", (x, y), fontsize=6, color=color, xytext=(3, -8), textcoords="offset points")
        gaps[verifier] = float(sum(here.mean() * abs(p[here].mean() - correct[here].mean()) for here in used))
    ax.set(xlabel="judge's P(yes)", ylabel="fraction correct (evaluator)", xlim=(0, 1), ylim=(0, 1))
    ax.legend(fontsize=7)
    fig.tight_layout()
    return fig, gaps


def training_curve(log: Sequence[Mapping[str, float]]) -> Figure:
    """Loss and token accuracy of a fine-tuning, as its trainer logged them."""
    fig, axes = plt.subplots(1, 2, figsize=(7, 2.6))
    for ax, name, label in zip(axes, ("loss", "mean_token_accuracy"), ("loss", "mean token accuracy"), strict=True):
        ax.plot([r["step"] for r in log], [r[name] for r in log], color="#0072B2", marker=".")
        ax.set(xlabel="optimizer step", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    fig.tight_layout()
    return fig


def alignment_curves(logs: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Loss, reward accuracy and reward margin of each alignment {generator: trainer's log}."""
    fig, axes = plt.subplots(1, 3, figsize=(9, 2.6))
    for ax, name in zip(axes, ("loss", "rewards/accuracies", "rewards/margins"), strict=True):
        for generator, log in logs.items():
            color, marker, dash, label = GENERATORS[generator]
            ax.plot(
                [r["step"] for r in log], [r[name] for r in log], color=color, marker=marker, ls=dash, ms=3, label=label
            )
        ax.set(xlabel="optimizer step", ylabel=name)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0].legend(fontsize=7)
    fig.tight_layout()
    return fig


def generator_bars(estimates: Mapping[str, Mapping[str, Estimate]]) -> Figure:
    """GenEval by task of generators without a verifier {generator: {task: Estimate}}; the paper's as open diamonds."""
    fig, ax = plt.subplots(figsize=(8, 3.6))
    columns, width = (*TASKS, "overall"), 0.8 / len(estimates)
    for i, (generator, by_task) in enumerate(estimates.items()):
        color, _, _, label = GENERATORS[generator]
        x = np.arange(len(columns)) + (i - (len(estimates) - 1) / 2) * width
        _bars(ax, x, width, [by_task[t] for t in columns], color, label)
        published = [paper.value(generator, "none", t) for t in columns]
        if None not in published:
            ax.plot(x, published, "D", mfc="white", mec=color, ms=4, label=f"paper, {label}")
    return _task_axes(fig, ax, columns)


def search_on_generators(curves: Mapping[tuple[str, str], Mapping[int, Estimate]]) -> Figure:
    """Overall against N by generator, one panel a verifier {(generator, verifier): {n: Estimate}}."""
    verifiers = list(dict.fromkeys(verifier for _, verifier in curves))
    fig, axes = plt.subplots(1, len(verifiers), figsize=(4 * len(verifiers), 3.2), sharey=True, squeeze=False)
    for ax, verifier in zip(axes[0], verifiers, strict=True):
        for (generator, _), curve in ((key, c) for key, c in curves.items() if key[1] == verifier):
            color, marker, dash, label = GENERATORS[generator]
            ns = sorted(curve)
            ax.plot(ns, [curve[n].value for n in ns], color=color, marker=marker, ls=dash, ms=4, label=label)
            ax.fill_between(ns, [curve[n].low for n in ns], [curve[n].high for n in ns], color=color, alpha=0.12, lw=0)
        ax.set(xlabel="N, candidates per image", title=METHODS[verifier][3])
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].set_ylabel("GenEval overall")
    axes[0, 0].legend(fontsize=7)
    fig.tight_layout()
    return fig


def step_profile(steps: pd.DataFrame) -> Figure:
    """What a process verifier can see at each step: AUC on the left, distances of the compared pictures on the right.

    Columns: step, "AUC, <verifier>", "distance of branches", "distance of candidates".
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
    for column in (c for c in steps if c.startswith("AUC, ")):
        color, marker, dash, label = METHODS[column.removeprefix("AUC, ")]
        left.plot(steps["step"], steps[column], color=color, marker=marker, ls=dash, ms=4, label=label)
    left.axhline(0.5, color="0.7", ls=":")
    left.set(xlabel="step", ylabel="AUC against the finished picture", title="too blurry early")
    right.plot(
        steps["step"], steps["distance of branches"], color="#009E73", marker=">", ms=4, label="branches of one state"
    )
    right.plot(
        steps["step"],
        steps["distance of candidates"],
        color="0.4",
        marker="s",
        ls=":",
        ms=4,
        label="separate candidates",
    )
    right.set(xlabel="step", ylabel="picture distance (grey levels)", title="too much alike late")
    right.set_ylim(bottom=0)
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if ax.lines:
            ax.legend(fontsize=7)
    fig.tight_layout()
    return fig


def cost_curves(cost: pd.DataFrame) -> Figure:
    """Overall against what a selected image costs. Columns: verifier, generator passes, judge calls, overall.

    What costs no judge calls is left out of their panel.
    """
    fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.2), sharey=True, layout="constrained")
    for ax, column in zip(axes, ("generator passes", "judge calls"), strict=True):
        for verifier, rows in cost[cost[column] > 0].groupby("verifier", sort=False):
            color, marker, dash, label = METHODS[verifier]
            rows = rows.sort_values(column)
            ax.plot(rows[column], rows["overall"], color=color, marker=marker, ls=dash, ms=4, label=label)
        ax.set(xscale="log", xlabel=f"{column} per selected image")
        plain = LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5))  # 20, not 2 x 10^1; few if decades are
        ax.xaxis.set(major_formatter=plain, minor_formatter=plain)
        ax.tick_params(axis="x", which="both", labelsize=8)
    axes[0].set_ylabel("GenEval overall")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, fontsize=7, loc="outside right center", frameon=False)
    return fig


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


def beside_the_paper(
    estimates: Mapping[tuple[str, str], Mapping[str, Estimate]], n_of: Mapping[tuple[str, str], int | None]
) -> Figure:
    """Overall of (generator, verifier) pairs, ours filled with its 95 % interval, the paper's as an open diamond.

    n_of: how many candidates each pair chooses among.
    """
    fig, ax = plt.subplots(figsize=(7.6, 0.6 + 0.28 * max(1, len(estimates))))
    for y, ((generator, verifier), by_task) in enumerate(estimates.items()):
        color, marker = GENERATORS[generator][:2] if generator != "base" else METHODS[verifier][:2]
        ours, published = by_task["overall"], paper.value(generator, verifier, "overall")
        spread = [[ours.value - ours.low], [ours.high - ours.value]]
        label = {"label": "ours"} if y == 0 else {}
        ax.errorbar(ours.value, y, xerr=spread, color=color, marker=marker, ms=6, capsize=2, **label)
        if published is not None:
            ax.plot(published, y, "D", mfc="white", mec="0.3", ms=6, label="paper" if y == 0 else None)
            ax.plot([published, ours.value], [y, y], color="0.85", lw=1, zorder=0)
    among = {row: f", N = {n}" if n else "" for row, n in n_of.items()}
    ax.set_yticks(range(len(estimates)), [paper.ROW_NAMES[row] + among[row] for row in estimates])
    ax.invert_yaxis()
    ax.set(xlabel="GenEval overall (fraction of images)", xlim=(0.4, 1.0))
    ax.grid(axis="x", color="0.9")
    if estimates:
        ax.legend(fontsize=7, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    fig.tight_layout()
    return fig


def verifiers_on_generators(curves: Mapping[tuple[str, str], Mapping[int, Estimate]]) -> Figure:
    """Overall against N by verifier, one panel a generator {(generator, verifier): {n: Estimate}}; Figs. 6, 7 of v2.

    Band = 95 % interval, open diamonds = the paper at N = 20, dotted = the generator alone, where "none" is given.
    """
    generators = list(dict.fromkeys(generator for generator, _ in curves))
    fig, axes = plt.subplots(
        1, len(generators), figsize=(3.4 * len(generators) + 1, 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for ax, generator in zip(axes[0], generators, strict=True):
        for verifier, curve in ((v, c) for (g, v), c in curves.items() if g == generator):
            color, marker, dash, label = METHODS[verifier]
            if verifier == "none":
                marker, dash, label = "", ":", "no verifier"
            ns = sorted(curve)
            ax.plot(ns, [curve[n].value for n in ns], color=color, marker=marker, ls=dash, ms=4, label=label)
            ax.fill_between(ns, [curve[n].low for n in ns], [curve[n].high for n in ns], color=color, alpha=0.12, lw=0)
            published = paper.value(generator, verifier, "overall")
            if published is not None:
                ax.plot([20], [published], "D", mfc="white", mec=color, ms=6, zorder=3)
        ax.set(xlabel="N, candidates per image", title=GENERATORS[generator][3])
        ax.title.set_fontsize(9)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].set_ylabel("GenEval overall")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    handles.append(plt.Line2D([], [], ls="", marker="D", mfc="white", mec="black", ms=6))
    n = 2 * len(generators) + 1
    fig.legend(handles, [*labels, "paper, N = 20"], fontsize=7, loc="outside upper center", ncols=n, frameon=False)
    return fig


def guidance_curves(rewards: Mapping[str, Sequence[float]], window: int | None = None) -> Figure:
    """Mean P(yes) of the pictures sampled at each step of a training {label: [steps]}, and its running mean.

    window: how many steps that is taken over, by default an eighth of them.
    """
    window = window or max(8, max(map(len, rewards.values())) // 8)
    fig, ax = plt.subplots(figsize=(6.4, 3))
    styles = cycle((("#0072B2", "-"), ("#000000", ":"), ("#CC79A7", "--"), ("#E69F00", "-.")))
    for (label, row), (color, dash) in zip(rewards.items(), styles, strict=False):
        steps = np.arange(1, len(row) + 1)
        ax.plot(steps, row, color=color, alpha=0.3, lw=0.8, marker=".", ms=3)
        before = np.concatenate([[0], np.cumsum(row)])
        first = np.maximum(0, steps - window)
        ax.plot(steps, (before[steps] - before[first]) / (steps - first), color=color, ls=dash, label=label)
    ax.set(xlabel="optimizer step", ylabel="verifier's P(yes), mean", title=f"thick: mean of the last {window} steps")
    ax.title.set_fontsize(9)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=7)
    fig.tight_layout()
    return fig


def film_strip(rows: Sequence[tuple[str, np.ndarray, Sequence[str], int, bool | None]], size: float = 1.15) -> Figure:
    """Paths as PARM sees them, a row each: name, pictures uint8 [T, H, W, 3], a verdict a step, steps decoded, right.

    Steps that were not decoded are veiled; the last picture of a finished path is framed as in `grid`.
    """
    T = max(len(pictures) for _, pictures, *_ in rows)
    fig, axes = plt.subplots(len(rows), T, figsize=(size * T, (size + 0.42) * len(rows)), squeeze=False)
    for row, (line, (name, pictures, verdicts, n_decoded, right)) in enumerate(zip(axes, rows, strict=True)):
        for step, ax in enumerate(line):
            _bare(ax)
            decoded = step < n_decoded
            ax.imshow(pictures[step], interpolation="nearest", alpha=1.0 if decoded else 0.12)
            ax.set_xlabel(verdicts[step] if decoded else "", fontsize=6)
            if row == 0:
                ax.set_title(f"step {step + 1}", fontsize=8)
        line[0].set_ylabel(fill(name, 16), fontsize=7)
        if right is not None and n_decoded == T:
            frame(line[-1], right)
    fig.tight_layout(pad=0.4)
    return fig


def first_clear_steps(counts: Mapping[str, Sequence[int]], T: int) -> Figure:
    """How many paths are clear for the first time after each step {name: [first clear step 0..T-1, T: never]}."""
    fig, ax = plt.subplots(figsize=(6, 2.8))
    styles = zip(("#0072B2", "#E69F00", "#009E73"), ("", "//", ".."), strict=True)
    for i, ((name, firsts), (color, hatch)) in enumerate(zip(counts.items(), styles, strict=False)):
        shares = np.bincount(firsts, minlength=T + 1) / max(1, len(firsts))
        x = np.arange(T + 1) + 0.8 * ((i + 0.5) / len(counts) - 0.5)
        ax.bar(x, shares, 0.75 / len(counts), color=color, hatch=hatch, alpha=0.75, label=f"{name}, n = {len(firsts)}")
    ax.set_xticks(range(T + 1), [*map(str, range(1, T + 1)), "never"])
    ax.set(xlabel="first clear step", ylabel="share of paths")
    ax.legend(fontsize=7)
    fig.tight_layout()
    return fig


def auc_by_step(curves: Mapping[str, Mapping[int, Estimate]]) -> Figure:
    """AUC of answers at each step {name: {step 0..T-1: Estimate}}, band = 95 % interval."""
    fig, ax = plt.subplots(figsize=(6, 2.8))
    styles = cycle((("#E69F00", "P", "-"), ("#0072B2", "D", "--"), ("#009E73", ">", ":")))
    for (name, curve), (color, marker, dash) in zip(curves.items(), styles, strict=False):
        steps = sorted(curve)
        x = [s + 1 for s in steps]
        ax.plot(x, [curve[s].value for s in steps], color=color, marker=marker, ls=dash, ms=4, label=name)
        ax.fill_between(x, [curve[s].low for s in steps], [curve[s].high for s in steps], color=color, alpha=0.15, lw=0)
    ax.axhline(0.5, color="0.7", ls=":")
    ax.set(xlabel="step", ylabel="AUC")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if curves:
        ax.legend(fontsize=7)
    fig.tight_layout()
    return fig


def reflection_curves(rounds: pd.DataFrame) -> Figure:
    """Overall against token-steps {N, rounds, token_steps in candidates decoded to their end, overall, low, high}.

    A line joins the rounds of one N; the dashed one, the searches without reflection.
    """
    fig, ax = plt.subplots(figsize=(6, 3.4))
    color, _, _, _ = METHODS["parm++"]
    plain = rounds[rounds["rounds"] == 0]
    ax.plot(plain.token_steps, plain.overall, color="0.5", ls="--", marker="o", mfc="white", label="no reflection")
    for marker, (n, of) in zip(cycle("^sDv"), rounds.groupby("N"), strict=False):
        error = (of.overall - of.low, of.high - of.overall)
        ax.errorbar(of.token_steps, of.overall, error, color=color, marker=marker, ms=4, lw=1, label=f"from N = {n}")
    ax.set(xlabel="token-steps, in candidates decoded to their end", ylabel="GenEval overall", xscale="log")
    ticks = FixedLocator([1, 2, 3, 4, 6, 8, 10, 15, 20, 30, 40, 60, 80])
    ax.xaxis.set(major_locator=ticks, major_formatter=ScalarFormatter(), minor_locator=NullLocator())
    ax.legend(fontsize=7)
    fig.tight_layout()
    return fig


def corrections(rows: Sequence[tuple[str, np.ndarray, Sequence[str], Sequence[bool]]]) -> Figure:
    """Rounds of correction, a row a prompt: text, pictures uint8 [R, H, W, 3], what the judge says of each, and
    whether the evaluator calls it right (framed blue) or wrong (dashed orange)."""
    R, size = max(len(pictures) for _, pictures, *_ in rows), 1.9
    fig, axes = plt.subplots(len(rows), R, figsize=(size * R, (size + 0.75) * len(rows)), squeeze=False)
    for row, (line, (text, pictures, said, right)) in enumerate(zip(axes, rows, strict=True)):
        for i, ax in enumerate(line):
            _bare(ax)
            if i >= len(pictures):
                continue
            ax.imshow(pictures[i], interpolation="nearest")
            ax.set_xlabel(fill(said[i], 34), fontsize=6)
            ax.spines[:].set(visible=True, linewidth=2.5, color="#0072B2" if right[i] else "#D55E00")
            ax.spines[:].set_linestyle("-" if right[i] else (0, (3, 2)))
            if row == 0:
                ax.set_title("first choice" if i == 0 else f"round {i}", fontsize=8)
        line[0].set_ylabel(fill(text, 18), fontsize=7)
    fig.tight_layout(pad=0.4)
    return fig

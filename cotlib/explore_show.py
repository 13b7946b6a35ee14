"""Pictures of an exploration: quick PNGs for a widget, and the same views as static figures.

Colours as in `show`: solid blue = chosen, dashed orange = stopped; veiled cells are still unknown after the step.
Confidence is drawn from dark to light, so that it can be read without colour.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from .compare import frame as framed
from .explore import LIMITS, Exploration
from .show import METHODS, filmstrip

VEIL = 0.55  # of white over what is unknown
BLUE, ORANGE = "#0072B2", "#D55E00"
QUESTIONS = {
    "orm-zero-shot": "right? (zero-shot)",
    "prm-zero-shot": "right so far? (zero-shot)",
    "orm": "right? (ORM)",
    "prm": "right so far? (PRM)",
    "parm-clarity": "clear? (PARM)",
    "parm-potential": "has potential? (PARM)",
    "parm": "right? (PARM)",
}
STYLES = {
    **{name: METHODS[name][:3] for name in ("orm-zero-shot", "orm", "prm-zero-shot", "prm", "parm")},
    "parm-clarity": ("#E69F00", "^", ":"),
    "parm-potential": ("#E69F00", "v", "--"),
}


def cells(values: np.ndarray, size: int) -> np.ndarray:
    """Values [L] of a square grid as [size, size], each cell a block."""
    grid = int(len(values) ** 0.5)
    at = np.arange(size) * grid // size
    return values.reshape(grid, grid)[np.ix_(at, at)]


def veiled(picture: np.ndarray, masked: np.ndarray, size: int = 240) -> np.ndarray:
    """A picture uint8 [H, W, 3] at size x size px, its unknown cells veiled; masked bool [L]."""
    large = np.asarray(Image.fromarray(picture).resize((size, size), Image.NEAREST), np.float32)
    veil = VEIL * cells(masked, size)[..., None]
    return (large * (1 - veil) + 255 * veil).astype(np.uint8)


def confidence_map(confidence: np.ndarray, size: int = 240) -> np.ndarray:
    """P of the drawn token, float [L], as uint8 [size, size, 3] from dark (0) to light (1)."""
    return (plt.get_cmap("cividis")(cells(confidence, size))[..., :3] * 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def frame(exploration: Exploration, k: int, step: int, size: int = 240) -> bytes:
    """One step of one candidate as PNG: its picture with unknown cells veiled, and beside it its confidences."""
    if (k, step) not in exploration.pictures:
        return png(np.full((size, 2 * size + 8, 3), 235, np.uint8))
    left = veiled(exploration.pictures[k, step], exploration.masked[k, step], size)
    right = confidence_map(exploration.confidence[k, step], size)
    return png(np.concatenate([left, np.full((size, 8, 3), 255, np.uint8), right], axis=1))


def overview(exploration: Exploration, size: int = 112, columns: int = 6) -> bytes:
    """Every candidate after its latest step, as PNG; framed where chosen (solid) or stopped (dashed and veiled)."""
    n = exploration.setting.n
    columns = min(n, columns)
    tall, wide = size + 22, size + 10
    sheet = Image.new("RGB", (columns * wide, -(-n // columns) * tall), "white")
    pen = ImageDraw.Draw(sheet)
    for k in range(n):
        x, y = k % columns * wide + 5, k // columns * tall + 5
        step = int(exploration.n_decoded[k]) - 1
        box = (x, y, x + size - 1, y + size - 1)
        if step < 0:
            pen.rectangle(box, outline="#999999")
        else:
            masked = exploration.masked[k, step] | exploration.is_stopped(k)
            sheet.paste(Image.fromarray(veiled(exploration.pictures[k, step], masked, size)), (x, y))
        _mark(pen, exploration, k, box)
        pen.text((x, y + size + 2), verdict(exploration, k), fill="black")
    return png(np.asarray(sheet))


def _mark(pen: ImageDraw.ImageDraw, exploration: Exploration, k: int, box: tuple[int, int, int, int]) -> None:
    if exploration.chosen == k:
        pen.rectangle(box, outline=BLUE, width=4)
    elif exploration.is_stopped(k):
        x0, y0, x1, y1 = box
        for at in range(0, x1 - x0, 10):
            for line in (((x0 + at, y0), (x0 + at + 5, y0)), ((x0 + at, y1), (x0 + at + 5, y1))):
                pen.line(line, fill=ORANGE, width=4)
            for line in (((x0, y0 + at), (x0, y0 + at + 5)), ((x1, y0 + at), (x1, y0 + at + 5))):
                pen.line(line, fill=ORANGE, width=4)


def verdict(exploration: Exploration, k: int) -> str:
    """A candidate's state in a few words."""
    n, T = int(exploration.n_decoded[k]), exploration.n_steps
    if exploration.is_stopped(k):
        return f"{k + 1}: stopped at {n}/{T}"
    if exploration.chosen == k:
        return f"{k + 1}: chosen"
    return f"{k + 1}: step {n}/{T}"


def in_words(exploration: Exploration, k: int, step: int) -> str:
    """What the mask is and what was answered after a step, for a reader who does not see the picture."""
    if step >= exploration.n_decoded[k]:
        why = "PARM stopped it before" if exploration.is_stopped(k) else "it is not decoded so far"
        return f"Candidate {k + 1} has no step {step + 1}: {why}."
    n, mean = int(exploration.masked[k, step].sum()), float(exploration.confidence[k, step].mean())
    said = "; ".join(
        f"{QUESTIONS.get(name, name)} {'no answer' if p is None else f'{p:.2f}'}"
        for name, p in exploration.said(k, step).items()
    )
    is_end = exploration.is_stopped(k) and exploration.clear[k] == step
    stop = f" Stopped here: P(yes) of its potential is below {LIMITS.promising}." if is_end else ""
    if exploration.kept[step : step + 1] == [k]:
        stop = " Kept: the search goes on from here."
    text = f"Candidate {k + 1}, step {step + 1}: {n} cells unknown, mean confidence {mean:.2f}."
    return text + (f" P(yes): {said}." if said else "") + stop


# --- Static figures -----------------------------------------------------------------------------------------------


def strip(exploration: Exploration, at_most: int = 4) -> Figure:
    """The first candidates, every step of each; steps that were not decoded are blank.

    Framed solid: chosen, or in a step-wise search kept; dashed: where PARM stopped it.
    """
    N, T = min(at_most, exploration.setting.n), exploration.n_steps
    shape = next(iter(exploration.pictures.values())).shape
    blank, grid = np.full(shape, 255, np.uint8), int(exploration.bench.n_tokens**0.5)
    frames = np.stack([[exploration.pictures.get((k, s), blank) for k in range(N)] for s in range(T)])
    masked = exploration.masked[:N].transpose(1, 0, 2).reshape(T, N, grid, grid)
    figure = filmstrip(frames, masked, [verdict(exploration, k) for k in range(N)])
    last = {exploration.n_decoded[k] - 1: k for k in range(N) if k == exploration.chosen}
    kept = set(enumerate(exploration.kept)) or set(last.items())
    stopped = {(exploration.clear[k], k) for k in range(N) if exploration.is_stopped(k)}
    for step, k in (place for place in kept | stopped if place[1] < N):
        framed(figure.axes[k * T + step], (step, k) not in stopped)
    figure.suptitle(fill(exploration.setting.prompt.text, 90), fontsize=9, y=1.03)
    return figure


def step_view(exploration: Exploration, k: int, step: int) -> Figure:
    """One step of one candidate: picture and mask, confidences, and P(yes) of every question after each step."""
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3), width_ratios=(1, 1.2, 1.8), layout="constrained")
    for ax in (left, middle):
        ax.set_xticks([])
        ax.set_yticks([])
    if (k, step) in exploration.pictures:
        left.imshow(veiled(exploration.pictures[k, step], exploration.masked[k, step]))
        grid = int(exploration.bench.n_tokens**0.5)
        heat = middle.imshow(exploration.confidence[k, step].reshape(grid, grid), cmap="cividis", vmin=0, vmax=1)
        fig.colorbar(heat, ax=middle, shrink=0.8, label="P of the drawn token")
    left.set_title(f"candidate {k + 1}, step {step + 1}", fontsize=9)
    middle.set_title("confidence", fontsize=9)
    x = np.arange(1, exploration.n_steps + 1)
    for name, answers in exploration.answers.items():
        color, marker, dash = STYLES.get(name, ("0.4", ".", "-"))
        right.plot(x, answers[k], color=color, marker=marker, ls=dash, ms=4, label=QUESTIONS.get(name, name))
    right.axvline(step + 1, color="0.7", ls=":")
    right.set(xlabel="step", ylabel="P(yes)", ylim=(-0.02, 1.02), xlim=(0.5, exploration.n_steps + 0.5))
    if exploration.answers:
        right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return fig


def side_by_side(explorations: Sequence[Exploration], names: Sequence[str], at_most: int = 6) -> Figure:
    """The last pictures of some settings, a row each: candidate k of every row has the same seed."""
    N = min(at_most, *(e.setting.n for e in explorations))
    fig, axes = plt.subplots(len(explorations), N, figsize=(1.5 * N + 1, 1.75 * len(explorations)), squeeze=False)
    for line, exploration, name in zip(axes, explorations, names, strict=True):
        for k, ax in enumerate(line):
            _last(ax, exploration, k)
        line[0].set_ylabel(fill(name, 16), fontsize=8)
    fig.tight_layout(pad=0.4)
    return fig


def _last(ax: plt.Axes, exploration: Exploration, k: int) -> None:
    """The latest picture of a candidate, framed as in `overview`."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    step = int(exploration.n_decoded[k]) - 1
    if step >= 0:
        stopped = exploration.is_stopped(k)
        ax.imshow(veiled(exploration.pictures[k, step], exploration.masked[k, step] | stopped))
        if stopped or exploration.chosen == k:
            framed(ax, not stopped)
    ax.set_title(verdict(exploration, k), fontsize=7)


def inpainting(before: np.ndarray, exploration: Exploration) -> Figure:
    """The given picture uint8 [H, W, 3], which of its cells were drawn anew, and the candidates for them."""
    N, start = min(4, exploration.setting.n), exploration.setting.start
    fig, axes = plt.subplots(1, N + 2, figsize=(1.5 * (N + 2), 1.8))
    for ax in axes[:2]:
        ax.set_xticks([])
        ax.set_yticks([])
    axes[0].imshow(before, interpolation="nearest")
    axes[0].set_title("given", fontsize=8)
    axes[1].imshow(veiled(before, start.masked[0].numpy()))
    axes[1].set_title("veiled: to draw", fontsize=8)
    for k, ax in enumerate(axes[2:]):
        _last(ax, exploration, k)
    fig.tight_layout(pad=0.4)
    return fig

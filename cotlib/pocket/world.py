"""The pocket world: all 80 GenEval classes drawn as sprites on a grid of cells, with the caption a web page might give.

A picture is 96 x 96 px, an 8 x 8 grid of 12-px cells. Every object fills a square block of cells, so that one image
token is one cell of one object: that is what lets a few million parameters learn 80 classes x 11 colours x counts x
relations. An object alone in its natural colours is drawn large (4 x 4 cells), everything else small (3 x 3 cells): 790
tinted drawings at two sizes would double what there is to memorise.

Captions are web-like on purpose. `Mixture` says how often each kind of scene occurs and how often its caption is
wrong: relations, numbers and colour binding are noisy, objects and colours are told of that the picture lacks, so a
generator trained here, however long, fails where Show-o fails (Table 1, arXiv:2501.13926). Captions open with "a photo
of" or "a picture of"; of single objects always the latter, because "a photo of a dog" is a prompt of the evaluation for
each of the 80 classes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from ..geneval import relative_position
from ..prompts import CLASSES, COLORS, NUMBER_WORDS, RELATIONS, Prompt, plural, with_article

CELL = 12  # px
GRID = 8  # cells a side
SIZE = CELL * GRID  # px
LARGE, SMALL = 4, 3  # cells a side of an untinted object that is alone, and of every other

BACKGROUNDS = ((203, 226, 246), (250, 226, 200), (214, 234, 206))  # sky, peach, mint: pastel, so that white stands out
TINTS = {
    "red": (222, 36, 36),
    "orange": (250, 136, 20),
    "yellow": (248, 216, 40),
    "green": (44, 162, 62),
    "blue": (40, 92, 226),
    "purple": (128, 52, 190),
    "pink": (250, 128, 190),
    "brown": (128, 80, 44),
    "black": (38, 38, 42),
    "white": (250, 250, 250),
}
MIDDLE_LIGHT = 0.65  # the median light of every tinted drawing, in 0..1
FLAT_LIGHT = {"white": 1.0, "black": 0.2}  # of drawings without shading
OPENING, OTHER_OPENING = "a photo of", "a picture of"
UNTINTED = "person"  # GenEval never asks for a coloured person
ATLAS = Path(__file__).with_name("atlas") / "atlas.png"
ATLAS_TILE, ATLAS_COLUMNS = 64, 10


# --- Records ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thing:
    """One object: `color` is None for its natural colours; `column`, `row` is its top left cell; `cells` its side."""

    cls: str
    color: str | None
    column: int
    row: int
    cells: int

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Tight box of the ink, px: x0, y0, x1, y1 (x1, y1 exclusive)."""
        x0, y0, x1, y1 = _ink_box(self.cls, self.cells)
        x, y = self.column * CELL, self.row * CELL
        return (float(x + x0), float(y + y0), float(x + x1), float(y + y1))


@dataclass(frozen=True)
class Scene:
    image: np.ndarray  # uint8 [SIZE, SIZE, 3]
    caption: str  # what the web says, possibly wrong
    things: tuple[Thing, ...]  # what is there
    background: int  # index into BACKGROUNDS
    kind: str  # a field name of Mixture


@dataclass(frozen=True)
class Mixture:
    """How often each kind of scene occurs (weights, normalised) and how often its caption lies (probabilities)."""

    single: float = 0.10
    two: float = 0.14
    counting: float = 0.16
    colors: float = 0.16
    position: float = 0.10
    attributes: float = 0.14
    company: float = 0.20  # two or three objects, most of them tinted: many facts a picture
    other_opening: float = 0.15  # "a picture of" instead of "a photo of", beside single objects
    noise_relation: float = 0.50  # the relation in the caption is drawn at random
    noise_binding: float = 0.30  # the caption exchanges the colours of its first two objects
    noise_count: float = 0.40  # the number in the caption is drawn at random
    noise_absent: float = 0.30  # one of several objects that the caption lists is not in the picture
    noise_plain: float = 0.30  # an object whose colour the caption tells has its natural colours

    def kinds(self) -> dict[str, float]:
        kinds = [f.name for f in fields(self) if f.name != "other_opening" and not f.name.startswith("noise_")]
        weights = {kind: getattr(self, kind) for kind in kinds}
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}


WEB = Mixture()
CLEAN = Mixture(
    single=0.12,
    two=0.16,
    counting=0.18,
    colors=0.14,
    position=0.16,
    attributes=0.16,
    company=0.08,
    noise_relation=0.0,
    noise_binding=0.0,
    noise_count=0.0,
    noise_absent=0.0,
    noise_plain=0.0,
)
EXAM = replace(  # for the judge: more of what is hard to see
    CLEAN, single=0.04, two=0.12, counting=0.27, colors=0.06, position=0.27, attributes=0.18, company=0.06
)


# --- Sprites ----------------------------------------------------------------------------------------------------


@cache
def _atlas() -> np.ndarray:
    return np.array(Image.open(ATLAS).convert("RGBA"))


@cache
def _sprite(cls: str, cells: int) -> np.ndarray:
    """The natural sprite centred in its block: float32 [cells*CELL, cells*CELL, 4], 0..255."""
    i = CLASSES.index(cls)
    y, x = (i // ATLAS_COLUMNS) * ATLAS_TILE, (i % ATLAS_COLUMNS) * ATLAS_TILE
    tile = Image.fromarray(_atlas()[y : y + ATLAS_TILE, x : x + ATLAS_TILE])
    side = cells * CELL
    return np.array(tile.resize((side, side), Image.LANCZOS)).astype(np.float32)


@cache
def _ink_box(cls: str, cells: int) -> tuple[int, int, int, int]:
    ink = _sprite(cls, cells)[..., 3] > 40
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def tint(rgba: np.ndarray, color: str | None) -> np.ndarray:
    """Replace the hue, keep the luminance. rgba: float32 [H, W, 4], 0..255.

    Luminance is stretched over the sprite's own range and bent to one median first, so that a dark drawing can still
    become white and a pale one black. White and black have curves of their own: a white thing is its shadows, a black
    one its lights.
    """
    if color is None:
        return rgba
    luminance = rgba[..., :3] @ np.array([0.30, 0.59, 0.11], np.float32) / 255
    ink = luminance[rgba[..., 3] > 128]
    low, middle, high = np.percentile(ink, [4, 50, 96])
    if high - low > 0.08:
        light = np.clip((luminance - low) / (high - low), 0, 1)[..., None]
        middle = np.clip((middle - low) / (high - low), 0.05, 0.95)
        light = light ** (np.log(MIDDLE_LIGHT) / np.log(middle))
    else:  # a drawing in one flat colour has no shading to keep
        light = np.full_like(luminance, FLAT_LIGHT.get(color, 0.75))[..., None]
    target = np.array(TINTS[color], np.float32)
    if color == "black":
        rgb = target * 0.35 + 92 * light**1.6
    elif color == "white":
        rgb = 148 + 107 * light**0.55
    else:
        rgb = target * (0.45 + 0.6 * light) + 45 * light**3
    return np.concatenate([np.clip(rgb, 0, 255) * np.ones(3, np.float32), rgba[..., 3:]], axis=-1)


@cache
def _patch(cls: str, color: str | None, cells: int, background: int) -> np.ndarray:
    """The sprite on its background, ready to be copied in: uint8 [cells*CELL, cells*CELL, 3]."""
    rgba = tint(_sprite(cls, cells), color)
    alpha = rgba[..., 3:] / 255
    ground = np.array(BACKGROUNDS[background], np.float32)
    return np.clip(rgba[..., :3] * alpha + ground * (1 - alpha) + 0.5, 0, 255).astype(np.uint8)


def render(things: tuple[Thing, ...] | list[Thing], background: int = 0) -> np.ndarray:
    """Draw the objects, in order: uint8 [SIZE, SIZE, 3]. Raises ValueError for an object that leaves the picture."""
    image = np.empty((SIZE, SIZE, 3), np.uint8)
    image[:] = BACKGROUNDS[background]
    for thing in things:
        if not (0 <= thing.column <= GRID - thing.cells and 0 <= thing.row <= GRID - thing.cells):
            raise ValueError(f"{thing} leaves the {GRID} x {GRID} grid: column and row go up to {GRID - thing.cells}")
        y, x, side = thing.row * CELL, thing.column * CELL, thing.cells * CELL
        image[y : y + side, x : x + side] = _patch(thing.cls, thing.color, thing.cells, background)
    return image


def swatch(cls: str, color: str | None, background: int = 0, cells: int = LARGE) -> np.ndarray:
    """One object on its background, for a contact sheet: uint8 [cells*CELL, cells*CELL, 3]."""
    return _patch(cls, color, cells, background)


# --- Placing objects --------------------------------------------------------------------------------------------


@cache
def _places(cells: int) -> tuple[tuple[int, int, int], ...]:
    """Every (column, row, occupancy) of a block; occupancy is a 64-bit mask of the cells it covers."""
    block = sum(1 << (y * GRID + x) for y in range(cells) for x in range(cells))
    last = GRID - cells
    return tuple((x, y, block << (y * GRID + x)) for y in range(last + 1) for x in range(last + 1))


def _holds(relation: str, dx: int, dy: int) -> bool:
    """Whether an object displaced by (dx, dy) cells from another is `relation` of it, clearly on one axis."""
    along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]
    return along >= SMALL and along >= max(abs(dx), abs(dy))


def place(n: int, cells: int, rng: np.random.Generator, relation: str | None = None) -> list[tuple[int, int]]:
    """Disjoint blocks for `n` objects, as (column, row); with `relation`, the first stands so to the second."""
    while True:
        occupied, spots = 0, []
        for draw in rng.random(n):
            free = [p for p in _places(cells) if not p[2] & occupied]
            if not free:
                break
            column, row, mask = free[int(draw * len(free))]
            occupied |= mask
            spots.append((column, row))
        if len(spots) < n:
            continue
        if relation is None or _holds(relation, spots[0][0] - spots[1][0], spots[0][1] - spots[1][1]):
            return spots


# --- Captions ---------------------------------------------------------------------------------------------------


def _noun(cls: str, color: str | None) -> str:
    return f"{with_article(color)} {cls}" if color else with_article(cls)


def _listing(things: list[tuple[str, str | None]]) -> str:
    return " and ".join(_noun(cls, color) for cls, color in things)


def _classes(rng: np.random.Generator, n: int, colored: bool = False) -> list[str]:
    pool = [c for c in CLASSES if c != UNTINTED] if colored else CLASSES
    return [pool[i] for i in rng.choice(len(pool), size=n, replace=False)]


def _any(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _draw(kind: str, rng: np.random.Generator, spec: Mixture) -> tuple[list[tuple[str, str | None]], str, str | None]:
    """What a scene of this kind holds: (class, colour) pairs, what its caption says, and the relation it obeys."""
    if kind == "single":
        things = [(_classes(rng, 1)[0], None)]
        return things, _listing(things), None
    if kind == "colors":
        things = [(_classes(rng, 1, colored=True)[0], _any(rng, COLORS))]
        return things, _listing(things), None
    if kind == "two":
        things = [(c, None) for c in _classes(rng, 2)]
        return things, _listing(things), None
    if kind == "counting":
        cls, count = _classes(rng, 1)[0], int(rng.integers(2, 5))
        said = int(rng.integers(2, 5)) if rng.random() < spec.noise_count else count
        return [(cls, None)] * count, f"{NUMBER_WORDS[said]} {plural(cls)}", None
    if kind == "position":
        things, relation = [(c, None) for c in _classes(rng, 2)], _any(rng, RELATIONS)
        said = _any(rng, RELATIONS) if rng.random() < spec.noise_relation else relation
        return things, f"{_noun(*things[0])} {said} {_noun(*things[1])}", relation
    if kind == "attributes":
        (a, b), (c, d) = _classes(rng, 2, colored=True), (COLORS[i] for i in rng.choice(10, 2, replace=False))
        things = [(a, c), (b, d)]
        said = _exchanged(things) if rng.random() < spec.noise_binding else things
        return things, _listing(said), None
    if kind == "company":
        classes = _classes(rng, int(rng.integers(2, 4)), colored=True)
        things = [(c, _any(rng, COLORS) if rng.random() < 0.8 else None) for c in classes]
        said = _exchanged(things) if spec.noise_binding and rng.random() < spec.noise_binding else things
        return things, _listing(said), None
    raise ValueError(f"unknown kind of scene {kind!r}; known: {', '.join(Mixture().kinds())}")


def _exchanged(things: list[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    (a, c), (b, d), *others = things
    return [(a, d), (b, c), *others]


def _lacking(
    things: list[tuple[str, str | None]], rng: np.random.Generator, spec: Mixture
) -> list[tuple[str, str | None]]:
    """What is there of what a caption tells: now and then an object is not, or not in that colour."""
    if spec.noise_plain:
        things = [(cls, None if rng.random() < spec.noise_plain else color) for cls, color in things]
    if spec.noise_absent and len({cls for cls, _ in things}) > 1 and rng.random() < spec.noise_absent:
        absent = int(rng.integers(len(things)))
        things = things[:absent] + things[absent + 1 :]
    return things


def _compose(
    things: list[tuple[str, str | None]], rng: np.random.Generator, relation: str | None
) -> tuple[tuple[Thing, ...], int]:
    cells = LARGE if len(things) == 1 and things[0][1] is None else SMALL
    spots = place(len(things), cells, rng, relation)
    background = int(rng.integers(len(BACKGROUNDS)))
    return tuple(Thing(c, k, x, y, cells) for (c, k), (x, y) in zip(things, spots, strict=True)), background


def sample_scene(spec: Mixture, seed: int) -> Scene:
    """One scene of the mixture: picture, caption (possibly wrong) and the truth. Pure in its arguments."""
    rng = np.random.default_rng(seed)
    kinds = spec.kinds()
    kind = str(rng.choice(list(kinds), p=list(kinds.values())))
    told, said, relation = _draw(kind, rng, spec)
    drawn = _lacking(told, rng, spec)
    things, background = _compose(drawn, rng, relation if len(drawn) == len(told) else None)
    opening = OTHER_OPENING if kind == "single" or rng.random() < spec.other_opening else OPENING
    return Scene(render(things, background), f"{opening} {said}", things, background, kind)


def scene_of(prompt: Prompt, seed: int) -> Scene:
    """A scene that fulfils a GenEval prompt, whatever it asks for."""
    rng = np.random.default_rng(seed)
    clauses = prompt.include
    relation = next((c.position[0] for c in clauses if c.position), None)
    if relation:  # include[0] is the anchor, include[1] the object that stands somewhere relative to it
        clauses = clauses[::-1]
    things, background = _compose([(c.cls, c.color) for c in clauses for _ in range(c.count)], rng, relation)
    return Scene(render(things, background), prompt.text, things, background, "position" if relation else prompt.task)


# --- True and false descriptions, for questions about a scene ------------------------------------------------------


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """A caption in GenEval's form that is true of the scene."""
    return f"{OPENING} {_say(scene, [(t.cls, t.color) for t in scene.things], rng)}"


def misdescribe(scene: Scene, rng: np.random.Generator) -> str:
    """A caption in the same form that is wrong in one clause: a class, a colour, a number, a relation, or a swap."""
    truth = [(t.cls, t.color) for t in scene.things]
    present = {cls for cls, _ in truth}
    tinted = [i for i, (_, color) in enumerate(truth) if color]
    choice = rng.random()
    if _is_counting(truth) and choice < 0.8:
        wrong = _other(rng, (2, 3, 4), (len(truth),))
        return f"{OPENING} {NUMBER_WORDS[wrong]} {plural(truth[0][0])}"
    if scene.kind == "position" and choice < 0.75:
        return f"{OPENING} {_relate(scene, truth, rng, lie=True)}"
    said = list(truth)
    if len(tinted) == 2 and len(truth) == 2 and choice < 0.25 and truth[0][1] != truth[1][1]:
        said = [(truth[0][0], truth[1][1]), (truth[1][0], truth[0][1])]
    elif tinted and choice < 0.6:
        i = tinted[int(rng.integers(len(tinted)))]
        said[i] = (truth[i][0], _other(rng, COLORS, (truth[i][1],)))
    elif _is_counting(truth):
        said = [(_other(rng, CLASSES, tuple(present)), None)] * len(truth)
    else:
        i = int(rng.integers(len(truth)))
        said[i] = (_other(rng, CLASSES, tuple(present)), truth[i][1])
    return f"{OPENING} {_say(scene, said, rng)}"


def _is_counting(things: list[tuple[str, str | None]]) -> bool:
    return len(things) > 1 and len(set(things)) == 1


def _other(rng: np.random.Generator, options: tuple, than: tuple):
    left = [o for o in options if o not in than]
    return left[int(rng.integers(len(left)))]


def _say(scene: Scene, things: list[tuple[str, str | None]], rng: np.random.Generator) -> str:
    if _is_counting(things):
        return f"{NUMBER_WORDS[len(things)]} {plural(things[0][0])}"
    if scene.kind == "position":
        return _relate(scene, things, rng, lie=False)
    return _listing(things)


def _relate(scene: Scene, things: list[tuple[str, str | None]], rng: np.random.Generator, lie: bool) -> str:
    a, b = scene.things
    dx, dy = a.column - b.column, a.row - b.row
    said = next(r for r in RELATIONS if _holds(r, dx, dy))
    if lie:
        said = _other(rng, RELATIONS, (said, *relative_position(a.box, b.box)))
    return f"{_noun(*things[0])} {said} {_noun(*things[1])}"

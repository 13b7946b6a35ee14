"""The pocket detector and colour classifier, behind the protocol that GenEval's rules need.

Every cell says which class covers it, in which colour, and which cell of an object it is (one of 3 x 3 or of 4 x 4).
Cells vote: the score of "a dog here, this large" is the mean over its block of p(class) * p(place in the block). Half-
built objects and smudges were among the training pictures, labelled as nothing, so they score near 0 and a whole object
near 1. Overlapping weaker candidates are dropped.

Colours are GenEval's ten and `natural`, the sprite's own: in the pocket world a red fire engine that nobody painted is
natural, not red.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn
from torch.nn import functional as F

from ..geneval import NATURAL, Detection, Verdict, evaluate, runs
from ..precision import autocast
from ..prompts import CLASSES, COLORS, Prompt
from .tokenizer import to_pixels

PALETTE = (*COLORS, NATURAL)
SIDES = (3, 4)  # cells a side of an object
# (cells, row, column) of every place a cell can have in an object; the network's third answer is an index into this.
PLACES = tuple((side, r, c) for side in SIDES for r in range(side) for c in range(side))
CANDIDATE = 0.15  # votes below this are not worth listing


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(F.silu(self.mix(F.silu(self.norm(x)))))


class PocketDetector(nn.Module, PyTorchModelHubMixin):
    """pixels [B, 3, 96, 96] in [-1, 1] -> per-cell logits of class, colour and place."""

    def __init__(self, cell: int = 12, grid: int = 8, width: int = 192, depth: int = 3):
        super().__init__()
        self.cell, self.grid = cell, grid
        self.stem = nn.Sequential(  # each cell by itself: what it shows is mostly in its own pixels
            nn.PixelUnshuffle(cell),
            nn.Conv2d(3 * cell * cell, 2 * width, 1),
            nn.SiLU(),
            nn.Conv2d(2 * width, width, 1),
        )
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)], nn.GroupNorm(8, width), nn.SiLU())
        self.head = nn.Conv2d(width, len(CLASSES) + 1 + len(PALETTE) + len(PLACES), 1)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = self.head(self.blocks(self.stem(pixels)))
        return logits.split([len(CLASSES) + 1, len(PALETTE), len(PLACES)], dim=1)

    @torch.inference_mode()
    def votes(self, images: np.ndarray) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """uint8 [B, H, W, 3] -> colour log-probabilities [B, 11, 8, 8] and, per side, scores [B, 80, y, x]."""
        where = next(self.parameters()).device
        pixels = to_pixels(images, where).contiguous(memory_format=torch.channels_last)
        with autocast(where.type):
            cls, color, place = (x.float().cpu() for x in self(pixels))
        cls, place = cls.softmax(1)[:, :-1], place.softmax(1)
        scores = {}
        for side in SIDES:
            n = self.grid - side + 1
            total = torch.zeros(len(images), len(CLASSES), n, n)
            for i, (owner, r, c) in enumerate(PLACES):
                if owner == side:
                    window = (..., slice(r, r + n), slice(c, c + n))
                    total += cls[window] * place[:, i : i + 1][window]
            scores[side] = total / side**2
        return color.log_softmax(1), scores


class PocketEvaluator:
    """GenEval's rules over the pocket detector."""

    def __init__(self, detector: PocketDetector, batch_size: int = 128):
        self.detector, self.batch_size = detector.eval(), batch_size

    def detect(self, images: np.ndarray) -> list[list[Detection]]:
        """Objects of each picture, most confident first. images: uint8 [B, 96, 96, 3]."""
        return [list(found) for found in self._look(images)]

    def evaluate(self, images: np.ndarray, prompts: Sequence[Prompt]) -> list[Verdict]:
        """One verdict per picture. Raises ValueError where pictures and prompts differ in number."""
        if len(images) != len(prompts):
            raise ValueError(
                f"evaluate: expected one prompt per picture, got {len(prompts)} for {len(images)} pictures"
            )
        first, run = runs(images)  # a picture asked about often is looked at once
        looked = self._look(images[first])
        found = [looked[i] for i in run]
        return [evaluate(p, list(f), f.__getitem__) for p, f in zip(prompts, found, strict=True)]

    def _look(self, images: np.ndarray) -> list[dict[Detection, str]]:
        """Every detected object of each picture with its colour."""
        size = self.detector.cell * self.detector.grid
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"detector: expected uint8 pictures [B, {size}, {size}, 3], got {images.dtype} {list(images.shape)}"
            )
        found = []
        for start in range(0, len(images), self.batch_size):
            color, scores = self.detector.votes(images[start : start + self.batch_size])
            found += [self._objects(color[b], {s: v[b] for s, v in scores.items()}) for b in range(len(color))]
        return found

    def _objects(self, color: torch.Tensor, scores: dict[int, torch.Tensor]) -> dict[Detection, str]:
        """Greedy: the strongest candidate first, then those that do not overlap what is taken."""
        candidates = []
        for side, score in scores.items():
            best, cls = score.max(0)
            for row, column in (best > CANDIDATE).nonzero().tolist():
                candidates.append((float(best[row, column]), int(cls[row, column]), side, row, column))
        taken = np.zeros((self.detector.grid, self.detector.grid), bool)
        objects: dict[Detection, str] = {}
        for score, cls, side, row, column in sorted(candidates, reverse=True):
            block = (slice(row, row + side), slice(column, column + side))
            if taken[block].sum() > 1:  # one shared cell is a corner that touches
                continue
            taken[block] = True
            x, y, edge = column * self.detector.cell, row * self.detector.cell, side * self.detector.cell
            box = (float(x), float(y), float(x + edge), float(y + edge))
            objects[Detection(CLASSES[cls], score, box)] = PALETTE[int(color[(..., *block)].sum((1, 2)).argmax())]
        return objects

"""Pictures of a run in GenEval's own folder layout, so that the official evaluator can score them unchanged.

    OUT/00000/metadata.jsonl   the prompt, as in evaluation_metadata.jsonl
    OUT/00000/samples/0000.png

(github.com/djghosh13/geneval, generation/diffusers_generate.py.)
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from cotlib.errors import IncompleteError
from cotlib.prompts import Prompt, geneval_prompts
from cotlib.store import Ledger, atomic_write


def write_prompt(out: Path, prompt: Prompt, pictures: np.ndarray) -> None:
    """One prompt's folder; pictures: uint8 [K, H, W, 3]."""
    folder = out / prompt.id
    atomic_write(folder / "metadata.jsonl", json.dumps(prompt.metadata()))
    for index, picture in enumerate(pictures):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="PNG")
        atomic_write(folder / "samples" / f"{index:04}.png", buffer.getvalue())


def export_pool(pool: Path, out: Path, n_images: int, decode: Callable[[list[list[int]]], np.ndarray]) -> int:
    """Write the first `n_images` candidates of every prompt of a pool; returns the number of prompts.

    pool: a ledger whose records hold "prompt" and "codes" [K][L]. decode: codes [K][L] -> uint8 [K, H, W, 3].
    Raises IncompleteError if there is no such pool, ValueError if it holds fewer candidates than asked for.
    """
    try:
        ledger = Ledger.existing(pool)
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in pool.parent.glob("*.jsonl"))) or "none"
        raise IncompleteError(f"no pool {pool}; pools there: {known}; make them with: cotlib run 01_baseline") from None
    found = [(prompt, ledger.get(prompt.id)) for prompt in geneval_prompts() if prompt.id in ledger]
    for prompt, record in found:
        if not 1 <= n_images <= len(record.get("codes", [])):
            raise ValueError(f"{pool}: prompt {prompt.id} has {len(record.get('codes', []))} images, not {n_images}")
    for prompt, record in found:
        write_prompt(out, prompt, decode(record["codes"][:n_images]))
    return len(found)

"""Pictures of a run in GenEval's own folder layout, so that the official evaluator can score them unchanged.

    OUT/00000/metadata.jsonl   the prompt, as in evaluation_metadata.jsonl
    OUT/00000/samples/0000.png

(github.com/djghosh13/geneval, generation/diffusers_generate.py.)
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from cotlib import paths, scoring
from cotlib.errors import IncompleteError
from cotlib.prompts import Prompt, geneval_prompts
from cotlib.store import Ledger, atomic_write, read_json, write_json

MARK = "cotlib-export.json"  # names the prompts beside it, which the next export may replace


def write_prompt(out: Path, prompt: Prompt, pictures: np.ndarray) -> None:
    """One prompt's folder; pictures: uint8 [K, H, W, 3]."""
    folder = out / prompt.id
    atomic_write(folder / "metadata.jsonl", json.dumps(prompt.metadata()))
    for index, picture in enumerate(pictures):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="PNG")
        atomic_write(folder / "samples" / f"{index:04}.png", buffer.getvalue())


def pools_of(folder: Path, generator: str, make: str) -> list[Path]:
    """The pools `generator`-0, -1, ..., one for each image of a prompt.

    IncompleteError if there are none, naming the command `make`.
    """
    found = [path for path in folder.glob("*.jsonl") if re.fullmatch(rf"{re.escape(generator)}-\d+", path.stem)]
    if not found:
        known = ", ".join(sorted(path.stem for path in folder.glob("*.jsonl"))) or "none"
        raise IncompleteError(f"no pool {generator}-0 in {folder}; there: {known}; make it with: {make}")
    return sorted(found, key=lambda path: int(path.stem.rpartition("-")[2]))


def export_pools(
    pools: list[Path], out: Path, n: int, decode: Callable[[list[list[int]]], np.ndarray], make: str
) -> int:
    """Write the first `n` candidates of every pool as the samples of a prompt; returns the number of prompts.

    pools: ledgers whose records hold "prompt" and "paths" [K] (`paths.pack`). decode: codes [B][L] -> uint8
    [B, H, W, 3].
    A prompt that is not in every pool yet is left out. What an earlier export left in `out` goes first. ValueError if
    somebody else's pictures lie there, or if a pool holds fewer candidates than asked for; IncompleteError if no prompt
    is left, naming the command `make`.
    """
    scoring.check_writable(out / "00000" / "metadata.jsonl", "choose another folder")
    ledgers = [Ledger.existing(path) for path in pools]
    prompts = [prompt for prompt in geneval_prompts() if all(prompt.id in ledger for ledger in ledgers)]
    if not prompts:
        raise IncompleteError(f"no GenEval prompt is in all of {', '.join(map(str, pools))}; finish them with: {make}")
    there = scoring.numbered(out)
    exported = read_json(out / MARK)["prompts"] if (out / MARK).is_file() else []
    if strangers := [path for path in there if path.name not in exported]:
        raise ValueError(f"{strangers[0]} is not from an earlier export of this version; choose an empty folder")
    codes = {prompt.id: [_pictures(ledger.get(prompt.id)) for ledger in ledgers] for prompt in prompts}
    for id, candidates in codes.items():
        fewest = min(map(len, candidates))
        if not 1 <= n <= fewest:
            raise ValueError(f"{pools[0].parent}: prompt {id} has {fewest} candidates, not {n}; ask for fewer")
    for earlier in there:
        shutil.rmtree(earlier)
    write_json(out / MARK, {"pools": [str(p) for p in pools], "candidates": n, "prompts": [p.id for p in prompts]})
    for prompt in prompts:
        write_prompt(out, prompt, decode([row for rows in codes[prompt.id] for row in rows[:n]]))
    return len(prompts)


def _pictures(record: dict) -> list[list[int]]:
    """The finished pictures of a pool's record: codes [K][L]."""
    return [paths.whole(paths.unpack(text)[-1]).tolist() for text in record["paths"]]

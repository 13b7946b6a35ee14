"""Score a folder of pictures in GenEval's own layout, whoever made them.

    FOLDER/00000/metadata.jsonl   the prompt, as in evaluation_metadata.jsonl
    FOLDER/00000/samples/0000.png

As in github.com/djghosh13/geneval (evaluation/evaluate_images.py), only subfolders and pictures named by digits count,
and pictures only as .png. Two files are written: a ledger, one line per finished prompt, from which a later call goes
on; and at the end GenEval's results, one line per picture, which its summary_scores.py reads (all its fields but the
boxes).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from . import stats, store
from .canary import Labelled
from .errors import CorruptError, ForeignError, IncompleteError
from .geneval import Evaluator, Verdict
from .prompts import TASKS, Prompt
from .stats import Estimate

FIRST = 32  # pictures judged before anything is written: enough for an evaluator to notice that it sees nothing


@dataclass(frozen=True)
class Entry:
    """One prompt with its pictures."""

    prompt: Prompt
    pictures: tuple[Path, ...]


# --- Reading ------------------------------------------------------------------------------------------------------


def read_folder(folder: Path) -> list[Entry]:
    """The prompts of a folder, by number; a prompt's id is the name of its subfolder.

    Raises ValueError for a folder of another layout and for malformed metadata, with its line; IncompleteError for a
    prompt without metadata or pictures.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; expected one in GenEval's layout, as made by: cotlib export geneval OUT")
    if not (named := numbered(folder)):
        raise ValueError(
            f"{folder} has no subfolder named by digits; expected 00000/metadata.jsonl and 00000/samples/0000.png"
        )
    return [_read_entry(path) for path in named]


def numbered(folder: Path) -> list[Path]:
    """The subfolders of prompts, by number; none of a folder that is not there."""
    there = folder.iterdir() if folder.is_dir() else ()
    named = [path for path in there if path.is_dir() and re.fullmatch("[0-9]+", path.name)]
    return sorted(named, key=lambda path: (int(path.name), path.name))


def samples_of(folder: Path) -> list[Path]:
    """The pictures of a prompt's subfolder, by name."""
    there = sorted((folder / "samples").glob("*.png"))
    return [path for path in there if re.fullmatch(r"[0-9]+\.png", path.name) and not path.is_dir()]


def _read_entry(folder: Path) -> Entry:
    file, samples = folder / "metadata.jsonl", folder / "samples"
    if not file.is_file():
        raise IncompleteError(f"no {file}; expected the prompt of {folder.name} as one JSON object")
    try:
        prompt = Prompt.from_metadata(json.loads(_bytes(file).decode()), folder.name)
    except ValueError as error:  # bad JSON and bad UTF-8 are ValueErrors too
        line = getattr(error, "lineno", 1)
        raise ValueError(f"{file}, line {line}: {error}; mend it, or remove {folder} from the folder") from error
    pictures = tuple(samples_of(folder))
    if not pictures:
        there = sorted(samples.iterdir()) if samples.is_dir() else []
        found = f"{len(there)} other files, such as {there[0].name}" if there else "nothing"
        raise IncompleteError(f"no picture in {samples}: expected 0000.png, 0001.png, ..., found {found}")
    return Entry(prompt, pictures)


def examine(entry: Entry, side: int | None = None) -> str:
    """Digest of the prompt and its pictures, every one read in full.

    Raises CorruptError for a picture that cannot be read, ValueError for one that is not `side` x `side` px.
    """
    sums = []
    for path in entry.pictures:
        data = _bytes(path)
        height, width, _ = _pixels(path, data).shape
        if side and (height, width) != (side, side):
            raise ValueError(
                f"{path}: expected {side} x {side} px at this scale, got {width} x {height}; "
                "photographs are scored with --scale showo"
            )
        sums.append([path.name, hashlib.sha256(data).hexdigest()])
    return store.digest([entry.prompt.metadata(), sums])[:16]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorruptError(f"cannot read {path} ({error.strerror}); put it back or remove it") from error


def _pixels(path: Path, data: bytes | None = None) -> np.ndarray:
    """uint8 [H, W, 3] of a picture; `data`: its bytes, if they were read already."""
    data = _bytes(path) if data is None else data
    try:
        return np.array(Image.open(io.BytesIO(data)).convert("RGB"))
    except Exception as error:  # Pillow's decoders raise nearly anything
        raise CorruptError(f"{path} is no readable picture ({error}); make it again or remove it") from error


def labelled_folder(folder: Path) -> list[Labelled]:
    """The pictures of a folder as a canary: each is taken to fulfil its prompt. Raises as `read_folder`, `examine`."""
    return [
        Labelled(_pixels(path), entry.prompt, True, str(path))
        for entry in read_folder(folder)
        for path in entry.pictures
    ]


# --- Scoring ------------------------------------------------------------------------------------------------------


def check_writable(out: Path, remedy: str = "name another file with --out") -> None:
    """Raises ValueError where no file can be written under this name; `remedy` ends the message."""
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file, such as {out / 'results.jsonl'}")
    nearest = next(parent for parent in out.absolute().parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(f"cannot write to {nearest}; {remedy}")


def ledger_of(out: Path, **identity: str) -> store.Ledger:
    """The ledger beside a results file. ForeignError if other weights filled it.

    A damaged one is set aside as *.corrupt, and its good lines are kept.
    """
    path, key = out.with_name(f"{out.stem}.ledger.jsonl"), store.digest(identity)[:16]
    header: dict = {}  # of a file that is not there, was torn in its first line, or cannot be read and is mended below
    with suppress(CorruptError, FileNotFoundError):
        header = store.header_of(path)
    if header.get("ledger", key) != key:
        theirs = header.get("what") or {}
        changed = sorted(k for k in {*theirs, *identity} if theirs.get(k) != identity.get(k))
        detail = "; ".join(f"{k}: {theirs.get(k)} there, {identity.get(k)} here" for k in changed)
        raise ForeignError(
            f"{path} holds verdicts of another evaluator ({detail}). "
            f"Keep both with --out another.jsonl, or start again with: rm {path}"
        )
    return store.Ledger(path, key, identity, mend=True)


def is_done(ledger: store.Ledger, entry: Entry, content: str) -> bool:
    """Whether the ledger holds verdicts on exactly these pictures and this prompt."""
    return (ledger.get(entry.prompt.id) or {}).get("content") == content


def score(
    entries: Sequence[Entry], contents: Sequence[str], evaluator: Evaluator, ledger: store.Ledger, batch_size: int
) -> None:
    """Judge every picture of every entry and append one record per prompt; contents: what `examine` said of each."""
    content_of = dict(zip((entry.prompt.id for entry in entries), contents, strict=True))
    total = sum(len(entry.pictures) for entry in entries)
    with tqdm(total=total, desc="geneval", unit="picture") as progress:
        for chunk in _chunks(entries, batch_size):
            paths = [path for entry in chunk for path in entry.pictures]
            asked = [entry.prompt for entry in chunk for _ in entry.pictures]
            said = iter(_judge(evaluator, [_pixels(path) for path in paths], asked))
            for entry in chunk:
                verdicts = [_record(path, next(said)) for path in entry.pictures]
                id = entry.prompt.id
                ledger.append({"prompt": id, "content": content_of[id], "verdicts": verdicts})
            progress.update(len(paths))


def _record(path: Path, verdict: Verdict) -> dict:
    return {"file": path.name, "correct": verdict.correct, "reasons": list(verdict.reasons)}


def _chunks(entries: Sequence[Entry], batch_size: int) -> Iterator[list[Entry]]:
    """Whole prompts, in groups of at least a batch of pictures; the first of at least FIRST."""
    chunk, enough = [], max(FIRST, batch_size)
    for entry in entries:
        chunk.append(entry)
        if sum(len(e.pictures) for e in chunk) >= enough:
            yield chunk
            chunk, enough = [], batch_size
    if chunk:
        yield chunk


def _judge(evaluator: Evaluator, images: list[np.ndarray], prompts: list[Prompt]) -> list[Verdict]:
    """One verdict per picture; those of one size are looked at together."""
    verdicts: dict[int, Verdict] = {}
    for shape in dict.fromkeys(image.shape for image in images):
        same = [i for i, image in enumerate(images) if image.shape == shape]
        said = evaluator.evaluate(np.stack([images[i] for i in same]), [prompts[i] for i in same])
        verdicts |= dict(zip(same, said, strict=True))
    return [verdicts[i] for i in range(len(images))]


# --- Results ------------------------------------------------------------------------------------------------------


def write_results(out: Path, entries: Sequence[Entry], ledger: store.Ledger) -> Path:
    """GenEval's results file: one line per picture, whole or absent."""
    lines = []
    for entry in entries:
        for path, verdict in zip(entry.pictures, ledger.get(entry.prompt.id)["verdicts"], strict=True):
            fields = {
                "filename": str(path),
                "tag": entry.prompt.task,
                "prompt": entry.prompt.text,
                "correct": verdict["correct"],
                "reason": "\n".join(verdict["reasons"]),
                "metadata": json.dumps(entry.prompt.metadata()),
            }
            lines.append(json.dumps(fields) + "\n")
    return store.atomic_write(out, "".join(lines))


@dataclass(frozen=True)
class Row:
    """One score: GenEval's value, and the interval and number of prompts of the mean over prompts."""

    name: str
    value: float  # over pictures
    over_prompts: Estimate
    n_pictures: int


def summary(entries: Sequence[Entry], ledger: store.Ledger) -> list[Row]:
    """Each task that has prompts, the mean of the six if all have, all pictures, and prompts with any picture right.

    `value` counts pictures as GenEval does; it is the mean over prompts where all have as many pictures.
    """
    prompts = [entry.prompt for entry in entries]
    correct = {p.id: [v["correct"] for v in ledger.get(p.id)["verdicts"]] for p in prompts}
    share = {id: float(np.mean(verdicts)) for id, verdicts in correct.items()}
    rows = []
    for task in TASKS:
        pictures = [v for p in prompts if p.task == task for v in correct[p.id]]
        if pictures:
            rows.append(Row(task, float(np.mean(pictures)), stats.task(prompts, share, task), len(pictures)))
    pictures = [v for verdicts in correct.values() for v in verdicts]
    if len(rows) == len(TASKS):
        mean = float(np.mean([row.value for row in rows]))
        rows.append(Row("overall", mean, stats.overall(prompts, share), len(pictures)))
    rows.append(Row("images", float(np.mean(pictures)), stats.mean(prompts, share), len(pictures)))
    solved = {id: float(any(verdicts)) for id, verdicts in correct.items()}
    any_right = stats.mean(prompts, solved)
    return [*rows, Row("prompts", any_right.value, any_right, len(pictures))]

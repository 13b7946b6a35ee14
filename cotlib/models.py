"""Trained models beside the results that use them: whole or absent, found again by what made them.

`models/<name>-<digest>/` holds what `save_pretrained` wrote and `model.json`, written last, which lists every file's
digest. A folder that is not as its manifest says is set aside as *.corrupt and trained again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import CorruptError
from .provenance import file_entry
from .store import digest, quarantine, read_json, write_json

MANIFEST = "model.json"


def trained(models: Path, name: str, what: Mapping[str, Any], train: Callable[[Path], Mapping[str, Any]]) -> Path:
    """The folder of the model that `what` determines; `train(folder)` fills it if there is none.

    What `train` returns (a log, a duration) is kept in the manifest under "notes". A killed training leaves a folder
    without a manifest, in which the next call trains again: `train` may find its own checkpoints there, and removes
    them at its end.
    """
    folder = Path(models) / f"{name}-{digest(what)[:12]}"
    if (folder / MANIFEST).is_file():
        if not damage(folder):
            return folder
        print(
            f"{folder} is corrupt: {damage(folder)}; set aside as {quarantine(folder).name}, trained again", flush=True
        )
    folder.mkdir(parents=True, exist_ok=True)
    notes = train(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    entries = {path.relative_to(folder).as_posix(): file_entry(path) for path in files}
    write_json(folder / MANIFEST, {"name": name, "what": dict(what), "notes": dict(notes), "files": entries})
    return folder


def notes(folder: Path) -> dict[str, Any]:
    """What was noted when the model was trained."""
    return read_json(folder / MANIFEST)["notes"]


def damage(folder: Path) -> str:
    """What is wrong with a finished model, in words; empty if nothing is."""
    try:
        files = read_json(folder / MANIFEST)["files"]
    except (CorruptError, KeyError, TypeError) as error:
        return f"{MANIFEST}: {error}"
    for name, entry in files.items():
        there = file_entry(folder / name) if (folder / name).is_file() else "nothing"
        if there != entry:
            return f"{name}: expected {entry}, got {there}"
    return ""

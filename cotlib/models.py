"""Trained models beside the results that use them: whole or absent, found again by what made them.

`models/<name>-<digest>/` holds what `save_pretrained` wrote and `model.json`, written last, which lists every file's
digest. A folder that is not as its manifest says is set aside as *.corrupt and trained again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from .errors import CorruptError, ForeignError
from .provenance import file_entry
from .store import digest, quarantine, read_json, unshared, write_json

MANIFEST = "model.json"
CHECKPOINTS = "checkpoints"  # in a folder whose training goes on
VARIANT = "-variant"  # ends the name of a model that was made with other options than its name stands for


def folder_of(models: Path, name: str, what: Mapping[str, Any]) -> Path:
    """Where the model that `what` determines lies, or would."""
    return Path(models) / f"{name}-{digest(what)[:12]}"


def trained(models: Path, name: str, what: Mapping[str, Any], train: Callable[[Path], Mapping[str, Any]]) -> Path:
    """The folder of the model that `what` determines; `train(folder)` fills it if there is none.

    What `train` returns (a log, a duration) is kept in the manifest under "notes". A killed training leaves a folder
    without a manifest, in which the next call trains again: of what is there, `train` finds its own `CHECKPOINTS` only,
    which go once the manifest is there, so that half of them is never read. CotlibError while another process trains
    it.
    """
    folder = folder_of(models, name, what)
    if not is_whole(folder):
        with unshared(folder.with_name(f".{folder.name}.lock"), folder.name):  # beside it: what is in it is the model's
            if not is_whole(folder):  # another process may have finished it just now
                _train(folder, name, what, train)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return folder


def is_whole(folder: Path) -> bool:
    """Whether a finished and undamaged model lies there."""
    return (folder / MANIFEST).is_file() and not damage(folder)


def _train(folder: Path, name: str, what: Mapping[str, Any], train: Callable[[Path], Mapping[str, Any]]) -> None:
    if (folder / MANIFEST).is_file():
        why, aside = damage(folder), quarantine(folder)
        print(f"{folder} is corrupt: {why}; set aside as {aside.name}, trained again", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        if left.name != CHECKPOINTS:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    notes = train(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] != CHECKPOINTS)
    entries = {path.relative_to(folder).as_posix(): file_entry(path) for path in files}
    write_json(folder / MANIFEST, {"name": name, "what": dict(what), "notes": dict(notes), "files": entries})


def notes(folder: Path) -> dict[str, Any]:
    """What was noted when the model was trained."""
    return read_json(folder / MANIFEST)["notes"]


def weights_change(folder: Path, other: Path) -> float:
    """Root mean square difference of the weights of two models of the same layout; 0 where all are equal.

    Raises ForeignError where a file or a tensor of the one is missing in the other.
    """
    names = [sorted(path.name for path in at.glob("*.safetensors")) for at in (folder, other)]
    if names[0] != names[1] or not names[0]:
        raise ForeignError(f"{folder} holds the weights {names[0]}, {other} holds {names[1]}; expected the same layout")
    total, n = 0.0, 0
    for name in names[0]:
        a, b = load_file(folder / name), load_file(other / name)
        if {key: t.shape for key, t in a.items()} != {key: t.shape for key, t in b.items()}:
            raise ForeignError(f"{name} holds other tensors in {folder} than in {other}; expected the same layout")
        total += sum(float((a[key].float() - b[key].float()).square().sum()) for key in a)
        n += sum(t.numel() for t in a.values())
    return (total / n) ** 0.5


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

"""An earlier result outlives a re-run that fails: set aside before it, and put back with a label if it fails.

    earlier/    a copy of the finished result, from the start of a re-run until the chain has confirmed the new one
    STALE.txt   says that the files beside it are of an earlier run, and why the later one brought none

Every step may be the last before a kill: at any moment the whole result is in `earlier/` or in its place.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cotlib import store
from cotlib.errors import CotlibError
from cotlib.provenance import EXECUTED, MANIFEST, METRICS, peek, read_manifest

ASIDE, LABEL = "earlier", "STALE.txt"


def set_aside(folder: Path) -> None:
    """Copy a finished and undamaged result aside. One that is aside already stays, unless this one is newer."""
    if not _is_newer(folder):
        return
    partial = _empty(folder / f"{ASIDE}.partial")
    for name in (*read_manifest(folder)["files"], MANIFEST):
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / name, partial / name)
    forget(folder)
    os.rename(partial, folder / ASIDE)


def clear(folder: Path) -> None:
    """Remove a result, its manifest first; what is in quarantine stays."""
    for name in (MANIFEST, LABEL, METRICS, *EXECUTED):
        (folder / name).unlink(missing_ok=True)
    for path in [path for name in ("tables", "figures", "pages") for path in (folder / name).rglob("*")]:
        if path.is_file() and not store.is_quarantined(path):
            path.unlink()


def put_back(folder: Path, why: str) -> None:
    """Restore what is aside, labelled. If nothing is, make sure that a failed run does not count as finished."""
    aside = folder / ASIDE
    if not aside.exists():
        (folder / MANIFEST).unlink(missing_ok=True)
        return
    clear(folder)
    store.atomic_write(folder / LABEL, f"The results beside this file are of an earlier run: {why}\n")
    names = [path.relative_to(aside) for path in aside.rglob("*") if path.is_file() and path.name != MANIFEST]
    for name in (*names, MANIFEST):
        store.atomic_write(folder / name, (aside / name).read_bytes())
    forget(folder)


def settle(folder: Path) -> None:
    """After a kill: keep the newer result if it is finished and whole, else put the earlier one back."""
    if (folder / ASIDE).exists():
        forget(folder) if _is_newer(folder) else put_back(folder, "the re-run was killed")


def forget(folder: Path) -> None:
    """Drop what is aside."""
    if (folder / ASIDE).exists():
        shutil.rmtree((folder / ASIDE).rename(_empty(folder / f"{ASIDE}.dropped")))


def label(folder: Path) -> str:
    """What STALE.txt says, or nothing."""
    path = folder / LABEL
    return path.read_text().strip() if path.is_file() else ""


def _is_newer(folder: Path) -> bool:
    """Whether the folder holds a finished, undamaged result that is newer than the one aside, if there is one."""
    try:
        started = read_manifest(folder)["started"]
    except CotlibError:
        return False
    return started > (peek(folder / ASIDE) or {"started": -1.0})["started"]


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder

"""Where things lie, what made them, and whether they are finished.

A notebook's folder is finished when `run.json`, written last, is there and the digest of every file that it
lists is right. Its `key` says what the results depend on: the notebook's code, the effective parameters, the
sources and weights of cotlib, and the keys of the notebooks it reads. papermill's own metadata is no evidence:
after a killed kernel it calls every cell completed.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from cotlib.config import EFFORTS, NOT_IN_KEY, NOTEBOOKS, SCALES, Settings
from cotlib.errors import CorruptError, ForeignError, IncompleteError
from cotlib.store import digest, read_json, sha256

PACKAGE = Path(__file__).resolve().parent
MANIFEST = "run.json"
REPORTED_PACKAGES = (
    *("torch", "transformers", "trl", "datasets", "accelerate", "safetensors", "numpy", "scipy", "pandas"),
    *("matplotlib", "pillow", "papermill", "nbclient", "nbconvert", "ipykernel"),
)

# ---- places ---------------------------------------------------------------------------------------------------


def project_root() -> Path | None:
    """The nearest folder upward with our pyproject.toml and notebooks/: from here, else from the package."""
    for start in (Path.cwd(), PACKAGE):
        for folder in (start, *start.parents):
            project = folder / "pyproject.toml"
            if (folder / "notebooks").is_dir() and project.is_file() and 'name = "cotlib"' in project.read_text():
                return folder
    return None


def outputs_root() -> Path:
    """$COTLIB_OUTPUTS, else outputs/ of the project, else ./outputs; always absolute."""
    named = os.environ.get("COTLIB_OUTPUTS")
    return Path(named).resolve() if named else (project_root() or Path.cwd()) / "outputs"


def outputs_of(scale: str, effort: str) -> Path:
    """Folder of one scale and effort. ValueError for an unknown one."""
    for what, name, known in (("scale", scale, SCALES), ("effort", effort, EFFORTS)):
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; known: {', '.join(known)}")
    return outputs_root() / scale / effort


def notebook_path(notebook: str) -> Path:
    """Source of a notebook; it need not exist."""
    return (project_root() or Path.cwd()) / "notebooks" / f"{notebook}.ipynb"


# ---- what made it ---------------------------------------------------------------------------------------------


def git_state() -> dict[str, Any]:
    """{"commit": 40 hex or None, "dirty": bool or None}; None where there is no git to ask."""
    commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _git(*words: str) -> str | None:
    where = project_root() or Path.cwd()
    try:
        answer = subprocess.run(["git", "-C", str(where), *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result may depend on; a missing package is left out."""
    found = {"python": platform.python_version()}
    for name in REPORTED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Processor, cores, torch threads and GPU. torch is asked only if it is already loaded, else None."""
    torch = sys.modules.get("torch")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads() if torch else None,
        "gpu": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None,
        "system": platform.platform(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine() or "unknown"


def code_digest(scale: str) -> str:
    """sha256 over the sources of cotlib and, where the weights ship with it, over artwork and weights."""
    files = sorted(PACKAGE.rglob("*.py"))
    if SCALES[scale].offline:
        pocket = PACKAGE / "pocket"
        files += sorted(p for p in pocket.rglob("*") if p.suffix in (".safetensors", ".json", ".png"))
    return digest({path.relative_to(PACKAGE).as_posix(): sha256(path) for path in files})


def read_notebook(path: Path) -> dict[str, Any]:
    """A notebook's JSON. IncompleteError if it is not there, CorruptError if it is no notebook."""
    if not path.is_file():
        raise IncompleteError(f"no notebook {path}; list them with: cotlib run --list")
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("cells"), list):
        raise CorruptError(f"{path} is not a notebook: it has no list of cells; restore it with: git checkout {path}")
    return content


def is_parameters(cell: dict[str, Any]) -> bool:
    """Whether papermill reads this cell's assignments as the notebook's parameters."""
    return cell["cell_type"] == "code" and "parameters" in cell.get("metadata", {}).get("tags", [])


def source(cell: dict[str, Any]) -> str:
    """A cell's text; the format allows one string or a list of lines."""
    text = cell["source"]
    return text if isinstance(text, str) else "".join(text)


def _code_cells(notebook: str) -> list[str] | None:
    """Code without the parameters cell, whose values enter the key as effective parameters."""
    path = notebook_path(notebook)
    if not path.is_file():
        return None
    cells = read_notebook(path)["cells"]
    return [source(cell) for cell in cells if cell["cell_type"] == "code" and not is_parameters(cell)]


def run_key(settings: Settings) -> tuple[str, dict[str, str | None]]:
    """(12 hex over everything the results depend on, the keys of the upstream notebooks or None where unfinished)."""
    folder = outputs_of(settings.scale.name, settings.effort.name)
    upstream = {name: _recorded_key(folder / name) for name in NOTEBOOKS[settings.notebook].upstream}
    parts = {
        "request": request(settings),
        "code": code_digest(settings.scale.name),
        "notebook": _code_cells(settings.notebook),
        "upstream": upstream,
    }
    return digest(parts)[:12], upstream


def _recorded_key(folder: Path) -> str | None:
    try:
        return read_json(folder / MANIFEST).get("key")
    except (FileNotFoundError, CorruptError, AttributeError):
        return None


def request(settings: Settings) -> dict[str, Any]:
    """What was asked for, as far as results depend on it."""
    params = {name: value for name, value in settings.params.items() if name not in NOT_IN_KEY}
    return {"scale": settings.scale.name, "effort": settings.effort.name, "seed": settings.seed, **params}


# ---- whether it is finished -----------------------------------------------------------------------------------


def file_entry(path: Path) -> dict[str, Any]:
    """What a manifest says about a file."""
    return {"sha256": sha256(path), "size": path.stat().st_size}


def command(notebook: str, scale: str, effort: str, seed: int = 0) -> str:
    """What to type to make a notebook's results."""
    return f"cotlib run {notebook} --scale {scale} --effort {effort} --seed {seed}"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished notebook, every file checked.

    IncompleteError if there is none, CorruptError naming the first file that is missing or differs.
    """
    notebook, effort, scale = folder.name, folder.parent.name, folder.parent.parent.name
    again = command(notebook, scale, effort)
    if not (folder / MANIFEST).is_file():
        raise IncompleteError(f"{notebook} is not finished in {folder} (no {MANIFEST}); make it with: {again}")
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise CorruptError(f"{folder / MANIFEST} lists no files; make it again with: {again} --force")
    for name, entry in manifest["files"].items():
        path = folder / name
        found = file_entry(path) if path.is_file() else "nothing"
        if found != entry:
            raise CorruptError(f"{path}: expected {entry}, got {found}; make it again with: {again} --force")
    if (manifest.get("scale"), manifest.get("effort")) != (scale, effort):
        made = f"{manifest.get('scale')}/{manifest.get('effort')}"
        raise ForeignError(f"{folder} holds results of {made}, not of {scale}/{effort}; remove it, then: {again}")
    return manifest


def refuse_foreign(folder: Path, settings: Settings, key: str) -> None:
    """ForeignError if `folder` holds finished results of another request (seed or parameters).

    Results of the same request by older code are not foreign: they are made again.
    """
    try:
        found = read_json(folder / MANIFEST)
        theirs = found["request"]
    except (FileNotFoundError, CorruptError, KeyError, TypeError):
        return  # unfinished or unreadable: nothing to protect
    ours = request(settings)
    changed = [f"{k}: {theirs.get(k)!r} there, {ours.get(k)!r} here" for k in ours if theirs.get(k) != ours[k]]
    if changed:
        raise ForeignError(
            f"{folder} holds finished results of another configuration (key {found.get('key')}; this run: {key}; "
            f"{'; '.join(changed)}). Keep both: export COTLIB_OUTPUTS=another-folder. Replace it: "
            f"cotlib run {settings.notebook} --force ..., or rm {folder / MANIFEST}"
        )

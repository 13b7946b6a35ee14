"""Where things lie, what made them, and whether they are finished.

A notebook's folder is finished when `run.json`, written last, is there and its own digest and that of every file
that it lists are right. Its `key` says what the results depend on: the notebook's code, the effective parameters, the
sources and weights of cotlib, and the keys of the notebooks it reads. papermill's own metadata is no evidence:
after a killed kernel it calls every cell completed.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from cotlib.config import EFFORTS, NOT_IN_KEY, NOTEBOOKS, PARTS, SCALES, Settings, suggest
from cotlib.errors import CorruptError, ForeignError, IncompleteError
from cotlib.store import digest, header_of, read_json, sha256, write_json

PACKAGE = Path(__file__).resolve().parent
MANIFEST, METRICS = "run.json", "metrics.json"
WEIGHTS = "COTLIB_WEIGHTS"  # environment variable
REPLACES = "COTLIB_REPLACES"  # set by the chain for a notebook: ledgers of "weights" that changed, or of "anything"
EXECUTED = ("executed.ipynb", "executed.html")
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
    """$COTLIB_OUTPUTS, else outputs/ of the project, else ./outputs; always absolute (see `_place`)."""
    named = os.environ.get("COTLIB_OUTPUTS")
    return _place(named) if named else (project_root() or Path.cwd()) / "outputs"


def weights_root() -> Path | None:
    """$COTLIB_WEIGHTS, absolute: one folder per part of a scale whose weights do not ship. None: the hub has them."""
    named = os.environ.get(WEIGHTS)
    return _place(named) if named else None


def _place(named: str) -> Path:
    """A folder from the environment, absolute. Within the project a relative one is the project's: a notebook's kernel
    runs in notebooks/, and means what the command line means."""
    root, here = project_root(), Path.cwd()
    return ((root if root and here.is_relative_to(root) else here) / Path(named).expanduser()).resolve()


def outputs_of(scale: str, effort: str) -> Path:
    """Folder of one scale and effort. ValueError for an unknown one."""
    for what, name, known in (("scale", scale, SCALES), ("effort", effort, EFFORTS)):
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; {suggest(name, known)}")
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


def code_digest() -> str:
    """sha256 over the sources of cotlib."""
    return _digest_of(PACKAGE.rglob("*.py"))


def weights_digest(scale: str, parts: Sequence[str] = PARTS) -> str | dict[str, str | None]:
    """sha256 over artwork and weights that ship with cotlib; of other scales 12 hex by part, None for a missing one."""
    if not SCALES[scale].offline:
        from cotlib import hub

        return hub.digests(SCALES[scale], parts)
    return _digest_of(p for p in (PACKAGE / "pocket").rglob("*") if p.suffix in (".safetensors", ".json", ".png"))


def _digest_of(files: Iterable[Path]) -> str:
    """Hidden files, such as JupyterLab's checkpoints, are nobody's source."""
    names = {path.relative_to(PACKAGE).as_posix(): path for path in files}
    return digest({name: sha256(path) for name, path in names.items() if "/." not in f"/{name}"})


def read_notebook(path: Path) -> dict[str, Any]:
    """A notebook's JSON. IncompleteError if it is not there, CorruptError if it is no notebook."""
    if not path.is_file():
        raise IncompleteError(f"no notebook {path}; list them with: cotlib run --list")
    try:
        content = read_json(path)
        if not isinstance(content["cells"], list):
            raise TypeError("cells is no list")
    except (CorruptError, TypeError, KeyError) as error:
        why = error.__cause__ or "it has no list of cells"
        raise CorruptError(f"{path} is not a notebook ({why}); restore it with: git checkout {path}") from error
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


def run_key(settings: Settings, upstream: Mapping[str, str | None] | None = None) -> tuple[str, dict[str, Any]]:
    """(12 hex over everything the results depend on, that everything by name: `request`, `cotlib`, `weights`,
    `notebook`, `upstream`). upstream: keys to take in place of those recorded, None where there is no result.
    """
    folder = outputs_of(settings.scale.name, settings.effort.name)
    read = NOTEBOOKS[settings.notebook].upstream
    parts = {
        "request": request(settings),
        "cotlib": code_digest(),
        "weights": weights_digest(settings.scale.name, NOTEBOOKS[settings.notebook].weights),
        "notebook": digest(_code_cells(settings.notebook)),
        "upstream": {name: (upstream or {}).get(name) or _recorded_key(folder / name) for name in read},
    }
    return digest(parts)[:12], parts


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Which parts of a key differ, in words: what was recorded, and what is now."""
    named = {"cotlib": "the code of cotlib", "weights": "the weights", "notebook": "the notebook's code"}
    found = [f"{words} changed" for part, words in named.items() if there.get(part) != here[part]]
    for part, verb in (("request", "is"), ("upstream", "has key")):
        before = there.get(part) or {}
        found += [
            f"{name} {verb} {now}, was {before.get(name)}"
            for name, now in here[part].items()
            if before.get(name) != now
        ]
    return found


def _recorded_key(folder: Path) -> str | None:
    return (peek(folder) or {}).get("key")


def require_weights(settings: Settings) -> None:
    """IncompleteError unless a notebook's weights are on this machine, after what the hub gives was fetched."""
    if not settings.scale.offline:
        from cotlib import hub

        hub.require(settings.scale, NOTEBOOKS[settings.notebook].weights)


def request(settings: Settings) -> dict[str, Any]:
    """What was asked for, as far as results depend on it: of the parameters, those that the notebook takes."""
    mine = NOTEBOOKS[settings.notebook].overrides
    params = {name: value for name, value in settings.params.items() if name in mine and name not in NOT_IN_KEY}
    return {"scale": settings.scale.name, "effort": settings.effort.name, "seed": settings.seed, **params}


# ---- whether it is finished -----------------------------------------------------------------------------------


def file_entry(path: Path) -> dict[str, Any]:
    """What a manifest says about a file."""
    return {"sha256": sha256(path), "size": path.stat().st_size}


def command(notebook: str, scale: str, effort: str, seed: int = 0) -> str:
    """What to type to make a notebook's results; those of all for ""."""
    return f"cotlib run {notebook} --scale {scale} --effort {effort} --seed {seed}".replace("  ", " ")


def seed_of(outputs: Path) -> int:
    """The seed of the ledgers in the outputs of a scale and effort; 0 if there are none."""
    for path in sorted((outputs / "pools").glob("*.jsonl")):
        with suppress(CorruptError):
            if (what := header_of(path).get("what")) is not None:
                return what.get("seed", 0)
    return 0


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Write `run.json` with a digest of its own content."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return write_json(folder / MANIFEST, {**content, "sha256": digest(content)})


def peek(folder: Path) -> dict[str, Any] | None:
    """The manifest, its files unchecked; None if there is none or it is not as it was written."""
    try:
        content = read_json(folder / MANIFEST)
        seal = content.pop("sha256")
    except (FileNotFoundError, CorruptError, AttributeError, TypeError, KeyError):
        return None
    return content if seal == digest(content) else None


def damage(folder: Path) -> dict[Path, str]:
    """Every file of a finished notebook that is not as it was written, and what is wrong; empty if all is well."""
    if not (folder / MANIFEST).is_file():
        return {}
    manifest = peek(folder)
    if manifest is None:
        return {folder / MANIFEST: "it does not have the digest that it names"}
    found = {}
    for name, entry in manifest["files"].items():
        there = file_entry(folder / name) if (folder / name).is_file() else "nothing"
        if there != entry:
            found[folder / name] = f"expected {entry}, got {there}"
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished notebook, every file checked.

    IncompleteError if there is none, CorruptError naming the first file that is missing or differs.
    """
    notebook, effort, scale = folder.name, folder.parent.name, folder.parent.parent.name
    manifest = peek(folder) or {}
    again = command(notebook, scale, effort, manifest.get("seed", 0))
    if not (folder / MANIFEST).is_file():
        raise IncompleteError(f"{notebook} is not finished in {folder} (no {MANIFEST}); make it with: {again}")
    for path, why in damage(folder).items():
        raise CorruptError(f"{path} is corrupt: {why}; make it again with: {again} --force")
    if (manifest["scale"], manifest["effort"]) != (scale, effort):
        made = f"{manifest['scale']}/{manifest['effort']}"
        raise ForeignError(f"{folder} holds results of {made}, not of {scale}/{effort}; remove it, then: {again}")
    return manifest


def refuse_foreign(folder: Path, settings: Settings, key: str) -> None:
    """ForeignError if `folder` holds finished results of another request (seed or parameters).

    Results of the same request by older code are not foreign: they are made again.
    """
    found = peek(folder)
    if found is None:  # unfinished or unreadable: nothing to protect
        return
    theirs, ours = found["request"], request(settings)
    changed = [f"{k}: {theirs.get(k)!r} there, {ours.get(k)!r} here" for k in ours if theirs.get(k) != ours[k]]
    if changed:
        raise ForeignError(
            f"{folder} holds finished results of another configuration (key {found.get('key')}; this run: {key}; "
            f"{'; '.join(changed)}). Keep both: export COTLIB_OUTPUTS=another-folder. Replace it: "
            f"cotlib run {settings.notebook} --force ..., or rm {folder / MANIFEST}"
        )

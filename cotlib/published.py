"""A finished run, published: its measurements, small tables and figures under docs/results/, and comparing with it.

A published run is one folder per scale, replaced by the next one: `results.json`, the report's tables, the figures a
reader wants first, and a manifest with the digest of each file, written last. Nothing is computed here.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import chain, provenance, store
from .config import COMPUTED, EFFORTS, check, suggest
from .errors import CorruptError, IncompleteError
from .run import RESULTS, read_results

MANIFEST = "manifest.json"
REPORT = "08_report"
# What is shown of a run: (notebook, figure).
FIGURES = (
    (REPORT, "beside_the_paper"),
    ("03_process_verifier", "best_of_n"),
    ("03_process_verifier", "early_and_late"),
    ("05_parm", "accuracy_against_compute"),
    ("05_parm", "three_verifiers"),
    ("06_integration", "best_of_n"),
    ("06_integration", "from_base_to_best"),
    ("07_reflection", "reflection"),
    ("07_reflection", "corrections"),
)


def results_root() -> Path:
    """docs/results of the checkout. Raises IncompleteError where cotlib is not run from one."""
    root = provenance.project_root()
    if root is None:
        raise IncompleteError("published results lie in docs/results of a checkout; run this from inside one")
    return root / "docs" / "results"


# --- Publishing -------------------------------------------------------------------------------------------------


def publish(scale: str, effort: str, root: Path, force: bool = False, incomplete: bool = False) -> Path:
    """Copy a finished run to root/<scale>; returns that folder.

    `incomplete`: notebooks that never ran may be lacking, and the manifest and the README say which.
    Raises IncompleteError where a notebook is missing, stale or failed, or the report older than they are; ValueError
    for a smoke run, and for one of a smaller effort than the published one unless `force`.
    """
    source, target = provenance.outputs_of(scale, effort), Path(root) / scale
    finished = _finished_notebooks(scale, effort, incomplete)
    manifests = {name: provenance.read_manifest(source / name) for name in finished}
    if target.is_dir() and not force:
        there = read_manifest(target)["effort"]
        if list(EFFORTS).index(effort) < list(EFFORTS).index(there):
            raise ValueError(
                f"{target} is of effort {there}, this run of {effort}, which is less; to replace it: "
                f"cotlib publish --scale {scale} --effort {effort} --force"
            )
    wanted = {RESULTS: source / RESULTS}
    wanted |= {f"tables/{path.name}": path for path in sorted((source / REPORT / "tables").glob("*.csv"))}
    for notebook, figure in FIGURES:
        path = source / notebook / "figures" / f"{figure}.png"
        if notebook in finished and path.is_file():  # where nothing was mended there is no picture of it
            wanted[f"figures/{notebook}-{figure}.png"] = path
    new = target.with_name(f".{scale}.new")
    shutil.rmtree(new, ignore_errors=True)
    for name, path in wanted.items():
        store.atomic_write(new / name, path.read_bytes())
    store.write_json(new / MANIFEST, _manifest(manifests, {name: provenance.file_entry(new / name) for name in wanted}))
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)
    return target


def _finished_notebooks(scale: str, effort: str, incomplete: bool) -> list[str]:
    """Notebooks to publish, the report among them, which has read all the others."""
    states = chain.examine(scale, effort, as_asked=False)
    lacking = [name for name in COMPUTED if states[name][0] == "not run"] if incomplete else []
    if lacking and _has_read_all_there_is(scale, effort):
        states[REPORT] = ("done", "")  # stale only for what the chain would still make
    wanted = [name for name in (*COMPUTED, REPORT) if name not in lacking]
    bad = {name: states[name] for name in wanted if states[name][0] != "done"}
    if any(state == "SMOKE" for state, _ in bad.values()):
        raise ValueError(f"effort {effort} is too small to be a result; publish quick or full")
    if bad:
        what = "; ".join(f"{name}: {state}{f' ({why})' if why else ''}" for name, (state, why) in bad.items())
        raise IncompleteError(
            f"nothing to publish at {scale}/{effort}: {what}; finish it with: "
            f"cotlib run --scale {scale} --effort {effort}"
        )
    folder = provenance.outputs_of(scale, effort)
    if provenance.read_manifest(folder / REPORT)["counts"]["failed"] != len(lacking):
        raise IncompleteError(
            f"the report in {folder / REPORT} lacks notebooks; make it again with: "
            f"{provenance.command(REPORT, scale, effort)}"
        )
    read_results(folder)
    return wanted


def _has_read_all_there_is(scale: str, effort: str) -> bool:
    """Whether the report is whole and of the notebooks as they are now, those that are missing aside."""
    folder = provenance.outputs_of(scale, effort) / REPORT
    manifest = provenance.peek(folder)
    if manifest is None or chain.status(folder) != "done":
        return False
    settings = check(REPORT, scale=scale, effort=effort, seed=manifest["seed"])
    return provenance.run_key(settings)[0] == manifest["key"]


def _manifest(manifests: Mapping[str, Mapping[str, Any]], files: Mapping[str, Any]) -> dict[str, Any]:
    report = manifests[REPORT]
    return {
        **{name: report[name] for name in ("scale", "effort", "seed", "versions")},
        "lacking": [name for name in COMPUTED if name not in manifests],
        "parameters": {name: m["parameters"]["passed"] for name, m in manifests.items()},
        "keys": {name: m["key"] for name, m in manifests.items()},
        "commits": sorted({f"{m['git']['commit']}{'+dirty' if m['git']['dirty'] else ''}" for m in manifests.values()}),
        "seconds": {name: m.get("spent", m["seconds"]) for name, m in manifests.items()},  # of all its runs
        "machines": sorted({_machine(m["machine"]) for m in manifests.values()}),
        "files": dict(files),
    }


def _machine(facts: Mapping[str, Any]) -> str:
    processor = f"{facts['cpu']} ({facts['cores']} {'core' if facts['cores'] == 1 else 'cores'})"
    return f"{facts['gpu']} and {processor}" if facts.get("gpu") else processor


# --- Reading ----------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a published run. IncompleteError where there is none."""
    if not (folder / MANIFEST).is_file():
        known = sorted(p.parent.name for p in folder.parent.glob(f"*/{MANIFEST}"))
        raise IncompleteError(
            f"nothing is published in {folder}; published scales: {', '.join(known) or 'none'}. Publish a finished "
            f"run with: cotlib publish --scale {folder.name} --effort full"
        )
    return store.read_json(folder / MANIFEST)


def read_published(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Measurements and manifest of a published run, digests checked.

    Raises IncompleteError where nothing is published, CorruptError for a file that is not what the manifest says.
    """
    manifest = read_manifest(folder)
    bad = [
        name
        for name, entry in manifest["files"].items()
        if not (folder / name).is_file() or provenance.file_entry(folder / name) != entry
    ]
    if bad:
        raise CorruptError(f"{folder}: {', '.join(bad)} changed since it was published; restore with: git checkout")
    return store.read_json(folder / RESULTS), manifest


def cost(manifest: Mapping[str, Any]) -> str:
    """What the notebooks of a published run took, and on what."""
    seconds = sum(manifest["seconds"].values())
    took = f"{seconds / 3600:.1f} hours" if seconds > 3600 else f"{seconds / 60:.0f} minutes"
    return f"{took} on {'; '.join(manifest['machines'])}"


# --- Comparing --------------------------------------------------------------------------------------------------

NOT_COMPARED = ("cost/", "speed/", "index/")  # of the machine, not of the method


def compare(ours: Iterable[Mapping[str, Any]], theirs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per measurement of either run: name, both values, their difference, how far chance reaches, verdict.

    Two values differ where they lie further apart than the root of the summed squares of their half intervals, which
    takes the two runs to be independent: of the same seed and prompts they are less than that, and agree oftener. An
    interval without width, of prompts that are all alike, counts as 3/n (the rule of three). Without intervals a value
    is "equal" or "other". "only here" and "only there": of one run alone. Times are of the machine and left out.
    """
    a, b = ({m["name"]: m for m in run if not _is_of_the_machine(m)} for run in (ours, theirs))
    rows = []
    for name in sorted(a.keys() | b.keys()):
        x, y = a.get(name), b.get(name)
        row = {"name": name, "here": x and x["value"], "there": y and y["value"], "difference": None, "chance": None}
        if x is None or y is None:
            rows.append({**row, "verdict": "only there" if x is None else "only here"})
            continue
        if None in (x["value"], y["value"]):
            rows.append({**row, "verdict": "equal" if x["value"] == y["value"] else "other"})
            continue
        row["difference"] = x["value"] - y["value"]
        if x["low"] is None or y["low"] is None:
            same = math.isclose(x["value"], y["value"], rel_tol=1e-6, abs_tol=1e-9)
            rows.append({**row, "verdict": "equal" if same else "other"})
            continue
        row["chance"] = math.hypot(_half_interval(x), _half_interval(y))
        rows.append({**row, "verdict": "differs" if abs(row["difference"]) > row["chance"] else "agrees"})
    return rows


def _is_of_the_machine(record: Mapping[str, Any]) -> bool:
    return record["name"].startswith(NOT_COMPARED) or record.get("unit") == "s"


def _half_interval(record: Mapping[str, Any]) -> float:
    return (record["high"] - record["low"]) / 2 or (3 / record["n"] if record.get("n") else 0.0)


def run_folder(name: str) -> Path:
    """The folder of a run: a path that holds results, or "<scale>/<effort>" below the outputs.

    Raises ValueError for what is neither.
    """
    if (Path(name) / RESULTS).is_file():
        return Path(name)
    folder = provenance.outputs_root() / name
    if (folder / RESULTS).is_file():
        return folder
    known = [p.parent.relative_to(provenance.outputs_root()).as_posix() for p in _finished()]
    raise ValueError(f"no results of a run {name!r}; {suggest(name, known)}. A run is SCALE/EFFORT or a folder")


def _finished() -> Sequence[Path]:
    return sorted(provenance.outputs_root().glob(f"*/*/{RESULTS}"))

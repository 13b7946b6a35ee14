"""A project folder with small notebooks, for tests of what runs notebooks."""

import json
import shutil
from pathlib import Path

from cotlib import chain, provenance
from cotlib.errors import NotebookError

NOTEBOOKS = Path(__file__).parent / "notebooks"


def make_project(folder: Path, **sources: str) -> Path:
    """`folder` as a project; make_project(tmp, **{"01_baseline": "good"}) puts that fixture under that name."""
    (folder / "notebooks").mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project]\nname = "cotlib"\n')
    for name, fixture in sources.items():
        put_notebook(folder, name, fixture)
    return folder


def put_notebook(folder: Path, name: str, fixture: str) -> Path:
    """Copy a fixture notebook into the project."""
    return Path(shutil.copy(NOTEBOOKS / f"{fixture}.ipynb", folder / "notebooks" / f"{name}.ipynb"))


def write_notebook(folder: Path, name: str, *code: str, finish: str = "run.finish(ok=1);") -> Path:
    """The good notebook under another name, with these cells of code in the place of its only one."""
    notebook = json.loads((NOTEBOOKS / "good.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if "toy/n" not in "".join(cell["source"])]
    load, end = (next(cell for cell in cells if mark in "".join(cell["source"])) for mark in ("load(", "finish("))
    load["source"], end["source"] = "".join(load["source"]).replace("01_baseline", name), finish
    if name == "08_report":  # it takes no overrides
        load["source"] = load["source"].replace(", n_candidates=n_candidates", "")
        tagged = next(cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
        tagged["source"] = "".join(line for line in tagged["source"] if "n_candidates" not in line)
    at = cells.index(load) + 1
    cells[at:at] = [{**load, "id": f"added-{i}", "source": text} for i, text in enumerate(code)]
    path = folder / "notebooks" / f"{name}.ipynb"
    path.write_text(json.dumps({**notebook, "cells": cells}))
    return path


def execute_here(task: chain.Task) -> None:
    """In the place of chain._execute: run the cells in this process, without a kernel, in a tenth of the time."""
    path = provenance.notebook_path(task.name)
    task.folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, task.folder / chain.RUNNING)
    names: dict = {}
    try:
        for cell in provenance.read_notebook(path)["cells"]:
            if cell["cell_type"] == "code":
                exec(provenance.source(cell), names)
            if provenance.is_parameters(cell):
                names |= task.parameters
    except Exception as error:
        raise NotebookError(chain._failure(task, f"{type(error).__name__}: {error}")) from error

"""The project as a whole: its environment files agree, its notebooks keep the conventions, and each check can fail."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import papermill
import pytest

from cotlib import chain, provenance, store

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIXTURES = Path(__file__).parent / "notebooks"
LONGEST_DEFINITION = 10  # lines; what is longer belongs in cotlib

# ---- environment ----------------------------------------------------------------------------------------------


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> dict[str, str]:
    """{name: specifier} of pyproject.toml, development tools included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = project["dependencies"] + project["optional-dependencies"]["dev"]
    parts = [re.fullmatch(r"([\w.-]+)(.*)", line).groups() for line in listed]
    return {normal(name): specifier for name, specifier in parts}


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return {normal(name): version for name, version in (line.split("==") for line in lines)}


def test_the_lock_pins_exact_versions_that_any_index_has():
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        assert re.fullmatch(r"[\w.-]+==[\w.!]+", line), f"no exact public pin: {line}"


def test_everything_required_is_locked():
    assert set(requirements()) <= set(locked())


def test_conda_and_pip_ask_for_the_same_packages_and_conda_says_why():
    lines = (ROOT / "environment.yml").read_text().split("dependencies:\n")[1].splitlines()
    conda = {}
    for line in lines:
        name, specifier, reason = re.fullmatch(r"  - ([\w-]+)(\S*)  # (.+)", line).groups()
        conda[name] = specifier
        assert len(reason) > 3
    for theirs, ours in (("pytorch", "torch"), ("matplotlib-base", "matplotlib")):
        conda[ours] = conda.pop(theirs)
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert conda.pop("python") == python and conda.pop("pip") == ""
    assert conda == requirements()


def test_every_import_of_the_package_is_of_something_locked():
    owners = packages_distributions()
    for path in (ROOT / "cotlib").rglob("*.py"):
        if path.parent.name == "atlas":  # the script that drew the artwork; it does not run with the package
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"cotlib"}:
                assert {normal(o) for o in owners.get(top, [])} & set(locked()), f"{path}: {top} is not in the lock"


def test_ci_is_make_test_and_nothing_else():
    script = ROOT / ".ci" / "run"
    commands = [line for line in script.read_text().splitlines() if line and line[0] != "#"]
    assert commands == ["set -eu", 'cd "$(dirname "$0")/.."', "make test"] and os.access(script, os.X_OK)


def test_make_runs_what_the_front_page_promises():
    def commands(target, *variables):
        words = ["make", "-n", "-o", ".venv/.installed", target, *variables]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "cotlib run --scale pocket --effort quick --seed 0" in commands("reproduce")
    assert "--scale showo --effort full --seed 2" in commands("reproduce", "SCALE=showo", "EFFORT=full", "SEED=2")
    assert "KILLS=3 CHAIN=toy" in commands("kill-test", "KILLS=3") and "-m slow" in commands("kill-test")
    assert "-m browser" in commands("browser-test")
    for part in ("ruff check", "ruff format --check", 'pytest -q -m "not slow"'):
        assert part in commands("test")


# ---- notebooks ------------------------------------------------------------------------------------------------


def cells_of(path: Path) -> list[dict]:
    return provenance.read_notebook(path)["cells"]


def code_of(cells: list[dict]) -> list[str]:
    return [provenance.source(cell) for cell in cells if cell["cell_type"] == "code"]


def prose_of(cells: list[dict]) -> list[str]:
    return [provenance.source(cell) for cell in cells if cell["cell_type"] == "markdown"]


def parameter_faults(path: Path) -> list[str]:
    try:
        names = chain.declared_parameters(path)
    except chain.errors.CorruptError as error:
        return [str(error)]
    faults = [f"parameter {name} is missing" for name in ("scale", "effort", "seed") if name not in names]
    text = next(provenance.source(cell) for cell in cells_of(path) if provenance.is_parameters(cell))
    return faults + [f"no comment: {line}" for line in text.splitlines() if line.strip() and "  # " not in line]


def prose_faults(path: Path) -> list[str]:
    prose = prose_of(cells_of(path))
    text = "\n".join(prose)
    wanted = {"# ": "title", "**Question.**": "question", "**Paper item.**": "paper item", "**Cost.**": "cost line"}
    wanted |= {"**Reads**": "what it reads", "**Writes**": "what it writes"}
    faults = [f"first cell has no {what}" for mark, what in wanted.items() if mark not in prose[0]]
    if not re.search(r"^## 1\. ", text, re.MULTILINE):
        faults.append("no section '## 1. ...'")
    if not re.match(r"00_|9", path.name) and "## Compared with the paper" not in text:
        faults.append("no section '## Compared with the paper'")
    if "**Next step:**" not in prose[-1]:
        faults.append("last cell has no next step")
    links = re.findall(r"\]\(([\w./-]+?\.ipynb)[)#]", text)
    index = "00_index.ipynb" if path.parent == ROOT / "notebooks" else "good.ipynb"
    if index not in links:
        faults.append("no link to the index")
    return faults + [f"link to {name}, which does not exist" for name in links if not (path.parent / name).exists()]


def code_faults(path: Path) -> list[str]:
    code = code_of(cells_of(path))
    faults = [] if "cotlib.load(" in code[1] else ["the cell after the parameters does not call cotlib.load"]
    if not re.search(r"^run\.finish\(", code[-1], re.MULTILINE):
        faults.append("the last code cell does not call run.finish")
    for text in code:
        if re.search(r"^\s*[!%]|\b(sys\.)?exit\(|\bquit\(", text, re.MULTILINE):
            faults.append(f"leaves or calls a shell: {text[:40]!r}")
            continue
        for node in ast.walk(ast.parse(text)):
            is_definition = isinstance(node, ast.FunctionDef | ast.ClassDef)
            if is_definition and node.end_lineno - node.lineno >= LONGEST_DEFINITION:
                faults.append(f"{node.name} is {node.end_lineno - node.lineno + 1} lines long")
    return faults


def faults(path: Path) -> list[str]:
    """Everything about a notebook's source that breaks a convention, in words."""
    made = [cell for cell in cells_of(path) if cell.get("outputs") or cell.get("execution_count")]
    stored = [f"{len(made)} cells carry outputs; strip them"] if made else []
    return stored + parameter_faults(path) + prose_faults(path) + code_faults(path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_keeps_the_conventions(path):
    assert faults(path) == []


FAULTS = {
    "no_parameters_cell": "0 cells tagged 'parameters'",
    "two_parameters_cells": "2 cells tagged 'parameters'",
    "derived_parameter": "is not `name = literal`",
    "tuple_parameter": "is not `name = literal`",
    "uncommented_parameter": "no comment: depth = 3",
    "seed_missing": "parameter seed is missing",
    "broken_link": "link to 99_nowhere.ipynb, which does not exist",
    "never_finishes": "does not call run.finish",
    "exits": "leaves or calls a shell: 'exit()'",
    "sys_exit_0": "leaves or calls a shell",
    "installs": "leaves or calls a shell: '!pip",
    "no_cost_line": "first cell has no cost line",
    "no_section": "no section '## 1.",
    "no_comparison": "no section '## Compared with the paper'",
    "no_next_step": "last cell has no next step",
    "long_function": "f is 14 lines long",
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_check_of_notebooks_notices(name):
    found = faults(FIXTURES / f"{name}.ipynb")
    assert any(FAULTS[name] in fault for fault in found), found


def test_the_check_of_notebooks_has_nothing_against_a_good_one():
    assert faults(FIXTURES / "good.ipynb") == []


@pytest.mark.parametrize("trace", [{"execution_count": 3}, {"outputs": [{"output_type": "stream", "text": "x"}]}])
def test_the_check_of_notebooks_notices_outputs(tmp_path, trace):
    notebook = json.loads((FIXTURES / "good.ipynb").read_text())
    notebook["cells"][1].update(trace)
    path = store.write_json(tmp_path / "good.ipynb", notebook)
    assert faults(path) == ["1 cells carry outputs; strip them"]


def test_the_index_and_the_template_are_there_and_every_notebook_of_the_chain_is_known():
    written = {path.stem for path in NOTEBOOKS}
    assert {"00_index", "_template"} <= written
    unknown = written - set(chain.NOTEBOOKS)
    assert not unknown, f"add to NOTEBOOKS in cotlib/config.py: {unknown}"


def test_the_template_runs_by_papermill_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("COTLIB_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    dials = {"scale": "pocket", "effort": "smoke"}
    source = ROOT / "notebooks" / "_template.ipynb"
    papermill.execute_notebook(source, tmp_path / "out.ipynb", dials, progress_bar=False, cwd=ROOT / "notebooks")
    manifest = provenance.read_manifest(tmp_path / "outputs/pocket/smoke/_template")
    wanted = {"tables/prompts-by-task.csv", "figures/prompts-by-task.png", "metrics.json"}
    assert set(manifest["files"]) == wanted and manifest["counts"]["ok"] == 6


def test_the_index_shows_every_item_and_its_page_fetches_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("COTLIB_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.chdir(ROOT)
    chain.run_chain(["00_index"], scale="pocket", effort="smoke")
    page = (tmp_path / "outputs/pocket/smoke/00_index/executed.html").read_text()
    for item, *_ in chain.PAPER_ITEMS:
        assert f"<td>{item}</td>" in page
    assert not re.search(r"<(script|img|link)[^>]+(src|href)\s*=\s*[\"']http", page)

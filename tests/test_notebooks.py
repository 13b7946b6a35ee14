"""Two more conventions of the notebooks: no widget feeds the next cell, no measured number stands in prose."""

import ast
import json
import re
from pathlib import Path

import pytest
from test_project import FIXTURES, NOTEBOOKS, cells_of, code_of, prose_of

from cotlib import store

# Numbers that prose may hold although no cell printed them: they are definitions, not measurements.
CONSTANTS = {
    "95 %": "level of every interval",
    "0.5": "AUC of a coin",
}
# What is no claim: formulas, code, links, the number of the paper, and what a heading or the cost line counts; the
# folded answers of a lesson are run by test_lessons.py.
NOT_PROSE = (
    r"<details>.*?</details>",
    r"\$\$.*?\$\$",
    r"\$[^$\n]+\$",
    r"```.*?```",
    r"`[^`\n]*`",
    r"\]\([^)]*\)",
    r"\d{4}\.\d{4,5}(v\d)?",
)
NOT_A_CLAIM = (
    r"^\*\*Cost\.\*\*.*$",
    r"^#+ [\d.]+ ",
    r"^\[←.*$",
    r"\bTables? \d+\b",
    r"\b(Fig|Figs|Eq|Sec)\. \d+(\.\d+)*",
)
MEASURED = r"\d+(?:\.\d+)?\s?%|\d+\.\d+"  # a percentage or a decimal


def number_faults(path: Path) -> list[str]:
    """Percentages and decimals in the prose that are not among the constants."""
    found = []
    for text in prose_of(cells_of(path)):
        for pattern in (*NOT_PROSE, *NOT_A_CLAIM):
            text = re.sub(pattern, " ", text, flags=re.MULTILINE | (re.DOTALL if "*?" in pattern else 0))
        found += [number for number in re.findall(MEASURED, text) if number not in CONSTANTS]
    return [f"{number} stands in prose; let a cell print it" for number in found]


def _makes_widget(call: ast.AST, modules: set[str], names: set[str]) -> bool:
    if not isinstance(call, ast.Call):
        return False
    made_by = ast.unparse(call.func)
    return made_by in names or made_by.partition(".")[0] in modules


def widget_faults(path: Path) -> list[str]:
    """Names bound to a widget that a later cell reads, and globals that a callback sets."""
    modules, names, widgets, faults = set(), set(), set(), []
    for text in code_of(cells_of(path)):
        tree = ast.parse(text)
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        faults += [f"the widget {name} of an earlier cell feeds {text[:40]!r}" for name in sorted(widgets & used)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules |= {a.asname or a.name for a in node.names if a.name.split(".")[0] == "ipywidgets"}
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ipywidgets":
                names |= {a.asname or a.name for a in node.names}
            if isinstance(node, ast.Global):
                faults.append(f"a function sets {', '.join(node.names)} for later cells")
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign | ast.NamedExpr) and _makes_widget(node.value, modules, names):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                widgets |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return faults


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_measured_number_stands_in_prose_and_no_widget_feeds_a_cell(path):
    assert number_faults(path) + widget_faults(path) == []


@pytest.mark.parametrize("name", ["good", "number_in_prose", "widget_feeds_the_next_cell", "callback_sets_a_global"])
def test_each_check_notices_its_fixture_and_has_nothing_against_the_others(name):
    found = number_faults(FIXTURES / f"{name}.ipynb"), widget_faults(FIXTURES / f"{name}.ipynb")
    expected = {
        "good": ([], []),
        "number_in_prose": (["62.5 % stands in prose; let a cell print it"], []),
        "widget_feeds_the_next_cell": (
            [],
            ["the widget slider of an earlier cell feeds 'run.record(\"toy/n\", slider.value)'"],
        ),
        "callback_sets_a_global": ([], ["a function sets chosen for later cells"]),
    }
    assert found == expected[name]


@pytest.mark.parametrize(
    ("prose", "n"),
    [
        ("The base is right in 62.5 % of cases.", 1),
        ("It rose from 0.31 to 0.47.", 2),
        ("62.5%", 1),
        ("Intervals are 95 %; 0.5 is chance.", 0),
        ("**Cost.** quick: 2.5 min.", 0),
        ("## 1.2 A heading", 0),
        ("As in arXiv:2501.13926, Eq. 4.1, Table 1.", 0),
        ("Guidance $g = 1.75$ and `temperature=0.9`.", 0),
        ("[a link](https://x.org/v1.2)", 0),
        ("N=20 of 553 prompts, 4 images", 0),
    ],
)
def test_what_counts_as_a_measured_number(tmp_path, prose, n):
    notebook = json.loads((FIXTURES / "good.ipynb").read_text())
    notebook["cells"][3]["source"] = prose
    assert len(number_faults(store.write_json(tmp_path / "n.ipynb", notebook))) == n


@pytest.mark.parametrize(
    ("cells", "n"),
    [
        (["import ipywidgets as w", "s = w.IntSlider()", "print(s.value)"], 1),
        (["from ipywidgets import IntSlider", "s, t = (IntSlider(), 1)", "print(t)"], 0),
        (["from ipywidgets import interact, IntSlider", "@interact(k=IntSlider())\ndef show(k):\n    print(k)"], 0),
        (["import ipywidgets", "s = ipywidgets.Play()\ndisplay(s)"], 0),
        (["import ipywidgets", "print(s := ipywidgets.Play())", "s"], 1),
    ],
)
def test_what_counts_as_a_widget_that_feeds_a_cell(tmp_path, cells, n):
    code = [{"cell_type": "code", "metadata": {}, "source": text} for text in cells]
    assert len(widget_faults(store.write_json(tmp_path / "n.ipynb", {"cells": code}))) == n

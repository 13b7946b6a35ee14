"""The lessons: each runs as a reader runs it, prints what is stored of it, and its folded answers are right.

What a lesson should print lies in tests/lessons/<lesson>.json: `exact` for toys, `about` for the pocket models, whose
numbers may differ from machine to machine: `within` says by how much, whole numbers and decimals. After a change that
is meant, write them anew with

    LESSONS=write pytest tests/test_lessons.py
"""

import copy
import html
import json
import os
import re
from pathlib import Path

import papermill
import pytest
from test_project import ROOT, code_of, prose_of

from cotlib import chain, provenance, store

LESSONS = sorted((ROOT / "notebooks").glob("9[1-9]_teach_*.ipynb"))
STORED = Path(__file__).parent / "lessons"
WORDS, LONGEST_CELL, LARGEST_PAGE = (60, 75), 20, 3_000_000  # prose a code cell, lines, bytes
ANSWER = re.compile(r"<details>\n<summary>Answer</summary>\n(.*?)\n</details>", re.DOTALL)
BLOCK = re.compile(r"<pre>(.*?)</pre>", re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def answers_of(text: str) -> list[tuple[str, str]]:
    """(code, what it should print) of every folded answer in a cell of prose.

    It is HTML without an empty line: folded Markdown, nbconvert would lay open.
    """
    blocks = [BLOCK.findall(answer) for answer in ANSWER.findall(text)]
    return [(html.unescape(code), html.unescape(printed)) for code, printed in blocks]


def prose_words(text: str) -> int:
    """Words to read: no formula or code, no target of a link, nothing that is folded away."""
    for pattern in (r"<details>.*?</details>", r"`[^`]*`", r"\]\([^)]*\)"):
        text = re.sub(pattern, " ", text, flags=re.DOTALL)
    return len(re.findall(r"[^\W_][\w'-]*", text))


def printed(cell: dict) -> str:
    """What a cell wrote with print, without trailing spaces."""
    text = "".join("".join(out["text"]) for out in cell["outputs"] if out.get("name") == "stdout")
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def is_about(text: str, wanted: str, within: tuple[float, float]) -> bool:
    """The same words, and every number within a distance, that of whole numbers or that of decimals."""
    if NUMBER.sub("#", text) != NUMBER.sub("#", wanted):
        return False
    pairs = zip(NUMBER.findall(text), NUMBER.findall(wanted), strict=True)
    return all(abs(float(a) - float(b)) <= within["." in b] for a, b in pairs)


@pytest.fixture(scope="module", params=LESSONS, ids=lambda path: path.stem)
def executed(request, tmp_path_factory):
    """(path, executed notebook, {cell: what an answer should print}); every answer runs after the prose it ends."""
    folder, notebook, wanted = tmp_path_factory.mktemp("lesson"), json.loads(request.param.read_text()), {}
    cells = []
    for cell in notebook["cells"]:
        cells.append(cell)
        for i, (code, text) in enumerate(
            answers_of(provenance.source(cell)) if cell["cell_type"] == "markdown" else []
        ):
            cells.append({"cell_type": "code", "id": f"{cell['id']}-{i}", "metadata": {}, "source": code})
            cells[-1] |= {"outputs": [], "execution_count": None}
            wanted[cells[-1]["id"]] = text
    source = store.write_json(folder / "source.ipynb", {**notebook, "cells": cells})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COTLIB_OUTPUTS", str(folder / "outputs"))
        patch.setenv("PYTHONPATH", str(ROOT))
        papermill.execute_notebook(source, folder / "out.ipynb", progress_bar=False, cwd=ROOT / "notebooks")
    return request.param, json.loads((folder / "out.ipynb").read_text()), wanted


def test_a_lesson_prints_what_is_stored_and_its_answers_what_they_say(executed, tmp_path):
    path, notebook, wanted = executed
    said = {cell["id"]: printed(cell) for cell in notebook["cells"] if cell["cell_type"] == "code"}
    assert {id: said[id] for id in wanted} == wanted
    said = {id: text for id, text in said.items() if text and id not in wanted and id != "load"}
    file = STORED / f"{path.stem}.json"
    stored = json.loads(file.read_text())
    if os.environ.get("LESSONS") == "write":
        stored = {
            "exact": {id: text.splitlines() for id, text in said.items() if id not in stored["about"]},
            "about": {id: {**stored["about"][id], "prints": said[id].splitlines()} for id in stored["about"]},
        }
        file.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
    assert set(said) == {*stored["exact"], *stored["about"]}
    assert {id: said[id].splitlines() for id in stored["exact"]} == stored["exact"]
    for id, about in stored["about"].items():
        assert is_about(said[id], "\n".join(about["prints"]), about["within"]), f"{id} prints\n{said[id]}"


def test_a_lesson_leaves_figures_and_a_page_that_is_light(executed, tmp_path):
    path, notebook, wanted = executed
    notebook = copy.deepcopy(notebook)
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["id"] not in wanted]
    page = chain.to_html(store.write_json(tmp_path / "out.ipynb", notebook))
    assert len(page.encode()) <= LARGEST_PAGE and "image/png" in page


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_is_prose_with_short_cells_and_asks_before_it_shows(path):
    cells = provenance.read_notebook(path)["cells"]
    code, prose = code_of(cells), "\n".join(prose_of(cells))
    assert max(len(text.splitlines()) for text in code) < LONGEST_CELL
    assert WORDS[0] <= prose_words(prose) / len(code) <= WORDS[1], prose_words(prose) / len(code)
    assert prose.count("**Predict**") >= 4 and len(answers_of(prose)) == prose.count("**Exercise ") >= 3
    assert chain.declared_parameters(path).keys() == {"scale", "effort", "seed"}


# ---- The checks themselves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted", "within", "is_it"),
    [
        ("9 of 24 right", "9 of 24 right", (0, 0), True),
        ("9 of 24 right", "11 of 24 right", (2, 0), True),
        ("9 of 24 right", "12 of 24 right", (2, 9), False),
        ("9 of 24 right", "9 of 24 wrong", (2, 2), False),
        ("9 of 24", "9 of 24\n3 of 24", (2, 2), False),
        ("AUC 0.91 of 9", "AUC 0.88 of 7", (2, 0.05), True),
        ("AUC 0.91 of 9", "AUC 0.81 of 9", (2, 0.05), False),
        ("-0.21", "0.21", (9, 0.3), False),
    ],
)
def test_what_counts_as_about_the_same(text, wanted, within, is_it):
    assert is_about(text, wanted, within) is is_it


def test_answers_are_found_and_do_not_count_as_prose():
    answer = "<details>\n<summary>Answer</summary>\n<p>So.</p>\n<pre>{}</pre>\n<pre>1</pre>\n</details>"
    text = "**Exercise 1.** Why?\n\n" + answer.format("print(1 &lt; 2)")
    assert answers_of(text) == [("print(1 < 2)", "1")]
    assert prose_words(text) == 3 == prose_words("See *this* [link](to_it.ipynb): `x = 1`, ")
    with pytest.raises(ValueError):
        answers_of(text.replace("<pre>1</pre>", "one"))


def test_an_answer_stays_folded_on_the_page(tmp_path):
    cell = next(cell for cell in provenance.read_notebook(LESSONS[0])["cells"] if answers_of(provenance.source(cell)))
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    page = chain.to_html(store.write_json(tmp_path / "one.ipynb", notebook))
    (folded,) = ANSWER.findall(page)
    assert BLOCK.findall(folded) and BLOCK.findall(page) == BLOCK.findall(folded)

"""The documents: what they point at exists, and their examples run."""

import importlib
import re

import pytest
from test_project import ROOT

DOCS = sorted((ROOT / "docs").glob("*.md"))


def resolve(name):
    """The object of a dotted name. Raises ImportError or AttributeError where there is none."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ImportError(name)


@pytest.mark.parametrize("page", [*DOCS, ROOT / "README.md"], ids=lambda path: path.stem)
def test_every_name_that_a_document_points_at_exists(page):
    text = page.read_text()
    for name in re.findall(r"`(cotlib(?:\.\w+)+)`", text):
        resolve(name)
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_a_name_that_does_not_exist_is_noticed():
    with pytest.raises((ImportError, AttributeError)):
        resolve("cotlib.search.no_such_function")


def test_the_examples_of_extending_run_and_their_rows_are_in_the_table(tmp_path, monkeypatch, capsys):
    from cotlib.verifiers import VERIFIERS

    monkeypatch.setenv("COTLIB_OUTPUTS", str(tmp_path))
    monkeypatch.setattr("cotlib.verifiers.VERIFIERS", dict(VERIFIERS))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
    names = {}
    for block in blocks:
        exec(compile(block, "docs/extending.md", "exec"), names)
    said = capsys.readouterr().out
    for row in ("Baseline", "base / prm-at-the-end", "base / first-good-enough", "sharper / none"):
        assert row in said
    assert re.search(r"first-good-enough decodes \d+% of best-of-4's candidates", said)
    assert all(len(right) == 2 for right in names["right"].values())
    recorded = {m["name"] for m in names["run"].records()}
    assert "geneval/base/first-good-enough/overall@4" in recorded
    search_method = next(block for block in blocks if "def first_good_enough" in block)
    assert len(search_method.strip().splitlines()) < 30

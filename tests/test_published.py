"""Publishing a finished run, comparing with it, and the README that is made of it."""

import json
import re
import shutil

import papermill
import pytest
from test_project import ROOT

from cotlib import frontpage, published
from cotlib.__main__ import main
from cotlib.config import COMPUTED
from cotlib.errors import CorruptError, IncompleteError

PUBLISHED = ROOT / "docs" / "results" / "pocket"


def record(name, value, low=None, high=None):
    return {"name": name, "value": value, "low": low, "high": high, "n": 10, "unit": "", "notebook": "x", "seeds": [0]}


def test_two_runs_differ_only_where_their_intervals_cannot_explain_it():
    here = [
        record("a", 0.5, 0.4, 0.6),
        record("b", 0.9, 0.85, 0.95),
        record("c", 7),
        record("d", 1),
        record("cost/x", 1),
    ]
    there = [record("a", 0.6, 0.5, 0.7), record("b", 0.6, 0.55, 0.65), record("c", 7), record("e", 1)]
    verdicts = {row["name"]: row["verdict"] for row in published.compare(here, there)}
    assert verdicts == {"a": "agrees", "b": "differs", "c": "equal", "d": "only here", "e": "only there"}
    b = next(row for row in published.compare(here, there) if row["name"] == "b")
    assert b["difference"] == pytest.approx(0.3) and b["chance"] == pytest.approx(0.05 * 2**0.5)


def test_an_interval_without_width_is_not_certain_and_times_are_of_the_machine():
    here = [record("a", 1.0, 1.0, 1.0), record("b", 1.0, 1.0, 1.0), {**record("dpo/training", 5.0), "unit": "s"}]
    there = [record("a", 0.8, 0.75, 0.85), record("b", 0.6, 0.55, 0.65), {**record("dpo/training", 9.0), "unit": "s"}]
    rows = {row["name"]: row for row in published.compare(here, there)}
    assert {name: row["verdict"] for name, row in rows.items()} == {"a": "agrees", "b": "differs"}
    assert rows["a"]["chance"] == pytest.approx((0.3**2 + 0.05**2) ** 0.5)  # 3/n, n = 10


def test_a_run_is_compared_with_the_published_one_of_its_own_scale(tmp_path, monkeypatch, capsys):
    for name, code, said in (("pocket/full", 0, "published: scale pocket"), ("mine", 2, "does not tell its scale")):
        folder = shutil.copytree(PUBLISHED, tmp_path / name)
        monkeypatch.chdir(folder)
        with pytest.raises(SystemExit) as end:
            main(["compare", "."])
        assert (end.value.code or 0) == code and said in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "said"), [(457.0, "8 minutes on"), (9000.0, "2.5 hours on")])
def test_what_a_run_took_is_told_with_its_machine(seconds, said):
    machine = published._machine({"cpu": "Some CPU", "cores": 16, "gpu": "Some GPU"})
    assert (
        published.cost({"seconds": {"a": seconds}, "machines": [machine]}) == f"{said} Some GPU and Some CPU (16 cores)"
    )
    assert published._machine({"cpu": "Some CPU", "cores": 1, "gpu": None}) == "Some CPU (1 core)"


def test_an_unfinished_run_is_not_published(tmp_path, monkeypatch):
    monkeypatch.setenv("COTLIB_OUTPUTS", str(tmp_path))
    with pytest.raises(IncompleteError, match="01_baseline: not run.*cotlib run --scale pocket --effort quick"):
        published.publish("pocket", "quick", tmp_path / "docs")
    assert not (tmp_path / "docs").exists()


def test_a_changed_file_of_a_published_run_is_noticed(tmp_path):
    folder = shutil.copytree(PUBLISHED, tmp_path / "pocket")
    assert published.read_published(folder)[0]
    table = folder / "tables" / "table_1.csv"
    table.write_text(table.read_text() + "\n")
    with pytest.raises(CorruptError, match="table_1.csv changed since it was published"):
        published.read_published(folder)
    with pytest.raises(IncompleteError, match="cotlib publish --scale showo"):
        published.read_published(tmp_path / "showo")


def test_the_readme_is_in_step_with_the_published_results():
    readme = (ROOT / "README.md").read_text()
    assert frontpage.in_step(readme, PUBLISHED) == readme, "run: make readme"
    for name in json.loads((PUBLISHED / published.MANIFEST).read_text())["files"]:
        assert (PUBLISHED / name).is_file()


def test_a_changed_result_changes_the_readme(tmp_path):
    folder = shutil.copytree(PUBLISHED, tmp_path / "pocket")
    records = json.loads((folder / "results.json").read_text())
    for m in records:
        if m["name"] == "geneval/base/none/overall":
            m |= {"value": 0.123, "low": 0.1, "high": 0.15}
    (folder / "results.json").write_text(json.dumps(records))
    manifest = json.loads((folder / published.MANIFEST).read_text())
    manifest["files"]["results.json"] = published.provenance.file_entry(folder / "results.json")
    (folder / published.MANIFEST).write_text(json.dumps(manifest))
    assert "| Baseline | 0.12 ±" in frontpage.block(folder)
    assert 0.123 in frontpage.figure(folder).axes[0].lines[0].get_xdata()
    with pytest.raises(ValueError, match="must hold the lines"):
        frontpage.in_step("no marks", folder)


def test_a_report_without_its_notebooks_says_what_makes_them_and_shows_the_rest(tmp_path, monkeypatch):
    monkeypatch.setenv("COTLIB_OUTPUTS", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    source, out = ROOT / "notebooks" / "08_report.ipynb", tmp_path / "out.ipynb"
    papermill.execute_notebook(source, out, {"effort": "smoke"}, progress_bar=False, cwd=ROOT / "notebooks")
    for name in COMPUTED:
        assert f"make it with: cotlib run {name}" in out.read_text()
    folder = tmp_path / "pocket" / "smoke" / "08_report"
    assert json.loads((folder / "run.json").read_text())["counts"]["failed"] == len(COMPUTED)
    assert "06_integration, not there" in (folder / "tables" / "table_2.csv").read_text()


@pytest.mark.parametrize(("notebook", "figure"), published.FIGURES)
def test_a_figure_to_publish_is_made_by_its_notebook(notebook, figure):
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text())["cells"]
    assert any(re.search(rf'run\.figure\(\s*"{figure}"', "".join(cell["source"])) for cell in cells)

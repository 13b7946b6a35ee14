"""The chain, on small notebooks; those that start a kernel take one to three seconds each."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from toy_project import make_project, put_notebook

from cotlib import chain, provenance, store
from cotlib.config import COMPUTED
from cotlib.errors import CorruptError, CotlibError, ForeignError, KernelDiedError, NotebookError

SMOKE = {"scale": "pocket", "effort": "smoke"}
TWO = ["01_baseline", "02_outcome_verifier"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project whose first two notebooks have been run; copied by each test that changes it."""
    folder = make_project(
        tmp_path_factory.mktemp("made") / "project", **{"01_baseline": "good", "02_outcome_verifier": "reads_upstream"}
    )
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("COTLIB_OUTPUTS", raising=False)
        assert chain.run_chain(["02_outcome_verifier"], **SMOKE) == dict.fromkeys(TWO, "done")
    assert Path.cwd() == before
    return folder


@pytest.fixture
def project(tmp_path, finished, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "project")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("COTLIB_OUTPUTS", raising=False)
    return folder


@pytest.fixture
def executed(monkeypatch):
    """Names of the notebooks that would have been executed, in place of executing them."""
    names = []

    def stop(task):
        names.append(task.name)
        raise NotebookError("stopped by the test")

    monkeypatch.setattr(chain, "_execute", stop)
    return names


def outputs(project, notebook="01_baseline"):
    return project / "outputs" / "pocket" / "smoke" / notebook


class TestFinishedRun:
    def test_it_leaves_manifest_executed_notebook_page_and_measurements(self, project):
        manifest = provenance.read_manifest(outputs(project))
        assert set(manifest["files"]) == {"metrics.json", "executed.ipynb", "executed.html"}
        left = {path.name for path in outputs(project).iterdir()}
        assert left == {"run.json", "metrics.json", "executed.ipynb", "executed.html"}

    def test_what_is_read_runs_first_and_its_key_is_recorded(self, project):
        above, below = (provenance.read_manifest(outputs(project, name)) for name in TWO)
        assert below["upstream"] == {"01_baseline": above["key"]} and below["started"] > above["started"]
        values = {r["name"]: r["value"] for r in store.read_json(outputs(project, TWO[1]) / "metrics.json")}
        assert values["toy/twice"] == 8

    def test_cost_is_the_wall_time_with_the_start_of_the_kernel(self, project):
        manifest = provenance.read_manifest(outputs(project))
        cost = {r["name"]: r["value"] for r in store.read_json(outputs(project) / "metrics.json")}["cost/01_baseline"]
        assert cost == manifest["seconds"] > 0.5

    def test_the_kernel_is_the_interpreter_that_runs_the_chain(self, project):
        notebook = nbformat.read(outputs(project) / "executed.ipynb", as_version=4)
        said = [o.text for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "stream"]
        assert f"interpreter {sys.executable}\n" in "".join(said)
        assert "JUPYTER_PATH" not in os.environ and not Path.home().joinpath(".local/share/jupyter/kernels").exists()

    def test_it_is_kept_and_nothing_is_executed_again(self, project, executed):
        assert chain.run_chain(["02_outcome_verifier"], **SMOKE) == dict.fromkeys(TWO, "kept")
        assert executed == []

    def test_force_repeats_the_named_notebook_only(self, project, executed):
        with pytest.raises(NotebookError):
            chain.run_chain(["02_outcome_verifier"], force=True, **SMOKE)
        assert executed == ["02_outcome_verifier"]

    @pytest.mark.parametrize("file", ["executed.ipynb", "executed.html", "metrics.json", "run.json"])
    @pytest.mark.parametrize("damage", ["delete", "truncate"])
    def test_damage_to_any_file_means_not_finished(self, project, executed, file, damage):
        path = outputs(project) / file
        path.unlink() if damage == "delete" else path.write_bytes(path.read_bytes()[:-2])
        with pytest.raises(NotebookError):
            chain.run_chain(["02_outcome_verifier"], **SMOKE)
        assert executed == ["01_baseline"]

    @pytest.mark.parametrize(("edited", "again"), [("01_baseline", "01_baseline"), (TWO[1], TWO[1])])
    def test_an_edited_notebook_runs_again_and_what_it_reads_does_not(self, project, executed, edited, again):
        path = project / "notebooks" / f"{edited}.ipynb"
        path.write_text(path.read_text().replace("toy/", "toys/"))
        with pytest.raises(NotebookError):
            chain.run_chain(["02_outcome_verifier"], **SMOKE)
        assert executed == [again]

    def test_results_of_another_seed_are_refused_before_anything_runs(self, project, executed):
        with pytest.raises(ForeignError, match="seed: 0 there, 1 here"):
            chain.run_chain(["01_baseline"], seed=1, **SMOKE)
        assert executed == []

    def test_status_and_cost_are_read_from_the_files(self, project):
        rows = {row["notebook"]: row for row in chain.listing("pocket", "smoke")}
        assert rows["01_baseline"]["status"] == "SMOKE" and re.fullmatch(r"\d+ s", rows["01_baseline"]["cost"])
        assert rows["08_report"]["status"] == "not run" and rows["08_report"]["cost"] == ""
        (outputs(project) / "metrics.json").write_text("[]")
        assert chain.status(outputs(project)) == "corrupt"
        (outputs(project) / "run.json").unlink()
        (outputs(project) / chain.RUNNING).touch()
        assert chain.status(outputs(project)) == "unfinished"

    def test_standalone_results_lack_the_page_and_are_made_again_by_the_chain(self, project):
        manifest = json.loads((outputs(project) / "run.json").read_text())
        assert chain.is_current(outputs(project), manifest["key"])
        assert not chain.is_current(outputs(project), "another key")
        del manifest["files"]["executed.html"]
        (outputs(project) / "run.json").write_text(json.dumps(manifest))
        assert not chain.is_current(outputs(project), manifest["key"])


class TestFailures:
    def fail(self, project, fixture, kind, said):
        put_notebook(project, "01_baseline", fixture)
        (outputs(project) / "run.json").unlink(missing_ok=True)
        with pytest.raises(kind, match=said) as error:
            chain.run_chain(["01_baseline"], **SMOKE)
        assert not (outputs(project) / chain.RUNNING).exists() and (outputs(project) / chain.FAILED).exists()
        assert chain.status(outputs(project)) == "failed"
        return error.value

    def test_sys_exit_0_is_no_success(self, project):
        assert self.fail(project, "sys_exit_0", NotebookError, "ended without run.finish").exit_code == 1

    def test_a_killed_kernel_is_told_from_an_error_though_papermill_calls_every_cell_completed(self, project):
        assert self.fail(project, "kernel_killed", KernelDiedError, "kernel died.*memory").exit_code == 138

    def test_a_bad_state_found_in_a_notebook_keeps_its_exit_code_and_an_earlier_result_is_kept(self, project):
        put_notebook(project, "01_baseline", "state_error")
        with pytest.raises(
            CorruptError, match=r"01_baseline failed: CorruptError: weights are cut short.*failed\.ipynb"
        ):
            chain.run_chain(["01_baseline"], **SMOKE)
        assert chain.status(outputs(project)) == "failed, earlier result kept"
        assert provenance.read_manifest(outputs(project))["counts"]["ok"] == 1

    def test_sources_changed_during_a_run_are_noticed(self, project):
        (outputs(project) / "run.json").unlink()
        task = chain.plan(["01_baseline"], **SMOKE, seed=0, parameters={}, force=False)[0]
        manifest = {"scale": "pocket", "effort": "smoke", "files": {}, "key": "k", "started": 9e9}
        provenance.write_manifest(outputs(project), manifest)
        with pytest.raises(ForeignError, match="changed meanwhile"):
            chain._confirm(task, "another", time.time())

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_an_interrupted_chain_says_so_ends_its_kernel_and_frees_the_outputs(self, project, number, code):
        put_notebook(project, "01_baseline", "sleeps")
        command = [sys.executable, "-m", "cotlib", "run", "01_baseline", "--effort", "smoke"]
        environment = {**os.environ, "PYTHONPATH": str(provenance.PACKAGE.parent)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731  a job of `&` ignores it
        running = subprocess.Popen(command, cwd=project, env=environment, preexec_fn=heard, **pipes)
        assert any("asleep" in line for line in running.stdout)
        kernels = psutil.Process(running.pid).children(recursive=True)
        running.send_signal(number)
        assert running.wait(20) == code
        assert kernels and not psutil.wait_procs(kernels, timeout=5)[1]
        assert not (project / "outputs" / "pocket" / "smoke" / ".lock").exists()


class TestRefusals:
    """Everything that can be refused is refused before the first notebook starts."""

    @pytest.mark.parametrize(
        ("parameters", "said"),
        [
            ({"n_candidats": 4}, "declares no parameter 'n_candidats'; did you mean 'n_candidates'"),
            ({"guidance": 2.0}, "declares no parameter 'guidance'"),
            ({"n_candidates": "false"}, "must be an int, got 'false'"),
            ({"n_candidates": 0}, "must lie in 1..1000, got 0"),
            ({"n_candidates": (1, 2)}, r"must be a number, text, true, false or null, got \(1, 2\)"),
            ({"n_candidates": Path("x")}, "must be a number, text"),
        ],
    )
    def test_bad_parameters(self, project, executed, parameters, said):
        with pytest.raises(ValueError, match=said):
            chain.run_chain(["01_baseline"], parameters=parameters, **SMOKE)
        assert executed == []

    def test_what_a_notebook_reads_gets_the_parameters_it_takes(self):
        def given(*names, **parameters):
            tasks = chain.plan(names, **SMOKE, seed=0, parameters=parameters, force=True)
            return {task.settings.notebook: task.settings.params for task in tasks}

        named = given("02_outcome_verifier", n_candidates=3, tune_epochs=2)
        assert {p["n_candidates"] for p in named.values()} == {3} and named["02_outcome_verifier"]["tune_epochs"] == 2
        everything = given(n_candidates=3)
        assert {p["n_candidates"] for name, p in everything.items() if name[:2] in ("01", "05", "07")} == {3}
        with pytest.raises(ValueError, match="declares no parameter 'tune_epoch'"):
            given(tune_epoch=2)

    @pytest.mark.parametrize(
        ("fixture", "said"),
        [
            ("no_parameters_cell", "0 cells tagged 'parameters', expected exactly 1"),
            ("two_parameters_cells", "2 cells tagged 'parameters'"),
            ("derived_parameter", "'twice = seed \\* 2' is not `name = literal`"),
            ("tuple_parameter", "is not `name = literal`"),
        ],
    )
    def test_bad_parameter_cells(self, project, executed, fixture, said):
        put_notebook(project, "02_outcome_verifier", fixture)
        with pytest.raises(CorruptError, match=said):
            chain.run_chain(["02_outcome_verifier"], **SMOKE)
        assert executed == []

    def test_a_truncated_notebook_downstream_stops_the_chain_before_the_first_runs(self, project, executed):
        path = project / "notebooks" / "02_outcome_verifier.ipynb"
        path.write_text(path.read_text()[:-30])
        with pytest.raises(CorruptError, match=r"02_outcome_verifier\.ipynb"):
            chain.run_chain(["02_outcome_verifier"], force=True, **SMOKE)
        assert executed == []

    def test_unknown_and_missing_notebooks(self, project):
        with pytest.raises(ValueError, match="unknown notebook '01_base'; did you mean '01_baseline'"):
            chain.run_chain(["01_base"], **SMOKE)
        with pytest.raises(CotlibError, match=r"no notebook .*03_process_verifier\.ipynb"):
            chain.run_chain(["08_report"], **SMOKE)

    def test_a_second_chain_on_the_same_outputs(self, project):
        with (
            store.one_writer(project / "outputs/pocket/smoke"),
            pytest.raises(CotlibError, match=f"process {os.getpid()}"),
        ):
            chain.run_chain(["01_baseline"], **SMOKE)


def test_the_whole_chain_runs_in_the_order_of_what_is_read_with_the_index_last():
    assert chain.order([]) == [*COMPUTED, "08_report", "00_index"]
    assert chain.order(["08_report"]) == [*COMPUTED, "08_report"]
    assert chain.order(["00_index"]) == ["00_index"]


def test_every_table_and_figure_of_the_paper_is_in_the_map():
    items = [row["item"] for row in chain.overview("pocket", "smoke")]
    assert items == [f"Table {i}" for i in range(1, 6)] + [f"Figure {i}" for i in range(1, 15)]


def test_an_item_whose_notebook_is_not_written_is_shown_as_not_yet(project):
    state = {row["item"]: row["status"] for row in chain.overview("pocket", "smoke")}
    assert state["Figure 3"] == state["Table 5"] == "not yet" and state["Table 4"] == "—"
    assert chain.link("01_baseline") == '<a href="01_baseline.ipynb">01_baseline</a>' and chain.link("—") == "—"


FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video)[^>]+src\s*=\s*["'](?!data:)|<link[^>]+href\s*=|import\(|url\(\s*["']?http"""
)


def page(tmp_path, *cells):
    path = tmp_path / "executed.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells), metadata={"widgets": {"x": {}}}), path)
    return chain.to_html(path)


def output(**data):
    return nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("display_data", data=data)])


class TestPage:
    def test_nothing_is_fetched_whatever_a_notebook_holds(self, tmp_path):
        store.atomic_write(tmp_path / "figures" / "f.png", b"\x89PNG")
        html = page(
            tmp_path,
            nbformat.v4.new_markdown_cell(
                "# A title\n$x^2$\n\n```mermaid\ngraph LR; a-->b\n```\n\n![f](figures/f.png)"
            ),
            output(**{"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"}),
            output(**{chain.WIDGET: {"model_id": "x"}, "text/plain": "interactive(children=(IntSlider"}),
        )
        assert FETCHED.findall(html) == []
        assert html.count('src="data:image/png;base64') == 2 and "<title>A title</title>" in html

    def test_formulas_are_drawn_by_the_browser_alone(self, tmp_path):
        html = page(
            tmp_path, nbformat.v4.new_markdown_cell("the loss $\\beta x_i$, `$HOME`, \\$5 and\n\n$$L =\n\\sum_i x_i$$")
        )
        assert (
            html.count("<math") == 2
            and 'display="block"' in html
            and "<mi>&#x003B2;</mi><msub><mi>x</mi><mi>i</mi></msub>" in html
        )
        assert "<code>$HOME</code>" in html and "$5" in html and "$\\beta" not in html and "$$" not in html

    @pytest.mark.parametrize("formula", ["$x_$", "$a_b_c$", "$x^$", "$\\left( x$"])
    def test_a_formula_that_cannot_be_drawn_stays_as_it_was_typed(self, tmp_path, formula):
        html = page(tmp_path, nbformat.v4.new_markdown_cell(f"costs {formula} here, and $y$"))
        assert formula in html and html.count("<math") == 1

    def test_the_check_above_would_notice_the_page_of_plain_nbconvert(self, tmp_path):
        from nbconvert import HTMLExporter

        html, _ = HTMLExporter().from_notebook_node(
            nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("$x$")])
        )
        assert FETCHED.findall(html)

    def test_widgets_are_left_out_with_their_useless_text(self, tmp_path):
        html = page(
            tmp_path, output(**{chain.WIDGET: {"model_id": "x"}, "text/plain": "interactive(children=(IntSlider"})
        )
        assert "IntSlider" not in html and "widget-state" not in html

    def test_links_to_notebooks_outside_of_the_chain_lead_to_their_source(self, tmp_path):
        html = page(tmp_path, nbformat.v4.new_markdown_cell("[l](91_teach_decoding.ipynb#top)"))
        (found,) = re.findall(r'href="([^"]*91_teach[^"]*)#top"', html)
        assert (tmp_path / found).resolve() == provenance.notebook_path("91_teach_decoding")

    def test_links_between_notebooks_lead_to_the_executed_pages(self, tmp_path):
        html = page(tmp_path, nbformat.v4.new_markdown_cell("[b](01_baseline.ipynb#top) [p](https://arxiv.org/abs/1)"))
        assert 'href="../01_baseline/executed.html#top"' in html and 'href="https://arxiv.org/abs/1"' in html

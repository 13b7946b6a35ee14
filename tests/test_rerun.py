"""What runs again after which change, what is kept when a re-run fails, and what `cotlib status` says of it."""

import json
import re
import shutil

import pytest
from toy_project import execute_here, make_project, put_notebook, write_notebook

import cotlib
from cotlib import chain, earlier, provenance, run, store
from cotlib.__main__ import main
from cotlib.config import NOTEBOOKS, check
from cotlib.errors import CorruptError, CotlibError, ForeignError, NotebookError

SMOKE = {"scale": "pocket", "effort": "smoke"}
DOWN = {name: spec.upstream for name, spec in NOTEBOOKS.items() if spec.in_chain and spec.needs_upstream}
ALL = [*DOWN, "00_index"]
POOL = """
ledger = run.ledger("base-0", steps=8)
for prompt in run.prompts:
    if prompt.id not in ledger:
        with open("calls.txt", "a") as calls:  # what a generator would be asked for
            print(prompt.id, file=calls)
        ledger.append({"prompt": prompt.id, "codes": [[len(prompt.text)]]})
"""
TABLE = """
import pandas as pd
from matplotlib.figure import Figure

run.table("t", pd.DataFrame({"prompt": [p.id for p in run.prompts]}))
run.figure("f", Figure())
run.record("toy/words", sum(len(p.text.split()) for p in run.prompts), n=len(run.prompts))
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The whole chain of four small notebooks, finished, with a small package whose sources and weights count."""
    home = tmp_path_factory.mktemp("rerun")
    package = home / "project" / "package"
    folder = make_project(home / "project")
    write_notebook(folder, "01_baseline", POOL, TABLE)
    for name in ALL[1:-1]:
        read = [f"run.upstream({upstream!r})" for upstream in DOWN[name]]
        write_notebook(folder, name, *read, f"run.record('toy/{name}', 1)")
    index = json.loads((folder / "notebooks" / "08_report.ipynb").read_text())
    cells = [c for c in index["cells"] if "upstream(" not in str(c["source"]) and "toy/" not in str(c["source"])]
    text = json.dumps({**index, "cells": cells}).replace("08_report", "00_index")
    (folder / "notebooks" / "00_index.ipynb").write_text(text)
    for name in ("a.py", "pocket/weights/w.safetensors"):
        store.atomic_write(package / name, "1")
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch, folder)
        assert chain.run_chain(**SMOKE) == dict.fromkeys(ALL, "done")
    return folder


def prepare(patch, folder):
    patch.chdir(folder)
    patch.delenv("COTLIB_OUTPUTS", raising=False)
    patch.setattr(provenance, "PACKAGE", folder / "package")
    patch.setattr(chain, "_execute", execute_here)
    patch.setattr(chain, "to_html", lambda path: "<html>")


@pytest.fixture
def project(tmp_path, finished, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "project")
    prepare(monkeypatch, folder)
    return folder


def outputs(project, notebook="01_baseline"):
    return project / "outputs" / "pocket" / "smoke" / notebook


def edit(project, notebook, old, new):
    path = project / "notebooks" / f"{notebook}.ipynb"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def calls(project):
    return (project / "calls.txt").read_text().split()


def code(notebook):
    return lambda project: edit(project, notebook, "run.finish(ok=1)", "run.finish(ok=2)")


EDITS = {
    "nothing": (lambda project: None, []),
    "prose": (lambda project: edit(project, "01_baseline", "# Toy", "# Renamed"), []),
    "default of a parameter that the chain passes": (lambda p: edit(p, "01_baseline", "seed = 0", "seed = 7"), []),
    "override equal to the default": (lambda p: edit(p, "01_baseline", "n_candidates = None", "n_candidates = 4"), []),
    "a file that is not in the key": (lambda p: store.atomic_write(p / "package/pocket/weights/README.md", "2"), []),
    "the first notebook": (code("01_baseline"), ALL),
    "the second notebook": (code("02_outcome_verifier"), ALL[1:]),
    "the report": (code("08_report"), ["08_report", "00_index"]),
    "the index": (code("00_index"), ["00_index"]),
    "a source of cotlib": (lambda project: store.atomic_write(project / "package/a.py", "2"), ALL),
    "a new source of cotlib": (lambda project: store.atomic_write(project / "package/b.py", ""), ALL),
    "weights": (lambda project: store.atomic_write(project / "package/pocket/weights/w.safetensors", "2"), ALL),
    "a result lost, made again alike": (lambda p: (outputs(p) / "metrics.json").unlink(), ["01_baseline"]),
    "a page lost": (lambda p: (outputs(p, "08_report") / "executed.html").unlink(), ["08_report"]),
    "a figure damaged": (lambda p: (outputs(p) / "figures/f.png").write_bytes(b""), ["01_baseline"]),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_change_runs_again_exactly_what_depends_on_it(project, name):
    change, again = EDITS[name]
    change(project)
    predicted = [row["notebook"] for row in chain.listing(**SMOKE) if row["status"] != "SMOKE"]
    assert chain.run_chain(**SMOKE) == {n: "done" if n in again else "kept" for n in ALL}
    assert predicted == [n for n in chain.DAG if n in again]
    assert chain.run_chain(**SMOKE) == dict.fromkeys(ALL, "kept")


class TestFinishedWork:
    def test_the_time_of_the_runs_before_is_not_forgotten(self, project):
        before = provenance.read_manifest(outputs(project))["spent"]
        code("01_baseline")(project)
        chain.run_chain(**SMOKE)
        after = provenance.read_manifest(outputs(project))
        assert before > 0 and after["spent"] == pytest.approx(before + after["seconds"], abs=1e-3)

    def test_a_finished_chain_asks_the_generator_for_nothing(self, project):
        assert len(calls(project)) == len(set(calls(project))) == 6
        assert chain.run_chain(**SMOKE) == dict.fromkeys(ALL, "kept")
        (outputs(project) / "run.json").unlink()
        assert chain.run_chain(**SMOKE)["01_baseline"] == "done"
        assert len(calls(project)) == 6

    def test_a_notebook_that_failed_at_a_prompt_goes_on_with_that_prompt(self, project):
        shutil.rmtree(project / "outputs")
        (project / "calls.txt").unlink()
        edit(
            project,
            "01_baseline",
            "if prompt.id not in ledger:",
            "1 / (len(ledger) - 3)\\n    if prompt.id not in ledger:",
        )
        with pytest.raises(NotebookError, match="ZeroDivisionError"):
            chain.run_chain(["01_baseline"], **SMOKE)
        assert len(calls(project)) == 3
        edit(project, "01_baseline", "1 / (len(ledger) - 3)", "pass")
        chain.run_chain(["01_baseline"], **SMOKE)
        assert len(calls(project)) == len(set(calls(project))) == 6

    def test_it_is_told_how_long_it_took_the_last_time(self, project):
        code("00_index")(project)
        said = []
        chain.run_chain(["00_index"], say=said.append, **SMOKE)
        assert re.fullmatch(r"\[1/1\] 00_index: running ... \(last time \d+ s\)", said[0])


class TestFailedReRun:
    def fail(self, project, **options):
        edit(project, "01_baseline", "run.finish(ok=1)", "1 / 0\\nrun.finish(ok=1)")
        with pytest.raises(NotebookError, match="ZeroDivisionError"):
            chain.run_chain(["01_baseline"], **options, **SMOKE)

    @pytest.mark.parametrize("options", [{}, {"force": True}])
    def test_the_earlier_result_is_back_and_labelled_and_the_next_success_takes_its_place(self, project, options):
        before = store.read_json(outputs(project) / "run.json")
        self.fail(project, **options)
        assert provenance.read_manifest(outputs(project)) == provenance.peek(outputs(project))
        assert store.read_json(outputs(project) / "run.json") == before
        assert chain.status(outputs(project)) == "failed, earlier result kept"
        assert "are of an earlier run: NotebookError: 01_baseline failed" in earlier.label(outputs(project))
        assert (outputs(project) / chain.FAILED).exists() and not (outputs(project) / earlier.ASIDE).exists()
        edit(project, "01_baseline", "1 / 0", "pass")
        assert chain.run_chain(["01_baseline"], **SMOKE) == {"01_baseline": "done"}
        assert chain.status(outputs(project)) == "SMOKE" and not earlier.label(outputs(project))
        assert not (outputs(project) / chain.FAILED).exists()

    def test_who_reads_the_earlier_result_is_told(self, project, capsys):
        self.fail(project)
        cotlib.load("02_outcome_verifier", seed=0, **SMOKE).upstream("01_baseline")
        assert "01_baseline is stale. The results beside this file are of an earlier run" in capsys.readouterr().out

    def test_a_result_with_the_right_key_is_not_called_current_while_its_re_run_failed(self, project):
        source = (project / "notebooks" / "01_baseline.ipynb").read_text()
        self.fail(project, force=True)
        (project / "notebooks" / "01_baseline.ipynb").write_text(source)
        assert chain.run_chain(["01_baseline"], **SMOKE) == {"01_baseline": "done"}

    def test_results_of_another_seed_outlive_a_forced_run_that_fails(self, project):
        edit(
            project,
            "01_baseline",
            "run.finish(ok=1)",
            "1 / run.seed * 0\\nrun.finish(ok=1, failed=1 // (1 - run.seed))",
        )
        with pytest.raises(NotebookError):
            chain.run_chain(["01_baseline"], seed=1, force=True, **SMOKE)
        assert provenance.read_manifest(outputs(project))["seed"] == 0

    def test_a_notebook_that_fails_after_finishing_does_not_count(self, project):
        shutil.rmtree(outputs(project))
        edit(project, "01_baseline", "run.finish(ok=1);", "run.finish(ok=1)\\n1 / 0")
        with pytest.raises(NotebookError):
            chain.run_chain(["01_baseline"], **SMOKE)
        assert chain.status(outputs(project)) == "failed" and not (outputs(project) / "run.json").exists()

    @pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
    def test_an_interrupted_re_run_keeps_it_too(self, project, monkeypatch, interrupt):
        code("01_baseline")(project)
        monkeypatch.setattr(chain, "_confirm", lambda *_: (_ for _ in ()).throw(interrupt))
        with pytest.raises(interrupt):
            chain.run_chain(["01_baseline"], **SMOKE)
        assert provenance.read_manifest(outputs(project))["counts"]["ok"] == 1
        assert "the re-run was interrupted" in earlier.label(outputs(project))

    @pytest.mark.parametrize("step", ["rename", "copy2", "rmtree", "clear", "atomic_write"])
    def test_a_kill_at_any_step_leaves_the_whole_result_for_the_next_run(self, project, monkeypatch, step):
        """Every call of `step` in turn is the last thing that the process does."""
        code("01_baseline")(project)
        whole = shutil.copytree(project, project.with_name("whole"))
        home = {"rename": earlier.os, "copy2": shutil, "rmtree": shutil, "clear": earlier, "atomic_write": store}
        owner = home[step]
        real = getattr(owner, step)
        for last in range(1, 30):
            shutil.rmtree(project / "outputs", ignore_errors=True)
            shutil.copytree(whole / "outputs", project / "outputs")
            count = iter(range(1, 99))

            def dies(*args, count=count, last=last, **options):
                if next(count) >= last:
                    raise Killed
                return real(*args, **options)

            with monkeypatch.context() as patch:
                patch.setattr(owner, step, dies)
                patch.setattr(earlier, "put_back", earlier.put_back if last % 2 else lambda *_: None)
                try:
                    chain.run_chain(["01_baseline"], **SMOKE)
                    break
                except Killed:
                    pass
            edit(project, "01_baseline", "run.finish(ok=2)", "1 / 0\\nrun.finish(ok=2)")
            with pytest.raises(NotebookError):
                chain.run_chain(["01_baseline"], **SMOKE)
            edit(project, "01_baseline", "1 / 0\\nrun.finish(ok=2)", "run.finish(ok=2)")
            kept = provenance.read_manifest(outputs(project))
            assert kept["counts"]["ok"] in (1, 2), f"{step} {last}"
        assert last > 1 and provenance.read_manifest(outputs(project))["counts"]["ok"] == 2

    def test_by_hand_the_earlier_result_lies_aside_until_the_chain_has_looked(self, project):
        code("01_baseline")(project)
        here = cotlib.load("01_baseline", seed=0, **SMOKE)
        here._write("tables/other.csv", "a\n1\n")  # and here the kernel is closed
        assert chain.status(outputs(project)) == "not run, earlier result kept"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chain, "_execute", lambda task: (_ for _ in ()).throw(NotebookError("no")))
            with pytest.raises(NotebookError):
                chain.run_chain(["01_baseline"], **SMOKE)
        assert provenance.read_manifest(outputs(project))["counts"]["ok"] == 1
        assert not (outputs(project) / "tables/other.csv").exists()


class Killed(BaseException):
    """The process ends here."""


class TestStatus:
    @pytest.fixture
    def status(self, capsys):
        def status(*words):
            capsys.readouterr()
            with pytest.raises(SystemExit) as end:
                main(["status", "--effort", "smoke", *words])
            said = capsys.readouterr()
            return end.value.code or 0, said.out + said.err

        return status

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda p: None, []),
            (code("01_baseline"), ["01_baseline stale", "the notebook's code changed"]),
            (lambda p: store.atomic_write(p / "package/a.py", "2"), ["stale", "the code of cotlib changed"]),
            (lambda p: store.atomic_write(p / "package/pocket/weights/w.safetensors", "2"), ["the weights changed"]),
            (code("01_baseline"), ["02_outcome_verifier stale", "01_baseline has key"]),
            (lambda p: shutil.rmtree(outputs(p, "08_report")), ["08_report not run"]),
        ],
    )
    def test_why_a_result_is_stale(self, project, status, change, said):
        change(project)
        exit_code, text = status()
        text = " ".join(text.split())
        assert exit_code == 0 and all(part in text for part in said), text
        if not said:
            assert text.count("SMOKE") == len(ALL) and "stale" not in text

    def test_another_seed_is_said(self, project, status):
        assert "seed is 3, was 0" in status("--seed", "3")[1]

    def test_failure_is_said_with_the_place_to_look(self, project, status):
        TestFailedReRun().fail(project)
        assert "failed, earlier result kept" in status()[1]
        shutil.rmtree(outputs(project))
        with pytest.raises(NotebookError):
            chain.run_chain(["01_baseline"], **SMOKE)
        exit_code, text = status()
        assert exit_code == 0 and "failed" in text and f"see {outputs(project) / chain.FAILED}" in text

    @pytest.mark.parametrize(
        "file", ["01_baseline/run.json", "01_baseline/tables/t.csv", "pools/base-0.jsonl", "results.json"]
    )
    def test_corruption_is_code_3_and_names_the_file(self, project, status, file):
        path = outputs(project, file)
        path.write_bytes(b"\0" * path.stat().st_size)
        exit_code, text = status()
        assert exit_code == 3 and "corrupt" in text and path.name in text and "set" in text

    def test_a_result_with_a_parameter_of_its_own_is_not_stale(self, project, status, monkeypatch):
        monkeypatch.setenv("COTLIB_OUTPUTS", "outputs-2")
        chain.run_chain(["02_outcome_verifier"], parameters={"n_candidates": 2}, **SMOKE)
        assert "stale" not in status()[1]
        code("01_baseline")(project)
        assert "the notebook's code changed" in status()[1] and "n_candidates" not in status()[1]

    @pytest.mark.parametrize("line", ["%matplotlib inline", "seed ="])
    def test_a_parameters_cell_that_is_no_python_is_named(self, project, status, line):
        edit(project, "02_outcome_verifier", "seed = 0", line)
        exit_code, text = status()
        assert (
            exit_code == 3
            and f"got '{line}" in text
            and "git checkout" in text
            and "02_outcome_verifier.ipynb, parameters cell" in text
        )

    def test_a_file_in_the_place_of_the_outputs_is_one_message(self, project, status, monkeypatch):
        monkeypatch.setenv("COTLIB_OUTPUTS", "pyproject.toml")
        exit_code, text = status()
        assert exit_code == 3 and text.startswith("cotlib: ") and "export COTLIB_OUTPUTS=another-folder" in text

    def test_it_changes_nothing(self, project, status):
        (outputs(project) / "metrics.json").write_text("[]")
        before = {p: p.read_bytes() for p in (project / "outputs").rglob("*") if p.is_file()}
        status()
        assert before == {p: p.read_bytes() for p in (project / "outputs").rglob("*") if p.is_file()}


# ---- damage ---------------------------------------------------------------------------------------------------


def flip(path):
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "emptied": lambda path: path.write_bytes(b""),
    "a bit flipped": flip,
    "deleted": lambda path: path.unlink(),
}
FILES = ["run.json", "metrics.json", "tables/t.csv", "figures/f.png", "executed.ipynb", "executed.html"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed_set_aside_said_in_one_line_and_made_again(project, file, damage):
    path = outputs(project) / file
    whole = path.read_bytes()
    DAMAGE[damage](path)
    damaged = path.read_bytes() if path.exists() else None
    said = []
    assert chain.run_chain(say=said.append, **SMOKE) == {**dict.fromkeys(ALL, "kept"), "01_baseline": "done"}
    about = [line for line in said if "corrupt" in line]
    if (damage, file) == ("deleted", "run.json"):  # as if it had never finished
        assert about == []
        return
    assert len(about) == 1 and path.name in about[0] and "\n" not in about[0]
    aside = path.with_name(f"{path.name}.corrupt")
    assert aside.exists() == (damaged is not None)
    if damaged is not None:
        assert aside.read_bytes() == damaged and aside.name in about[0]
    provenance.read_manifest(outputs(project))
    if file.startswith(("tables", "figures")):
        assert path.read_bytes() == whole


def test_a_second_damage_does_not_overwrite_what_the_first_left(project):
    for content in ("first", "second"):
        (outputs(project) / "tables/t.csv").write_text(content)
        chain.run_chain(["01_baseline"], **SMOKE)
    left = {path.name: path.read_text() for path in (outputs(project) / "tables").glob("*.corrupt*")}
    assert left == {"t.csv.corrupt": "first", "t.csv.corrupt-2": "second"}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_ledger_is_mended_and_only_what_it_lost_is_made_again(project, damage, capsys):
    path = outputs(project, "pools/base-0.jsonl")
    whole = path.read_bytes()
    DAMAGE[damage](path)
    damaged = path.read_bytes() if path.exists() else None
    lost = {"cut short": 3, "a bit flipped": 1}.get(damage, 6)
    code("01_baseline")(project)
    chain.run_chain(["01_baseline"], **SMOKE)
    assert lost - 1 <= len(calls(project)) - 6 <= lost + 1
    assert sorted(path.read_bytes().split(b"\n")) == sorted(whole.split(b"\n"))
    notes = store.read_json(outputs(project) / "run.json")["notes"]
    if damage in ("zeroed", "a bit flipped"):
        assert path.with_name("base-0.jsonl.corrupt").read_bytes() == damaged
        assert len(notes) == 1 and "good records kept" in notes[0] and notes[0] in capsys.readouterr().out
    else:
        assert notes == []


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_merged_results_are_not_shown_and_are_merged_again(project, damage, capsys):
    path = outputs(project, "results.json")
    whole = path.read_bytes()
    DAMAGE[damage](path)
    if damage != "deleted":
        with pytest.raises(SystemExit) as end:
            main(["results", "--effort", "smoke"])
        assert end.value.code == 3 and "results.json" in capsys.readouterr().err
    chain.run_chain(**SMOKE)
    assert path.read_bytes() == whole
    assert path.with_name("results.json.corrupt").exists() == (damage != "deleted")


@pytest.mark.parametrize("change", [lambda project: None, code("01_baseline")], ids=["nothing else", "other code"])
def test_a_damaged_index_stops_nobody_and_is_made_again(project, change):
    change(project)
    flip(outputs(project, "00_index/executed.html"))
    chain.run_chain(["08_report"], **SMOKE)
    assert not list(outputs(project, "").glob("results.json.corrupt*"))
    assert chain.run_chain(**SMOKE)["00_index"] == "done"


def test_another_seed_by_force_sets_the_shared_ledger_aside_and_goes_through(project, capsys):
    """Also where the index is still that of the earlier seed; a notebook by hand replaces no ledger."""
    before = outputs(project, "pools/base-0.jsonl").read_bytes()
    assert chain.run_chain(seed=2, force=True, **SMOKE) == dict.fromkeys(ALL, "done")
    assert outputs(project, "pools/base-0.jsonl.outdated").read_bytes() == before
    assert {seed for r in store.read_json(outputs(project, "results.json")) for seed in r["seeds"]} == {2}
    said = "base-0.jsonl was of another request or of other weights; set aside as base-0.jsonl.outdated"
    assert store.read_json(outputs(project) / "run.json")["notes"] == [said] and said in capsys.readouterr().out
    by_hand = run.Run(check("01_baseline", seed=0, **SMOKE), "key", outputs(project), {})
    with pytest.raises(ForeignError, match="seed: 2 there, 0 here"):
        by_hand.ledger("base-0", steps=8)


HERE = {"generator": "0123456789ab", "judge": "orm-0123456789ab", "precision": "fp32", "n": 4}


@pytest.mark.parametrize(
    ("change", "weights", "anything"),
    [
        ({"generator": "ab0123456789", "judge": "orm-ab0123456789"}, True, True),
        ({"n": 8}, False, True),  # a pool that was made ahead, or what a killed run of another request left
        ({"n": 8, "generator": "ab0123456789"}, False, True),
        ({"more": "x"}, False, True),
        ({"precision": "bf16"}, False, False),  # notebooks that are finished rest on it
        ({"precision": "bf16", "n": 8}, False, False),
    ],
)
def test_which_ledgers_the_chain_sets_aside(project, monkeypatch, change, weights, anything):
    here = run.Run(check("01_baseline", seed=0, **SMOKE), "key", outputs(project), {})
    for replaces, is_set_aside in (("", False), ("weights", weights), ("anything", anything)):
        for name in ("a", "a.shard-1-of-2"):
            identity = {"scale": "pocket", "seed": 0, **HERE, **change}
            theirs = store.Ledger(outputs(project, f"pools/{name}.jsonl"), store.digest(identity)[:12], identity)
            theirs.append({"prompt": "x"})
        monkeypatch.setenv(provenance.REPLACES, replaces)
        if is_set_aside:
            assert len(here.ledger("a", **HERE)) == 0
        else:
            says = "Each precision needs" if "precision" in change else "--force` sets all such ledgers aside"
            with pytest.raises(ForeignError, match=says):
                here.ledger("a", **HERE)
        there = {path.name for path in outputs(project, "pools").glob("a.*")}
        names = {"a.jsonl", "a.shard-1-of-2.jsonl"}
        assert there == ({f"{name}.outdated" for name in names} if is_set_aside else names)
        for path in outputs(project, "pools").glob("a.*"):
            path.unlink()


def test_an_outdated_ledger_comes_back_when_it_is_wanted_again_and_a_damaged_one_goes_too(project, monkeypatch):
    here = run.Run(check("01_baseline", seed=0, **SMOKE), "key", outputs(project), {})
    monkeypatch.setenv(provenance.REPLACES, "weights")
    path = here.ledger("a", **HERE).path
    here.ledger("a", **HERE).append({"prompt": "x"})
    others = {**HERE, "generator": "ab0123456789"}
    here.ledger("a", **others).append({"prompt": "y"})
    path.write_bytes(path.read_bytes().replace(b'"y"', b'"z"'))
    assert list(here.ledger("a", **HERE).by_prompt()) == ["x"]
    assert [store.header_of(old)["what"]["generator"] for old in path.parent.glob("a.*outdated*")] == ["ab0123456789"]


def test_an_outdated_ledger_comes_back_to_its_empty_place(project, monkeypatch):
    """The run that set it aside was killed before it had a line of its own."""
    here = run.Run(check("01_baseline", seed=0, **SMOKE), "key", outputs(project), {})
    monkeypatch.setenv(provenance.REPLACES, "weights")
    here.ledger("a", **HERE).append({"prompt": "x"})
    assert len(here.ledger("a", **{**HERE, "generator": "ab0123456789"})) == 0
    monkeypatch.delenv(provenance.REPLACES)
    assert list(here.ledger("a", **HERE).by_prompt()) == ["x"] and not list(here.pools.glob("a.*outdated*"))
    one = store.quarantine(here.ledger("a", **HERE).path, "outdated")
    short = store.Ledger(here.pools / "a.jsonl", store.header_of(one)["ledger"], store.header_of(one)["what"])
    short.append({"prompt": "z"})
    for record in ({"prompt": "x"}, {"prompt": "y"}):
        store.Ledger(one, short.key, short.what).append(record)
    store.quarantine(short.path, "outdated")
    assert list(here.ledger("a", **HERE).by_prompt()) == ["x", "y"]  # of several, the longest


def test_a_notebook_that_nobody_forced_replaces_no_ledger_of_another_request(project):
    shutil.rmtree(outputs(project))  # as if the pool had been made ahead
    edit(project, "01_baseline", "steps=8", "steps=9")
    with pytest.raises(NotebookError, match="steps: 8 there, 9 here"):
        chain.run_chain(["01_baseline"], **SMOKE)
    assert chain.run_chain(["01_baseline"], force=True, **SMOKE) == {"01_baseline": "done"}


def test_the_seed_that_is_there_is_in_what_merges_the_results(project, capsys):
    chain.run_chain(seed=2, force=True, **SMOKE)
    for text in (None, "[]"):
        outputs(project, "results.json").unlink() if text is None else outputs(project, "results.json").write_text(text)
        with pytest.raises(SystemExit):
            main(["results", "--effort", "smoke"])
        assert "cotlib run 08_report --scale pocket --effort smoke --seed 2" in capsys.readouterr().err


def test_a_changed_number_in_the_merged_results_is_noticed(project):
    path = outputs(project, "results.json")
    records = store.read_json(path)
    next(r for r in records if r["name"] == "toy/words")["value"] += 1
    store.write_json(path, records)
    assert list(chain.corrupt_files(**SMOKE)) == ["results.json"]


def test_no_damage_is_found_where_there_is_none(project):
    assert chain.corrupt_files(**SMOKE) == {}
    assert {state for state, _ in chain.examine(**SMOKE).values()} == {"SMOKE"}


def test_a_notebook_that_is_no_json_stops_everything_before_it_starts(project):
    for content in ("", "{", "\0\0", "[]", '{"cells": 3}', "\xff"):
        (project / "notebooks" / "08_report.ipynb").write_text(content, encoding="latin-1")
        with pytest.raises(CorruptError, match=r"08_report\.ipynb is not a notebook \(.*git checkout"):
            chain.run_chain(force=True, **SMOKE)
    assert chain.status(outputs(project)) == "SMOKE"


def test_exit_is_refused_before_anything_starts_because_later_cells_would_run(project):
    put_notebook(project, "01_baseline", "exits")
    with pytest.raises(CorruptError, match=r"cell 5: exit\(\) ends nothing here"):
        chain.run_chain(["01_baseline"], **SMOKE)


def test_two_chains_on_one_folder(project):
    with store.one_writer(project / "outputs/pocket/smoke"), pytest.raises(CotlibError, match="being written by"):
        chain.run_chain(**SMOKE)

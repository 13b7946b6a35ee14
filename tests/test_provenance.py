import json
import math
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from toy_project import make_project, put_notebook

import cotlib
from cotlib import compare, earlier, provenance, run, store
from cotlib.config import check
from cotlib.errors import CorruptError, CotlibError, ForeignError, IncompleteError
from cotlib.prompts import geneval_prompts

matplotlib.use("Agg")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project, current directory and home of all outputs."""
    folder = make_project(tmp_path / "project", **{"01_baseline": "good", "02_outcome_verifier": "reads_upstream"})
    monkeypatch.chdir(folder)
    monkeypatch.delenv("COTLIB_OUTPUTS", raising=False)
    return folder


def load(notebook="01_baseline", effort="smoke", seed=0, **overrides):
    return cotlib.load(notebook, scale="pocket", effort=effort, seed=seed, **overrides)


def finished(notebook="01_baseline", value=0.5, **dials):
    here = load(notebook, **dials)
    here.record(f"{notebook}/value", value, n=3)
    here.table("t", pd.DataFrame({"a": [1, 2]}))
    here.finish(ok=3)
    return here


def key(notebook="01_baseline", seed=0, **overrides):
    return provenance.run_key(check(notebook, scale="pocket", effort="smoke", seed=seed, **overrides))[0]


class TestPlaces:
    def test_outputs_lie_in_the_project_even_when_a_kernel_starts_in_notebooks(self, project, monkeypatch):
        monkeypatch.chdir(project / "notebooks")
        assert load().folder == project / "outputs" / "pocket" / "smoke" / "01_baseline"

    def test_an_environment_variable_moves_the_outputs(self, project, tmp_path, monkeypatch):
        monkeypatch.setenv("COTLIB_OUTPUTS", str(tmp_path / "elsewhere"))
        assert load().folder == tmp_path / "elsewhere" / "pocket" / "smoke" / "01_baseline"

    @pytest.mark.parametrize("inside", [".", "notebooks"])
    def test_a_relative_one_is_the_projects_for_the_command_and_for_a_kernel(self, project, monkeypatch, inside):
        monkeypatch.setenv("COTLIB_OUTPUTS", "outputs-8")
        monkeypatch.chdir(project / inside)
        assert provenance.outputs_root() == project / "outputs-8"

    def test_elsewhere_a_relative_one_is_taken_from_there_and_home_is_home(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COTLIB_OUTPUTS", "mine")
        assert provenance.outputs_root() == tmp_path / "mine"
        monkeypatch.setenv("HOME", str(tmp_path / "me"))
        monkeypatch.setenv("COTLIB_OUTPUTS", "~/mine")
        assert provenance.outputs_root() == tmp_path / "me" / "mine"

    def test_somebody_elses_project_is_not_ours(self, project, tmp_path, monkeypatch):
        other = tmp_path / "other"
        (other / "notebooks").mkdir(parents=True)
        (other / "pyproject.toml").write_text('[project]\nname = "something"\n')
        monkeypatch.chdir(other)
        assert provenance.project_root() != other


class TestKey:
    def test_same_request_same_key(self, project):
        assert key() == key() and len(key()) == 12

    @pytest.mark.parametrize("change", [{"seed": 1}, {"n_candidates": 5}, {"guidance": 3.0}])
    def test_seed_and_parameters_change_the_key(self, project, change):
        assert key(**change) != key()

    def test_what_changes_no_result_does_not_change_the_key(self, project):
        assert key(batch_size=7) == key()

    def test_an_override_equal_to_the_default_does_not_change_the_key(self, project):
        assert key(n_candidates=4) == key()

    def test_code_of_the_notebook_changes_the_key_but_prose_and_parameter_cell_do_not(self, project):
        path = project / "notebooks" / "01_baseline.ipynb"
        before, text = key(), path.read_text()
        path.write_text(text.replace("# Toy", "# Renamed").replace("seed = 0", "seed = 7"))
        assert key() == before
        path.write_text(text.replace("toy/n", "toy/m"))
        assert key() != before

    def test_a_new_upstream_result_changes_the_key(self, project):
        before = key("02_outcome_verifier")
        finished()
        after = key("02_outcome_verifier")
        assert before != after
        put_notebook(project, "01_baseline", "sys_exit_0")
        (project / "outputs/pocket/smoke/01_baseline/run.json").unlink()
        finished()
        assert key("02_outcome_verifier") not in (before, after)

    def test_sources_change_the_key_and_weights_do_where_they_ship(self, tmp_path, monkeypatch):
        for name in ("a.py", "pocket/weights/w.safetensors", "pocket/weights/README.md"):
            store.atomic_write(tmp_path / name, "1")
        monkeypatch.setattr(provenance, "PACKAGE", tmp_path)

        def both():
            return provenance.code_digest(), provenance.weights_digest("pocket")

        first = both()
        store.atomic_write(tmp_path / "pocket/weights/README.md", "2")
        for name in ("a-checkpoint.py", "a.json"):
            store.atomic_write(tmp_path / "pocket/.ipynb_checkpoints" / name, "2")
        assert both() == first
        store.atomic_write(tmp_path / "pocket/weights/w.safetensors", "2")
        assert both()[0] == first[0] and both()[1] != first[1]
        store.atomic_write(tmp_path / "a.py", "2")
        assert both()[0] != first[0]


class TestLoad:
    def test_it_says_scale_effort_seed_key_folder_and_that_smoke_is_no_result(self, project, capsys):
        here = load(seed=5)
        said = capsys.readouterr().out
        for part in ("scale pocket", "effort smoke", "seed 5", f"key {here.key}", str(here.folder), "not a result"):
            assert part in said
        load(effort="quick")
        assert "not a result" not in capsys.readouterr().out

    def test_it_touches_nothing_on_disk(self, project):
        load()
        assert not (project / "outputs").exists()

    def test_prompts_are_those_of_the_effort(self, project):
        assert len(load().prompts) == 6
        assert load(effort="full").prompts == geneval_prompts()
        assert len(load(n_prompts_per_task=3).prompts) == 18

    @pytest.mark.parametrize("change", [{"seed": 1}, {"n_candidates": 5}])
    def test_finished_results_of_another_configuration_are_refused_and_kept(self, project, change):
        before = finished().folder / "run.json"
        content = before.read_bytes()
        with pytest.raises(ForeignError, match=r"there, . here.*COTLIB_OUTPUTS.*--force"):
            load(**change)
        assert before.read_bytes() == content

    def test_results_of_older_code_are_not_foreign(self, project):
        finished()
        put_notebook(project, "01_baseline", "sys_exit_0")
        load()


class TestRecord:
    def test_a_record_has_the_fields_of_the_contract(self, project):
        here = load(seed=2)
        here.record("tokenizer/psnr", np.float32(30.5), low=np.float64(30), high=31, n=np.int64(64), unit="dB")
        expected = {"name": "tokenizer/psnr", "value": 30.5, "low": 30.0, "high": 31, "n": 64, "unit": "dB"}
        origin = {"notebook": "01_baseline", "seeds": [2], "commit": here.git["commit"]}
        assert here.records() == [{**expected, **origin}]

    def test_the_same_name_overwrites(self, project):
        here = load()
        here.record("a/b", 1)
        here.record("a/b", None)
        assert [r["value"] for r in here.records()] == [None]

    @pytest.mark.parametrize("value", [math.nan, math.inf, "0.5", True, np.float64("nan"), [0.5]])
    def test_what_is_no_finite_number_is_refused(self, project, value):
        with pytest.raises(ValueError, match="a/b, value must be a finite number or None"):
            load().record("a/b", value)

    @pytest.mark.parametrize("interval", [(0.1, None), (None, 0.1), (0.6, 0.4)])
    def test_half_or_reversed_intervals_are_refused(self, project, interval):
        with pytest.raises(ValueError, match="two ends"):
            load().record("a/b", 0.5, *interval)

    @pytest.mark.parametrize("name", ["", "/a", "a/", " ", "a\nb", 3])
    def test_a_bad_name_is_refused(self, project, name):
        with pytest.raises(ValueError, match="slash-separated"):
            load().record(name, 1)


class TestFinish:
    def test_the_manifest_says_what_was_asked_and_what_made_it(self, project):
        here = finished(n_candidates=3)
        manifest = provenance.read_manifest(here.folder)
        assert (
            manifest["parameters"]["passed"]["n_candidates"] == manifest["parameters"]["effective"]["n_candidates"] == 3
        )
        assert manifest["parameters"]["effective"]["steps"] == 8
        assert manifest["counts"] == {"ok": 3, "failed": 0, "unscored": 0}
        assert set(manifest["files"]) == {"tables/t.csv", "metrics.json"}
        assert manifest["key"] == here.key and manifest["seeds"] == {"run": 0} and manifest["watermark"]
        assert {"commit", "dirty"} == set(manifest["git"]) and manifest["versions"]["numpy"] == np.__version__
        assert manifest["machine"]["cpu"] and manifest["machine"]["cores"] >= 1

    def test_cost_is_recorded(self, project):
        records = store.read_json(finished().folder / "metrics.json")
        cost = next(r for r in records if r["name"] == "cost/01_baseline")
        assert cost["unit"] == "s" and 0 <= cost["value"] < 60

    def test_the_manifest_is_written_last(self, project, monkeypatch):
        written = []
        whole = store.atomic_write
        monkeypatch.setattr(store, "atomic_write", lambda path, data: written.append(path.name) or whole(path, data))
        finished()
        assert written[-1] == "run.json" and written.count("run.json") == 1

    def test_a_count_that_is_no_count_is_refused(self, project):
        with pytest.raises(ValueError, match="unscored must be a count, got -1"):
            load().finish(ok=1, unscored=-1)

    def test_the_first_write_ends_the_earlier_result_and_what_was_merged_from_it(self, project):
        folder = finished().folder
        run.merge_results(folder.parent)
        here = load()
        here.record("a/b", 1)
        assert (folder / "run.json").exists()
        here.table("other", pd.DataFrame({"a": [1]}))
        made = [path for path in folder.rglob("*") if path.is_file() and earlier.ASIDE not in path.parts]
        assert [path.name for path in made] == ["other.csv"] and provenance.peek(folder / earlier.ASIDE) is not None
        assert not (folder.parent / "results.json").exists()

    def test_a_figure_carries_its_provenance_once_and_smoke_is_watermarked(self, project):
        from matplotlib.figure import Figure
        from PIL import Image

        for effort, texts in (("smoke", 2), ("quick", 1)):
            here, figure = load(effort=effort), Figure()
            path = here.figure("f", figure)
            here.figure("f", figure)
            said = [text.get_text() for text in figure.texts]
            assert len(said) == texts and ("SMOKE, not a result" in said) == (effort == "smoke")
            commit = f"no commit · pocket · {effort} · seed 0 · key {here.key} · n = {len(here.prompts)} prompts"
            assert said[0] == commit
            assert path == here.folder / "figures" / "f.png" and Image.open(path).text["Description"] == said[0]


DAMAGE = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "a bit flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "deleted": lambda path: path.unlink(),
}


class TestUpstream:
    def test_metrics_and_tables_of_a_finished_notebook_are_read(self, project):
        finished(value=0.25)
        below = load("02_outcome_verifier").upstream("01_baseline")
        assert below.metrics[0]["value"] == 0.25 and list(below.table("t")["a"]) == [1, 2]
        with pytest.raises(ValueError, match="no table 'tt'; did you mean 't'"):
            below.table("tt")

    def test_an_unfinished_one_is_named_with_the_command_that_makes_it(self, project):
        load().table("t", pd.DataFrame({"a": [1]}))
        command = "cotlib run 01_baseline --scale pocket --effort smoke --seed 4"
        with pytest.raises(IncompleteError, match=f"01_baseline, not finished.*{command}"):
            load("02_outcome_verifier", seed=4).upstream("01_baseline")

    @pytest.mark.parametrize("file", ["tables/t.csv", "metrics.json"])
    @pytest.mark.parametrize("damage", DAMAGE)
    def test_damage_to_any_file_is_noticed_and_the_file_named(self, project, file, damage):
        folder = finished().folder
        DAMAGE[damage](folder / file)
        with pytest.raises(CorruptError, match=rf"{file}.*--force"):
            load("02_outcome_verifier").upstream("01_baseline")

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 3}'])
    def test_a_damaged_manifest_is_noticed(self, project, content):
        (finished().folder / "run.json").write_text(content)
        with pytest.raises(CorruptError, match=r"run\.json"):
            load("02_outcome_verifier").upstream("01_baseline")

    def test_another_seed_is_foreign(self, project):
        finished()
        with pytest.raises(ForeignError, match="has seed 0 .*this run has 9"):
            load("02_outcome_verifier", seed=9).upstream("01_baseline")

    def test_reading_what_is_not_declared_is_refused_because_the_key_would_miss_it(self, project):
        with pytest.raises(ValueError, match="01_baseline does not read '02_outcome_verifier'"):
            load().upstream("02_outcome_verifier")


class TestMerge:
    def test_results_hold_every_finished_notebook_and_the_run_in_progress(self, project):
        finished(value=0.1)
        finished("02_outcome_verifier", value=0.2)
        here = load("08_report")
        here.record("report/x", 0.3)
        merged = run.merge_results(here.folder.parent, own=here)
        values = {r["name"]: r["value"] for r in merged if not r["name"].startswith("cost/")}
        assert values == {"01_baseline/value": 0.1, "02_outcome_verifier/value": 0.2, "report/x": 0.3}
        assert store.read_json(here.folder.parent / "results.json") == merged
        assert [r["name"] for r in merged] == sorted(r["name"] for r in merged)

    def test_an_unfinished_notebook_adds_nothing(self, project):
        folder = finished().folder
        (folder / "run.json").unlink()
        assert run.collect(folder.parent) == []

    def test_a_notebook_made_from_an_earlier_upstream_is_refused(self, project):
        finished()
        folder = finished("02_outcome_verifier").folder.parent
        put_notebook(project, "01_baseline", "sys_exit_0")
        finished()
        with pytest.raises(
            IncompleteError, match="02_outcome_verifier was made from an earlier 01_baseline.*cotlib run"
        ):
            run.collect(folder)

    def test_one_name_with_two_values_is_refused(self, project):
        finished()
        here = finished("02_outcome_verifier")
        mine = load("08_report")
        mine.record("01_baseline/value", 0.75)
        with pytest.raises(CotlibError, match="01_baseline/value is 0.5 in 01_baseline and 0.75 in 08_report"):
            run.merge_results(here.folder.parent, own=mine)

    def test_mixed_seeds_are_refused(self, project):
        finished()
        finished("02_outcome_verifier", seed=1)
        with pytest.raises(ForeignError, match=r"mixes seeds \[0, 1\]"):
            run.merge_results(project / "outputs/pocket/smoke")

    def test_results_copied_from_another_effort_are_refused(self, project):
        folder = finished().folder
        folder.parent.rename(folder.parent.with_name("quick"))
        with pytest.raises(ForeignError, match="holds results of pocket/smoke, not of pocket/quick"):
            run.collect(project / "outputs/pocket/quick")


def test_a_pool_ledger_is_shared_by_notebooks_and_keyed_by_what_makes_it(project):
    load().ledger("base", steps=8).append({"prompt": "00000"})
    assert "00000" in load("02_outcome_verifier").ledger("base", steps=8)
    assert (project / "outputs/pocket/smoke/pools/base.jsonl").exists()
    with pytest.raises(ForeignError, match="steps: 8 there, 9 here"):
        load().ledger("base", steps=9)
    with pytest.raises(ForeignError, match="seed: 0 there, 1 here"):
        load(seed=1).ledger("base", steps=8)


def test_commands_in_messages_have_the_seed_of_what_is_there(project):
    folder = project / "outputs/pocket/smoke"
    assert provenance.seed_of(folder) == 0
    load(seed=4).ledger("base", steps=8).append({"prompt": "00000"})
    assert provenance.seed_of(folder) == 4
    with pytest.raises(IncompleteError, match="cotlib run --scale pocket --effort smoke --seed 4"):
        compare.read(folder, "dpo")
    (folder / "pools/base.jsonl").write_text("{}\n")
    assert provenance.seed_of(folder) == 0


def test_git_state_tells_a_clean_tree_from_a_changed_one(project):
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-c", "init.defaultBranch=main"]
    assert provenance.git_state() == {"commit": None, "dirty": None}
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True, cwd=project)
    state = provenance.git_state()
    assert len(state["commit"]) == 40 and state["dirty"] is False
    (project / "new.txt").write_text("x")
    assert provenance.git_state()["dirty"] is True


def test_importing_cotlib_loads_no_torch_and_no_pandas():
    script = (
        "import sys, json, cotlib; print(json.dumps([name for name in ('torch', 'pandas') if name in sys.modules]))"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == []

import json
import sys
import types

import numpy as np
import pytest
from PIL import Image
from toy_project import make_project

import cotlib
from cotlib import chain, loaders, paths
from cotlib.__main__ import main
from cotlib.errors import CotlibError, IncompleteError, KernelDiedError, NotebookError
from cotlib.prompts import geneval_prompts
from cotlib.run import merge_results


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    folder = make_project(tmp_path / "project", **{"01_baseline": "good", "02_outcome_verifier": "reads_upstream"})
    monkeypatch.chdir(folder)
    monkeypatch.delenv("COTLIB_OUTPUTS", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return folder


@pytest.fixture
def call(capsys):
    """call("results", "--json") -> (exit code, what it printed, what it complained about)."""

    def call(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(list(words))
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return call


def finish(notebook, name, value, **interval):
    here = cotlib.load(notebook, scale="pocket", effort="quick", seed=0)
    here.record(name, value, **interval)
    here.finish(ok=1)
    if notebook == "08_report":
        merge_results(here.folder.parent, own=here)


def test_help_names_every_command_and_the_exit_codes(call):
    code, said, _ = call("--help")
    assert code == 0
    for part in ("run", "pool", "results", "pretrain", "fetch", "doctor", "export", "info", "138"):
        assert part in said


@pytest.mark.parametrize(
    "words", [("nonsense",), ("run", "--nonsense"), ("pretrain", "nobody"), ("run", "--seed", "x")]
)
def test_what_the_command_line_does_not_know_is_a_bad_request(call, words):
    assert call(*words)[0] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "01_base"), "did you mean '01_baseline'"),
        (("run", "01_baseline", "--scale", "poket"), "did you mean 'pocket'"),
        (("run", "01_baseline", "--set", "n_candidates"), "--set wants NAME=VALUE"),
        (("run", "01_baseline", "--set", "n_candidates=0"), "must lie in 1..1000, got 0"),
        (("run", "01_baseline", "--set", "n_candidates=four"), "must be an int, got 'four'"),
        (("run", "--list", "--effort", "fast"), "unknown"),
        (("results", "--effort", "fast"), "unknown effort 'fast'"),
    ],
)
def test_a_bad_request_is_one_message_without_traceback_and_code_2(call, words, said):
    code, _, complaint = call(*words)
    assert code == 2 and said in complaint and complaint.startswith("cotlib: ") and "Traceback" not in complaint


@pytest.mark.parametrize(
    ("error", "code"),
    [(NotebookError, 1), (IncompleteError, 3), (CotlibError, 3), (KernelDiedError, 138), (KeyboardInterrupt, 130)],
)
def test_each_failure_has_its_exit_code(call, monkeypatch, error, code):
    def fail(*_, **__):
        raise error("the reason")

    monkeypatch.setattr(chain, "run_chain", fail)
    got, _, complaint = call("run")
    assert got == code and ("the reason" in complaint or code == 130)


def test_run_hands_everything_to_the_chain(call, monkeypatch):
    seen = {}
    monkeypatch.setattr(chain, "run_chain", lambda names, **options: seen.update(names=list(names), **options))
    words = "run 01_baseline --scale showo --effort full --seed 3 --force --set n_candidates=8 --set guidance=2.5"
    assert call(*words.split())[0] == 0
    parameters = {"n_candidates": 8, "guidance": 2.5}
    dials = {"scale": "showo", "effort": "full", "seed": 3, "force": True}
    assert seen == {"names": ["01_baseline"], "parameters": parameters, **dials}


def test_list_shows_the_notebooks_and_runs_none(call, project):
    code, said, _ = call("run", "--list")
    assert code == 0 and "01_baseline" in said and "not run" in said and not (project / "outputs").exists()


class TestResults:
    def test_nothing_yet_says_what_to_type(self, call):
        code, _, complaint = call("results")
        assert code == 3 and "cotlib run --scale pocket --effort quick" in complaint

    def test_before_the_report_the_notebooks_own_numbers_are_shown_with_a_note(self, call):
        finish("01_baseline", "tokenizer/psnr", 30.25, low=30, high=31, n=64, unit="dB")
        code, said, note = call("results")
        line = next(line for line in said.splitlines() if line.startswith("tokenizer/psnr"))
        assert code == 0 and line.split() == ["tokenizer/psnr", "30.25", "30", "..", "31", "64", "dB", "01_baseline"]
        assert "the report is not up to date" in note and "cotlib run 08_report" in note

    def test_after_the_report_the_merged_numbers_are_shown_without_a_note(self, call):
        finish("01_baseline", "a/b", 1)
        finish("02_outcome_verifier", "c/d", 2)
        finish("08_report", "e/f", None)
        code, said, note = call("results", "--json")
        values = {record["name"]: record["value"] for record in json.loads(said)}
        assert code == 0 and note == "" and {"a/b": 1, "c/d": 2, "e/f": None}.items() <= values.items()

    def test_a_pattern_selects_by_part_of_a_name_or_by_wildcards(self, call):
        finish("01_baseline", "geneval/base/none/overall", 0.5)
        assert "geneval" in call("results", "base/none")[1] and "cost/" not in call("results", "base/none")[1]
        assert "geneval" in call("results", "geneval/*/overall")[1]
        code, _, complaint = call("results", "nothing")
        assert code == 2 and "no measurement matches 'nothing'" in complaint

    def test_damaged_results_are_not_shown(self, call, project):
        finish("01_baseline", "a/b", 1)
        (project / "outputs/pocket/quick/01_baseline/metrics.json").write_text("[]")
        code, said, complaint = call("results")
        assert code == 3 and said == "" and "metrics.json" in complaint


def test_pretrain_hands_its_options_on(call, monkeypatch, tmp_path):
    seen = []
    fake = types.ModuleType("cotlib.pocket.pretrain")
    fake.run, fake.WEIGHTS = lambda *args: seen.append(args), tmp_path / "shipped"
    monkeypatch.setitem(sys.modules, "cotlib.pocket.pretrain", fake)
    monkeypatch.setattr("cotlib.pocket.pretrain", fake, raising=False)
    assert call("pretrain", "judge", "--minutes", "1.5", "--seed", "4", "--out", str(tmp_path))[0] == 0
    assert call("pretrain", "tokenizer", "--minutes", "1")[0] == 0
    assert seen == [("judge", 1.5, tmp_path, 4), ("tokenizer", 1.0, tmp_path / "shipped", 0)]
    assert call("pretrain", "judge", "--minutes", "0")[0] == 2


class TestExportGeneval:
    @pytest.fixture(autouse=True)
    def tokenizer(self, monkeypatch):
        """A tokenizer whose picture is filled with its first code."""
        decode = lambda codes: np.stack([np.full((4, 4, 3), row[0], np.uint8) for row in codes.tolist()])  # noqa: E731
        monkeypatch.setattr(loaders, "load_tokenizer", lambda scale: types.SimpleNamespace(decode=decode))

    def fill(self):
        run = cotlib.load("01_baseline", scale="pocket", effort="quick", seed=0)
        for image in (0, 1):
            ledger = run.ledger(f"base-{image}", image=image)
            for number, prompt in enumerate(geneval_prompts()[: 3 - image]):
                ends = [np.array([[-1, 5], [100 * image + 10 * number + k, 0]]) for k in range(4)]
                ledger.append({"prompt": prompt.id, "paths": [paths.pack(path) for path in ends]})
        run.ledger("base-0-verdicts").append({"prompt": "00000"})

    def test_the_layout_is_the_one_the_official_evaluator_reads(self, call, tmp_path):
        self.fill()
        code, said, _ = call("export", "geneval", str(tmp_path / "out"), "--candidates", "2")
        assert code == 0 and said == f"2 prompts x 4 images in {tmp_path / 'out'}\n"
        assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == ["00000", "00001"]
        folder = tmp_path / "out" / "00001"
        assert json.loads((folder / "metadata.jsonl").read_text()) == geneval_prompts()[1].metadata()
        pixels = [int(np.asarray(Image.open(folder / "samples" / f"{k:04}.png"))[0, 0, 0]) for k in range(4)]
        assert pixels == [10, 11, 110, 111] and len(list((folder / "samples").iterdir())) == 4

    def test_more_candidates_than_a_pool_holds_are_refused_before_a_file_is_written(self, call, tmp_path):
        self.fill()
        code, _, complaint = call("export", "geneval", str(tmp_path / "out"), "--candidates", "5")
        assert code == 2 and "has 4 candidates, not 5" in complaint and not (tmp_path / "out").exists()

    def test_a_missing_pool_is_named_beside_those_that_exist(self, call, tmp_path):
        self.fill()
        code, _, complaint = call("export", "geneval", str(tmp_path / "out"), "--generator", "dpo")
        assert code == 3 and "no pool dpo-0" in complaint and "there: base-0, base-0-verdicts, base-1" in complaint


def test_info_says_versions_places_and_weights(call, project):
    code, said, _ = call("info")
    assert code == 0
    for part in (f"cotlib: {cotlib.__version__}", f"outputs: {project / 'outputs'}", "python: ", "cpu: ", "weights"):
        assert part in said

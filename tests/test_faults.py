"""Faults, each with the real thing where there is one: killed processes, full disks, two writers, planted pickles."""

import ast
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
import torch
from test_decode import ToyGenerator
from toy_project import execute_here, make_project, put_notebook, write_notebook

from cotlib import chain, earlier, progress, provenance, store
from cotlib.decode import DecodeOptions
from cotlib.errors import CorruptError, CotlibError, KernelDiedError, NotebookError, OutOfMemoryError
from cotlib.prompts import geneval_prompts, take
from cotlib.search import decode_pool
from cotlib.store import Ledger, one_writer

SMOKE = {"scale": "pocket", "effort": "smoke"}
COMMAND = [sys.executable, "-m", "cotlib", "run", "01_baseline", "--effort", "smoke"]


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(provenance.PACKAGE.parent), **more}


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = make_project(tmp_path / "project", **{"01_baseline": "good"})
    monkeypatch.chdir(folder)
    monkeypatch.delenv("COTLIB_OUTPUTS", raising=False)
    return folder


def outputs(project, notebook="01_baseline"):
    return project / "outputs" / "pocket" / "smoke" / notebook


def run(project, **options):
    return subprocess.run(COMMAND, cwd=project, env=environment(), capture_output=True, text=True, **options)


def run_until(project, mark, command=COMMAND):
    """The chain in its own process, once it has printed `mark`."""
    running = subprocess.Popen(command, cwd=project, env=environment(), stdout=subprocess.PIPE, text=True)
    assert any(mark in line for line in running.stdout)
    return running


def finish_here(project, monkeypatch, *code):
    """A finished result of 01_baseline, made in this process."""
    write_notebook(project, "01_baseline", *code)
    with monkeypatch.context() as patch:
        patch.setattr(chain, "_execute", execute_here)
        patch.setattr(chain, "to_html", lambda path: "<html>")
        chain.run_chain(["01_baseline"], **SMOKE)


def still_runs(process):
    return psutil.pid_exists(process.pid) and process.status() != psutil.STATUS_ZOMBIE


class TestKilled:
    def test_with_a_killed_chain_its_kernel_ends_at_once_and_the_next_run_takes_over(self, project, monkeypatch):
        finish_here(project, monkeypatch, "run.record('toy/x', 1)")
        before = (outputs(project) / "run.json").read_bytes()
        write_notebook(project, "01_baseline", "run._write('tables/half.csv', 'x')", "print('asleep', flush=True)",
                       "import time; time.sleep(60)")  # fmt: skip
        running = run_until(project, "asleep")
        assert chain.status(outputs(project)) == "unfinished, earlier result kept"
        (kernel,) = psutil.Process(running.pid).children(recursive=True)
        running.kill()
        assert running.wait() == -signal.SIGKILL
        until = time.monotonic() + 0.9  # ipykernel itself looks after its parent once a second
        while still_runs(kernel) and time.monotonic() < until:
            time.sleep(0.05)
        assert not still_runs(kernel)
        monkeypatch.setattr(chain, "_execute", lambda task: (_ for _ in ()).throw(NotebookError("stop")))
        with pytest.raises(NotebookError, match="stop"):
            chain.run_chain(["01_baseline"], **SMOKE)
        assert (outputs(project) / "run.json").read_bytes() == before
        assert not (outputs(project) / "tables/half.csv").exists() and not outputs(project, ".lock").exists()

    def test_a_killed_kernel_leaves_the_earlier_result_and_code_138(self, project, monkeypatch):
        finish_here(project, monkeypatch, "run.record('toy/x', 1)")
        put_notebook(project, "01_baseline", "kernel_killed")
        with pytest.raises(KernelDiedError, match="kernel died.*type the same command"):
            chain.run_chain(["01_baseline"], **SMOKE)
        assert provenance.read_manifest(outputs(project)) and "kernel died" in earlier.label(outputs(project))

    def test_a_missing_kernel_is_said_and_the_earlier_result_stays(self, project, monkeypatch):
        finish_here(project, monkeypatch, "run.record('toy/x', 1)")
        page = (outputs(project) / "executed.ipynb").read_bytes()
        monkeypatch.setattr(sys, "executable", str(project / "no-python"))
        with pytest.raises(NotebookError, match=r"kernel did not start \(.*no-python.*ipykernel --version"):
            chain.run_chain(["01_baseline"], force=True, **SMOKE)
        assert (outputs(project) / "executed.ipynb").read_bytes() == page
        assert chain.status(outputs(project)).endswith("earlier result kept") or earlier.label(outputs(project))


class TestDisk:
    def test_a_full_disk_is_one_message_and_the_next_run_finishes(self, project):
        """No file may grow beyond 64 kB, which the page with its style sheet does."""
        full = run(project, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16)))
        assert full.returncode == 3 and "Traceback" not in full.stderr
        assert "cannot write in" in full.stderr and "COTLIB_OUTPUTS" in full.stderr
        assert chain.status(outputs(project)) != "SMOKE" and not list(project.rglob(".*.tmp"))
        assert chain.run_chain(["01_baseline"], **SMOKE) and chain.status(outputs(project)) == "SMOKE"

    def test_a_disk_that_fills_during_an_append_loses_that_record_only(self, tmp_path):
        script = (
            "import resource, sys; from cotlib.store import Ledger\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
            "ledger = Ledger(sys.argv[1], 'k')\n"
            "for i in range(9):\n"
            "    try: ledger.append({'prompt': str(i), 'x': 'y' * (500 if i < 8 else 5)})\n"
            "    except OSError: print(i, len(ledger))\n"
        )
        path = tmp_path / "l.jsonl"
        words = [sys.executable, "-c", script, path]
        said = subprocess.run(words, capture_output=True, text=True, check=True, env=environment()).stdout
        failed = [line.split() for line in said.splitlines()]
        assert [int(i) for i, _ in failed] == [5, 6, 7]  # too large for what was left; the small one after them fitted
        ledger = Ledger(path, "k")
        assert [r["prompt"] for r in ledger.records()] == ["0", "1", "2", "3", "4", "8"]
        ledger.append({"prompt": "5"})
        assert len(Ledger(path, "k")) == 7

    def test_outputs_that_cannot_be_written_are_one_message(self, project):
        if os.geteuid() == 0:  # who may write anywhere is refused by a file where a folder should be
            (project / "outputs").write_text("")
        else:
            (project / "outputs").mkdir(mode=0o500)
        with pytest.raises(CotlibError, match=r"cannot write in .*outputs.*COTLIB_OUTPUTS=another-folder"):
            chain.run_chain(["01_baseline"], **SMOKE)

    def test_a_write_that_is_denied_halfway_keeps_the_earlier_result(self, project, monkeypatch):
        finish_here(project, monkeypatch, "run.record('toy/x', 1)")
        before = (outputs(project) / "run.json").read_bytes()
        real = store.atomic_write

        def denied(path, data):
            if path.name == "metrics.json" and "earlier" not in path.parts and "execute_here" in names_on_the_stack():
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, data)

        monkeypatch.setattr(store, "atomic_write", denied)
        monkeypatch.setattr(chain, "_execute", execute_here)
        with pytest.raises(NotebookError, match="PermissionError"):
            chain.run_chain(["01_baseline"], force=True, **SMOKE)
        assert (outputs(project) / "run.json").read_bytes() == before
        assert provenance.read_manifest(outputs(project))

    def test_litter_of_killed_writers_is_swept_and_what_is_in_use_is_not(self, tmp_path):
        for name, age in ((".a.x.tmp", 100), (".b.y.tmp", 0), ("c.tmp", 100)):
            path = tmp_path / "sub" / name
            path.parent.mkdir(exist_ok=True)
            path.touch()
            os.utime(path, (time.time() - age,) * 2)
        store.sweep(tmp_path)
        assert sorted(p.name for p in (tmp_path / "sub").iterdir()) == [".b.y.tmp", "c.tmp"]


def names_on_the_stack():
    frame, names = sys._getframe(1), set()
    while frame:
        names.add(frame.f_code.co_name)
        frame = frame.f_back
    return names


class TestTwoWriters:
    RACE = (
        "import sys, time; from cotlib.errors import CotlibError; from cotlib.store import one_writer\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try:\n"
        "    with one_writer(sys.argv[1]): print('mine', flush=True); time.sleep(1)\n"
        "except CotlibError as error: print('refused', error)\n"
    )

    @pytest.mark.parametrize("left", ["dead", "torn"])
    def test_of_many_that_find_a_dead_lock_at_once_one_gets_it(self, tmp_path, left):
        with one_writer(tmp_path):
            holder = json.loads((tmp_path / ".lock").read_text())
        dead = {**holder, "pid": 2**22 - 1, "born": "1"}
        (tmp_path / ".lock").write_text(json.dumps(dead) if left == "dead" else "")
        words = [sys.executable, "-c", self.RACE, tmp_path]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment()}
        racers = [subprocess.Popen(words, **pipes) for _ in range(6)]
        for racer in racers:
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            racer.stdin.write("\n")
            racer.stdin.flush()
        said = [racer.communicate()[0] for racer in racers]
        assert sorted(text.split()[0] for text in said) == ["mine", *["refused"] * 5]
        winner = racers[next(i for i, text in enumerate(said) if text.startswith("mine"))].pid
        assert all(f"process {winner} on" in text for text in said if text.startswith("refused"))

    def test_a_process_that_has_the_number_of_a_dead_one_does_not_hold_its_lock(self, tmp_path):
        with one_writer(tmp_path):
            holder = json.loads((tmp_path / ".lock").read_text())
        (tmp_path / ".lock").write_text(json.dumps({**holder, "born": "1"}))
        with one_writer(tmp_path):
            assert json.loads((tmp_path / ".lock").read_text()) == holder

    def test_the_second_chain_is_refused_with_the_process_of_the_first(self, project):
        put_notebook(project, "01_baseline", "sleeps")
        first = run_until(project, "asleep")
        try:
            with pytest.raises(CotlibError, match=f"being written by process {first.pid} on"):
                chain.run_chain(["01_baseline"], **SMOKE)
        finally:
            first.terminate()
            assert first.wait(20) == 143

    def test_two_processes_that_append_to_one_ledger_lose_nothing(self, tmp_path):
        script = (
            "import sys; from cotlib.store import Ledger\n"
            "ledger = Ledger(sys.argv[1], 'k')\n"
            "for i in range(40): ledger.append({'prompt': sys.argv[2] + str(i)})\n"
        )
        words = [sys.executable, "-c", script, tmp_path / "l.jsonl"]
        both = [subprocess.Popen([*words, name], env=environment()) for name in "ab"]
        assert [writer.wait() for writer in both] == [0, 0]
        ledger = Ledger(tmp_path / "l.jsonl", "k")
        assert len(ledger) == 80 and all(f"{name}{i}" in ledger for name in "ab" for i in range(40))

    @pytest.mark.parametrize("change", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:40])])
    def test_a_ledger_that_is_cut_while_open_is_noticed_before_it_is_written(self, tmp_path, change):
        ledger = Ledger(tmp_path / "l.jsonl", "k")
        ledger.append({"prompt": "a"})
        change(ledger.path)
        with pytest.raises(CorruptError, match=r"cut or deleted while this run had it open"):
            ledger.append({"prompt": "b"})


class TestMemory:
    PROMPTS = take(geneval_prompts(), 1)

    def decode(self, path, generator, batch_size=8, n_candidates=4):
        ledger = Ledger(path, "k")
        pool = decode_pool(
            generator, self.PROMPTS, n_candidates, 0, DecodeOptions(steps=2), ledger, batch_size=batch_size
        )
        return pool, ledger

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        ],
        ids=lambda error: type(error).__name__,
    )
    @pytest.mark.parametrize("fits", [1, 3])
    def test_the_batch_is_halved_the_images_stay_and_it_is_noted(self, tmp_path, error, fits, capsys):
        whole, first = self.decode(tmp_path / "whole.jsonl", ToyGenerator())
        tight, ledger = self.decode(tmp_path / "tight.jsonl", Tight(fits, error))
        assert all(torch.equal(whole.codes[p.id], tight.codes[p.id]) for p in self.PROMPTS)
        assert (tmp_path / "whole.jsonl").read_bytes() == (tmp_path / "tight.jsonl").read_bytes()
        went_on = {1: 1, 3: 2}[fits]
        assert ledger.notes == [f"decoding: memory ran out at 8 candidates a batch, went on at {went_on}"]
        assert ledger.notes[0] in capsys.readouterr().out and first.notes == []

    def test_if_one_does_not_fit_the_message_is_plain_and_what_was_decoded_stays(self, tmp_path):
        generator = Tight(4, MemoryError())
        _, ledger = self.decode(tmp_path / "l.jsonl", generator)
        n = len(ledger)
        generator.fits = 0
        with pytest.raises(OutOfMemoryError, match="decoding: not even one picture.*free some memory"):
            decode_pool(generator, geneval_prompts()[:20], 4, 0, DecodeOptions(steps=2), ledger)
        assert len(Ledger(tmp_path / "l.jsonl", "k")) == n

    def test_another_error_is_not_taken_for_it(self, tmp_path):
        with pytest.raises(RuntimeError, match="shape mismatch"):
            self.decode(tmp_path / "l.jsonl", Tight(1, RuntimeError("shape mismatch")))

    def test_a_back_off_is_in_the_manifest(self, project, monkeypatch):
        code = "run.ledger('base-0').notes.append('decoding: memory ran out')"
        finish_here(project, monkeypatch, code)
        assert provenance.read_manifest(outputs(project))["notes"] == ["decoding: memory ran out"]


class Tight(ToyGenerator):
    """Raises where more than `fits` candidates (twice as many rows, for guidance) are asked for at once."""

    def __init__(self, fits, error):
        super().__init__()
        self.fits, self.error = fits, error

    def hidden_after(self, text, codes, masked):
        if len(codes) > 2 * self.fits:
            raise self.error
        return super().hidden_after(text, codes, masked)


# ---- no pickle ------------------------------------------------------------------------------------------------

LOADERS = {"load", "loads", "read_pickle", "unpickle", "load_module", "Unpickler"}
SAFE_OWNERS = {"json", "tomllib", "cotlib"}


def pickle_faults(source: str) -> list[str]:
    """Calls and imports that could run code from a file: anything named load of a module that is not on the list."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            faults += [
                name for name in names if name.split(".")[0] in {"pickle", "dill", "joblib", "cloudpickle", "shelve"}
            ]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOADERS:
            owner = ast.unparse(node.func.value)
            if owner.split(".")[0] not in SAFE_OWNERS:
                faults.append(f"{owner}.{node.func.attr}")
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                faults.append(ast.unparse(node))
    return faults


def test_nothing_in_the_package_can_load_a_pickle():
    found = {path.name: pickle_faults(path.read_text()) for path in provenance.PACKAGE.rglob("*.py")}
    assert {name: faults for name, faults in found.items() if faults} == {}


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from joblib import load", "torch.load(f)", "np.load(f, allow_pickle=True)", "pd.read_pickle(f)"],
)
def test_the_check_above_notices(source):
    assert pickle_faults(source)


class Planted:
    def __reduce__(self):
        return (os.system, ("touch planted",))


@pytest.mark.parametrize("part", ["tokenizer", "detector", "generator", "judge"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pkl", "model.safetensors"])
def test_a_planted_pickle_is_refused_and_not_run(part, name, tmp_path, monkeypatch):
    """In the place of the weights, under the names that loaders look for."""
    import pickle

    from cotlib import loaders
    from cotlib.config import SCALES

    folder = shutil.copytree(loaders.WEIGHTS, tmp_path / "weights") / part
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    (folder / name).write_bytes(pickle.dumps({"weight": Planted()}))
    if name.endswith(".safetensors"):
        (folder / "pytorch_model.safetensors").write_bytes(pickle.dumps({"weight": Planted()}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loaders, "WEIGHTS", tmp_path / "weights")
    load = {
        "tokenizer": loaders.load_tokenizer,
        "detector": loaders.load_evaluator,
        "generator": loaders.load_generator,
        "judge": loaders.load_judge,
    }[part]
    scale = replace(SCALES["pocket"], name=str(tmp_path))  # models are cached by scale
    with pytest.raises((CorruptError, ValueError), match=re.escape(str(folder))):
        load(scale)
    assert not (tmp_path / "planted").exists()


def test_a_pickle_of_good_tensors_is_refused_too(tmp_path):
    """transformers would take it in the place of missing safetensors."""
    from safetensors.torch import load_file

    from cotlib import loaders
    from cotlib.judge import Judge

    folder = shutil.copytree(loaders.WEIGHTS / "judge", tmp_path / "judge")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(CorruptError):
        Judge.from_pretrained(folder)


# ---- progress -------------------------------------------------------------------------------------------------


class TestProgress:
    def test_a_log_gets_a_line_now_and_then_with_the_time_that_is_left(self, monkeypatch, capsys):
        clock = iter([0.0, 4.0, 11.0, 12.0, 40.0])
        monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
        monkeypatch.setenv("COTLIB_PROGRESS", "lines")
        with progress.progress(40, "decoding", "prompts") as advance:
            for n in (4, 6, 10, 20):
                advance(n)
        assert capsys.readouterr().out.splitlines() == [
            "decoding: 10/40 prompts, 25 %, 33 s left",
            "decoding: 40/40 prompts, 100 %, 0 s left",
        ]

    def test_what_was_there_before_says_nothing_of_the_time_that_is_left(self, monkeypatch, capsys):
        clock = iter([0.0, 20.0, 20.0])
        monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
        monkeypatch.setenv("COTLIB_PROGRESS", "lines")
        with progress.progress(1000, "aligning", "steps") as advance:
            advance.before(800)
            advance(10)
        assert capsys.readouterr().out == "aligning: 810/1000 steps, 81 %, 6.3 min left\n"

    def test_a_quick_loop_and_an_empty_one_say_nothing(self, monkeypatch, capsys):
        for total in (3, 0):
            with progress.progress(total, "x", "y") as advance:
                advance(total)
        assert capsys.readouterr() == ("", "")

    def test_a_terminal_gets_a_bar_that_the_page_shows_in_its_last_state(self, monkeypatch, capsys, tmp_path):
        import nbformat

        monkeypatch.setenv("COTLIB_PROGRESS", "bar")
        with progress.progress(2, "decoding", "prompts") as advance:
            advance(1)
            advance(1)
        text = capsys.readouterr().out
        assert "\r" in text and "decoding: 100%" in text and "prompts/s]" in text
        cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("stream", text=text + "after\n")])
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
        page = chain.to_html(tmp_path / "n.ipynb")
        assert page.count("decoding:") == 1 and "100%" in page and "after" in page


def test_failures_in_a_notebook_keep_what_earlier_prompts_left(project):
    """sys.exit(0) in a real kernel is no success, and the ledger outlives it."""
    write_notebook(project, "01_baseline", "run.ledger('l').append({'prompt': 'a'})", "import sys; sys.exit(0)")
    with pytest.raises(NotebookError, match="ended without run.finish"):
        chain.run_chain(["01_baseline"], **SMOKE)
    assert "a" in Ledger.existing(outputs(project, "pools/l.jsonl"))

"""kill -9 at a random moment, then the same command again: the end is that of a run that nobody killed.

Five kills of the smallest chain run with the other tests. `make kill-test` does fifty of a chain with tables, figures
and a report; `make kill-test KILLS=50 CHAIN=real` those of the notebooks themselves at effort quick, for hours.
"""

import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_rerun import POOL, TABLE
from toy_project import make_project, write_notebook

from cotlib import chain, provenance, store
from cotlib.config import COMPUTED

TIMES = ("cost/", "speed/")  # measurements of time, which no two runs have alike
FORKS = multiprocessing.get_context("forkserver")  # a process that has imported everything costs 50 ms
FORKS.set_forkserver_preload(["cotlib.chain", "papermill", "nbconvert", "zmq", "ipykernel.kernelspec"])


def essence(path: Path):
    """What of a finished file must be the same in every run: all of it but times, and what is made of times."""
    if path.name == "run.json":
        timed = ("started", "seconds", "spent", "machine", "sha256", "notes")
        content = {name: value for name, value in store.read_json(path).items() if name not in timed}
        return {**content, "files": sorted(content["files"])}
    if path.name in ("metrics.json", "results.json"):
        return [record for record in store.read_json(path) if not record["name"].startswith(TIMES)]
    if path.name == "executed.ipynb":
        return [cell["source"] for cell in store.read_json(path)["cells"]]
    if path.name == "executed.html" or "00_index" in path.parts:  # the page shows costs, the index a table of them
        return "there"
    if path.suffix == ".csv":
        return [line for line in path.read_text().splitlines() if not any(word in line for word in TIMES)]
    return store.sha256(path)  # ledgers and figures


def fingerprint(outputs: Path) -> dict[str, str]:
    """Digest of the essence of every file, by path; the litter of a killed writer apart, which is swept when old."""
    files = [path for path in outputs.rglob("*") if path.is_file() and not path.match(".*.tmp")]
    return {path.relative_to(outputs).as_posix(): store.digest(essence(path)) for path in files}


def run_here(folder: Path, names: list[str], force: bool) -> None:
    os.chdir(folder)
    os.environ.pop("COTLIB_OUTPUTS", None)
    chain.run_chain(names, scale="pocket", effort="smoke", force=force, say=lambda line: None)


class ToyChain:
    """Small notebooks, in a process that is forked ready to run."""

    def __init__(self, folder: Path, names: list[str], *code: str) -> None:
        self.folder, self.names = make_project(folder), names
        self.outputs = folder / "outputs"
        slow = POOL.replace("        ledger.append", "        import time; time.sleep(0.01)\n        ledger.append")
        write_notebook(folder, "01_baseline", slow, *code, "run.record('toy/n', len(ledger), n=len(ledger))")
        for name in names[1:]:
            write_notebook(
                folder, name, "x = run.upstream('01_baseline').metrics[0]['value']", f"run.record('{name}', x)"
            )

    def start(self, force: bool = False):
        process = FORKS.Process(target=run_here, args=(self.folder, self.names, force))
        process.start()
        return process

    def finish(self) -> None:
        process = self.start()
        process.join()
        assert process.exitcode == 0


class RealChain:
    """The project's own notebooks, by the command line."""

    def __init__(self, folder: Path) -> None:
        self.outputs = folder

    def start(self, force: bool = False):
        words = ["run", "--scale", "pocket", "--effort", "quick", *(["01_baseline", "--force"] if force else [])]
        where = {**os.environ, "COTLIB_OUTPUTS": str(self.outputs)}
        root = Path(__file__).parents[1]
        return subprocess.Popen([sys.executable, "-m", "cotlib", *words], cwd=root, env=where)

    def finish(self) -> None:
        assert self.start().wait() == 0


def kill_at_random(subject, n_kills: int) -> None:
    """Kill `n_kills` runs, every other one a forced re-run over a finished result, and compare the end of each."""
    start = time.monotonic()
    subject.finish()
    duration, whole, kills = time.monotonic() - start, fingerprint(subject.outputs), 0
    rng = random.Random(os.environ.get("KILL_SEED"))
    while kills < n_kills:
        force = kills % 2 == 1
        if not force:
            shutil.rmtree(subject.outputs)
        running, moment = subject.start(force), rng.uniform(0, duration / (2 if force else 1))  # it runs one notebook
        time.sleep(moment)
        running.kill()
        running.join()
        kills += running.exitcode == -9
        start = time.monotonic()
        subject.finish()
        assert fingerprint(subject.outputs) == whole, f"after a kill at {moment:.3f} s of {duration:.1f} s"
        print(f"{kills}/{n_kills}: killed at {moment:.2f} s, finished in {time.monotonic() - start:.1f} s, equal")


def kill_again_and_again(subject, n_kills: int) -> None:
    """The same for a chain that takes minutes: one run after another is killed until one ends by itself, which is
    compared; every other series starts as a forced re-run over a finished result."""
    start = time.monotonic()
    subject.finish()
    duration, whole, kills, ends = time.monotonic() - start, fingerprint(subject.outputs), 0, 0
    rng = random.Random(os.environ.get("KILL_SEED"))
    while kills < n_kills:
        force, code, here = ends % 2 == 1, None, 0
        if not force:
            shutil.rmtree(subject.outputs)
        while code != 0:
            running, moment = subject.start(force), rng.uniform(0, duration / 6)
            force = False
            if kills + here < n_kills:
                try:
                    running.wait(moment)
                except subprocess.TimeoutExpired:
                    running.kill()
            code = running.wait()
            assert code in (0, -9), f"exit code {code} after {kills + here} kills"
            here += code == -9
            print(f"{kills + here}/{n_kills}: exit code {code}, at {moment:.1f} s at the latest", flush=True)
        kills, ends = kills + here, ends + 1
        assert fingerprint(subject.outputs) == whole, f"after {here} kills in a row"
        print(f"{kills}/{n_kills}: the end of {here} kills is that of a run that nobody killed", flush=True)


def test_five_kills_of_the_smallest_chain(tmp_path):
    kill_at_random(ToyChain(tmp_path / "project", ["01_baseline", "02_outcome_verifier"]), 5)


@pytest.mark.slow
def test_fifty_kills(tmp_path):
    names = [*COMPUTED, "08_report"]
    n_kills = int(os.environ.get("KILLS", 50))
    if os.environ.get("CHAIN", "toy") == "real":
        kill_again_and_again(RealChain(tmp_path / "outputs"), n_kills)
    else:
        kill_at_random(ToyChain(tmp_path / "project", names, TABLE), n_kills)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("pools/l.jsonl", "changed"),
        ("01_baseline/tables/t.csv", "a\n2\n"),
        ("01_baseline/metrics.json", json.dumps([{"name": "toy/n", "value": 2}])),
        ("01_baseline/executed.ipynb", json.dumps({"cells": [{"source": "other"}]})),
        ("01_baseline/run.json", json.dumps({"key": "k", "files": {}, "counts": {"ok": 2}})),
        ("more", ""),
    ],
)
def test_the_comparison_notices_a_difference_in_every_kind_of_file_and_no_difference_of_times(tmp_path, file, content):
    files = {
        "pools/l.jsonl": "x",
        "01_baseline/tables/t.csv": "a\n1\n",
        "01_baseline/metrics.json": json.dumps([{"name": "toy/n", "value": 1}, {"name": "cost/x", "value": 1}]),
        "01_baseline/executed.ipynb": json.dumps({"cells": [{"source": "x", "metadata": {"started": 1}}]}),
        "01_baseline/run.json": json.dumps({"key": "k", "files": {}, "counts": {"ok": 1}, "seconds": 1}),
    }
    for name, text in files.items():
        store.atomic_write(tmp_path / name, text)
    before = fingerprint(tmp_path)
    timed = files["01_baseline/metrics.json"].replace('"cost/x", "value": 1', '"cost/x", "value": 2')
    store.atomic_write(tmp_path / "01_baseline/metrics.json", timed)
    assert fingerprint(tmp_path) == before
    store.atomic_write(tmp_path / file, content)
    assert fingerprint(tmp_path) != before


def test_a_finished_chain_is_ready_within_ten_seconds(tmp_path):
    """In a process of its own, with everything that it has to import."""
    subject = ToyChain(tmp_path / "project", ["01_baseline", "02_outcome_verifier"])
    subject.finish()
    asked = (subject.folder / "calls.txt").read_text()
    start = time.monotonic()
    words = [sys.executable, "-m", "cotlib", "run", "02_outcome_verifier", "--effort", "smoke"]
    where = {**os.environ, "PYTHONPATH": str(provenance.PACKAGE.parent)}
    again = subprocess.run(words, cwd=subject.folder, env=where, capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 10 and again.stdout.count(": kept") == 2
    assert (subject.folder / "calls.txt").read_text() == asked and len(asked.split()) == 18

"""kill -9 at a random moment, then the same command again: the end is that of a run that nobody killed.

Five kills of the smallest chain run with the other tests. `make kill-test` does fifty of a chain with tables, figures
and a report; `make kill-test CHAIN=real` those of the notebooks themselves at effort quick, for hours, and with
EFFORT=smoke at effort smoke.
"""

import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from test_rerun import POOL, TABLE
from toy_project import make_project, write_notebook

from cotlib import chain, models, provenance, store
from cotlib.config import COMPUTED

TIMES = ("cost/", "speed/")  # measurements of time, which no two runs have alike
LAST_DIGITS = 1e-5  # of a judge's answer; nearer than this, a message calls two of them nearly the same
FORKS = multiprocessing.get_context("forkserver")  # a process that has imported everything costs 50 ms
FORKS.set_forkserver_preload(["cotlib.chain", "papermill", "nbconvert", "zmq", "ipykernel.kernelspec"])


def essence(path: Path):
    """What of a finished file must be the same in every run: all of it but times, and what is made of times."""
    if path.name == "run.json":
        timed = ("started", "seconds", "spent", "machine", "sha256", "notes")
        content = {name: value for name, value in store.read_json(path).items() if name not in timed}
        return {**content, "files": sorted(content["files"])}
    if path.name in ("metrics.json", "results.json"):
        records = store.read_json(path)
        return [r for r in records if not r["name"].startswith(TIMES) and r.get("unit") != "s"]
    if path.name == "executed.ipynb":
        return [cell["source"] for cell in store.read_json(path)["cells"]]
    if path.name == "executed.html" or "00_index" in path.parts:  # the page shows costs, the index a table of them
        return "there"
    if path.suffix == ".csv":
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        is_time = table.iloc[:, 0].str.startswith(TIMES) | (table["unit"] == "s" if "unit" in table else False)
        return table[~is_time].drop(columns=[name for name in table if "seconds" in name]).to_csv(index=False)
    if path.name == "model.json":
        content = store.read_json(path)
        return {**content, "notes": {name: value for name, value in content["notes"].items() if name != "seconds"}}
    if path.suffix == ".jsonl":
        return [without_times(line) for line in path.read_text().splitlines()]
    return store.sha256(path)  # figures


def without_times(line: str) -> dict:
    """A ledger's line without its seconds, and without its checksum, which covers them."""
    return {name: value for name, value in json.loads(line).items() if name not in ("seconds", "sha")}


def fingerprint(outputs: Path) -> dict[str, object]:
    """The essence of every file, by path; the litter of a killed writer apart, which is swept when old."""
    files = [path for path in outputs.rglob("*") if path.is_file() and not path.match(".*.tmp")]
    return {path.relative_to(outputs).as_posix(): essence(path) for path in files}


def differences(end: dict[str, object], whole: dict[str, object]) -> dict[str, str]:
    """The files that are not the same in both, or in one only, and whether they nearly are."""
    names = sorted(name for name in {*end, *whole} if end.get(name) != whole.get(name))
    return {name: "nearly" if nearly(end.get(name), whole.get(name)) else "not at all" for name in names}


def nearly(a, b) -> bool:
    """Whether two contents are the same but for the last digits of numbers."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(nearly(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(nearly(x, y) for x, y in zip(a, b, strict=True))
    return abs(a - b) <= LAST_DIGITS if isinstance(a, float) and isinstance(b, float) else a == b


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
    """The project's own notebooks, by the command line. FINISHED names outputs of this commit with a run that nobody
    killed, in a folder that was empty before it; that spares making one."""

    def __init__(self, folder: Path) -> None:
        self.outputs, self.effort = folder, os.environ.get("EFFORT", "quick")
        if "FINISHED" in os.environ:
            here = Path("pocket", self.effort)
            shutil.copytree(os.environ["FINISHED"] / here, folder / here)
            made_at = [store.read_json(path)["git"] for path in folder.rglob("run.json")]
            assert made_at and all(git == provenance.git_state() for git in made_at), "FINISHED is of another commit"

    def start(self, force: bool = False):
        words = ["run", "--scale", "pocket", "--effort", self.effort]
        words += ["01_baseline", "--force"] if force else []
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
        differ = differences(fingerprint(subject.outputs), whole)
        assert not differ, f"after a kill at {moment:.3f} s of {duration:.1f} s"
        print(f"{kills}/{n_kills}: killed at {moment:.2f} s, finished in {time.monotonic() - start:.1f} s, equal")


def traces(outputs: Path) -> tuple[int, int, int]:
    """What a run has left to go on from: bytes of ledgers, files of checkpoints, finished notebooks."""
    files = [Path(folder, name) for folder, _, names in os.walk(outputs) for name in names]
    n_bytes = 0
    for path in (path for path in files if path.suffix == ".jsonl"):
        with suppress(FileNotFoundError):
            n_bytes += path.stat().st_size
    finished = [path for path in files if path.name == "executed.html" and len(path.relative_to(outputs).parts) == 4]
    return n_bytes, sum(models.CHECKPOINTS in path.parts for path in files), len(finished)


def kill_somewhere(running: subprocess.Popen, outputs: Path, rng: random.Random, longest: float) -> int:
    """Kill a run at a random moment; its exit code. One of three is killed within `longest` seconds, the others within
    that time after they left another trace: otherwise a notebook whose last cells leave none would never end."""
    if rng.random() > 1 / 3:
        least = now = traces(outputs)
        while running.poll() is None and all(n <= m for n, m in zip(now, least, strict=True)):
            time.sleep(0.2)
            # An earlier result that is set aside is a trace less, not one more.
            least, now = tuple(map(min, least, now)), traces(outputs)
    try:
        running.wait(rng.uniform(0, longest))
    except subprocess.TimeoutExpired:
        running.kill()
    return running.wait()


def kill_again_and_again(subject, n_kills: int) -> None:
    """The same for a chain that takes minutes: one run after another is killed until one ends by itself, which is
    compared; every other series starts as a forced re-run over a finished result."""
    subject.finish()
    duration = sum(store.read_json(path)["spent"] for path in subject.outputs.rglob("run.json"))
    whole, kills, ends = fingerprint(subject.outputs), 0, 0
    rng = random.Random(os.environ.get("KILL_SEED"))
    while kills < n_kills:
        force, code, here = ends % 2 == 1, None, 0
        if not force:
            shutil.rmtree(subject.outputs)
        while code != 0:
            running, force, start = subject.start(force), False, time.monotonic()
            if kills + here < n_kills:
                code = kill_somewhere(running, subject.outputs, rng, 2 * duration / n_kills)
            else:
                code = running.wait()
            assert code in (0, -9), f"exit code {code} after {kills + here} kills"
            here += code == -9
            print(f"{kills + here}/{n_kills}: exit code {code} after {time.monotonic() - start:.1f} s", flush=True)
        kills, ends = kills + here, ends + 1
        differ = differences(fingerprint(subject.outputs), whole)
        assert not differ, f"after {here} kills in a row: {Counter(differ.values())}"
        print(f"{kills}/{n_kills}: the end of {here} kills is that of a run that nobody killed", flush=True)


def test_a_kill_waits_for_one_more_trace_and_not_for_one_less(tmp_path):
    class Late(random.Random):
        def random(self):
            return 1.0

        def uniform(self, a, b):
            return 0.0

    finished = store.atomic_write(tmp_path / "pocket/smoke/01_baseline/executed.html", "")
    code = """if True:
        import pathlib, sys, time
        pathlib.Path(sys.argv[1]).unlink()
        time.sleep(0.7)
        pathlib.Path(sys.argv[2]).write_text("a line")
        time.sleep(60)"""
    running = subprocess.Popen([sys.executable, "-c", code, str(finished), str(tmp_path / "a.jsonl")])
    assert kill_somewhere(running, tmp_path, Late(), 60) == -9
    assert (tmp_path / "a.jsonl").is_file() and not finished.exists()


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


def one_run(folder: Path, n: int = 1, seconds: int = 1, p_yes: float = 0.5) -> dict[str, object]:
    """Every kind of file with n in it, and with times where it has any; the fingerprint."""
    records = [{"name": "toy/n", "value": n}, {"name": "cost/x", "value": seconds}]
    records += [{"name": "toy/training", "value": seconds, "unit": "s"}]
    files = {
        "pools/l.jsonl": {"prompt": "a", "n": n, "p": [p_yes], "seconds": seconds, "sha": f"{n}, {seconds}"},
        "models/m/model.json": {"notes": {"log": [n], "seconds": seconds}},
        "01_baseline/metrics.json": records,
        "01_baseline/executed.ipynb": {"cells": [{"source": f"x = {n}", "metadata": {"started": seconds}}]},
        "01_baseline/run.json": {"key": "k", "files": {}, "counts": {"ok": n}, "seconds": seconds},
    }
    for name, content in files.items():
        store.atomic_write(folder / name, json.dumps(content))
    store.atomic_write(folder / "01_baseline/tables/t.csv", f"what,seconds\na,{seconds}\n{n},{seconds}\n")
    table = "\n".join(f"{r['name']},{r['value']},{r.get('unit', '')}" for r in records)
    store.atomic_write(folder / "08_report/tables/t.csv", f"name,value,unit\n{table}\n")
    store.atomic_write(folder / "01_baseline/figures/f.png", f"{n}")
    return fingerprint(folder)


def test_the_comparison_notices_a_difference_in_every_kind_of_file_and_no_difference_of_times(tmp_path):
    whole = one_run(tmp_path / "a")
    assert differences(one_run(tmp_path / "b", seconds=2), whole) == {}
    assert differences(one_run(tmp_path / "c", n=2), whole) == dict.fromkeys(sorted(whole), "not at all")
    assert differences(one_run(tmp_path / "d", p_yes=0.5001), whole) == {"pools/l.jsonl": "not at all"}
    assert differences(one_run(tmp_path / "e", p_yes=0.500001), whole) == {"pools/l.jsonl": "nearly"}
    store.atomic_write(tmp_path / "a/more", "")
    assert differences(fingerprint(tmp_path / "a"), whole) == {"more": "not at all"}


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
    assert (subject.folder / "calls.txt").read_text() == asked and len(asked.split()) == 6

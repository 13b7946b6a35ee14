"""Pools made by many processes are those of one, whoever dies on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_decode import ToyGenerator

import cotlib
from cotlib import shards, stages, store
from cotlib.__main__ import main
from cotlib.errors import ForeignError, IncompleteError
from cotlib.geneval import Verdict
from cotlib.shards import Shard

TINY = {"n_prompts_per_task": 1, "n_candidates": 2, "steps": 2}  # six prompts
WORDS = ["--effort", "smoke", *(word for name, value in TINY.items() for word in ("--set", f"{name}={value}"))]
ROOT = str(Path(cotlib.__file__).parents[1])


class Counting(ToyGenerator):
    """Remembers which prompts it was asked to decode."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def prefix(self, texts):
        asked = [text for text in dict.fromkeys(texts) if text]
        if self.asked[-len(asked) :] != asked:  # the first step of a decoding reads them apart
            self.asked += asked
        return self.text_ids(texts)


@pytest.fixture
def generator(monkeypatch, tmp_path):
    monkeypatch.setenv("COTLIB_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    toy = Counting()
    monkeypatch.setattr(stages.pools, "load_generator", lambda *_: toy)
    return toy


def load(**change):
    return cotlib.load("01_baseline", scale="pocket", effort="smoke", seed=0, **{**TINY, **change})


def pools(run=None) -> Path:
    return (run or load()).pools


def bytes_of_one_process(monkeypatch, tmp_path) -> bytes:
    with monkeypatch.context() as patch:
        patch.setenv("COTLIB_OUTPUTS", str(tmp_path / "one"))
        shards.make(load(), Shard(), ["decode"])
        return (pools() / "base-0.jsonl").read_bytes()


# --- Shares ---


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_cover_every_prompt_once(count):
    parts = [Shard(i + 1, count).of(range(20)) for i in range(count)]
    assert sorted(i for part in parts for i in part) == list(range(20))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_processes_of_one_job_of_an_array_share_its_share():
    parts = [Shard(i, 2).part(rank, 3) for i in (1, 2) for rank in range(3)]
    assert parts == [Shard(i, 6) for i in range(1, 7)]


def test_a_launched_process_takes_its_part_and_its_device_and_connects_to_none(monkeypatch):
    """The last of five processes, the fourth on a machine with two devices."""
    for name, value in {"RANK": "4", "WORLD_SIZE": "5", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    chosen = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    assert shards.this_process(Shard()) == Shard(5, 5) and shards.this_process(Shard(2, 2)) == Shard(10, 10)
    assert chosen == [1, 1] and not torch.distributed.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert shards.this_process(Shard(2, 3)) == Shard(2, 3)


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "1/0", "a/b", "-1/2", "1/2/3", ""])
def test_a_share_that_is_none_is_a_bad_request(text, generator, capsys):
    with pytest.raises(SystemExit) as end:
        main(["pool", *WORDS, "--shard", text])
    assert end.value.code == 2 and f"I in 1..N, got {text!r}" in capsys.readouterr().err


def test_an_unknown_stage_is_refused_before_anything_is_decoded(generator, capsys):
    with pytest.raises(SystemExit) as end:
        main(["pool", *WORDS, "--stage", "decode", "--stage", "verdict"])
    assert end.value.code == 2 and "did you mean 'verdicts'" in capsys.readouterr().err and not generator.asked


# --- Decoding ---


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_three_processes_leave_the_ledger_of_one(generator, monkeypatch, tmp_path, order, capsys):
    one = bytes_of_one_process(monkeypatch, tmp_path)
    generator.asked.clear()
    for n, index in enumerate(order, start=1):
        shards.make(load(), Shard(index, 3), ["decode"])
        assert (pools() / f"base-0.shard-{index}-of-3.jsonl").is_file()
        assert (pools() / "base-0.jsonl").exists() == (n == 3)  # the last one merges, whichever it is
    assert (pools() / "base-0.jsonl").read_bytes() == one
    assert len(generator.asked) == len(set(generator.asked)) == 6
    said = capsys.readouterr().out
    assert "base-0: 2 of 6 prompts are there, whoever needs the others" in said
    assert "base-0: 6 of 6 prompts are there, merged" in said


def test_a_notebook_takes_over_what_there_is_and_makes_what_is_missing(generator, monkeypatch, tmp_path):
    one = bytes_of_one_process(monkeypatch, tmp_path)
    generator.asked.clear()
    shards.make(load(), Shard(2, 3), ["decode"])
    run = load()
    assert generator.asked == [p.text for p in run.prompts[1::3]]
    (pool,) = stages.pools_of(run)
    assert sorted(generator.asked) == sorted(p.text for p in run.prompts)
    lines = (pools() / "base-0.jsonl").read_bytes().splitlines()
    assert sorted(lines) == sorted(one.splitlines())
    assert list(pool.codes) == [p.id for p in run.prompts]


def test_what_others_have_decoded_is_not_decoded_again(generator):
    """With another number of processes, or of prompts, than before."""
    shards.make(load(), Shard(1, 2), ["decode"])
    before = len(generator.asked)
    for index in (1, 2, 3):
        shards.make(load(), Shard(index, 3), ["decode"])
    assert before == 3 and len(generator.asked) == 6
    shards.make(load(n_prompts_per_task=2), Shard(1, 1), ["decode"])
    assert len(generator.asked) == 12


def test_more_processes_than_prompts_do_no_harm(generator, monkeypatch, tmp_path):
    one = bytes_of_one_process(monkeypatch, tmp_path)
    for index in range(1, 9):
        shards.make(load(), Shard(index, 8), ["decode"])
    assert stages.pools_of(load()) and (pools() / "base-0.jsonl").read_bytes() == one


def test_no_process_waits_for_the_lock_of_the_notebooks_nor_holds_it(generator):
    run = load()
    with store.one_writer(run.folder.parent):  # a chain that runs
        shards.make(run, Shard(1, 2), ["decode"])
    asked = []
    generator.hidden_after = lambda *a: (
        asked.append((run.folder.parent / ".lock").exists()) or Counting.hidden_after(generator, *a)
    )
    shards.make(run, Shard(2, 2), ["decode"])
    assert asked and not any(asked)


# --- What goes wrong ---


def test_a_shard_of_another_run_is_refused_by_name_and_nothing_is_lost(generator):
    shards.make(load(n_candidates=3), Shard(1, 2), ["decode"])
    path = pools() / "base-0.shard-1-of-2.jsonl"
    before = path.read_bytes()
    generator.asked.clear()
    named = r"shard-1-of-2\.jsonl was made with key.*n_candidates: 3 there, 2 here.*COTLIB_OUTPUTS.*rm "
    for index in (1, 2):  # its own, and another's
        with pytest.raises(ForeignError, match=named):
            shards.make(load(), Shard(index, 2), ["decode"])
    with pytest.raises(ForeignError, match=named):
        stages.pools_of(load())
    assert path.read_bytes() == before and not generator.asked and len(list(pools().iterdir())) == 1


def test_a_pool_of_another_run_is_refused_before_a_shard_is_begun(generator):
    shards.make(load(n_candidates=3), Shard(), ["decode"])
    with pytest.raises(ForeignError, match=r"base-0\.jsonl was made with key"):
        shards.make(load(), Shard(1, 2), ["decode"])
    assert [p.name for p in pools().iterdir()] == ["base-0.jsonl"]


def test_a_damaged_shard_is_left_to_its_writer_and_mended_by_the_notebook(generator, monkeypatch, tmp_path, capsys):
    one = bytes_of_one_process(monkeypatch, tmp_path)
    for index in (1, 2):
        shards.make(load(), Shard(index, 3), ["decode"])
    path = pools() / "base-0.shard-1-of-3.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"paths":["', b'"paths":["7', 1))
    before = path.read_bytes()
    shards.make(load(), Shard(3, 3), ["decode"])
    assert path.read_bytes() == before and "not read here" in capsys.readouterr().out
    assert not (pools() / "base-0.jsonl").exists()
    generator.asked.clear()
    stages.pools_of(load())
    assert generator.asked == [load().prompts[0].text]  # of two lines the other proves itself
    assert sorted((pools() / "base-0.jsonl").read_bytes().splitlines()) == sorted(one.splitlines())


SLOW = """
import sys, time
from cotlib import shards, stages
from test_shards import Counting, load

class Slow(Counting):
    def hidden_after(self, *a):
        time.sleep(0.05)
        return super().hidden_after(*a)

stages.pools.load_generator = lambda *_: Slow()
shards.make(load(n_prompts_per_task=20, batch_size=1), shards.Shard(1, 2), ["decode"])
"""


def test_a_process_that_was_killed_goes_on_from_its_own_shard(generator, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, str(Path(__file__).parent)])}
    process = subprocess.Popen([sys.executable, "-c", SLOW], env=environment, stdout=subprocess.DEVNULL)
    run = load(n_prompts_per_task=20, batch_size=1)
    path = pools(run) / "base-0.shard-1-of-2.jsonl"
    deadline = time.monotonic() + 120
    while not (path.is_file() and path.read_bytes().count(b"\n") > 3):
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it was killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = [
        json.loads(line)["prompt"] for line in path.read_bytes().splitlines(keepends=True)[1:] if line[-1:] == b"\n"
    ]
    mine = run.prompts[0::2]
    assert 3 <= len(done) < len(mine)
    shards.make(run, Shard(1, 2), ["decode"])
    assert list(dict.fromkeys(generator.asked)) == [p.text for p in mine if p.id not in done]
    assert sorted(store.Ledger.existing(path).by_prompt()) == sorted(p.id for p in mine)


def test_weights_that_a_stage_lacks_are_told_before_anything_is_decoded(generator, monkeypatch):
    def lacks(scale, part):
        raise IncompleteError(f"no {part} here")

    monkeypatch.setattr(shards, "weights_folder", lacks)
    with pytest.raises(IncompleteError, match="no judge here"):
        shards.make(load(), Shard(1, 2), ["decode", "orm-zero-shot"])
    assert not generator.asked
    shards.make(load(), Shard(1, 2), ["decode"])
    assert generator.asked


# --- Verdicts and scores ---


def test_pools_verdicts_and_zero_shot_scores_of_three_processes_are_those_of_one(generator, monkeypatch, tmp_path):
    """A picture is its codes here; the evaluator and the judge look at it and at the prompt."""
    monkeypatch.setattr(stages.pools, "load_tokenizer", lambda _: SimpleNamespace(decode=lambda codes: codes.numpy()))
    monkeypatch.setattr(stages.pools, "trusted_evaluator", lambda _: ToyEvaluator())
    monkeypatch.setattr(stages.judges, "load_judge", lambda *_: ToyJudge())
    ledgers = {}
    for place, count in (("one", 1), ("three", 3)):
        monkeypatch.setenv("COTLIB_OUTPUTS", str(tmp_path / place))
        for index in range(1, count + 1):
            shards.make(load(), Shard(index, count), ["decode", "verdicts", "orm-zero-shot"])
        names = ["base-0", "base-0-verdicts", "base-0-orm-zero-shot"]
        ledgers[place] = [(pools() / f"{name}.jsonl").read_bytes() for name in names]
    assert ledgers["one"] == ledgers["three"] and len(ledgers["one"]) == 3


# --- What is trained first ---


@pytest.mark.parametrize("stage", ["orm", "parm", "parm-keep", "prm"])
def test_a_share_trains_nothing_and_says_what_to_type(generator, stage):
    with pytest.raises(IncompleteError, match=r"trains nothing; .* cotlib train NAME .* --effort smoke"):
        shards.make(load(), Shard(1, 2), [stage])
    assert not generator.asked and not list(pools().parent.rglob("*.shard-*"))


def test_an_aligned_generator_that_is_not_there_is_told_as_well(generator):
    with pytest.raises(IncompleteError, match="cotlib train NAME"):
        shards.make(load(), Shard(2, 3), ["verdicts"], "it-dpo")
    with pytest.raises(ValueError, match="unknown generator 'itdpo'; did you mean 'it-dpo'"):
        shards.make(load(), Shard(2, 3), ["verdicts"], "itdpo")


def test_a_share_does_not_complete_training_data(generator, monkeypatch):
    run = load()
    whole = run.ledger("train", of="this")
    whole.append({"prompt": "a", "paths": []})
    before = whole.path.read_bytes()
    own = shards.ShardRun(run.settings, run.key, run.folder, run.depends_on, shard=Shard(1, 2))
    data = own.ledger("train", of="this")
    assert "a" in data
    with pytest.raises(IncompleteError, match="part of train.jsonl is not there.* --set n_candidates=2"):
        data.append({"prompt": "b", "paths": []})
    assert whole.path.read_bytes() == before and not list(run.pools.glob("*.shard-*"))


def test_a_share_does_not_train_a_damaged_model_again(generator):
    run = load()
    folder = run.trained("toy", {"a": 1}, lambda folder: (folder / "weights").write_text("whole") and {})
    own = shards.ShardRun(run.settings, run.key, run.folder, run.depends_on, shard=Shard(1, 2))
    assert own.trained("toy", {"a": 1}, lambda folder: pytest.fail("trained")) == folder
    (folder / "weights").write_text("bent")
    with pytest.raises(IncompleteError, match="damaged"):
        own.trained("toy", {"a": 1}, lambda folder: pytest.fail("trained"))


def test_a_search_with_another_generator_than_the_base_is_refused(generator):
    with pytest.raises(ValueError, match="prm searches with the base only; leave --generator dpo out"):
        shards.make(load(), Shard(), ["prm"], "dpo")
    with pytest.raises(ValueError, match="unknown generator 'nonsense'"):
        shards.make(load(), Shard(), ["orm"], "nonsense")


@pytest.mark.parametrize(
    ("whose", "names", "notebook"),
    [
        ("base", ["decode", "verdicts"], "01_baseline"),
        ("base", ["orm-zero-shot", "decode"], "02_outcome_verifier"),
        ("base", ["data", "prm"], "03_process_verifier"),
        ("base", ["parm", "orm"], "05_parm"),
        ("base", ["parm-keep", "orm"], "05_parm"),
        ("base", ["dpo"], "06_integration"),
        ("it-dpo", ["decode"], "06_integration"),
        ("reflect", ["decode"], "07_reflection"),
        ("base", ["facts", "parm"], "07_reflection"),
        ("base", ["parm++"], "07_reflection"),
    ],
)
def test_a_request_takes_the_parameters_of_the_notebook_that_makes_it(whose, names, notebook):
    assert shards.notebook_of(whose, names) == notebook


def test_training_makes_what_is_asked_for_in_order(monkeypatch, capsys):
    made = []
    folder = SimpleNamespace(folder=Path("there"))
    monkeypatch.setitem(shards.TRAINED, "orm", lambda run: made.append("orm") or folder)
    monkeypatch.setattr(stages, "aligned", lambda run, name: made.append(name) or folder)
    shards.train(load(), ["orm", "it-dpo-3"])
    assert made == ["orm", "it-dpo-3"] and "it-dpo-3: there" in capsys.readouterr().out
    with pytest.raises(ValueError, match="unknown model 'it-dpo-foo'"):
        shards.train(load(), ["orm", "it-dpo-foo"])
    assert len(made) == 2


def test_training_refuses_an_unknown_name_before_it_trains(monkeypatch, capsys):
    monkeypatch.setitem(shards.TRAINED, "data", lambda run: pytest.fail("it began to train"))
    with pytest.raises(SystemExit):
        main(["train", "data", "omr", "--effort", "smoke"])
    assert "unknown model 'omr'; did you mean 'orm'?" in capsys.readouterr().err


def test_shares_of_a_trained_verifier_on_an_aligned_generator_are_those_of_one(generator, monkeypatch, tmp_path):
    """The judge and the generator are toys that count as trained; the third of the prompts is each process's own."""
    monkeypatch.setattr(stages.pools, "load_tokenizer", lambda _: SimpleNamespace(decode=lambda codes: codes.numpy()))
    made = stages.Source("dpo", tmp_path, {"generator": "dpo-toy"})
    monkeypatch.setattr(stages.pools, "source", lambda run, name: made)
    monkeypatch.setattr(stages.pools, "verifier_score", lambda run, verifier: (toy_score, {"judge": "orm-toy"}))
    monkeypatch.setattr(shards, "TRAINED", {})
    ledgers = {}
    for place, count in (("one", 1), ("three", 3)):
        monkeypatch.setenv("COTLIB_OUTPUTS", str(tmp_path / place))
        for index in range(1, count + 1):
            shards.make(load(), Shard(index, count), ["orm"], "dpo")
        ledgers[place] = [(pools() / f"{name}.jsonl").read_bytes() for name in ("dpo-0", "dpo-0-orm")]
    assert ledgers["one"] == ledgers["three"]
    assert len(ledgers["one"][1].splitlines()) == 1 + len(load().prompts)


def toy_score(images, prompts):
    return [int(image.sum()) % 7 / 7 for image in images]


class ToyEvaluator:
    def evaluate(self, images, prompts):
        said = [int(image.sum()) + len(p.text) for image, p in zip(images, prompts, strict=True)]
        return [Verdict(n % 2 == 0, (str(n),)) for n in said]


class ToyJudge:
    def p_yes(self, images, questions):
        return torch.tensor([(int(i.sum()) + len(q)) % 97 / 97 for i, q in zip(images, questions, strict=True)])


# --- Real processes, real weights ---


def test_two_processes_of_accelerate_leave_the_ledgers_of_one(tmp_path):
    """The pocket models, six prompts, two candidates: tokens, verdicts and scores equal to the last bit."""
    alone = [sys.executable, "-m", "cotlib", "pool"]
    launch = "accelerate.commands.launch --multi_gpu --num_machines 1 --mixed_precision no --dynamo_backend no"
    together = [sys.executable, "-m", *launch.split(), "--num_processes", "2", "--main_process_port", "0"]
    together += ["-m", "cotlib", "pool"]
    made = {}
    for name, command in (("one", alone), ("two", together)):
        environment = {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment["COTLIB_OUTPUTS"] = str(tmp_path / name)
        stage = ["--stage", "verdicts", "--stage", "orm-zero-shot"]
        ended = subprocess.run([*command, *WORDS, *stage], env=environment, cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        folder = tmp_path / name / "pocket" / "smoke" / "pools"
        made[name] = {p.name: p.read_bytes() for p in folder.iterdir() if "shard" not in p.name}
        shards_there = sorted(p.name for p in folder.iterdir() if "shard" in p.name)
    names = {"base-0.jsonl", "base-0-verdicts.jsonl", "base-0-orm-zero-shot.jsonl"}
    assert set(made["one"]) == set(made["two"]) == names
    assert made["one"] == made["two"]
    assert shards_there == sorted(f"{Path(n).stem}.shard-{i}-of-2.jsonl" for n in names for i in (1, 2))

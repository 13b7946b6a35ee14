"""Bad inputs, more than two hundred: each is refused by the right class, in words that help, and nothing is lost.

A message says what is wrong, where, what was got, what was expected, and what to do next; `assert_helpful` looks for
these in the one line that a user sees.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_decode import ToyGenerator
from test_rerun import finished, outputs, project  # noqa: F401  (fixtures)

import cotlib
from cotlib import chain, paths, search, store
from cotlib.__main__ import main
from cotlib.config import NOTEBOOKS, PARAMETERS, check
from cotlib.decode import DecodeOptions, decode, final
from cotlib.errors import CorruptError, CotlibError, ForeignError, IncompleteError
from cotlib.export import export_pools, pools_of
from cotlib.geneval import Detection, accuracy_by_task
from cotlib.prompts import Clause, Prompt, compose, free_prompts, geneval_prompts, read_metadata, take, training_prompts
from cotlib.store import Ledger, canonical, one_writer, read_json

SMOKE = {"scale": "pocket", "effort": "smoke"}


def assert_helpful(error: BaseException, *fragments: str) -> None:
    """One message for a person: every fragment is there, it is no bare word, and it is one paragraph."""
    text = str(error)
    assert isinstance(error, ValueError | CotlibError), f"{type(error).__name__} is no class for a user's mistake"
    missing = [fragment for fragment in fragments if fragment not in text]
    assert not missing, f"{missing} not in: {text}"
    assert 20 < len(text) < 1500 and "Traceback" not in text and "\n\n" not in text, text


def test_the_check_of_messages_notices_what_does_not_help():
    for error in (KeyError("n_candidates must lie in 1..1000"), ValueError("bad"), ValueError("n must lie in 1..1000")):
        with pytest.raises(AssertionError):
            assert_helpful(error, "n_candidates")


# ---- parameters: what, where (the notebook), got, expected (the range), next (leave it None) --------------------

INTS, FLOATS = (
    {name: p for name, p in PARAMETERS.items() if p.type is kind and name != "batch_size"} for kind in (int, float)
)
NO_INT = ["false", "3", "", True, False, 2.5, 3.0, math.nan, math.inf, [4], {}, (1, 2), b"3", 1j]
NO_FLOAT = ["false", "1.5", "", True, False, math.nan, math.inf, -math.inf, [1.0], {}, b"1", 1j]


def taker(name):
    """The first notebook that takes this parameter."""
    return next((n for n, spec in NOTEBOOKS.items() if name in spec.overrides), "01_baseline")


def ask(**changes):
    dials = {"notebook": taker(next(iter(changes), "")), "scale": "pocket", "effort": "quick", "seed": 0}
    dials |= changes
    return check(dials.pop("notebook"), **dials)


@pytest.mark.parametrize("value", NO_INT, ids=repr)
@pytest.mark.parametrize("name", INTS)
def test_what_is_no_whole_number(name, value):
    with pytest.raises(ValueError) as error:
        ask(**{name: value})
    allowed = f"{PARAMETERS[name].low:g}..{PARAMETERS[name].high:g}"
    assert_helpful(error.value, f"{taker(name)}: {name} must be an int", f"got {value!r}", allowed, "leave it None")


@pytest.mark.parametrize("value", NO_FLOAT, ids=repr)
@pytest.mark.parametrize("name", FLOATS)
def test_what_is_no_number(name, value):
    with pytest.raises(ValueError) as error:
        ask(**{name: value})
    allowed = f"{PARAMETERS[name].low:g}..{PARAMETERS[name].high:g}"
    assert_helpful(
        error.value,
        f"{taker(name)}: {name} must be a finite float",
        f"got {value!r}",
        allowed,
        "leave it None",
    )


@pytest.mark.parametrize("name", [*INTS, *FLOATS, "batch_size"])
@pytest.mark.parametrize("side", ["below", "above", "far below", "far above"])
def test_what_is_out_of_range(name, side):
    spec = PARAMETERS[name]
    value = {"below": spec.low - 1, "above": spec.high + 1, "far below": -(10**30), "far above": 10**400}[side]
    with pytest.raises(ValueError) as error:
        ask(**{name: value})
    wanted = f"must lie in {spec.low:g}..{spec.high:g}, got {value!r}"
    assert_helpful(error.value, f"{taker(name)}: {name} ({spec.help})", wanted, "leave it None")


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        *(("n_candidate", "n_candidates"), ("candidates", "n_candidates"), ("N_CANDIDATES", "n_candidates")),
        *(("guidence", "guidance"), ("step", "steps"), ("temprature", "temperature"), ("batchsize", "batch_size")),
        *(("n_image", "n_images"), ("n_prompts", "n_prompts_per_task"), ("sead", "seed"), ("scales", "scale")),
    ],
)
def test_a_near_miss_of_a_name_is_answered_with_the_name(typo, meant):
    with pytest.raises(ValueError) as error:
        ask(**{typo: 1})
    expected = () if typo.isupper() else (f"did you mean {meant!r}?",)
    assert_helpful(error.value, "notebook 01_baseline has no parameter", repr(typo), "known: scale, effort", *expected)


@pytest.mark.parametrize("seed", [-1, 2**31, 10**400, 1.0, "0", None, True, math.nan, [0]], ids=lambda s: repr(s)[:9])
def test_a_bad_seed(seed):
    with pytest.raises(ValueError) as error:
        ask(seed=seed)
    assert_helpful(error.value, "01_baseline: seed must", f"got {seed!r}", "for example seed=0")


CHOICES = {
    "scale": (["poket", "Pocket", "", None, 0, "showo1024", ["pocket"]], "known: pocket, showo, showo512"),
    "effort": (["fast", "Quick", "", None, 1, "ful", {}], "known: smoke, quick, full"),
    "notebook": (["01_base", "1_baseline", "", None, "01_baseline.ipynb", 1], "known: 01_baseline"),
}


@pytest.mark.parametrize(
    ("what", "name"), [(what, name) for what, (names, _) in CHOICES.items() for name in names], ids=repr
)
def test_an_unknown_choice_is_answered_with_the_known_ones(what, name):
    with pytest.raises(ValueError) as error:
        ask(**{what: name})
    assert_helpful(error.value, f"unknown {what} {name!r}", CHOICES[what][1])


# ---- a chain with finished results: refused before anything runs, and nothing of it is lost ----------------------

REQUESTS = [
    ({"n_candidats": 4}, "declares no parameter 'n_candidats'; did you mean 'n_candidates'"),
    ({"guidance": 2.0}, "declares no parameter 'guidance'"),
    ({"n_candidates": "false"}, "01_baseline: n_candidates must be an int, got 'false'"),
    ({"n_candidates": "null"}, "must be an int, got 'null'"),
    ({"n_candidates": math.nan}, "must be an int, got nan"),
    ({"n_candidates": 0}, "must lie in 1..1000, got 0"),
    ({"n_candidates": 1001}, "must lie in 1..1000, got 1001"),
    ({"n_candidates": (1, 2)}, "n_candidates must be a number, text, true, false or null, got (1, 2)"),
    ({"n_candidates": [4]}, "must be a number, text, true, false or null, got [4]"),
    ({"n_candidates": {}}, "must be a number, text, true, false or null, got {}"),
    ({"n_candidates": Path("x")}, "must be a number, text"),
    ({"n_candidates": np.int64(3)}, "must be a number, text"),
    ({"n_candidates": 5}, "n_candidates: 4 there, 5 here"),
    ({"seed": "x"}, "seed must be an int, got 'x'"),
    ({"scale": "poket"}, "unknown scale 'poket'; did you mean 'pocket'"),
]


@pytest.mark.parametrize(("parameters", "said"), REQUESTS, ids=lambda value: str(value)[:40])
def test_a_bad_request_to_the_chain(project, parameters, said):  # noqa: F811
    before = {path: path.read_bytes() for path in (project / "outputs").rglob("*") if path.is_file()}
    with pytest.raises((ValueError, ForeignError)) as error:
        chain.run_chain(["01_baseline"], parameters=parameters, **SMOKE)
    assert_helpful(error.value, said)
    assert before == {path: path.read_bytes() for path in (project / "outputs").rglob("*") if path.is_file()}


# ---- command line -------------------------------------------------------------------------------------------------

COMMANDS = [
    ("nonsense", 2, "No such command"),
    ("run --nonsense", 2, "No such option"),
    ("run --seed x", 2, "integer"),
    ("run 01_base", 2, "did you mean '01_baseline'"),
    ("run 99_nowhere", 2, "unknown notebook '99_nowhere'; "),
    ("run 09_reflection", 2, "unknown notebook '09_reflection'"),
    ("run _template", 3, "no notebook"),
    ("run --effort fast", 2, "unknown effort 'fast'"),
    ("run --scale poket", 2, "did you mean 'pocket'"),
    ("run --seed -1", 2, "seed must lie in 0.."),
    ("run 01_baseline --set n_candidates", 2, "--set wants NAME=VALUE, got 'n_candidates'; for example"),
    ("run 01_baseline --set =4", 2, "--set wants NAME=VALUE, got '=4'; for example"),
    ("run 01_baseline --set n_candidates=false", 2, "must be an int, got False"),
    ("run 01_baseline --set n_candidates=four", 2, "must be an int, got 'four'"),
    ("run 01_baseline --set n_candidates=NaN", 2, "must be an int, got nan"),
    ("run 01_baseline --set n_candidates=[1]", 2, "must be a number, text"),
    ("run 01_baseline --set n_candidates=-5", 2, "must lie in 1..1000, got -5"),
    ("run 01_baseline --set guidance=2", 2, "declares no parameter 'guidance'"),
    ("run --set n_candidats=8", 2, "declares no parameter 'n_candidats'; did you mean 'n_candidates'"),
    ("run 01_baseline --effort smoke --set effort=full", 2, "effort is an option of its own; type --effort full"),
    ("pool --set seed=1", 2, "seed is an option of its own; type --seed 1"),
    ("train orm --set scale=pocket", 2, "type --scale pocket"),
    ("pool --set notebook=x", 2, "no parameter 'notebook'"),
    ("run --effort smoke --seed 4", 3, "seed: 0 there, 4 here"),
    ("run --list --effort fast", 2, "unknown effort 'fast'"),
    ("status --effort fast", 2, "known: smoke, quick, full"),
    ("status --scale poket", 2, "unknown scale 'poket'; did you mean 'pocket'? known: pocket"),
    ("status --effort smoke --seed -1", 2, "seed must lie in 0.."),
    ("results --effort fast", 2, "known: smoke, quick, full"),
    ("results --effort quick", 3, "make them with: cotlib run --scale pocket --effort quick"),
    ("results nothing --effort smoke", 2, "no measurement matches 'nothing'"),
    ("pretrain nobody --minutes 1", 2, "tokenizer"),
    ("pretrain judge --minutes 0", 2, "0.01"),
    ("pretrain judge", 2, "--minutes"),
    ("export", 2, ""),
    ("export geneval", 2, "Missing argument"),
    ("export geneval out --candidates 0", 2, "1"),
    ("export geneval out --effort smoke --generator dpo", 3, "there: base-0; make it with: cotlib run --scale"),
    ("export geneval out --effort fast", 2, "unknown effort 'fast'"),
]


@pytest.mark.parametrize(("words", "code", "said"), COMMANDS, ids=lambda value: str(value)[:50])
def test_a_bad_command_is_one_message_with_its_code(project, capsys, monkeypatch, words, code, said):  # noqa: F811
    monkeypatch.setenv("COLUMNS", "300")
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as end:
        main(words.split())
    answer = capsys.readouterr()
    assert end.value.code == code and said in answer.out + answer.err and "Traceback" not in answer.err
    left = {path: path.read_bytes() for path in project.rglob("*") if path.is_file() and path.name != ".lock"}
    assert left == before


# ---- prompts ------------------------------------------------------------------------------------------------------

GOOD = {
    "tag": "counting",
    "include": [{"class": "dog", "count": 2}],
    "exclude": [{"class": "dog", "count": 3}],
    "prompt": "a photo of two dogs",
}


def clause(**fields):
    return {**GOOD, "include": [{"class": "dog", "count": 1, **fields}]}


RECORDS = [
    *((tag, "unknown task") for tag in ({**GOOD, "tag": t} for t in ("", None, 3, "Counting", "two_objects"))),
    *((text, "expected some words") for text in ({**GOOD, "prompt": t} for t in ("", " ", None, 3, [], "\n\t"))),
    *((rows, "include must be a list") for rows in ({**GOOD, "include": r} for r in (None, {}, "dog", 3))),
    *((rows, "exclude must be a list") for rows in ({**GOOD, "exclude": r} for r in (None, {}, "dog", 3))),
    *(({**GOOD, "include": [row]}, "expected an object") for row in (None, "dog", 3, ["dog"])),
    *(({k: v for k, v in GOOD.items() if k != key}, f"missing {key}") for key in ("tag", "include", "prompt")),
    *(({**GOOD, key: 1}, f"'{key}'; nearest known") for key in ("Tag", "includes", "text", "seed")),
    *((clause(**{"class": c}), "unknown class") for c in ("", None, 3, "Dog", "dogs", "mouse", "unicorn")),
    *((clause(count=n), "at least 1") for n in (0, -1, 1.0, "1", None, True, [])),
    *((clause(color=c), "unknown colour") for c in ("", "gren", "RED", 3, ["red"])),
    *((clause(position=p), "position must be [relation, index]") for p in ("left of", [], ["left of"], 3, [1, 2, 3])),
    *((clause(position=[r, 0]), "unknown relation") for r in ("left", "", None, "beside")),
    *((clause(position=["above", t]), "whole number of at least 0") for t in (-1, 0.5, "0", None)),
    (clause(position=["above", 0]), "the anchor must come before it in include"),
    ({**GOOD, "include": []}, "include is empty; name at least one object"),
    ({**GOOD, "exclude": [{"class": "dog", "count": 1, "color": "red"}]}, "drop colour and position"),
    *((value, "expected an object with tag, include, prompt") for value in (None, 3, "x", [], [GOOD])),
]
LINES = [b"", b"{", b"nonsense", b"\xff\xfe", b"NaN NaN", b"{'tag': 1}", b'{"tag": "counting"', b"\0\0\0"]


@pytest.mark.parametrize(
    ("line", "said"), [*((json.dumps(r).encode(), s) for r, s in RECORDS), *((x, "") for x in LINES)]
)
def test_a_bad_prompt_is_named_with_file_line_and_what_to_do(tmp_path, line, said):
    path, good = tmp_path / "prompts.jsonl", json.dumps(GOOD).encode()
    path.write_bytes(good + b"\n" + line + b"\n" + good)
    with pytest.raises(ValueError) as error:
        read_metadata(path)
    assert_helpful(error.value, f"{path}, line 2: ", said, "mend the line or drop it")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: compose("x", ()), "include is empty"),
        (lambda: compose("x", (Clause("dog"), Clause("cat"), Clause("cup", position=("above", 0)))), "got 3 clauses"),
        (lambda: training_prompts(43), "seed 43 makes the evaluation prompts; choose another seed"),
        (lambda: training_prompts(0, 0), "prompts per task must be a whole number of at least 1, got 0"),
        (lambda: training_prompts(-1), "seed must be a whole number of at least 0, got -1"),
        (lambda: free_prompts(0, 0), "number of prompts must be a whole number of at least 1, got 0"),
        (lambda: free_prompts(0, 2.5), "got 2.5"),
        (lambda: take(geneval_prompts(), 0), "at least 1, got 0"),
        (lambda: take(geneval_prompts(), "3"), "got '3'"),
        (lambda: Prompt("x", "a dog", "animals", (Clause("dog"),)), "unknown task 'animals'; nearest known"),
    ],
)
def test_bad_prompts_made_in_code(make, said):
    with pytest.raises(ValueError) as error:
        make()
    assert_helpful(error.value, said)


# ---- GenEval, decoding, search ------------------------------------------------------------------------------------

BOX = (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (("unicorn", 0.5, BOX), "unknown class 'unicorn'; nearest known"),
        (("", 0.5, BOX), "unknown class ''"),
        (("dog", math.nan, BOX), "got score nan"),
        (("dog", math.inf, BOX), "got score inf"),
        (("dog", 0.5, (2.0, 0.0, 1.0, 1.0)), "x0 <= x1"),
        (("dog", 0.5, (0.0, 2.0, 1.0, 1.0)), "y0 <= y1"),
        (("dog", 0.5, (0.0, 0.0, math.nan, 1.0)), "expected a finite score"),
    ],
)
def test_an_impossible_detection(fields, said):
    with pytest.raises(ValueError) as error:
        Detection(*fields)
    assert_helpful(error.value, said)


@pytest.mark.parametrize(
    ("correct", "said"),
    [
        ({}, "no scored image of task single_object"),
        ({"00000": [None]}, "no scored image of task"),
        ({"elsewhere": [True]}, "unknown prompts, the first 'elsewhere'; pass their prompts"),
    ],
)
def test_verdicts_that_make_no_score(correct, said):
    with pytest.raises(ValueError) as error:
        accuracy_by_task(geneval_prompts(), correct)
    assert_helpful(error.value, said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "decoding steps must be at least 1, got 0"),
        ({"steps": -3}, "at least 1, got -3"),
        ({"guidance": -0.1}, "must be >= 0, got -0.1"),
        ({"temperature": -1}, "must be >= 0"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; known: cosine, linear"),
        ({"remask_temperature": "show-o"}, "unknown remask_temperature 'show-o'; known: showo"),
    ],
)
def test_bad_options_of_decoding(options, said):
    with pytest.raises(ValueError) as error:
        DecodeOptions(**options)
    assert_helpful(error.value, said)


@pytest.mark.parametrize(("texts", "seeds"), [([], []), (["a"], []), ([], [1]), (["a", "b"], [1])])
def test_texts_without_seeds(texts, seeds):
    with pytest.raises(ValueError) as error:
        final(decode(ToyGenerator(), texts, seeds, DecodeOptions()))
    assert_helpful(error.value, f"expected one seed per text, got {len(texts)} texts and {len(seeds)} seeds")


@pytest.mark.parametrize("options", [{"n_candidates": 0}, {"n_candidates": -2}, {"batch_size": 0}, {"batch_size": -1}])
def test_bad_sizes_of_a_pool_are_refused_before_any_compute(tmp_path, options):
    ledger = Ledger(tmp_path / "l.jsonl", "k")
    with pytest.raises(ValueError) as error:
        search.decode_pool(
            ToyGenerator(), geneval_prompts()[:2], seed=0, options=DecodeOptions(), ledger=ledger,
            **{"n_candidates": 2, **options},
        )  # fmt: skip
    assert_helpful(
        error.value, "n_candidates and batch_size must be at least 1", f"got {options.get('n_candidates', 2)}"
    )
    assert not ledger.path.exists()


@pytest.mark.parametrize("choose", [search.best_of_n, lambda s, n: search.expected_best_of_n(s, [True] * 3, n)])
@pytest.mark.parametrize("n", [0, -1, 4])
def test_best_of_more_than_there_are(choose, n):
    with pytest.raises(ValueError) as error:
        choose([0.1, 0.2, 0.3], n)
    assert_helpful(error.value, "best-of-n: n must lie in 1..3", f"got {n}", "decode more first")


# ---- records and files --------------------------------------------------------------------------------------------


def load():
    return cotlib.load("01_baseline", seed=0, **SMOKE)


VALUES = [math.nan, math.inf, -math.inf, "0.5", True, [0.5], {}, 1j, np.float64("nan"), torch.tensor(math.nan)]


@pytest.mark.parametrize("field", ["value", "low", "n"])
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_what_is_no_measurement(project, field, value):  # noqa: F811
    here = load()
    here.record("a/kept", 1)
    with pytest.raises(ValueError) as error:
        here.record("a/b", **{"value": 0.5, field: value})
    assert_helpful(error.value, f"a/b, {field} must be a finite number or None, got ")
    assert [record["name"] for record in here.records()] == ["a/kept"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *(
            ((lambda r, n=n: r.record(n, 1)), "slash-separated name such as")
            for n in ("", "/", " ", "/a", "a/", None, 3)
        ),
        (lambda r: r.record("a/b", 1, unit=3), "a/b: unit must be text, got 3"),
        (lambda r: r.record("a/b", 1, low=0), "an interval has two ends"),
        (lambda r: r.record("a/b", 1, high=2), "an interval has two ends"),
        (lambda r: r.record("a/b", 1, low=2, high=1), "low <= high, got 2..1"),
        (lambda r: r.finish(ok=-1), "ok must be a count, got -1"),
        (lambda r: r.finish(ok=1.0), "ok must be a count, got 1.0"),
        (lambda r: r.finish(ok=True), "ok must be a count, got True"),
        (lambda r: r.finish(ok=1, unscored="2"), "unscored must be a count, got '2'"),
        (lambda r: r.upstream("02_outcome_verifier"), "01_baseline does not read '02_outcome_verifier'"),
        (lambda r: r.upstream("nobody"), "01_baseline does not read 'nobody'"),
    ],
)
def test_a_bad_record_leaves_the_finished_result(project, change, said):  # noqa: F811
    before = (outputs(project) / "run.json").read_bytes()
    with pytest.raises(ValueError) as error:
        change(load())
    assert_helpful(error.value, said)
    assert (outputs(project) / "run.json").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"{", b"\0\0", b"\xff", b"nonsense", b'{"a": 1', b"[1, ]", b"{} {}"])
def test_unreadable_json_says_what_becomes_of_it(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(CorruptError) as error:
        read_json(path)
    assert_helpful(error.value, f"{path} is not readable JSON", "the next `cotlib run` sets it aside as x.json.corrupt")
    assert path.read_bytes() == content


@pytest.mark.parametrize("value", [math.nan, math.inf, [1, -math.inf], {"a": {"b": math.nan}}], ids=repr)
def test_what_json_does_not_know_is_refused(tmp_path, value):
    ledger = Ledger(tmp_path / "l.jsonl", "k")
    ledger.append({"prompt": "a"})
    for write in (canonical, lambda v: ledger.append({"prompt": "b", "x": v})):
        with pytest.raises(ValueError, match="JSON"):
            write(value)
    assert len(Ledger(tmp_path / "l.jsonl", "k")) == 1


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"[1]", b"nonsense", b"\0" * 40, b'{"prompt":"b"}', b'{"prompt":"b","sha":"0"}']
)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_bad_line_of_a_ledger_is_named_and_mended_without_the_others(tmp_path, line, number, capsys):
    path = tmp_path / "l.jsonl"
    for name in "abc":
        Ledger(path, "k").append({"prompt": name})
    lines = path.read_bytes().split(b"\n")
    lines[number - 1] = line
    path.write_bytes(b"\n".join(lines))
    damaged = path.read_bytes()
    for read in (lambda: Ledger(path, "k"), lambda: Ledger.existing(path)):
        with pytest.raises(CorruptError) as error:
            read()
        assert_helpful(
            error.value, f"{path}, line {number}: expected", "got ", "l.jsonl.corrupt", "keeps the good lines"
        )
    assert path.read_bytes() == damaged
    mended = Ledger(path, "k", mend=True)
    assert [r["prompt"] for r in mended.records()] == (
        [] if number == 1 else [n for n in "abc" if n != "abc"[number - 2]]
    )
    assert path.with_name("l.jsonl.corrupt").read_bytes() == damaged and "good records kept" in capsys.readouterr().out
    mended.append({"prompt": "d"})
    assert "d" in Ledger(path, "k")


@pytest.mark.parametrize("there", [{"steps": 8}, {"steps": 18, "seed": 1}, {}])
def test_a_ledger_of_something_else_is_refused_and_not_mended(tmp_path, there):
    path = tmp_path / "l.jsonl"
    Ledger(path, "theirs", there).append({"prompt": "a"})
    before = path.read_bytes()
    with pytest.raises(ForeignError) as error:
        Ledger(path, "ours", {"steps": 18}, mend=True)
    assert_helpful(
        error.value, str(path), "key theirs", "this run has ours", "COTLIB_OUTPUTS=another-folder", f"rm {path}"
    )
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "text", ["nonsense", "[]x", '{"pid": "x", "host": "y"}', '{"pid": 1, "host": "elsewhere"}', "3"]
)
def test_a_lock_that_nobody_can_judge_is_respected(tmp_path, text):
    (tmp_path / ".lock").write_text(text)
    with pytest.raises(CotlibError) as error, one_writer(tmp_path):
        pass
    assert_helpful(error.value, f"{tmp_path} is being written by process", "wait for it", f"rm {tmp_path / '.lock'}")
    assert (tmp_path / ".lock").read_text() == text


class TestExport:
    @pytest.fixture
    def pools(self, tmp_path):
        for image in (0, 1):
            ledger = Ledger(tmp_path / "pools" / f"base-{image}.jsonl", "k")
            ends = [paths.pack(np.array([[code]])) for code in (1, 2, 3)[: 3 - image]]
            ledger.append({"prompt": "00000", "paths": ends})
        return tmp_path / "pools"

    def export(self, pools, out, n=1):
        make = "cotlib run 01_baseline"
        return export_pools(
            pools_of(pools, "base", make), out, n, lambda codes: np.zeros((len(codes), 4, 4, 3), np.uint8), make
        )

    @pytest.mark.parametrize("generator", ["dpo", "", "base-0", "BASE", ".*"])
    def test_a_generator_without_pools(self, pools, generator):
        with pytest.raises(IncompleteError) as error:
            pools_of(pools, generator, "cotlib run")
        assert_helpful(error.value, f"no pool {generator}-0", "there: base-0, base-1", "make it with: cotlib run")

    @pytest.mark.parametrize("n", [0, -1, 3, 100])
    def test_more_candidates_than_the_smallest_pool_has(self, pools, tmp_path, n):
        with pytest.raises(ValueError) as error:
            self.export(pools, tmp_path / "out", n)
        assert_helpful(error.value, "prompt 00000 has 2 candidates", f"not {n}", "ask for fewer")
        assert not (tmp_path / "out").exists()

    def test_a_damaged_pool_is_not_exported_and_not_changed(self, pools, tmp_path):
        path = pools / "base-1.jsonl"
        path.write_bytes(path.read_bytes().replace(b"1:", b"7:", 1))
        damaged = path.read_bytes()
        with pytest.raises(CorruptError) as error:
            self.export(pools, tmp_path / "out")
        assert_helpful(error.value, f"{path}, line 2", "base-1.jsonl.corrupt")
        assert path.read_bytes() == damaged and not (tmp_path / "out").exists()

    def test_a_folder_with_pictures_of_somebody_else(self, pools, tmp_path):
        self.export(pools, tmp_path / "mine")
        (tmp_path / "mine" / "00600").mkdir()
        with pytest.raises(ValueError, match="00600 is not from an earlier export"):
            self.export(pools, tmp_path / "mine")
        theirs = store.atomic_write(tmp_path / "out" / "00000" / "samples" / "0003.png", "mine")
        with pytest.raises(ValueError) as error:
            self.export(pools, tmp_path / "out")
        assert_helpful(error.value, f"{tmp_path / 'out' / '00000'} is not from an earlier export", "an empty folder")
        assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [theirs]

    def test_a_file_in_the_place_of_the_folder(self, pools, tmp_path):
        (tmp_path / "out").write_text("mine")
        with pytest.raises(ValueError) as error:
            self.export(pools, tmp_path / "out")
        assert_helpful(error.value, f"cannot write to {tmp_path / 'out'}", "choose another folder")
        assert (tmp_path / "out").read_text() == "mine"

    def test_pools_without_a_prompt_in_common(self, pools, tmp_path):
        Ledger(pools / "base-2.jsonl", "k").append({"prompt": "00001", "paths": [paths.pack(np.array([[1]]))]})
        with pytest.raises(IncompleteError) as error:
            self.export(pools, tmp_path / "out")
        assert_helpful(error.value, "no GenEval prompt is in all of", "base-2.jsonl", "cotlib run 01_baseline")
        assert not (tmp_path / "out").exists()


def test_an_unreadable_number_is_not_stored(tmp_path):
    with pytest.raises(TypeError, match="cannot store"):
        store.canonical({"a": object()})

"""`cotlib geneval FOLDER`: scores, files, resuming, refusals, and the way back from `cotlib export geneval`."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cotlib import loaders, paths, scoring, stats
from cotlib.__main__ import main
from cotlib.config import SCALES
from cotlib.errors import DetectorError
from cotlib.export import export_pools, write_prompt
from cotlib.geneval import Verdict, accuracy_by_task
from cotlib.pocket import world
from cotlib.prompts import TASKS, geneval_prompts, take
from cotlib.store import Ledger

POCKET = SCALES["pocket"]
PROMPTS = take(geneval_prompts(), 2)  # two of each task
KEEP = 4  # pictures of a prompt


class Marked:
    """Reads the verdict off the first pixel: right where its red is even. Breaks off before picture number `until`."""

    batch_size = 6

    def __init__(self, until: float = float("inf")):
        self.until, self.seen = until, 0

    def evaluate(self, images, prompts):
        self.seen += len(images)
        if self.seen > self.until:
            raise KeyboardInterrupt
        right = [image[0, 0, 0] % 2 == 0 for image in images]
        return [
            Verdict(bool(r), () if r else (f"expected {p.text}", "found none"))
            for r, p in zip(right, prompts, strict=True)
        ]


def is_right(prompt_number: int, image: int) -> bool:
    return (prompt_number * 7 + image) % 3 != 0


def picture(right: bool, seed: int = 0) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    image[0, 0, 0] = image[0, 0, 0] // 2 * 2 + (not right)
    return image


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    for i, prompt in enumerate(PROMPTS):
        write_prompt(folder, prompt, np.stack([picture(is_right(i, k), 9 * i + k) for k in range(KEEP)]))
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "made")


@pytest.fixture
def use(monkeypatch):
    """use(evaluator): what the command is given to score with; its canary is not asked."""

    def use(evaluator):
        monkeypatch.setattr(loaders, "trusted_evaluator", lambda *_: evaluator)
        return evaluator

    use(Marked())
    return use


@pytest.fixture
def call(capsys):
    """call(...) -> (exit code, what it printed, what it complained about)."""

    def call(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["geneval", *map(str, words)])
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return call


def table_of(said: str) -> dict[str, list[str]]:
    """name -> [per cent, low, high, prompts, pictures]."""
    lines = [line.replace(" .. ", " ").split() for line in said.splitlines()]
    return {words[0]: words[1:] for words in lines if len(words) == 6}


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- Scores -------------------------------------------------------------------------------------------------------


def test_it_prints_genevals_scores_with_their_intervals(folder, use, call):
    code, said, _ = call(folder)
    correct = {p.id: [is_right(i, k) for k in range(KEEP)] for i, p in enumerate(PROMPTS)}
    expected = accuracy_by_task(PROMPTS, correct)
    table = table_of(said)
    assert code == 0
    for task in TASKS:
        assert table[task][0] == f"{100 * expected.per_task[task]:.2f}" and table[task][3:] == ["2", "8"]
    overall = stats.overall(PROMPTS, {id: np.mean(values) for id, values in correct.items()})
    assert table["overall"][:2] == [f"{100 * expected.overall:.2f}", f"{100 * overall.low:.1f}"]
    assert table["overall"][2:] == [f"{100 * overall.high:.1f}", "12", "48"]
    assert table["images"][0] == f"{100 * expected.images:.2f}" and table["images"][3:] == ["12", "48"]
    assert table["prompts"][0] == f"{100 * expected.prompts_any:.2f}"


def test_the_results_file_has_genevals_fields(folder, use, call):
    call(folder, "--out", folder / "elsewhere" / "r.jsonl")
    rows = rows_of(folder / "elsewhere" / "r.jsonl")
    assert len(rows) == len(PROMPTS) * KEEP
    assert rows[0].keys() == {"filename", "tag", "prompt", "correct", "reason", "metadata"}
    for i, row in enumerate(rows):
        prompt = PROMPTS[i // KEEP]
        assert json.loads(row["metadata"]) == prompt.metadata() and row["tag"] == prompt.task
        assert row["filename"].endswith(f"{prompt.id}/samples/{i % KEEP:04}.png")
        assert row["correct"] is is_right(i // KEEP, i % KEEP)
        assert row["reason"] == ("" if row["correct"] else f"expected {prompt.text}\nfound none")


def test_the_official_summary_reads_the_results(folder, use, call):
    """summary_scores.py groups rows by tag and by metadata; the same sums here."""
    _, said, _ = call(folder)
    rows = rows_of(folder / "results.jsonl")
    by_tag = {tag: [r["correct"] for r in rows if r["tag"] == tag] for tag in {r["tag"] for r in rows}}
    by_prompt = {m: [r["correct"] for r in rows if r["metadata"] == m] for m in {r["metadata"] for r in rows}}
    table = table_of(said)
    assert table["overall"][0] == f"{100 * np.mean([np.mean(v) for v in by_tag.values()]):.2f}"
    assert table["prompts"][0] == f"{100 * np.mean([any(v) for v in by_prompt.values()]):.2f}"


def test_without_all_six_tasks_there_is_no_overall_and_it_says_so(folder, use, call):
    for prompt in PROMPTS:
        if prompt.task == "position":
            shutil.rmtree(folder / prompt.id)
    code, said, _ = call(folder)
    assert code == 0 and "no overall score" in said and "position" not in said and "\nimages" in said


def test_prompts_of_unequal_numbers_of_pictures_count_by_pictures_and_it_says_so(folder, use, call):
    first = PROMPTS[0]
    for k in range(1, KEEP):
        (folder / first.id / "samples" / f"{k:04}.png").unlink()
    _, said, _ = call(folder)
    right = [is_right(0, 0), *(is_right(1, k) for k in range(KEEP))]
    assert (
        table_of(said)["single_object"][0] == f"{100 * np.mean(right):.2f}"
        and "differ in their number of pictures" in said
    )


def test_only_what_is_named_by_digits_counts(folder, use, call):
    (folder / "notes").mkdir()
    (folder / "grid.png").write_bytes(b"x")
    samples = folder / PROMPTS[0].id / "samples"
    (samples / "0000.jpg").write_bytes(b"x")
    (samples / "best.png").write_bytes(b"x")
    (samples / "0001.png.bak").write_bytes(b"x")
    assert call(folder)[0] == 0
    assert len(rows_of(folder / "results.jsonl")) == len(PROMPTS) * KEEP


def test_a_folder_named_like_a_picture_is_none_and_a_link_to_nothing_is_named(folder, use, call):
    (folder / ONE / "samples" / "0006.png").mkdir()
    assert call(folder)[0] == 0 and len(rows_of(folder / "results.jsonl")) == len(PROMPTS) * KEEP
    (folder / ONE / "samples" / "0005.png").symlink_to(folder / "nowhere.png")
    code, _, complaint = call(folder)
    assert code == 3 and "cannot read" in complaint and "0005.png" in complaint


def test_a_picture_that_vanishes_before_its_turn_is_named(folder, use, call, monkeypatch):
    def load(*_):
        (folder / ONE / "samples" / "0002.png").unlink()
        return Marked()

    monkeypatch.setattr(loaders, "trusted_evaluator", load)
    code, _, complaint = call(folder)
    assert code == 3 and "cannot read" in complaint and "0002.png" in complaint and "put it back" in complaint


def test_pictures_of_several_sizes_are_scored_at_a_scale_of_photographs(folder, use, call, monkeypatch):
    monkeypatch.setattr(loaders, "evaluator_identity", lambda *_: {"scale": "showo"})
    samples = folder / PROMPTS[3].id / "samples"
    Image.fromarray(picture(True)[:50]).save(samples / "0002.png")
    assert call(folder, "--scale", "showo")[0] == 0
    assert rows_of(folder / "results.jsonl")[3 * KEEP + 2]["correct"] is True


# --- Resuming -----------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_where_it_was(folder, use, call):
    use(Marked(until=39))
    assert call(folder)[0] == 130
    ledger = folder / "results.ledger.jsonl"
    n_kept = len(Ledger.existing(ledger))
    assert n_kept == 8 and not (folder / "results.jsonl").exists()  # the first 32 pictures
    second = use(Marked())
    assert call(folder)[0] == 0 and second.seen == (len(PROMPTS) - n_kept) * KEEP
    resumed = (folder / "results.jsonl").read_text()
    third = use(Marked())
    assert call(folder)[0] == 0 and third.seen == 0
    ledger.unlink()
    call(folder)
    assert (folder / "results.jsonl").read_text() == resumed


def test_what_changed_is_scored_again_and_what_was_added_too(folder, use, call):
    call(folder)
    Image.fromarray(picture(not is_right(0, 0))).save(folder / PROMPTS[0].id / "samples" / "0000.png")
    write_prompt(folder, geneval_prompts()[5], np.stack([picture(True)]))
    again = use(Marked())
    assert call(folder)[0] == 0 and again.seen == KEEP + 1
    rows = rows_of(folder / "results.jsonl")
    assert rows[0]["correct"] is not is_right(0, 0) and len(rows) == len(PROMPTS) * KEEP + 1


def test_verdicts_of_other_weights_are_not_mixed_in(folder, use, call, monkeypatch):
    call(folder)
    identity = loaders.evaluator_identity(POCKET)
    monkeypatch.setattr(loaders, "evaluator_identity", lambda *_: {**identity, "detector": "0" * 12})
    code, _, complaint = call(folder)
    assert code == 3 and "another evaluator (detector: " in complaint and "--out another.jsonl" in complaint
    assert call(folder, "--out", folder / "another.jsonl")[0] == 0


def test_a_damaged_ledger_is_mended_and_what_it_lost_is_scored_again(folder, use, call):
    call(folder)
    ledger, results = folder / "results.ledger.jsonl", (folder / "results.jsonl").read_text()
    ledger.write_bytes(ledger.read_bytes().replace(b'"0002.png"', b'"0003.png"', 1))
    again = use(Marked())
    code, printed, _ = call(folder)
    assert code == 0 and again.seen == KEEP and "results.ledger.jsonl.corrupt" in printed
    assert (folder / "results.jsonl").read_text() == results


def test_a_detector_that_gives_up_leaves_nothing_behind(folder, use, call):
    class Blind(Marked):
        def evaluate(self, images, prompts):
            said = super().evaluate(images, prompts)
            if self.seen >= 32:
                raise DetectorError("found nothing in the first 32 pictures")
            return said

    use(Blind())
    assert call(folder)[0] == 3
    assert not (folder / "results.ledger.jsonl").exists() and not (folder / ".lock").exists()


# --- Canary -------------------------------------------------------------------------------------------------------


def test_a_detector_that_fails_its_canary_scores_nothing(folder, call, monkeypatch):
    class Broken(Marked):
        def evaluate(self, images, prompts):
            return [Verdict(False, ("expected a dog, found none",))] * len(images)

    monkeypatch.setattr(loaders, "load_evaluator", lambda *_: Broken())
    loaders.trusted_evaluator.cache_clear()
    code, said, complaint = call(folder)
    assert code == 3 and "wrong about 12 of 24 pictures" in complaint and not said
    assert not (folder / "results.ledger.jsonl").exists()


def test_a_folder_of_right_pictures_is_asked_first(folder, use, call, tmp_path):
    write_prompt(tmp_path / "known", PROMPTS[0], np.stack([picture(True), picture(True, 1)]))
    assert call(folder, "--canary", tmp_path / "known")[0] == 0
    write_prompt(tmp_path / "known", PROMPTS[1], np.stack([picture(False)]))
    code, _, complaint = call(folder, "--canary", tmp_path / "known", "--out", tmp_path / "r.jsonl")
    assert code == 3 and "wrong about 1 of 3" in complaint and "samples/0000.png" in complaint
    assert not (tmp_path / "r.jsonl").exists()


# --- Refusals -----------------------------------------------------------------------------------------------------

ONE = PROMPTS[0].id


def spoil(path):
    path.write_bytes(path.read_bytes()[:300])


def flat(path):
    Image.new("RGB", (96, 64)).save(path)


@pytest.mark.parametrize(
    ("damage", "code", "said"),
    [
        (lambda f: shutil.rmtree(f), 2, "no folder"),
        (lambda f: [shutil.rmtree(p) for p in f.iterdir()], 2, "no subfolder named by digits"),
        (lambda f: (f / ONE / "metadata.jsonl").unlink(), 3, f"no {ONE}/metadata.jsonl"),
        (lambda f: (f / ONE / "metadata.jsonl").write_text('{"tag":\n 5,}'), 2, "metadata.jsonl, line 2: "),
        (lambda f: (f / ONE / "metadata.jsonl").write_text('{"tag": "colors"}'), 2, "line 1: prompt 00000: missing"),
        (lambda f: (f / ONE / "metadata.jsonl").write_bytes(b"\xff"), 2, "metadata.jsonl, line 1: "),
        (lambda f: rename_class(f, "computer mouse", "mouse"), 2, "unknown class 'mouse'; nearest known: 'computer"),
        (lambda f: shutil.rmtree(f / ONE / "samples"), 3, "no picture in"),
        (lambda f: only_jpg(f), 3, "found 4 other files, such as 0000.jpg"),
        (lambda f: spoil(f / ONE / "samples" / "0001.png"), 3, "0001.png is no readable picture"),
        (lambda f: flat(f / ONE / "samples" / "0001.png"), 2, "96 x 96 px at this scale, got 96 x 64"),
    ],
)
def test_a_bad_folder_is_refused_before_anything_is_computed(folder, use, call, monkeypatch, damage, code, said):
    monkeypatch.setattr(loaders, "trusted_evaluator", lambda *_: pytest.fail("the evaluator was loaded"))
    damage(folder)
    got, printed, complaint = call(folder)
    assert got == code and said in complaint.replace(f"{folder}/", "") and not printed
    assert complaint.startswith("cotlib: ") and "Traceback" not in complaint


def rename_class(folder, old, new):
    file = folder / ONE / "metadata.jsonl"
    fields = json.loads(file.read_text())
    fields["include"][0]["class"] = new
    file.write_text(json.dumps(fields))


def only_jpg(folder):
    for path in (folder / ONE / "samples").iterdir():
        path.rename(path.with_suffix(".jpg"))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--scale", "poket"), 2, "unknown scale 'poket'; did you mean 'pocket'"),
        (("--detector", "somewhere"), 2, "drop --detector and --clip"),
        (("--scale", "showo", "--detector", "x.pth"), 2, "pickled weights are never loaded"),
        (("--canary", "nowhere"), 2, "no folder nowhere"),
        (("--out", "."), 2, "is a folder; name a file"),
        (("--batch-size", "0"), 2, "--batch-size"),
    ],
)
def test_a_bad_request_is_refused(folder, use, call, words, code, said):
    got, _, complaint = call(folder, *words)
    assert got == code and said in complaint and "Traceback" not in complaint


def test_a_scale_whose_weights_are_absent_says_what_to_fetch(folder, call, monkeypatch):
    from cotlib import hub

    def no_network(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr(hub, "snapshot_download", no_network)
    code, _, complaint = call(folder, "--scale", "showo")
    assert code == 3 and f"hf download {hub.DETECTOR}" in complaint


# --- The way back from an export ----------------------------------------------------------------------------------


def test_an_exported_pool_gets_the_verdicts_that_its_codes_got(tmp_path, use, call):
    tokenizer, evaluator = loaders.load_tokenizer(POCKET), loaders.load_evaluator(POCKET)
    pool = Ledger(tmp_path / "pools" / "base-0.jsonl", "key")
    expected = []
    for i, prompt in enumerate(PROMPTS):
        asked = [prompt, PROMPTS[(i + 2) % len(PROMPTS)]]  # a candidate that fits, and another prompt's
        codes = tokenizer.encode(np.stack([world.scene_of(p, 5).image for p in asked]))
        pool.append({"prompt": prompt.id, "paths": [paths.pack(row[None].numpy()) for row in codes]})
        expected += evaluator.evaluate(tokenizer.decode(codes), [prompt, prompt])
    n = export_pools([pool.path], tmp_path / "out", 2, lambda codes: tokenizer.decode(torch.tensor(codes)), "")
    use(evaluator)
    assert n == len(PROMPTS) and call(tmp_path / "out")[0] == 0
    rows = rows_of(tmp_path / "out" / "results.jsonl")
    assert [(r["correct"], r["reason"]) for r in rows] == [(v.correct, "\n".join(v.reasons)) for v in expected]
    assert len({r["correct"] for r in rows}) == 2


def test_a_second_export_leaves_no_picture_of_the_first(tmp_path):
    def pool(name, n_prompts, n):
        ledger = Ledger(tmp_path / name / "base-0.jsonl", "key")
        for prompt in PROMPTS[:n_prompts]:
            ledger.append({"prompt": prompt.id, "paths": [paths.pack(np.array([[k]])) for k in range(n)]})
        return [ledger.path]

    def export(pools, n):
        return export_pools(pools, tmp_path / "out", n, lambda codes: np.stack([picture(True)] * len(codes)), "")

    assert export(pool("large", 3, 4), 4) == 3
    assert export(pool("small", 2, 4), 1) == 2
    there = [[path.name for path in entry.pictures] for entry in scoring.read_folder(tmp_path / "out")]
    assert there == [["0000.png"], ["0000.png"]]


def test_chunks_hold_whole_prompts_and_the_first_is_large_enough_for_a_guard(folder):
    entries = scoring.read_folder(folder)
    sizes = [sum(len(e.pictures) for e in chunk) for chunk in scoring._chunks(entries, 6)]
    assert sizes == [32, 8, 8]


def test_the_first_chunk_is_large_enough_for_the_evaluator_of_photographs():
    from cotlib.detect import N_BLANK

    assert scoring.FIRST >= N_BLANK


def test_the_mean_over_prompts_weighs_every_prompt_alike():
    share = {p.id: float(p.task == "counting") for p in PROMPTS}
    few = {id: share[id] for id in list(share)[:7]}
    mean = stats.mean(PROMPTS, few)
    assert mean.value == pytest.approx(np.mean(list(few.values()))) and mean.n == 7

"""Exploring by hand: the same pictures as the notebooks', a Stop that stops, and a sentence for every bad input."""

import os
import threading
import time

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from test_decode import ToyGenerator

from cotlib import explore, explore_show, parm, store
from cotlib.decode import DecodeOptions, given
from cotlib.explore import Bench, Exploration, Setting, bench_of, finished, prompt_of, refusal
from cotlib.explore_view import Explorer, Worker, open_explorer
from cotlib.prompts import geneval_prompts, take
from cotlib.run import load
from cotlib.search import best_of_n, decode_pool, stepwise
from cotlib.store import Ledger
from cotlib.words import build_tokenizer

PROMPTS = take(geneval_prompts(), 1)
OPTIONS, N = DecodeOptions(steps=4), 5
QUESTIONS = ("orm-zero-shot", "prm-zero-shot", *explore.PARM_QUESTIONS)


class Reads(ToyGenerator):
    """Knows the pocket vocabulary, and reads twelve words at most."""

    tokenizer = build_tokenizer()

    def text_ids(self, texts):
        for text in texts:
            if len(text.split()) > 12:
                raise ValueError(f"prompt {text!r} has too many tokens: shorten the prompt")
        return super().text_ids(texts)

    prefix = text_ids


def paint(codes):
    return np.repeat(codes.numpy().astype(np.uint8)[..., None] * 30, 3, -1).reshape(len(codes), 4, 4, 3)


def pseudo(salt):
    """A judge's answers that depend on the picture and the question only."""
    return lambda pictures, prompts: [(int(p.sum()) // 90 * 7 + salt * 13) % 101 / 100 for p in pictures]


SCORES = {name: pseudo(i) for i, name in enumerate(QUESTIONS)}


def bench(generator=Reads, scores=SCORES, **others):
    lazily = {name: lambda score=score: score for name, score in scores.items()}
    return Bench({"base": generator}, lazily, paint, 16, **others)


def setting(prompt=PROMPTS[2], verifier="none", **others):
    return Setting(prompt, others.pop("n", N), 0, others.pop("options", OPTIONS), verifier, **others)


# --- The same as in the notebooks -------------------------------------------------------------------------------


def test_candidates_are_those_of_the_notebooks_pools(tmp_path):
    pool = decode_pool(Reads(), PROMPTS, N, 0, OPTIONS, Ledger(tmp_path / "p.jsonl", "k"))
    for prompt in PROMPTS:
        explored = finished(setting(prompt), bench())
        assert np.array_equal(explored.codes, pool.steps(prompt.id))
        for k in range(N):
            assert np.array_equal(explored.masked[k, 1], pool.state(prompt.id, k, 1).masked[0])


@pytest.mark.parametrize("salt", range(4))
def test_parm_stops_and_chooses_as_its_search_does(tmp_path, salt):
    scores = {name: pseudo(i + 5 * salt) for i, name in enumerate(QUESTIONS)}
    judge = parm.Parm(*(scores[name] for name in explore.PARM_QUESTIONS))
    found = parm.search(
        Reads(), PROMPTS, N, 0, OPTIONS, paint, judge, parm.ParmOptions(), Ledger(tmp_path / "l.jsonl", "k")
    )
    n_stopped = 0
    for prompt in PROMPTS:
        e, record = finished(setting(prompt, "parm"), bench(scores=scores)), found[prompt.id]
        assert (e.clear, e.promising, e.chosen) == (record["clear"], record["promising"], record["chosen"])
        assert e.codes[e.chosen, -1].tolist() == record["codes"]
        not_chosen = [k for k in range(N) if k != e.chosen]
        assert [e.n_decoded[k] for k in not_chosen] == [record["steps"][k] for k in not_chosen]
        n_stopped += sum(e.is_stopped(k) for k in range(N))
    assert n_stopped > 0


def test_a_process_verifier_searches_step_by_step(tmp_path):
    found = stepwise(Reads(), PROMPTS, N, 0, OPTIONS, paint, SCORES["prm-zero-shot"], Ledger(tmp_path / "l.jsonl", "k"))
    for prompt in PROMPTS:
        explored, record = finished(setting(prompt, "prm-zero-shot"), bench()), found[prompt.id]
        assert explored.codes[explored.chosen, -1].tolist() == record["codes"]
        assert np.allclose(explored.answers["prm-zero-shot"].T, record["scores"])


def test_an_outcome_verifier_takes_its_favourite_and_every_question_is_answered_at_every_step():
    explored = finished(setting(verifier="orm-zero-shot"), bench())
    assert explored.chosen == best_of_n(explored.answers["orm-zero-shot"][:, -1].tolist(), N)
    assert all(len(explored.said(k, s)) == len(QUESTIONS) for k in range(N) for s in range(4))
    assert explored.progress == 1.0


def test_two_settings_share_their_seeds():
    one, other = (finished(setting(options=DecodeOptions(steps=4, guidance=g)), bench()) for g in (1.0, 1.0))
    changed = finished(setting(options=DecodeOptions(steps=4, guidance=6.0)), bench())
    assert np.array_equal(one.codes, other.codes) and not np.array_equal(one.codes, changed.codes)


def test_inpainting_keeps_what_is_given_and_draws_the_rest():
    before = finished(setting(), bench())
    drawn = np.arange(16) < 6
    after = finished(before.inpainting(1, drawn), bench())
    assert (after.codes[:, :, ~drawn] == before.codes[1, -1, ~drawn]).all()
    assert (after.masked[:, 0, ~drawn] == 0).all() and len({tuple(row) for row in after.codes[:, -1]}) > 1
    with pytest.raises(ValueError, match="nothing is masked"):
        before.inpainting(1, np.zeros(16, bool))
    with pytest.raises(ValueError, match="decode some first"):
        Exploration(setting(), bench()).inpainting(0, drawn)


def test_a_picture_given_whole_is_refused():
    whole = given(torch.zeros(1, 16, dtype=torch.long), torch.zeros(1, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="choose some cells"):
        setting(start=whole)


# --- Bad prompts, missing and foreign models --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says", "nearest"),
    [
        ("", "There is no prompt", {}),
        (" \n ", "There is no prompt", {}),
        ("a photo of a dgo and a kat", "“dgo”, “kat” are outside", {"dgo": "dog", "kat": "cat"}),
        ("🐕", "“🐕” is outside", {"🐕": None}),
        (
            "A photo of two dogs.",
            "reads small letters and no full stop",
            {"A photo of two dogs.": "a photo of two dogs"},
        ),
        ("x" * 300, "xxx…” is outside", {"x" * 300: None}),
        ("dog " * 75, "The prompt has too many tokens: shorten the prompt.", {}),
    ],
)
def test_a_bad_prompt_gets_a_short_sentence_and_the_nearest_words(text, says, nearest):
    refused = refusal(Reads(), text)
    assert says in refused.sentence and len(refused.sentence) < 150
    assert {word: (near or [None])[0] for word, near in refused.nearest.items()} == nearest


def test_a_typed_text_that_is_one_of_genevals_is_that_prompt():
    assert prompt_of(f"  {PROMPTS[0].text.replace(' ', '  ')} ") == PROMPTS[0]
    assert prompt_of("two dogs") == prompt_of("two  dogs") != prompt_of("two cats")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("COTLIB_OUTPUTS", str(tmp_path))
    return load("90_explore", scale="pocket", effort="smoke", seed=0)


def test_what_is_not_trained_yet_is_named_with_the_command_that_makes_it(run):
    found = bench_of(run)
    assert found.ways == ["none", "orm-zero-shot", "prm-zero-shot"] and list(found.generators) == ["base"]
    assert "cotlib run 05_parm --scale pocket --effort smoke --seed 0" in found.missing["parm"]
    with pytest.raises(ValueError, match="cotlib run 05_parm"):
        Exploration(setting(verifier="parm"), found)


def test_trained_models_are_offered_the_newest_of_each_name(run):
    for age, folder in enumerate(("dpo-b", "dpo-a", "dpo-variant-c", "parm-a", "parm++-a", "facts-a")):
        manifest = run.models / folder / "model.json"
        store.write_json(manifest, {"name": folder.removesuffix(folder[-2:]), "files": {}})
        os.utime(manifest, (1e9 + age, 1e9 + age))
    assert explore.trained_models(run.models)[0]["dpo"].name == "dpo-a"
    found = bench_of(run)
    assert list(found.generators) == ["base", "dpo"] and "parm" in found.ways and "parm" not in found.missing


@pytest.mark.parametrize("manifest", ['{"version": 9}', "[]", "no json", ""])
def test_a_model_of_another_version_is_left_out_with_a_sentence(run, manifest):
    store.atomic_write(run.models / "dpo-old" / "model.json", manifest)
    found = bench_of(run)
    assert list(found.generators) == ["base"] and "another version" in found.missing["dpo-old"]


def test_weights_that_do_not_load_are_a_sentence_in_the_widget(run):
    store.write_json(run.models / "dpo-torn" / "model.json", {"name": "dpo", "files": {}})
    explorer = Explorer()
    explorer.take(bench_of(run))
    explorer.lanes[0].generator.value = "dpo"
    explorer.decode()
    assert "dpo-torn" in explorer.status.value and "Traceback" not in explorer.status.value


# --- The widget -------------------------------------------------------------------------------------------------


class Slow(Reads):
    """Waits at every step but the first until it may go on."""

    def __init__(self):
        super().__init__()
        self.go, self.n_calls = threading.Event(), 0

    def hidden_after(self, text, codes, masked):
        self.n_calls += 1
        if self.n_calls > 1:
            assert self.go.wait(10)
        return super().hidden_after(text, codes, masked)


def opened(generator=Reads, n_lanes=1, text=PROMPTS[2].text, **others):
    explorer = Explorer(steps=4, n=N, n_lanes=n_lanes)
    explorer.take(bench(generator, **others))
    explorer.text.value = text
    return explorer


def reach(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_candidates_appear_as_they_are_decoded_and_the_bar_goes_to_its_end():
    slow = Slow()
    explorer = opened(lambda: slow)
    explorer.decode()
    reach(lambda: explorer.lanes[0].overview.value)
    first = explorer.lanes[0].overview.value
    assert explorer.worker.is_working and 0 < explorer.bar.value < 0.5
    slow.go.set()
    explorer.worker.wait()
    assert explorer.lanes[0].overview.value != first and explorer.bar.value == 1.0 and "Done" in explorer.status.value


def test_stop_ends_it_between_two_steps_and_may_be_pressed_twice():
    slow = Slow()
    explorer = opened(lambda: slow)
    explorer.stop()
    assert "Nothing is being decoded" in explorer.status.value
    explorer.decode()
    reach(lambda: slow.n_calls == 2)
    explorer.stop()
    assert "Stopping" in explorer.status.value
    explorer.stop()
    assert "Already stopping" in explorer.status.value
    slow.go.set()
    explorer.worker.wait()
    assert slow.n_calls == 2 and "Stopped after: step 2 of 4" in explorer.status.value
    assert explorer.lanes[0].exploration.n_decoded.tolist() == [2] * N


def test_decode_pressed_again_stops_what_was_going_on_and_begins_anew():
    slow = Slow()
    explorer = opened(lambda: slow)
    explorer.decode()
    reach(lambda: slow.n_calls == 2)
    first = explorer.lanes[0].exploration
    threading.Timer(0.2, slow.go.set).start()
    explorer.decode()
    explorer.worker.wait()
    assert first.n_decoded.max() < 4 and explorer.lanes[0].exploration.is_done


@pytest.mark.parametrize("text", ["", "🐕", "x" * 300, "dog " * 75, "a dgo"])
def test_a_bad_prompt_decodes_nothing_and_says_what_to_do(text):
    explorer = opened(text=text)
    explorer.decode()
    assert explorer.lanes[0].exploration is None and not explorer.worker.is_working
    assert "role=" in explorer.status.value and "Ready" not in explorer.status.value


def test_a_near_word_is_put_in_by_a_click():
    explorer = opened(text="a dgo right of a dgone dgo")
    explorer.decode()
    next(b for b in explorer.offers.children if b.description == "dgo → dog").click()
    assert explorer.text.value == "a dog right of a dgone dog"


def test_an_error_while_decoding_is_a_sentence(capsys):
    def fails(pictures, prompts):
        raise RuntimeError("no such luck")

    explorer = opened(scores={"orm-zero-shot": fails})
    explorer.decode()
    explorer.worker.wait()
    assert "no such luck" in explorer.status.value and "restart the kernel" in explorer.status.value
    assert "Traceback" not in explorer.status.value + capsys.readouterr().err


def test_two_explorers_at_once_do_not_disturb_each_other():
    one, other = opened(), opened(text=PROMPTS[0].text)
    one.decode()
    other.decode()
    one.worker.wait()
    other.worker.wait()
    for explorer, prompt in ((one, PROMPTS[2]), (other, PROMPTS[0])):
        alone = finished(setting(prompt, "orm-zero-shot", options=DecodeOptions(steps=4, guidance=1.75)), bench())
        assert np.array_equal(explorer.lanes[0].exploration.codes, alone.codes)


def test_two_lanes_differ_by_their_dials_only():
    explorer = opened(n_lanes=2)
    explorer.lanes[1].guidance.value = 6.0
    explorer.decode()
    explorer.worker.wait()
    one, other = (lane.exploration for lane in explorer.lanes)
    assert one.setting.prompt == other.setting.prompt and one.setting.seed == other.setting.seed
    assert not np.array_equal(one.codes, other.codes)


def test_a_slider_shows_another_frame_in_less_than_a_tenth_of_a_second():
    explorer = opened()
    explorer.decode()
    explorer.worker.wait()
    seen, seconds = set(), []
    for k in range(1, N + 1):
        for step in range(1, 5):
            begun = time.process_time()
            explorer.candidate.value, explorer.step.value = k, step
            seconds.append(time.process_time() - begun)
            seen.add(explorer.lanes[0].frame.value)
            assert f"Candidate {k}, step {step}" in explorer.lanes[0].words.value
    assert len(seen) == N * 4 and max(seconds) < 0.1


def test_a_frame_is_painted_once(monkeypatch):
    explorer, painted = opened(), []
    frame = explore_show.frame
    monkeypatch.setattr(explore_show, "frame", lambda e, k, step: painted.append((k, step)) or frame(e, k, step))
    explorer.decode()
    explorer.worker.wait()
    for step in (1, 2, 3, 2, 1):
        explorer.step.value = step
    assert sorted(painted) == sorted(set(painted)) and {(0, 0), (0, 1), (0, 2)} <= set(painted)


def test_pressed_cells_are_drawn_anew():
    explorer = opened()
    explorer.mask.draw.click()
    assert "press Decode first" in explorer.status.value
    explorer.decode()
    explorer.worker.wait()
    before = explorer.lanes[0].exploration
    explorer.mask.draw.click()
    assert "nothing is masked" in explorer.status.value
    explorer.mask.set(range(16))  # two rows of eight: the first of the toy's four
    explorer.mask.draw.click()
    explorer.worker.wait()
    after = explorer.lanes[0].exploration
    assert after is not before and (after.codes[:, -1, 4:] == before.codes[0, -1, 4:]).all()


def test_a_worker_without_work_can_be_stopped_and_waited_for():
    worker = Worker()
    assert not worker.stop() and not worker.is_working
    worker.wait()


# --- Figures ----------------------------------------------------------------------------------------------------


def test_every_view_is_a_figure_too_even_half_way():
    done, half = finished(setting(verifier="parm"), bench()), Exploration(setting(), bench())
    next(half.work())
    for e in (done, half):
        assert isinstance(explore_show.strip(e), Figure) and isinstance(explore_show.step_view(e, 0, 3), Figure)
        assert isinstance(explore_show.side_by_side([e, e], ["a", "b"]), Figure)
    after = finished(done.inpainting(done.chosen, np.arange(16) < 8), bench())
    assert isinstance(explore_show.inpainting(done.pictures[done.chosen, 3], after), Figure)


def test_a_stopped_candidate_is_seen_and_read_as_stopped():
    scores = {**SCORES, "parm-clarity": lambda p, _: [0.9] * len(p), "parm-potential": lambda p, _: [0.1] * len(p)}
    e = finished(setting(verifier="parm"), bench(scores=scores))
    k = next(k for k in range(N) if k != e.chosen)
    assert e.is_stopped(k) and explore_show.verdict(e, k) == f"{k + 1}: stopped at 1/4"
    assert "Stopped here" in explore_show.in_words(e, k, 0) and "PARM stopped it" in explore_show.in_words(e, k, 2)
    assert e.n_decoded[e.chosen] == 4  # every path was stopped: the best is finished all the same


def test_the_first_prompt_with_a_stopped_candidate_is_found():
    hopeful = lambda pictures, prompts: [0.9 * (p.text != PROMPTS[3].text) for p in prompts]  # noqa: E731
    scores = {**SCORES, "parm-clarity": lambda p, _: [0.9] * len(p), "parm-potential": hopeful}
    found = explore.first_stopped(setting(verifier="parm"), bench(scores=scores), PROMPTS)
    assert found.setting.prompt == PROMPTS[3] and found.is_stopped(1 - min(1, found.chosen))


# --- With the shipped models ------------------------------------------------------------------------------------


def test_opening_shows_the_widget_before_the_models_are_there_and_a_first_picture_soon_after(run, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda box: shown.append(time.process_time()))
    begun = time.process_time()
    open_explorer(run)
    assert len(shown) == 1 and shown[0] - begun < 2
    explored = finished(setting(n=2, verifier="orm-zero-shot", options=DecodeOptions()), bench_of(run))
    assert explored.progress == 1.0
    begun = time.process_time()
    next(Exploration(setting(n=4, options=DecodeOptions()), bench_of(run)).work())
    assert time.process_time() - begun < 2

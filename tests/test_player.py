"""Pages that need only a browser, and finished runs beside each other. What keys do is in test_browser.py."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from cotlib import compare, paths, show, store
from cotlib.errors import CorruptError, IncompleteError
from cotlib.prompts import geneval_prompts, take
from cotlib.provenance import read_manifest
from cotlib.run import load
from cotlib.store import Ledger

PROMPTS = take(geneval_prompts(), 1)
FRAMES = [np.full((6, 6, 3), 60 * i, np.uint8) for i in range(3)]
WORDS = ["first", 'a "quoted" <b>', "</script><script>alert(1)</script>"]


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def addresses(html):
    return [a[name] for _, a in Tags(html).found for name in ("src", "href") if name in a]


# --- Pages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page", [show.player(FRAMES, WORDS, "A & B"), show.gallery(FRAMES, WORDS, [True, False, None], "A & B")]
)
def test_a_page_is_complete_in_itself_and_describes_every_picture(page):
    assert addresses(page.html) and all(address.startswith("data:") for address in addresses(page.html))
    assert not re.search(r"https?://|@import|url\(", page.html)
    pictures = [attributes for tag, attributes in Tags(page.html).found if tag == "img"]
    assert pictures and all(picture["alt"] for picture in pictures)
    assert 'name="viewport"' in page.html and 'lang="en"' in page.html and "<title>A &amp; B</title>" in page.html


def test_a_player_holds_every_frame_and_no_text_can_leave_its_place():
    html = show.player(FRAMES, WORDS, "t").html
    frames = json.loads(re.search(r'id="frames">(.*?)</script>', html, re.DOTALL)[1])
    assert [frame["words"] for frame in frames] == WORDS and len({frame["src"] for frame in frames}) == 3
    assert "alert(1)</script>" not in html and len([t for t, _ in Tags(html).found if t == "script"]) == 2


def test_frames_and_words_must_go_together():
    for frames, words in ((FRAMES, WORDS[:2]), ([], [])):
        with pytest.raises(ValueError, match="one description for each picture"):
            show.player(frames, words, "t")
    with pytest.raises(ValueError, match="a caption and a verdict for each"):
        show.gallery(FRAMES, WORDS, [True], "t")


def test_right_and_wrong_are_told_apart_in_words_and_in_dashes():
    html = show.gallery(FRAMES, ["a", "b", "c"], [True, False, None], "t").html
    assert "a Evaluator: right." in html and "b Evaluator: wrong." in html and "c Evaluator: unscored." in html
    assert re.search(r"figure.right img .* solid", html) and re.search(r"figure.wrong img .* dashed", html)


def test_a_notebook_shows_a_page_in_a_frame_and_keeps_it_among_its_files(tmp_path, monkeypatch):
    monkeypatch.setenv("COTLIB_OUTPUTS", str(tmp_path))
    page = show.player(FRAMES, WORDS, "t")
    ((tag, attributes),) = Tags(page._repr_html_()).found
    assert tag == "iframe" and attributes["srcdoc"] == page.html
    run = load("90_explore", scale="pocket", effort="smoke", seed=0)
    run.page("player", page)
    run.finish(ok=1)
    assert "pages/player.html" in read_manifest(run.folder)["files"]
    again = load("90_explore", scale="pocket", effort="smoke", seed=0)
    again.table("t", compare.table(compare.Picks("a", {}), compare.Picks("b", {})))
    assert not (run.folder / "pages" / "player.html").exists()  # of an earlier run


# --- Finished runs ----------------------------------------------------------------------------------------------


def paint(codes):
    return np.zeros((len(codes), 8, 8, 3), np.uint8) + codes.numpy()[:, :1, None, None].astype(np.uint8)


def write(folder, name, records):
    ledger = Ledger(folder / "pools" / f"{name}.jsonl", "k")
    for id, fields in records.items():
        ledger.append({"prompt": id, **fields})


@pytest.fixture
def outputs(tmp_path):
    """Two candidates of six prompts: the first is right in the even prompts, the second in the first three."""
    paths_of = {
        p.id: [paths.pack(np.full((2, 4), 10 * i + k, np.int16)) for k in range(2)] for i, p in enumerate(PROMPTS)
    }
    right = {p.id: [i % 2 == 0, i < 3] for i, p in enumerate(PROMPTS)}
    write(tmp_path, "base-0", {id: {"paths": row} for id, row in paths_of.items()})
    verdicts = {
        id: {"verdicts": [{"correct": r, "reasons": [] if r else ["expected a dog"]} for r in row]}
        for id, row in right.items()
    }
    write(tmp_path, "base-0-verdicts", verdicts)
    write(tmp_path, "base-0-orm", {p.id: {"orm": [0.2, 0.3 + 0.09 * i]} for i, p in enumerate(PROMPTS)})
    parm = {"promising": [False, False], "potential": [0.4, 0.1], "outcome": [None, None]}
    write(tmp_path, "base-0-parm", {p.id: parm for p in PROMPTS})
    return tmp_path


def test_what_a_run_chose_is_read_from_its_ledgers(outputs):
    none, orm, parm = (compare.read(outputs, "base", name) for name in ("none", "orm", "parm"))
    assert {pick.candidate for pick in none.by_prompt.values()} == {0}
    assert {pick.candidate for pick in orm.by_prompt.values()} == {1}
    assert {(pick.candidate, pick.score) for pick in parm.by_prompt.values()} == {(0, 0.4)}
    last = orm.by_prompt[PROMPTS[-1].id]
    assert last.codes.tolist() == [51] * 4 and not last.correct and last.reasons == ("expected a dog",)
    assert compare.finished_verifiers(outputs) == ["none", "orm", "parm"]


def test_the_gallery_begins_where_verifier_and_evaluator_disagree_most(outputs):
    picks = compare.by_disagreement(compare.read(outputs, "base", "orm"))
    assert [PROMPTS.index(pick.prompt) for pick in picks] == [5, 0, 4, 1, 3, 2]
    assert compare.by_disagreement(compare.read(outputs))[0].disagreement == 0  # nobody said anything


def test_two_runs_are_compared_where_they_differ_and_nowhere_else(outputs):
    none, orm = compare.read(outputs), compare.read(outputs, "base", "orm")
    assert [PROMPTS.index(a.prompt) for a, _ in compare.differing(none, orm)] == [1, 4]
    found = compare.table(none, orm)
    assert found.right.tolist() == ["base, orm", "base, none"]
    assert set(found["wrong because"]) == {"expected a dog"}
    figure = show.compare(none, orm, paint)
    assert isinstance(figure, Figure) and "of 6 prompts, only base, none is right in 1" in figure.get_suptitle()


def test_runs_that_do_not_differ_are_drawn_too(outputs):
    assert compare.table(compare.read(outputs), compare.read(outputs)).empty
    assert isinstance(show.compare(outputs, outputs, paint), Figure)


def test_what_is_missing_is_named_with_what_there_is(outputs, tmp_path):
    with pytest.raises(IncompleteError, match="base-0-prm.jsonl; there is base-0, base-0-orm"):
        compare.read(outputs, "base", "prm")
    with pytest.raises(IncompleteError, match="there is nothing"):
        compare.read(tmp_path / "nowhere")
    assert compare.finished_verifiers(tmp_path / "nowhere") == []


def test_pools_of_another_version_are_refused_in_a_sentence(outputs):
    (outputs / "pools" / "base-0-verdicts.jsonl").unlink()
    write(outputs, "base-0-verdicts", {p.id: {"judged": [True, True]} for p in PROMPTS})
    with pytest.raises(CorruptError, match="another version"):
        compare.read(outputs)
    store.atomic_write(outputs / "pools" / "base-0.jsonl", '{"prompt": "00000"}\n')
    with pytest.raises(CorruptError):
        compare.read(outputs)

"""What the pocket models are trained on and checked with, without training any."""

import numpy as np
import pytest
import torch

from cotlib.errors import ForeignError
from cotlib.geneval import Verdict
from cotlib.pocket import checks, pretrain, questions, world
from cotlib.pocket.tokenizer import psnr
from cotlib.pocket.training import CHECKPOINT, Budget, Loop
from cotlib.prompts import geneval_prompts

EVALUATION = {p.text for p in geneval_prompts()}
SCENES = pretrain.scenes(world.WEB, 0, "test", 0, 1500)


def test_no_caption_that_is_read_says_what_an_evaluation_prompt_says():
    kept = [s for s in SCENES if pretrain.unseen(s.caption, s)]
    contents = {text.removeprefix("a photo of ") for text in EVALUATION}
    for scene in kept:
        assert scene.caption not in EVALUATION
        said = scene.caption.removeprefix("a photo of ").removeprefix("a picture of ")
        assert scene.kind == "single" or said not in contents
    dropped = {s.kind for s in SCENES} - {s.kind for s in kept}
    assert not dropped and len(kept) < len(SCENES)


def test_a_batch_of_web_pages_depends_on_its_number_alone_and_reads_no_evaluation_prompt():
    read = []
    pages = pretrain.WebPages(0, 40, lambda text: read.append(text) or [len(text)])
    images, rows = pages[3]
    again, other = pretrain.WebPages(0, 40, lambda text: [len(text)])[3], pages[4]
    assert images.shape == (40, world.SIZE, world.SIZE, 3) and rows.shape == (40, 1)
    assert (images == again[0]).all() and (rows == again[1]).all() and (images != other[0]).any()
    assert 1 < read.count("") < 40 and not EVALUATION & set(read)  # some captions are dropped


def test_single_objects_are_told_of_under_the_other_opening_only():
    singles = [s for s in SCENES if s.kind == "single"]
    assert len(singles) > 50
    assert all(s.caption.startswith("a picture of a") and pretrain.unseen(s.caption, s) for s in singles)


def test_the_judge_is_never_asked_about_an_evaluation_prompt():
    rng = np.random.default_rng(0)
    asked = [q for s in pretrain.scenes(world.CLEAN, 0, "test", 0, 300) for q in questions.about(s, rng, 8)[0]]
    assert len(asked) == 300 * 8
    assert not [q for q in asked if any(f"prompt: {text}. Does" in q for text in EVALUATION)]


def test_questions_about_a_scene_are_answered_truly():
    things = (world.Thing("dog", "red", 0, 0, 3), world.Thing("cat", None, 5, 0, 3), world.Thing("cat", None, 5, 4, 3))
    scene = world.Scene(world.render(things), "a photo of a red dog and two cats", things, 0, "company")
    asked, answers = questions.about(scene, np.random.default_rng(0), 400)
    facts = {
        "How many dogs are in the image?": "one",
        "How many cats are in the image?": "two",
        "What color is a dog in the image?": "red",
        "Is there a dog in the image?": "yes",
        "Is there a cat in the image?": "yes",
    }
    seen = {q: answer for q, answer in zip(asked, answers, strict=True) if "prompt:" not in q}
    assert facts.items() <= seen.items()
    assert all(answer == "no" for q, answer in seen.items() if q not in facts)
    whole = {q: answer for q, answer in zip(asked, answers, strict=True) if "prompt:" in q}
    true = world.describe(scene, np.random.default_rng(0))
    assert set(whole.values()) == {"yes", "no"}
    assert all((answer == "yes") == (f" {true}. Does" in q) for q, answer in whole.items())


def test_where_one_thing_stands_relative_to_another_is_asked_only_if_there_is_one_answer():
    clear = (world.Thing("dog", None, 0, 2, 3), world.Thing("cat", None, 5, 2, 3))
    diagonal = (world.Thing("dog", None, 0, 0, 3), world.Thing("cat", None, 5, 5, 3))
    for things, answered in ((clear, {"left of", "right of"}), (diagonal, set())):
        scene = world.Scene(world.render(things), "a photo of a dog and a cat", things, 0, "two")
        made = zip(*questions.about(scene, np.random.default_rng(0), 300), strict=True)
        where = {q: answer for q, answer in made if q.startswith("Where is")}
        assert set(where.values()) == answered
        assert where.get("Where is a dog relative to a cat in the image?", "left of") == "left of"


def test_an_object_with_a_third_of_its_cells_wrong_is_labelled_as_nothing():
    batch = pretrain.scenes(world.CLEAN, 0, "test", 0, 400)
    labels = pretrain.cell_labels(batch)
    whole = [x.clone() for x in labels]
    images = pretrain.break_objects(batch, labels, np.random.default_rng(0))
    broken = kept = 0
    for b, scene in enumerate(batch):
        grid = (images[b] != scene.image).reshape(8, 12, 8, 12, 3).any((1, 3, 4))
        for t in scene.things:
            block = (slice(t.row, t.row + t.cells), slice(t.column, t.column + t.cells))
            gone = (labels[0][b][block] == pretrain.NOTHING).all().item()
            if gone:
                broken += 1
                assert (labels[1][b][block] == -100).all() and (labels[2][b][block] == -100).all()
            else:
                kept += 1
                assert grid[block].sum() < t.cells**2 / 3 + 1e-9
                assert (labels[0][b][block] == whole[0][b][block]).all()
    assert broken > 60 and kept > 400


def test_violating_cases_violate_their_prompt_and_nothing_else():
    cases = checks.violating_cases(560)
    assert not any(checks.truth_of(c.scene, c.prompt) for c in cases)
    assert {c.prompt.task for c in cases} == {p.task for p in geneval_prompts()}
    for case in cases:
        wanted = sum(clause.count for clause in case.prompt.include)
        assert abs(len(case.scene.things) - wanted) == (1 if case.prompt.task == "counting" else 0)


def test_a_training_goes_on_only_for_the_request_that_began_it(tmp_path):
    request = {"part": "generator", "minutes": 1.0, "seed": 0, "tokenizer": "0123456789ab"}
    pretrain._claim(tmp_path, request)
    pretrain._claim(tmp_path, {**request, "seed": 1})  # it was killed before its first checkpoint
    (tmp_path / CHECKPOINT).write_bytes(b"")
    pretrain._claim(tmp_path, {**request, "seed": 1})
    for other in ({"seed": 0}, {"minutes": 2.0}, {"tokenizer": "ab0123456789"}):
        with pytest.raises(ForeignError, match=f"a training that did not end.*rm -r {tmp_path}"):
            pretrain._claim(tmp_path, {**request, "seed": 1, **other})
    (tmp_path / pretrain.REQUEST).unlink()
    with pytest.raises(ForeignError, match="of an earlier version"):
        pretrain._claim(tmp_path, request)


def test_codes_are_learnt_from_the_tokenizer_among_the_weights_that_are_made(tmp_path):
    assert pretrain.tokenizer_in(tmp_path) == pretrain.WEIGHTS / "tokenizer"
    (tmp_path / "tokenizer").mkdir()
    assert pretrain.tokenizer_in(tmp_path) == tmp_path / "tokenizer"


def test_a_card_tells_steps_and_seconds_and_the_end_of_the_log(tmp_path):
    model = torch.nn.Linear(1, 1)
    loop = Loop(model, [torch.optim.SGD(model.parameters(), 0.1)], Budget(1e-9, log_every=1), tmp_path)
    loop.steps, loop.seconds = 30, 90.0
    loop.save()
    loop.log.write_text("".join(f'{{"step": {i}, "seconds": {3 * i}, "loss": 0.5}}\n' for i in range(1, 31)))
    pretrain.write_card("judge", tmp_path / "judge", 1.5, 4, {"auc": 0.9}, tmp_path)
    card = (tmp_path / "judge" / "README.md").read_text()
    assert "`cotlib pretrain judge --minutes 1.5 --seed 4`" in card and "1.5 min, 30 steps" in card
    assert card.rstrip().endswith("| 30 | 90 | 0.5 |") and card.count("| 0.5 |") == 16


def test_every_prompt_is_asked_about_its_own_scene_and_about_another(monkeypatch):
    monkeypatch.setattr(checks.world, "scene_of", lambda prompt, seed: prompt)
    monkeypatch.setattr(checks, "truth_of", lambda scene, prompt: scene == prompt)
    cases = checks.mixed_cases(2 * 553)
    assert sorted(case.scene.id for case in cases if case.truth) == sorted(p.id for p in geneval_prompts())


def test_mixed_cases_know_their_answers():
    cases = checks.mixed_cases(600)
    assert 0.4 < np.mean([c.truth for c in cases]) < 0.6
    perfect = [Verdict(c.truth, ()) for c in cases]
    assert set(checks.agreement(cases, perfect).values()) == {1.0}
    always = checks.agreement(cases, [Verdict(True, ())] * len(cases))
    assert always["overall"] == pytest.approx(np.mean([c.truth for c in cases]))


@pytest.mark.parametrize("cases", [checks.mixed_cases, checks.violating_cases])
def test_too_few_cases_for_all_tasks_are_refused(cases):
    with pytest.raises(ValueError, match="each of the 553 prompts, got n = 300"):
        cases(300)


def test_damage_is_as_strong_as_it_says():
    images = checks.pictures(SCENES[:40])
    assert psnr(images, checks.damaged(images, 26.0)) == pytest.approx(26, abs=0.4)
    assert psnr(images, checks.damaged(images, 32.0)) == pytest.approx(32, abs=0.4)
    assert (checks.damaged(images)[3] == checks.damaged(images[3:4])[0]).all()  # whatever stands beside it

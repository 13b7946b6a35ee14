"""The shipped weights are what their cards say, within a margin that noise cannot reach."""

import numpy as np
import pytest
import torch

from cotlib.config import SCALES
from cotlib.decode import DecodeOptions, decode, final
from cotlib.judge import outcome_question
from cotlib.loaders import WEIGHTS, load_evaluator, load_generator, load_judge, load_tokenizer
from cotlib.pocket import checks, pretrain, world
from cotlib.prompts import TASKS, geneval_prompts, take
from cotlib.stats import auc

POCKET = SCALES["pocket"]
PROMPTS = take(geneval_prompts(), 10)


@pytest.fixture(scope="module")
def true_scenes() -> list[world.Scene]:
    return [world.scene_of(p, 11) for p in PROMPTS]


def test_every_part_ships_with_a_card_that_names_its_command():
    for part in pretrain.PARTS:
        assert f"cotlib pretrain {part} --minutes" in (WEIGHTS / part / "README.md").read_text()


def test_weights_are_safetensors_under_16_megabytes_each_and_48_in_all():
    sizes = [path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")]
    assert max(sizes) < 16e6 and sum(sizes) < 48e6
    assert not [p for p in WEIGHTS.rglob("*") if p.suffix in {".bin", ".pt", ".pkl"}]


def test_the_tokenizer_rebuilds_held_out_scenes():
    assert pretrain.check_tokenizer(load_tokenizer(POCKET), n=64)["psnr_db"] > 30.5


def test_a_picture_is_painted_alike_alone_and_among_others():
    tokenizer = load_tokenizer(POCKET)
    codes = torch.randint(tokenizer.codebook_size, (8, tokenizer.n_tokens), generator=torch.Generator().manual_seed(0))
    together = tokenizer.decode(codes)
    for size in (1, 3, 5):
        assert np.array_equal(tokenizer.decode(codes, batch_size=size), together)
    assert tokenizer.decode(codes[:0]).shape == (0, *together.shape[1:])


def test_the_evaluator_agrees_with_ground_truth_on_true_scenes(true_scenes):
    evaluator, images = load_evaluator(POCKET), checks.pictures(true_scenes)
    others = checks.shuffled_prompts(list(PROMPTS), np.random.default_rng(0))
    for asked in (list(PROMPTS), others):
        said = [v.correct for v in evaluator.evaluate(images, asked)]
        truth = [checks.truth_of(s, p) for s, p in zip(true_scenes, asked, strict=True)]
        assert np.mean(np.equal(said, truth)) > 0.96


def test_the_generator_draws_single_objects_and_leaves_work_to_a_verifier():
    asked = [p for p in PROMPTS for _ in range(2)]
    steps = decode(load_generator(POCKET), [p.text for p in asked], list(range(len(asked))), DecodeOptions())
    said = load_evaluator(POCKET).evaluate(load_tokenizer(POCKET).decode(final(steps).codes), asked)
    right = {task: np.mean([v.correct for v, p in zip(said, asked, strict=True) if p.task == task]) for task in TASKS}
    assert right["single_object"] > 0.85
    assert right["position"] < 0.6 and right["color_attr"] < 0.6
    assert 0.4 < np.mean(list(right.values())) < 0.75


def test_a_whole_object_scores_near_one_and_a_half_one_is_none():
    whole = world.render([world.Thing("bear", None, 2, 2, 4)])
    half = whole.copy()
    half[:, 48:] = world.BACKGROUNDS[0]
    scores = [
        max([d.score for d in found if d.cls == "bear"], default=0.0)
        for found in load_evaluator(POCKET).detect(np.stack([whole, half]))
    ]
    assert scores[0] > 0.9 and scores[1] < 0.3


def test_the_judge_tells_true_descriptions_from_false_ones(true_scenes):
    rng = np.random.default_rng(0)
    asked = [p.text for p in PROMPTS] + [world.misdescribe(s, rng) for s in true_scenes]
    images = checks.pictures([*true_scenes, *true_scenes])
    p_yes = load_judge(POCKET).p_yes(images, [outcome_question(text) for text in asked])
    assert auc(p_yes, [True] * len(PROMPTS) + [False] * len(PROMPTS)) > 0.8


def test_the_shipped_generator_gives_the_same_picture_in_any_batch():
    generator, options = load_generator(POCKET), DecodeOptions(steps=4)
    texts, seeds = [p.text for p in PROMPTS[:6]], list(range(6))
    together = final(decode(generator, texts, seeds, options)).codes
    alone = torch.cat([final(decode(generator, [t], [s], options)).codes for t, s in zip(texts, seeds, strict=True)])
    assert torch.equal(together, alone)

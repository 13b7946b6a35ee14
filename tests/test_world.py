"""The pocket world draws what it says it draws."""

import dataclasses

import numpy as np
import pytest

from cotlib.geneval import Detection, evaluate
from cotlib.pocket import world
from cotlib.prompts import CLASSES, COLORS, geneval_prompts


def verdict_on(scene: world.Scene, prompt) -> bool:
    """GenEval's rules with a perfect detector."""
    things = {Detection(t.cls, 1.0, t.box): t.color or "natural" for t in scene.things}
    return evaluate(prompt, list(things), things.__getitem__).correct


def test_a_scene_depends_on_its_seed_only():
    first, again, other = (world.sample_scene(world.WEB, seed) for seed in (5, 5, 6))
    assert first.caption == again.caption and np.array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)


def test_every_class_and_colour_is_drawn_and_no_two_look_alike():
    swatches = [world.swatch(cls, color) for cls in CLASSES for color in (None, *COLORS)]
    ground = np.array(world.BACKGROUNDS[0])
    assert all((np.abs(s.astype(int) - ground).sum(-1) > 30).mean() > 0.04 for s in swatches)
    assert len({s.tobytes() for s in swatches}) == 80 * 11


@pytest.mark.parametrize("color", ["red", "green", "blue"])
def test_a_tint_moves_the_mean_towards_its_colour(color):
    channel = {"red": 0, "green": 1, "blue": 2}[color]
    patch = world.swatch("sheep", color).astype(float)
    ink = np.abs(patch - np.array(world.BACKGROUNDS[0])).sum(-1) > 60
    assert patch[ink].mean(0).argmax() == channel


def test_white_is_lighter_and_black_darker_than_every_other_tint():
    light = {c: world.swatch("truck", c)[10:38, 10:38].mean() for c in COLORS}
    assert max(light, key=light.get) == "white" and min(light, key=light.get) == "black"


def test_the_scene_of_every_evaluation_prompt_fulfils_it():
    assert all(verdict_on(world.scene_of(p, 3), p) for p in geneval_prompts())


def test_objects_never_overlap():
    for seed in range(300):
        taken = np.zeros((world.GRID, world.GRID), int)
        for t in world.sample_scene(world.CLEAN, seed).things:
            taken[t.row : t.row + t.cells, t.column : t.column + t.cells] += 1
        assert taken.max() <= 1


def test_caption_noise_is_what_the_mixture_says():
    truthful = dataclasses.replace(world.CLEAN, single=0, two=0, counting=0, colors=0, position=0, company=0)
    noisy, clean = dataclasses.replace(truthful, noise_binding=0.5), truthful

    def honest(spec: world.Mixture, seed: int) -> bool:
        scene = world.sample_scene(spec, seed)
        return scene.things[0].color in scene.caption.split(" and ")[0]

    assert all(honest(clean, seed) for seed in range(100))
    assert 0.35 < np.mean([honest(noisy, seed) for seed in range(400)]) < 0.65


def test_what_the_caption_tells_may_be_absent_or_plain():
    pairs = dataclasses.replace(world.CLEAN, single=0, two=0, counting=0, colors=0, position=0, company=0)

    def drawn(**noise: float) -> list[world.Scene]:
        return [world.sample_scene(dataclasses.replace(pairs, **noise), seed) for seed in range(300)]

    assert all(len(s.things) == 2 and all(t.color for t in s.things) for s in drawn())
    assert 0.2 < np.mean([len(s.things) == 1 for s in drawn(noise_absent=0.3)]) < 0.4
    assert 0.2 < np.mean([t.color is None for s in drawn(noise_plain=0.3) for t in s.things]) < 0.4
    assert all(" and " in s.caption for s in drawn(noise_absent=1.0))  # it still tells of both


def test_a_description_is_true_and_a_misdescription_false():
    rng = np.random.default_rng(0)
    by_text = {p.text: p for p in geneval_prompts()}
    for prompt in geneval_prompts()[::5]:
        scene = world.scene_of(prompt, 1)
        assert world.describe(scene, rng) == prompt.text
        lie = world.misdescribe(scene, rng)
        assert lie != prompt.text
        if lie in by_text:
            assert not verdict_on(scene, by_text[lie])


def test_an_object_outside_the_picture_is_refused():
    with pytest.raises(ValueError, match="leaves the 8 x 8 grid"):
        world.render([world.Thing("dog", None, 6, 0, 4)])

"""GenEval's rules, one table per rule."""

from __future__ import annotations

import math

import pytest

from cotlib.geneval import MAX_PER_CLASS, Detection, Verdict, accuracy_by_task, evaluate, relative_position
from cotlib.prompts import TASKS, Clause, Prompt, compose, geneval_prompts, take

HERE = (0.0, 0.0, 10.0, 10.0)


def box(x: float, y: float, w: float = 10.0, h: float = 10.0) -> tuple[float, float, float, float]:
    """A box by its centre."""
    return (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def detections(*rows) -> list[Detection]:
    """(class, score[, box]) rows; apart along x unless a box is given."""
    return [Detection(row[0], row[1], row[2] if len(row) > 2 else box(20 * i, 0)) for i, row in enumerate(rows)]


def no_color(detection: Detection) -> str:
    raise AssertionError(f"the colour of {detection} was asked for")


def judge(prompt: Prompt, *rows, colors: dict[float, str] | None = None) -> Verdict:
    """`colors` by score; without it, asking for a colour fails the test."""
    color_of = no_color if colors is None else lambda detection: colors[detection.score]
    return evaluate(prompt, detections(*rows), color_of)


DOG = compose("dog", (Clause("dog"),))
DOG_CAT = compose("dog-cat", (Clause("dog"), Clause("cat")))
TWO_DOGS = compose("two", (Clause("dog", 2),))
RED_DOG = compose("red", (Clause("dog", color="red"),))
DOG_LEFT = compose("left", (Clause("car"), Clause("dog", position=("left of", 0))))


# --- Threshold ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "score", "is_correct"),
    [
        (DOG, 0.3, False),  # strictly above
        (DOG, math.nextafter(0.3, 1), True),
        (DOG, 0.31, True),
        (TWO_DOGS, 0.9, False),
        (TWO_DOGS, math.nextafter(0.9, 1), True),
        (TWO_DOGS, 0.89, False),
    ],
)
def test_a_detection_counts_strictly_above_the_threshold_of_its_prompts_task(prompt, score, is_correct):
    assert judge(prompt, ("dog", score), ("dog", score)).correct is is_correct


def test_the_counting_threshold_goes_by_the_task_not_by_the_count():
    two_in_another_task = Prompt("x", "two dogs", "two_object", (Clause("dog", 2),))
    assert judge(two_in_another_task, ("dog", 0.5), ("dog", 0.5)).correct
    assert not judge(TWO_DOGS, ("dog", 0.5), ("dog", 0.5)).correct
    one_in_counting = Prompt("x", "a dog", "counting", (Clause("dog"),))
    assert not judge(one_in_counting, ("dog", 0.5)).correct


def test_the_counting_threshold_holds_for_excluded_objects_too():
    assert judge(TWO_DOGS, ("dog", 0.95), ("dog", 0.95), ("dog", 0.9)).correct


# --- Include ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "rows", "reasons"),
    [
        (DOG, [("dog", 0.9)], ()),
        (DOG, [("cat", 0.9)], ("expected a dog, found none",)),
        (DOG, [], ("expected a dog, found none",)),
        (DOG_CAT, [("cat", 0.9), ("dog", 0.4)], ()),
        (DOG_CAT, [("cat", 0.9)], ("expected a dog, found none",)),
        (DOG_CAT, [], ("expected a dog, found none", "expected a cat, found none")),
        (TWO_DOGS, [("dog", 0.95)], ("expected 2 dogs, found 1",)),
        (TWO_DOGS, [("dog", 0.95)] * 2, ()),
        (TWO_DOGS, [("dog", 0.95)] * 3, ("expected at most 2 dogs, found 3",)),
    ],
)
def test_every_include_clause_must_find_its_count(prompt, rows, reasons):
    assert judge(prompt, *rows) == Verdict(not reasons, reasons)


def test_more_than_the_count_is_fine_without_exclude():
    assert judge(DOG, *[("dog", 0.9)] * 5).correct
    at_least_two = Prompt("x", "two dogs", "counting", (Clause("dog", 2),))
    assert judge(at_least_two, *[("dog", 0.95)] * 5).correct


@pytest.mark.parametrize(("n", "is_correct"), [(0, True), (1, True), (2, False), (3, False)])
def test_exclude_fails_from_its_count_on(n, is_correct):
    prompt = Prompt("x", "a cat", "single_object", (Clause("cat"),), (Clause("dog", 2),))
    assert judge(prompt, ("cat", 0.9), *[("dog", 0.9)] * n).correct is is_correct


def test_exclude_of_one_wants_none():
    prompt = Prompt("x", "a cat", "single_object", (Clause("cat"),), (Clause("dog"),))
    assert judge(prompt, ("cat", 0.9), ("dog", 0.9)).reasons == ("expected no dog, found 1",)


def test_at_most_sixteen_objects_of_a_class_are_looked_at():
    def wants(n: int) -> Prompt:
        return Prompt("x", "dogs", "single_object", (Clause("dog", n),))

    rows = [("dog", 0.5)] * 30 + [("cat", 0.5)]
    assert judge(wants(MAX_PER_CLASS), *rows).correct
    assert judge(wants(MAX_PER_CLASS + 1), *rows).reasons == ("expected 17 dogs, found 16",)
    assert judge(DOG_CAT, *rows).correct  # sixteen a class, not sixteen in all


def test_the_sixteen_are_the_most_confident():
    sixteen_left = Prompt("x", "x", "position", (Clause("car"), Clause("dog", 16, position=("left of", 0))))
    left, right = [("dog", 0.6, box(0, 0))] * 16, [("dog", 0.5, box(200, 0))] * 5
    assert judge(sixteen_left, *right, *left, ("car", 0.9, box(100, 0))).correct


def test_overlapping_boxes_are_not_suppressed():
    assert judge(TWO_DOGS, ("dog", 0.95, HERE), ("dog", 0.94, HERE)).correct


# --- Colour -------------------------------------------------------------------------------------------------------


def test_colour_is_asked_of_the_most_confident_only():
    colors = {0.9: "blue", 0.5: "red"}
    assert judge(RED_DOG, ("dog", 0.5), ("dog", 0.9), colors=colors).reasons == ("expected a red dog, found blue",)
    assert judge(RED_DOG, ("dog", 0.9), ("dog", 0.5), colors={0.9: "red"}).correct  # 0.5 is never asked


def test_colour_is_not_asked_where_it_does_not_matter():
    assert judge(DOG, ("dog", 0.9)).correct
    assert judge(RED_DOG, ("cat", 0.9)).reasons == ("expected a dog, found none",)
    assert not judge(compose("x", (Clause("dog", 2, "red"),)), ("dog", 0.95)).correct


def test_all_of_a_coloured_count_must_have_the_colour():
    prompt = compose("x", (Clause("dog", 2, "red"),))
    assert judge(prompt, ("dog", 0.95), ("dog", 0.94), colors={0.95: "red", 0.94: "red"}).correct
    verdict = judge(prompt, ("dog", 0.95), ("dog", 0.94), colors={0.95: "red", 0.94: "blue"})
    assert verdict.reasons == ("expected 2 red dogs, found red and blue",)


def test_leaked_colours_fail_both_clauses():
    prompt = compose("x", (Clause("dog", color="red"), Clause("cat", color="blue")))
    verdict = judge(prompt, ("dog", 0.9), ("cat", 0.8), colors={0.9: "blue", 0.8: "red"})
    assert verdict.reasons == ("expected a red dog, found blue", "expected a blue cat, found red")


def test_a_classifier_that_answers_no_colour_is_refused():
    with pytest.raises(ValueError, match="unknown colour 'redd'; nearest known: 'red'"):
        judge(RED_DOG, ("dog", 0.9), colors={0.9: "redd"})


# --- Position -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dog_at", "reasons"),
    [
        (box(-50, 0), ()),
        (box(50, 0), ("expected a dog left of a car, found it right of it",)),
        (box(0, -50), ("expected a dog left of a car, found it above it",)),
        (box(50, 50), ("expected a dog left of a car, found it right of and below it",)),
        (box(0, 0), ("expected a dog left of a car, found them too close to tell",)),
    ],
)
def test_the_object_must_stand_as_asked_relative_to_the_anchor(dog_at, reasons):
    assert judge(DOG_LEFT, ("car", 0.9, box(0, 0)), ("dog", 0.9, dog_at)).reasons == reasons


def test_without_its_anchor_a_position_fails_too():
    reasons = judge(DOG_LEFT, ("dog", 0.9)).reasons
    assert reasons == ("expected a car, found none", "expected a dog left of a car, found no such car")


def test_an_anchor_of_the_wrong_colour_is_no_anchor():
    prompt = compose("x", (Clause("car", color="red"), Clause("dog", position=("left of", 0))))
    rows = ("car", 0.9, box(0, 0)), ("dog", 0.8, box(-50, 0))
    assert judge(prompt, *rows, colors={0.9: "red"}).correct
    assert len(judge(prompt, *rows, colors={0.9: "blue"}).reasons) == 2


def test_position_is_only_looked_at_where_the_clause_holds_so_far():
    prompt = compose("x", (Clause("car"), Clause("dog", color="red", position=("left of", 0))))
    verdict = judge(prompt, ("car", 0.9, box(0, 0)), ("dog", 0.8, box(50, 0)), colors={0.8: "blue"})
    assert verdict.reasons == ("expected a red dog, found blue",)
    assert judge(DOG_LEFT, ("car", 0.9)).reasons == ("expected a dog, found none",)


def test_only_the_most_confident_of_each_stand_for_the_relation():
    rows = [("car", 0.9, box(0, 0)), ("dog", 0.9, box(-50, 0)), ("dog", 0.5, box(50, 0)), ("car", 0.5, box(-90, 0))]
    assert judge(DOG_LEFT, *rows).correct


@pytest.mark.parametrize(
    ("second_dog", "second_car", "is_correct"), [(-60, 60, True), (40, 60, False), (-60, -90, False)]
)
def test_every_found_object_must_stand_so_to_every_anchor(second_dog, second_car, is_correct):
    prompt = Prompt("x", "x", "position", (Clause("car", 2), Clause("dog", 2, position=("left of", 0))))
    cars = ("car", 0.9, box(0, 0)), ("car", 0.8, box(second_car, 0))
    dogs = ("dog", 0.9, box(-50, 0)), ("dog", 0.8, box(second_dog, 0))
    assert judge(prompt, *cars, *dogs).correct is is_correct


@pytest.mark.parametrize(
    ("a", "relations"),
    [
        (box(-30, 0), {"left of"}),
        (box(30, 0), {"right of"}),
        (box(0, -30), {"above"}),  # y grows downwards
        (box(0, 30), {"below"}),
        (box(10, 10), {"right of", "below"}),
        (box(5, 5), set()),  # on the diagonal equal boxes must be further apart
        (box(0, 0), set()),  # identical boxes
        (box(0, 0, 4, 4), set()),  # same centre
        (box(1.9, 1.9), set()),  # nearer than a tenth of both sizes on both axes
    ],
)
def test_relative_position(a, relations):
    assert relative_position(a, box(0, 0)) == relations


@pytest.mark.parametrize(("dx", "relations"), [(3.99, set()), (4.01, {"right of"}), (2.5, set()), (-4.01, {"left of"})])
def test_equal_boxes_on_one_axis_must_be_four_tenths_of_a_width_apart(dx, relations):
    assert relative_position(box(dx, 0, 10, 10), box(0, 0, 10, 10)) == relations
    turned = {"left of": "above", "right of": "below"}
    assert relative_position(box(0, dx), box(0, 0)) == {turned[r] for r in relations}


@pytest.mark.parametrize(
    ("degrees", "relations"),
    [
        (0, {"right of"}),
        (25, {"right of"}),
        (45, {"right of", "below"}),
        (65, {"below"}),
        (90, {"below"}),
        (135, {"left of", "below"}),
        (225, {"left of", "above"}),
    ],
)
def test_two_relations_hold_about_the_diagonals(degrees, relations):
    angle = math.radians(degrees)
    far = box(1000 * math.cos(angle), 1000 * math.sin(angle))
    assert relative_position(far, box(0, 0)) == relations


def test_points_have_two_relations_up_to_sixty_degrees_off_the_axis():
    a = (math.cos(math.radians(59)), math.sin(math.radians(59)))
    assert relative_position((*a, *a), (0, 0, 0, 0)) == {"right of", "below"}
    a = (math.cos(math.radians(61)), math.sin(math.radians(61)))
    assert relative_position((*a, *a), (0, 0, 0, 0)) == {"below"}


def test_the_offset_is_divided_by_its_full_length():
    # dx 8 less 0.1 * 20 leaves 6; 6 / 12 is not above one half; 6 over the shortened length would be
    dy = math.sqrt(12**2 - 8**2)
    assert relative_position(box(8, dy), box(0, 0)) == {"below"}
    assert relative_position(box(8.1, dy), box(0, 0)) == {"right of", "below"}


@pytest.mark.parametrize("relation", [("left of", "right of"), ("above", "below")])
def test_relations_turn_round_with_their_objects(relation):
    for dx, dy in ((-40, 3), (17, -60), (9, 9), (0, 25)):
        there = relative_position(box(dx, dy, 12, 6), box(0, 0))
        back = relative_position(box(0, 0), box(dx, dy, 12, 6))
        assert (relation[0] in there) == (relation[1] in back)


# --- Bad input ----------------------------------------------------------------------------------------------------


def test_an_unknown_class_is_named_with_its_nearest():
    with pytest.raises(ValueError, match="unknown class 'mouse'; nearest known: 'computer mouse'"):
        Detection("mouse", 0.9, HERE)
    with pytest.raises(ValueError, match="unknown class 'dogg'; nearest known: 'dog'"):
        compose("x", (Clause("dogg"),))


@pytest.mark.parametrize(
    ("score", "where"), [(math.nan, HERE), (0.5, (0, 0, math.nan, 1)), (0.5, (5, 0, 1, 1)), (0.5, (0, 5, 1, 1))]
)
def test_a_detection_without_a_true_score_and_box_is_refused(score, where):
    with pytest.raises(ValueError, match="expected a finite score"):
        Detection("dog", score, where)


# --- Summary ------------------------------------------------------------------------------------------------------

TWELVE = take(geneval_prompts(), 2)


def verdicts(**by_task) -> dict[str, list[bool | None]]:
    """Two prompts a task: the verdicts of the first and of the second."""
    rows = {task: by_task.get(task, ([True], [True])) for task in TASKS}
    return {p.id: rows[p.task][i % 2] for i, p in enumerate(TWELVE)}


def test_overall_is_the_unweighted_mean_of_the_tasks():
    correct = verdicts(counting=([True] * 50, [False] * 50), position=([False], [False]))
    summary = accuracy_by_task(TWELVE, correct)
    assert summary.per_task == dict.fromkeys(TASKS, 1.0) | {"counting": 0.5, "position": 0.0}
    assert summary.overall == pytest.approx((4 + 0.5 + 0) / 6)
    assert summary.images == pytest.approx(58 / 110)
    assert summary.prompts_any == pytest.approx(9 / 12)
    assert (summary.n_images, summary.n_prompts, summary.n_unscored) == (110, 12, 0)


def test_unscored_images_are_counted_and_in_no_mean():
    summary = accuracy_by_task(TWELVE, verdicts(colors=([True, None, False], [None, None])))
    assert summary.per_task["colors"] == 0.5
    assert (summary.n_images, summary.n_prompts, summary.n_unscored) == (12, 11, 3)


def test_prompts_without_verdicts_do_not_count():
    correct = verdicts(colors=([True], [False]))
    del correct[next(p.id for p in reversed(TWELVE) if p.task == "colors")]
    summary = accuracy_by_task(TWELVE, correct)
    assert summary.per_task["colors"] == 1.0 and summary.n_prompts == 11


@pytest.mark.parametrize("nothing", [[], [None, None]])
def test_a_task_without_a_scored_image_is_named(nothing):
    with pytest.raises(ValueError, match="no scored image of task position, color_attr"):
        accuracy_by_task(TWELVE, verdicts(position=(nothing, nothing), color_attr=(nothing, nothing)))


def test_verdicts_of_unknown_prompts_are_refused():
    with pytest.raises(ValueError, match="1 unknown prompts, the first 'elsewhere'"):
        accuracy_by_task(TWELVE, {**verdicts(), "elsewhere": [True]})


def test_natural_colours_are_an_answer_and_no_colour_of_the_ten():
    prompt = Prompt("0", "a photo of a red dog", "colors", (Clause("dog", color="red"),))
    verdict = evaluate(prompt, [Detection("dog", 0.9, (0, 0, 1, 1))], lambda detection: "natural")
    assert verdict.reasons == ("expected a red dog, found natural",)

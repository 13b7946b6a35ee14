"""The 553 prompts are the official ones, training prompts never touch them, bad metadata is named."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import pytest

from cotlib import prompts as prompts_module
from cotlib.errors import CorruptError
from cotlib.prompts import (
    CLASSES,
    COLORS,
    EVALUATION_DIGEST,
    RELATIONS,
    TASKS,
    Clause,
    Prompt,
    check_known,
    compose,
    free_prompts,
    geneval_prompts,
    phrase,
    plural,
    read_metadata,
    take,
    training_prompts,
    with_article,
    write_metadata,
)

GOOD = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "a photo of two dogs"}


def test_the_written_file_has_the_digest_of_the_official_one(tmp_path):
    path = write_metadata(tmp_path / "evaluation_metadata.jsonl", geneval_prompts())
    # sha256 of prompts/evaluation_metadata.jsonl at github.com/djghosh13/geneval, af4902f
    official = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == official == EVALUATION_DIGEST


def test_the_tasks_come_in_official_order_and_number():
    prompts = geneval_prompts()
    assert list(Counter(p.task for p in prompts).items()) == list(zip(TASKS, (80, 99, 80, 94, 100, 100), strict=True))
    assert [p.id for p in prompts] == [f"{i:05}" for i in range(553)]
    assert len({p.text for p in prompts}) == 553


def test_the_first_clause_of_a_position_prompt_is_the_anchor():
    for prompt in geneval_prompts():
        if prompt.task == "position":
            anchor, subject = prompt.include
            assert anchor.position is None and subject.position[1] == 0
            sides = f"{with_article(subject.cls)} {subject.position[0]} {with_article(anchor.cls)}"
            assert prompt.text == f"a photo of {sides}"


def test_counting_prompts_exclude_one_more_and_no_other_task_excludes():
    for prompt in geneval_prompts():
        if prompt.task == "counting":
            (want,), (limit,) = prompt.include, prompt.exclude
            assert limit == Clause(want.cls, want.count + 1) and want.count in (2, 3, 4)
        else:
            assert prompt.exclude == ()


def test_a_changed_random_stream_is_reported_not_used(monkeypatch):
    monkeypatch.setattr(prompts_module, "EVALUATION_SEED", 44)
    geneval_prompts.cache_clear()
    with pytest.raises(CorruptError, match="numpy .* draws other numbers"):
        geneval_prompts()
    monkeypatch.undo()
    geneval_prompts.cache_clear()
    assert len(geneval_prompts()) == 553


def test_vocabulary():
    assert (len(CLASSES), len(set(CLASSES)), len(COLORS), len(RELATIONS), len(TASKS)) == (80, 80, 10, 4, 6)
    assert (CLASSES[0], CLASSES[-1]) == ("person", "toothbrush")
    assert {"computer mouse", "tv remote", "computer keyboard"} < set(CLASSES)


@pytest.mark.parametrize(
    ("clause", "words"),
    [
        (Clause("dog"), "a dog"),
        (Clause("umbrella"), "an umbrella"),
        (Clause("orange", color="orange"), "an orange orange"),
        (Clause("apple", color="red"), "a red apple"),
        (Clause("sheep", 2), "two sheeps"),
        (Clause("bus", 4), "four buses"),
        (Clause("toothbrush", 2), "two toothbrushs"),
        (Clause("dog", 3, "red"), "three red dogs"),
        (Clause("dog", 11), "11 dogs"),
    ],
)
def test_wording_keeps_the_official_quirks(clause, words):
    assert phrase(clause) == words


def test_plural_goes_by_the_last_letter_only():
    assert [plural(name) for name in ("knife", "wine glass", "skis")] == ["knifes", "wine glasses", "skises"]


# --- Training prompts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 7, 42, 44])
def test_training_prompts_share_no_text_with_the_evaluation(seed):
    evaluation = {p.text for p in geneval_prompts()}
    prompts = training_prompts(seed, 200)
    assert not evaluation & {p.text for p in prompts}
    assert len({p.id for p in prompts}) == len(prompts) > 600
    assert all(p.id.startswith(f"train-{seed}-") for p in prompts)


def test_training_prompts_hold_every_task_but_single_object_whose_texts_are_all_held_out():
    assert {p.task for p in training_prompts(3)} == set(TASKS) - {"single_object"}


def test_the_evaluation_seed_is_refused_for_training():
    with pytest.raises(ValueError, match="seed 43 makes the evaluation prompts"):
        training_prompts(43)


def test_training_prompts_depend_on_seed_and_size_alone():
    assert training_prompts(5, 20) == training_prompts(5, 20) != training_prompts(6, 20)


@pytest.mark.parametrize("few, more", [(1, 3), (20, 60), (60, 61), (50, 200)])
def test_fewer_training_prompts_are_among_more(few, more):
    some, everything = training_prompts(5, few), training_prompts(5, more)
    for task in TASKS:
        first, all_ = ([p for p in prompts if p.task == task] for prompts in (some, everything))
        assert all_[: len(first)] == first
    assert len(some) < len(everything)


def test_a_task_has_at_most_as_many_training_prompts_as_asked_for():
    prompts = training_prompts(5, 130)
    by_task = Counter(p.task for p in prompts)
    assert by_task["position"] == by_task["color_attr"] == 130 >= max(by_task.values())
    assert len({p.text for p in prompts}) == len({p.id for p in prompts}) == len(prompts)


def test_free_prompts_say_what_no_template_says():
    prompts = free_prompts(0, 500)
    for p in prompts:
        n_colors, n_most = sum(c.color is not None for c in p.include), max(c.count for c in p.include)
        assert (n_most > 1 and n_colors == 1) or (p.task == "position" and n_colors == 2)
    assert {p.task for p in prompts} == {"counting", "position"}
    assert len({p.text for p in prompts}) == 500 and not {p.text for p in prompts} & {p.text for p in geneval_prompts()}


def test_fewer_free_prompts_are_a_prefix_of_more():
    assert free_prompts(9, 300)[:40] == free_prompts(9, 40) != free_prompts(10, 40)


def test_a_person_is_never_coloured():
    everything = geneval_prompts() + training_prompts(1, 300) + free_prompts(1, 2000)
    assert not [c for p in everything for c in p.include if c.cls == "person" and c.color]


def test_composed_prompts_read_as_they_are_judged():
    blue_over_pink = (Clause("bird", color="pink"), Clause("car", color="blue", position=("above", 0)))
    assert compose("x", blue_over_pink).text == "a photo of a blue car above a pink bird"
    mixed = compose("x", (Clause("dog", color="red"), Clause("cat", 2)))
    assert (mixed.text, mixed.task) == ("a photo of a red dog and two cats", "counting")
    assert mixed.exclude == (Clause("cat", 3),)
    assert compose("x", (Clause("dog", color="red"), Clause("cat"))).task == "color_attr"
    with pytest.raises(ValueError, match="the anchor first"):
        compose("x", (Clause("dog"), Clause("cat", position=("above", 0)), Clause("cup")))


@pytest.mark.parametrize("make", [lambda n: training_prompts(1, n), lambda n: free_prompts(1, n)])
@pytest.mark.parametrize("n", [0, -1, True, 2.0, "3"])
def test_a_size_that_is_no_positive_whole_number_is_refused(make, n):
    with pytest.raises(ValueError, match="at least 1"):
        make(n)


@pytest.mark.parametrize("seed", [None, -1, "1"])
def test_a_seed_that_would_not_repeat_is_refused(seed):
    for make in (training_prompts, lambda s: free_prompts(s, 3)):
        with pytest.raises(ValueError, match="seed must be"):
            make(seed)


def test_take_keeps_the_first_of_each_task_in_order():
    kept = take(geneval_prompts(), 3)
    assert [p.id for p in kept if p.task == "counting"] == ["00179", "00180", "00181"]
    assert Counter(p.task for p in kept) == dict.fromkeys(TASKS, 3)
    assert take(geneval_prompts(), None) == take(geneval_prompts(), 100) == geneval_prompts()
    for n in (0, -3, True):
        with pytest.raises(ValueError, match="at least 1"):
            take(geneval_prompts(), n)


# --- Metadata -------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path):
    assert read_metadata(write_metadata(tmp_path / "all.jsonl", geneval_prompts())) == geneval_prompts()
    free = free_prompts(0, 20)
    back = read_metadata(write_metadata(tmp_path / "free.jsonl", free))
    assert [p.metadata() for p in back] == [p.metadata() for p in free]
    assert [p.id for p in back] == [f"{i:05}" for i in range(20)]


def changed(**fields) -> dict:
    return {**GOOD, **fields}


def one(**clause) -> dict:
    return changed(include=[{"class": "dog", "count": 1, **clause}])


BAD = [
    (changed(tag="count"), "unknown task 'count'; nearest known: 'counting'"),
    (changed(prompt="  "), "expected some words"),
    (changed(prompt=7), "expected some words, got 7"),
    (changed(include=[]), "include is empty"),
    (changed(include={"class": "dog"}), "include must be a list"),
    (changed(includes=[]), "unknown key in prompt 00001: 'includes'; nearest known: 'include'"),
    ({"tag": "counting", "prompt": "two dogs"}, "missing include"),
    (["dog"], "expected an object"),
    (one(**{"class": "dgo"}), "unknown class 'dgo'; nearest known: 'dog'"),
    (one(**{"class": "mouse"}), "nearest known: 'computer mouse'"),
    (one(**{"class": None}), "unknown class None"),
    (one(color="gren"), "unknown colour 'gren'; nearest known: 'green'"),
    (one(count=0), "at least 1, got 0"),
    (one(count=True), "at least 1, got True"),
    (one(count="2"), "at least 1, got '2'"),
    (one(size=3), "unknown key in clause: 'size'"),
    (one(position=["left of", 0]), "the anchor must come before it"),
    (one(position=["left", 0]), "unknown relation 'left'; nearest known: 'left of'"),
    (one(position=["left of", -1]), "at least 0, got -1"),
    (one(position="left of"), "position must be"),
    (changed(include=[{"class": "dog"}]), "missing count"),
    (changed(exclude=[{"class": "dog", "count": 3, "color": "red"}]), "exclude counts objects"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_bad_metadata_is_named_with_its_line(tmp_path, fields, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps(fields)}\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2: ") as caught:
        read_metadata(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("line", [b'{"tag": "coun', b"", b"\xff\xfe{}"])
def test_a_line_that_is_no_json_is_named(tmp_path, line):
    good = json.dumps(GOOD).encode()
    path = tmp_path / "cut.jsonl"
    path.write_bytes(b"\n".join([good, line, good]))
    with pytest.raises(ValueError, match=r"cut\.jsonl, line 2: .*mend the line"):
        read_metadata(path)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_metadata(tmp_path / "empty.jsonl")


def test_clauses_and_prompts_made_in_code_are_checked_too():
    with pytest.raises(ValueError, match="nearest known: 'red'"):
        Clause("dog", color="redd")
    with pytest.raises(ValueError, match="nearest known: 'two_object'"):
        Prompt("x", "a photo of two dogs", "two_objects", (Clause("dog"),))


def test_a_known_name_is_handed_back():
    assert check_known("dog", CLASSES, "class") == "dog"

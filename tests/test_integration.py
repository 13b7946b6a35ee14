"""Generators by recipe, verifiers on them, and the names under which pairs of both are measured."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cotlib import load, models, paper, show, stages
from cotlib.config import EFFORTS, SCALES
from cotlib.errors import ForeignError
from cotlib.prompts import TASKS, geneval_prompts, take, training_prompts
from cotlib.stages import generators
from cotlib.stages.sources import Source, once
from cotlib.stats import Estimate
from cotlib.verifiers import named

SMOKE = {"scale": "pocket", "effort": "smoke", "seed": 0}

# --- Recipes ---


def test_every_round_starts_from_the_one_before():
    assert stages.recipe("dpo").start == "base" and stages.recipe("it-dpo").start == "dpo"
    assert stages.recipe("it-dpo-3") == generators.Recipe("it-dpo")
    assert stages.recipe("it-dpo-11") == generators.Recipe("it-dpo-10")


@pytest.mark.parametrize(
    ("name", "near"), [("it-dpo-omr", "it-dpo-orm"), ("dop", "dpo"), ("it-dpo-2", "it-dpo"), ("it-dpo-03", "it-dpo")]
)
def test_an_unknown_generator_is_refused_with_the_nearest_name(name, near):
    with pytest.raises(ValueError, match=f"unknown generator '{name}'; did you mean '{near}"):
        stages.recipe(name)


def test_every_guide_is_a_verifier_of_finished_pictures():
    guides = [generators.RECIPES[name].guide for name in stages.known_generators()[1:]]
    assert guides == [None, None, "orm", "parm"]
    assert not any(named(guide).every_step for guide in guides if guide)


@pytest.fixture
def keys(monkeypatch):
    """What a model is keyed by, (generator, guide's identity, **changes) -> dict; nothing is trained."""
    asked = {}
    pair = {"source": "a", "task": "colors", "prompt": "x", "chosen_codes": [0], "rejected_codes": [1]}
    notes = {"log": [], "pair_accuracy": None, "pairs": {}, "seconds": 1.0}  # as earlier versions left them
    monkeypatch.setattr(generators, "ranking_data", lambda run, before: SimpleNamespace(pool=None, labels=None))
    monkeypatch.setattr(generators, "preference_pairs", lambda *args: [pair])
    monkeypatch.setattr(generators, "source", lambda run, name: Source(name, None, {"generator": name}))
    monkeypatch.setattr(models, "notes", lambda folder: notes)

    def key(name, identity="judge-1", **changes):
        run = SimpleNamespace(
            scale=SCALES["pocket"],
            seed=0,
            params={"align_epochs": 1, "n_pairs": 1},
            effort=EFFORTS["smoke"],
            made={},
            trained=lambda name, what, train: asked.update(what=what) or Path(name),
        )
        monkeypatch.setattr(generators, "verifier_score", lambda run, verifier: (None, {"judge": identity}))
        assert stages.aligned(run, name, **changes).rewards == []
        return asked["what"]

    return key


def test_a_guided_model_depends_on_its_verifier_and_an_unguided_one_does_not(keys):
    assert keys("it-dpo") == keys("it-dpo", "judge-2")
    assert keys("it-dpo-orm") != keys("it-dpo-orm", "judge-2")
    assert keys("it-dpo-orm") != keys("it-dpo-parm")
    assert "guide" not in keys("it-dpo")  # models of earlier versions stay valid


def test_a_guided_model_has_the_pairs_of_the_plain_one_and_a_gradient_unless_asked_otherwise(keys):
    plain, guided, released = keys("it-dpo"), keys("it-dpo-orm"), keys("it-dpo-orm", guidance="detached")
    assert plain["pairs"] == guided["pairs"] and plain["generator"] == guided["generator"] == "dpo"
    assert guided["options"]["guidance_weight"] == generators.GUIDANCE_WEIGHT != plain["options"]["guidance_weight"]
    assert [k["options"]["guidance"] for k in (plain, guided, released)] == ["none", "policy-gradient", "detached"]


def test_a_guide_asks_for_prompts_of_every_task_and_for_none_that_is_held_out():
    prompts = training_prompts(1, 20)
    asked = generators._asked(prompts, [{"source": prompts[0].id}], seed=0)
    assert {p.id for p in asked} == {p.id for p in prompts[1:]}
    assert len({p.task for p in asked[:20]}) >= 4  # the suite itself goes task by task
    assert asked == generators._asked(prompts, [{"source": prompts[0].id}], seed=0)
    assert asked != generators._asked(prompts, [{"source": prompts[0].id}], seed=1)


def test_a_stage_is_made_once_a_run_and_once_for_each_request():
    made = []
    stage = once(lambda run, name="a", **changes: made.append((name, changes)) or len(made))
    first, second = SimpleNamespace(made={}), SimpleNamespace(made={})
    assert [stage(first), stage(first), stage(first, "b"), stage(first, "b")] == [1, 1, 2, 2]
    assert [stage(first, seed=1), stage(first, seed=1)] == [3, 3]
    assert stage(first, name="b") == 2  # however it is written
    assert stage(second) == 4 and made == [("a", {}), ("b", {}), ("a", {"seed": 1}), ("a", {})]


# --- Names of what is measured ---


def run_of(prompts):
    made = {}
    record = lambda name, value, low, high, n: made.update({name: dict(value=value, low=low, high=high, n=n)})  # noqa: E731
    return SimpleNamespace(prompts=prompts, seed=0, record=record, made=made)


def test_rows_are_found_again_at_their_largest_n():
    run = run_of(())
    one, two = ({t: Estimate(x, 0.0, 1.0, 6) for t in (*TASKS, "overall")} for x in (0.25, 0.75))
    stages.record_estimates(run, "it-dpo", "orm", one, 4)
    stages.record_estimates(run, "it-dpo", "orm", two)
    stages.record_estimates(run, "it-dpo", "none", one)
    stages.record_estimates(run, "it-dpo-orm", "none", two)
    assert {"geneval/it-dpo/orm/overall@4", "geneval/it-dpo/orm/overall", "geneval/it-dpo/none/colors"} <= set(run.made)
    assert stages.recorded(run.made, "it-dpo", "orm") == (two, 20)
    assert stages.recorded(run.made, "it-dpo", "none") == (one, None)
    assert stages.recorded(run.made, "dpo", "orm") == ({}, None)


def test_an_ordering_says_which_pairs_it_compares_and_how_many_candidates_they_search():
    prompts = take(geneval_prompts(), 2)
    run = run_of(prompts)
    high, low = dict.fromkeys((p.id for p in prompts), 1.0), dict.fromkeys((p.id for p in prompts), 0.25)
    accuracy = {("it-dpo", "orm"): high, ("it-dpo", "none"): low, ("dpo", "none"): high}
    gain = stages.record_ordering(run, ("it-dpo", "orm"), ("it-dpo", "none"), accuracy, 8)
    stages.record_ordering(run, ("it-dpo", "orm"), ("it-dpo", "none"), accuracy, 20)
    stages.record_ordering(run, ("it-dpo", "none"), ("dpo", "none"), accuracy, 8)
    stages.record_ordering(run, ("dpo", "none"), ("it-dpo", "orm"), accuracy, 8)
    assert list(run.made) == [
        "ordering/it-dpo/orm@8 > it-dpo/none",
        "ordering/it-dpo/orm > it-dpo/none",
        "ordering/it-dpo > dpo",
        "ordering/dpo/none > it-dpo/orm@8",
    ]
    assert gain.value == 0.75 and run.made["ordering/it-dpo > dpo"]["value"] == -0.75


@pytest.mark.parametrize(("n", "keep"), [(20, 5), (16, 4), (8, 3), (1, 3)])
def test_parm_by_rank_keeps_a_quarter_of_the_paths_after_half_of_the_steps(n, keep):
    run = load("05_parm", steps=6, **SMOKE)
    by_rank = stages.parm_options(run, "parm-keep", n)
    assert (by_rank.keep, by_rank.keep_after) == (keep, 2)
    assert stages.parm_options(run, "parm", n).keep is None
    assert not stages.parm_options(run, "parm-released", n).stop


def test_one_step_is_enough_for_parm_by_rank_and_another_search_is_refused():
    assert stages.parm_options(load("05_parm", steps=1, **SMOKE), "parm-keep", 4).keep_after == 0
    with pytest.raises(ValueError, match="parm-kept.*parm-keep"):
        stages.parm_options(load("05_parm", **SMOKE), "parm-kept", 4)


def test_a_verifier_that_searches_step_by_step_has_no_scores_of_a_pool():
    with pytest.raises(ValueError, match=r"prm chooses at every step.*stages\.climb"):
        stages.scores_of(None, None, "prm")


# --- The paper's rows ---


def test_table_2_is_trusted_where_table_3_repeats_another_row():
    assert paper.value("it-dpo-orm", "none", "overall") == 0.67
    assert paper.value("it-dpo", "orm", "overall") == 0.72
    assert paper.difference(("it-dpo-parm", "parm"), ("base", "none")) == "+0.24"
    assert paper.difference(("it-dpo-parm", "orm"), ("base", "none")) == ""
    assert all(len(row) == 7 for row in (*paper.PUBLISHED.values(), *paper.OTHER_GENERATORS.values()))


def test_overall_is_the_mean_of_the_tasks_but_in_the_rows_that_are_known_to_differ():
    off = {key for key, row in paper.PUBLISHED.items() if abs(np.mean(row[:6]) - row[6]) >= 0.0075}
    assert off == {("it-dpo", "parm"), ("it-dpo-parm", "none")}


def test_every_row_has_a_notebook_that_makes_it():
    assert {paper.made_by(*row) for row in paper.TABLE_1} == {
        "01_baseline",
        "02_outcome_verifier",
        "03_process_verifier",
        "04_preference_alignment",
    }
    assert paper.made_by("base", "parm") == "05_parm" and paper.made_by("base", "oracle") == "02_outcome_verifier"
    assert {paper.made_by(*row) for row in paper.TABLE_2} == {"06_integration"}


# --- Figures and weights ---


def test_a_panel_per_generator_with_the_papers_value_at_twenty():
    curve = {1: Estimate(0.5, 0.4, 0.6, 9), 4: Estimate(0.7, 0.6, 0.8, 9)}
    figure = show.verifiers_on_generators({("dpo", "orm"): curve, ("it-dpo", "orm"): curve})
    dpo, it_dpo = figure.axes
    assert [line.get_xydata().tolist() for line in dpo.lines] == [[[1, 0.5], [4, 0.7]]]
    assert it_dpo.lines[-1].get_xydata().tolist() == [[20, 0.72]]


def test_the_running_mean_of_a_guides_rewards():
    (ax,) = show.guidance_curves({"guided": [0.0, 1.0, 1.0, 0.0]}, window=2).axes
    assert ax.lines[0].get_ydata().tolist() == [0, 1, 1, 0] and ax.lines[1].get_ydata().tolist() == [0, 0.5, 1, 0.5]


def test_how_far_weights_lie_apart(tmp_path):
    for name, value in (("a", 0.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((2, 2), value)}, tmp_path / name / "model.safetensors")
    assert models.weights_change(tmp_path / "a", tmp_path / "b") == 2
    assert models.weights_change(tmp_path / "a", tmp_path / "a") == 0
    save_file({"w": torch.zeros(3)}, tmp_path / "b" / "model.safetensors")
    with pytest.raises(ForeignError, match="other tensors"):
        models.weights_change(tmp_path / "a", tmp_path / "b")
    (tmp_path / "c").mkdir()
    with pytest.raises(ForeignError, match="expected the same layout"):
        models.weights_change(tmp_path / "a", tmp_path / "c")


def test_other_options_than_a_name_stands_for_make_a_variant(tmp_path, monkeypatch):
    monkeypatch.setenv("COTLIB_OUTPUTS", str(tmp_path))
    made = []
    monkeypatch.setattr(generators, "ranking_data", lambda *_: SimpleNamespace(pool=None, labels={}))
    monkeypatch.setattr(generators, "preference_pairs", lambda *_: [])
    monkeypatch.setattr(generators.models, "trained", lambda folder, name, what, train: made.append(name) or tmp_path)
    notes = {"log": [], "pair_accuracy": None, "pairs": {}, "seconds": 0.0}
    monkeypatch.setattr(generators.models, "notes", lambda folder: notes)
    run = load("04_preference_alignment", scale="pocket", effort="smoke", seed=0)
    for changes in ({}, {"mask_sharing": "independent"}, {"seed": 1}):
        generators.aligned(run, "dpo", **changes)
    assert made == ["dpo", "dpo-variant", "dpo-variant"]

"""Figures and tables say what they were given."""

import numpy as np

from cotlib import show
from cotlib.stats import Estimate

N_OF = {("base", "none"): None, ("base", "orm"): 8}
ONE = {t: Estimate(0.5, 0.4, 0.6, 40) for t in show.TASK_NAMES}


def test_ours_stands_beside_the_papers_value_with_its_interval():
    row = show.beside_paper({("base", "none"): ONE}).iloc[0]
    assert row["row"] == "Baseline"
    assert row["overall"] == "0.50 ± 0.10  [0.53]"
    assert row["ours - paper"] == "-0.03"


def test_how_many_candidates_a_row_chooses_among_stands_beside_its_name():
    axes = show.beside_the_paper({row: ONE for row in (("base", "none"), ("base", "orm"))}, N_OF).axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names[0] == "Baseline" and names[1].endswith(", N = 8")


def test_steps_and_rounds_are_named_above_the_first_row_only():
    pictures = np.zeros((2, 4, 4, 3), np.uint8)
    strip = show.film_strip([(name, pictures, ["", ""], 2, True) for name in "ab"])
    rounds = show.corrections([(name, pictures, ["", ""], [True, False]) for name in "ab"])
    assert [ax.get_title() for ax in strip.axes] == ["step 1", "step 2", "", ""]
    assert [ax.get_title() for ax in rounds.axes] == ["first choice", "round 1", "", ""]


def test_right_and_wrong_pictures_differ_in_colour_and_in_dashes():
    pictures = [np.zeros((4, 4, 3), np.uint8)] * 2
    right, wrong = show.grid(pictures, columns=2, marks=[True, False]).axes
    assert right.spines["left"].get_edgecolor() != wrong.spines["left"].get_edgecolor()
    assert right.spines["left"].get_linestyle() != wrong.spines["left"].get_linestyle()


def test_the_calibration_error_of_an_overconfident_judge():
    half = np.array([True] * 5 + [False] * 5)
    _, gaps = show.reliability({"orm": (np.full(10, 0.95), half), "prm": (np.full(10, 0.5), half)})
    assert abs(gaps["orm"] - 0.45) < 1e-9 and gaps["prm"] < 1e-9

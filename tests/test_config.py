import pytest

from cotlib.config import EFFORTS, NOTEBOOKS, PARAMETERS, SCALES, check


def ask(notebook="04_preference_alignment", scale="pocket", effort="quick", seed=0, **overrides):
    return check(notebook, scale=scale, effort=effort, seed=seed, **overrides)


def test_parameters_left_none_come_from_scale_and_effort():
    settings = ask(effort="smoke", n_candidates=None)
    assert settings.params["n_candidates"] == EFFORTS["smoke"].n_candidates == 4
    assert settings.params["steps"] == SCALES["pocket"].steps == 8
    assert settings.passed == {"n_candidates": None}


def test_scales_hold_the_sizes_of_the_published_checkpoints():
    sizes = {name: (s.image_size, s.n_tokens, s.steps, s.guidance) for name, s in SCALES.items()}
    assert sizes == {"pocket": (96, 64, 8, 1.75), "showo": (256, 256, 18, 1.75), "showo512": (512, 1024, 50, 5.0)}


def test_full_effort_is_all_prompts_with_three_images_of_twenty_and_only_smoke_is_watermarked():
    full = EFFORTS["full"]
    assert (full.n_prompts_per_task, full.n_images, full.n_candidates) == (None, 3, 20)
    assert [name for name, effort in EFFORTS.items() if effort.watermark] == ["smoke"]


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_every_override_reaches_the_effective_parameters(name):
    notebook = next(n for n, spec in NOTEBOOKS.items() if name in spec.overrides)
    assert ask(notebook, **{name: 3}).params[name] == 3
    assert ask(notebook, **{name: 2}).params != ask(notebook, **{name: 3}).params


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"scale": "poket"}, "did you mean 'pocket'"),
        ({"scale": None}, "unknown scale None"),
        ({"effort": "fast"}, "known: smoke, quick, full"),
        ({"notebook": "02_outcome_verifer"}, "did you mean '02_outcome_verifier'"),
        ({"n_candidate": 4}, "did you mean 'n_candidates'"),
        ({"seed": -1}, "seed must lie in 0.."),
        ({"seed": True}, "seed must be an int, got True"),
        ({"seed": "0"}, "seed must be an int, got '0'"),
        ({"n_candidates": 0}, "must lie in 1..1000, got 0"),
        ({"n_candidates": -3}, "must lie in 1..1000, got -3"),
        ({"n_candidates": 2.0}, "must be an int, got 2.0"),
        ({"n_candidates": True}, "must be an int, got True"),
        ({"n_candidates": "false"}, "must be an int, got 'false'"),
        ({"guidance": "false"}, "must be a finite float, got 'false'"),
        ({"guidance": False}, "must be a finite float, got False"),
        ({"guidance": float("nan")}, "must be a finite float, got nan"),
        ({"guidance": 21}, "must lie in 0..20, got 21"),
        ({"guidance": -1.75, "scale": "showo"}, "must lie in 0..20, got -1.75"),
        ({"steps": 0, "scale": "showo"}, "must lie in 1..256, got 0"),
        ({"batch_size": 0}, "must lie in 1..4096, got 0"),
        ({"notebook": "08_report", "n_candidates": 4}, "08_report has no parameter 'n_candidates'"),
    ],
)
def test_a_bad_request_is_refused_and_the_message_says_what_is_allowed(request_, said):
    with pytest.raises(ValueError, match=".") as error:
        ask(**request_)
    assert said in str(error.value)


def test_a_whole_number_is_a_legal_guidance_and_becomes_a_float():
    assert isinstance(ask(guidance=2).params["guidance"], float)


def test_notebooks_read_only_notebooks_before_them():
    names = list(NOTEBOOKS)
    for name, spec in NOTEBOOKS.items():
        assert all(names.index(upstream) < names.index(name) for upstream in spec.upstream)
        assert set(spec.overrides) <= set(PARAMETERS)

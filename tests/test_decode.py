"""Masked-token decoding on a model small enough to reason about."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from cotlib.decode import (
    DecodeOptions,
    branch,
    decode,
    draw,
    final,
    given,
    n_masked_after,
    nothing_known,
    read_prompts,
    remask_temperature,
)
from cotlib.seeds import sample_seed


@dataclass
class ToyGenerator:
    """Predicts code (position + number of words) % V, more surely towards the end; no prompt, no opinion."""

    n_tokens: int = 16
    codebook: int = 8

    @property
    def config(self):
        return SimpleNamespace(num_vq_tokens=self.n_tokens)

    device = torch.device("cpu")

    def text_ids(self, texts):
        return torch.tensor([[len(t.split())] for t in texts])

    prefix = text_ids

    def hidden_after(self, text, codes, masked):
        wanted = (torch.arange(self.n_tokens)[None] + text) % self.codebook
        sure = torch.where(text > 0, torch.linspace(0.5, 2.5, self.n_tokens), 0.0)[..., None]
        return torch.nn.functional.one_hot(wanted, self.codebook).float() * sure

    def head(self, hidden):
        return hidden


OPTIONS = DecodeOptions(steps=6, guidance=1.0)
TEXTS = ["a b", "a b c", "a b c d"]


def run(texts, seeds, options=OPTIONS):
    return list(decode(ToyGenerator(), texts, seeds, options))


def test_candidates_do_not_depend_on_their_batch():
    together = run(TEXTS, [1, 2, 3])
    for i, text in enumerate(TEXTS):
        alone = run([text], [i + 1])
        assert all(torch.equal(t.codes[i], a.codes[0]) for t, a in zip(together, alone, strict=True))


def test_four_candidates_are_a_prefix_of_sixteen():
    seeds = [sample_seed(0, "00007", k, "pool-0") for k in range(16)]
    few, many = (run(["a b"] * n, seeds[:n])[-1].codes for n in (4, 16))
    assert torch.equal(few, many[:4])


def test_where_nothing_is_known_yet_the_network_reads_each_prompt_once(monkeypatch):
    rows, hidden_after = [], ToyGenerator.hidden_after
    monkeypatch.setattr(
        ToyGenerator,
        "hidden_after",
        lambda self, text, *state: rows.append(len(text)) or hidden_after(self, text, *state),
    )
    steps = run(["a b", "a b c", "a b"], [1, 2, 3])
    assert rows == [4, 6, 6, 6, 6, 6]  # with guidance: twice as many as prompts
    rows.clear()
    assert torch.equal(run(["a b"], [3])[-1].codes[0], steps[-1].codes[2]) and rows == [2] * 6


def test_known_tokens_are_kept_and_ever_fewer_stay_masked():
    steps = run(TEXTS, [1, 2, 3])
    for before, after in zip(steps, steps[1:], strict=False):
        assert torch.equal(before.codes[~before.masked], after.codes[~before.masked])
        assert not (after.masked & ~before.masked).any()
    assert [int(s.masked[0].sum()) for s in steps] == [n_masked_after(s, 6, 16, "cosine") for s in range(6)]
    assert not steps[-1].masked.any()


def test_guidance_makes_the_prompt_count_more():
    def hits(guidance):
        codes = run(["a b"] * 64, list(range(64)), replace(OPTIONS, guidance=guidance))[-1].codes
        return float((codes == (torch.arange(16) + 2) % 8).float().mean())

    assert hits(3.0) > hits(0.0) + 0.1


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 3},
        {"guidance": 0.0},
        {"temperature": 0.0},
        {"schedule": "linear"},
        {"schedule": "pow3"},
        {"schedule": "sigmoid"},
        {"remask_temperature": "maskgit"},
        {"always_mask_one": True},
    ],
)
def test_every_option_changes_the_result(change):
    base, changed = (run(TEXTS * 4, list(range(12)), o) for o in (OPTIONS, replace(OPTIONS, **change)))
    assert len(base) != len(changed) or any(
        not torch.equal(a.masked, b.masked) or not torch.equal(a.codes, b.codes)
        for a, b in zip(base, changed, strict=True)
    )


def test_the_temperature_compounds_as_in_show_o():
    options = DecodeOptions(steps=18)
    assert [round(remask_temperature(s, options), 3) for s in range(4)] == [0.944, 0.840, 0.700, 0.544]
    assert remask_temperature(17, options) == 0


def test_tokens_are_drawn_in_proportion_to_their_probability():
    p = torch.tensor([0.1, 0.0, 0.6, 0.3])
    u = (torch.arange(1000) + 0.5) / 1000
    drawn = draw(p.expand(1000, -1), u)
    assert torch.bincount(drawn, minlength=4).tolist() == pytest.approx([100, 0, 600, 300], abs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"guidance": -1}, ">= 0"),
        ({"schedule": "cosin"}, "unknown schedule"),
        ({"schedule": "pow"}, "unknown schedule 'pow'; known: cosine, linear, sigmoid, pow2"),
        ({"precision": "fp16"}, "unknown precision 'fp16'; known: bf16, fp32"),
        ({"remask_temperature": "x"}, "known: showo, maskgit"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DecodeOptions(**options)


def test_texts_without_seeds_are_refused():
    with pytest.raises(ValueError, match="one seed per text"):
        final(decode(ToyGenerator(), ["a", "b"], [1], OPTIONS))


@pytest.mark.parametrize("k", range(5))
def test_a_decoding_resumed_after_any_step_is_the_unbroken_one(k):
    whole = run(TEXTS, [1, 2, 3])
    rest = list(decode(ToyGenerator(), TEXTS[1:], [2, 3], OPTIONS, start=whole[k].rows([1, 2])))
    for mine, theirs in zip(rest, whole[k + 1 :], strict=True):
        assert mine.index == theirs.index
        assert torch.equal(mine.codes, theirs.codes[1:]) and torch.equal(mine.masked, theirs.masked[1:])


def test_given_tokens_are_kept_and_the_others_drawn():
    codes, masked = torch.full((2, 16), 7), torch.zeros(2, 16, dtype=torch.bool)
    masked[0, 3:9], masked[1, ::2] = True, True
    steps = list(decode(ToyGenerator(), TEXTS[:2], [1, 2], OPTIONS, start=given(codes, masked)))
    assert all((s.codes[~masked] == 7).all() and not (s.masked & ~masked).any() for s in steps)
    assert not steps[-1].masked.any() and (steps[-1].codes[masked] != 7).any()


def test_more_steps_than_tokens_keep_one_at_each_until_one_is_left():
    steps = run(["a b"], [1], replace(OPTIONS, steps=40))
    left = [int(s.masked.sum()) for s in steps]
    assert left[-1] == 0 and left[-2] == 1 and all(a > b or a == 1 for a, b in zip(left, left[1:], strict=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": given(torch.zeros(1, 16, dtype=torch.long), torch.ones(1, 16, dtype=torch.bool))}, "to start from"),
        ({"start": given(torch.zeros(2, 16, dtype=torch.long), torch.ones(2, 16))}, "a bool mask"),
        ({"candidates": [0]}, "one candidate number >= 0 per text"),
        ({"candidates": [0, -1]}, "one candidate number >= 0 per text"),
    ],
)
def test_a_start_or_candidates_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        final(decode(ToyGenerator(), TEXTS[:2], [1, 2], OPTIONS, **change))


def test_a_finished_decoding_has_no_step_left():
    with pytest.raises(ValueError, match="no step is left after step 5 of 0..5"):
        final(decode(ToyGenerator(), TEXTS, [1, 2, 3], OPTIONS, start=run(TEXTS, [1, 2, 3])[-1]))


# --- Branching ---


class Counted(ToyGenerator):
    rows = 0

    def hidden_after(self, text, codes, masked):
        Counted.rows += len(codes)
        return super().hidden_after(text, codes, masked)


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_branches_are_what_decoding_each_alone_would_draw_and_the_network_reads_each_state_once(guidance):
    options, texts, n = replace(OPTIONS, guidance=guidance), TEXTS[:2], 3
    state = next(decode(ToyGenerator(), texts, [1, 2], options))
    seeds = list(range(10, 10 + 2 * n))
    Counted.rows = 0
    drawn = branch(Counted(), read_prompts(Counted(), texts, options), state, seeds, options, n)
    assert Counted.rows == 2 * (2 if guidance else 1)
    for i, seed in enumerate(seeds):
        alone = next(decode(ToyGenerator(), [texts[i // n]], [seed], options, start=state.rows([i // n])))
        assert torch.equal(drawn.codes[i], alone.codes[0]) and torch.equal(drawn.masked[i], alone.masked[0])
    assert not torch.equal(drawn.codes[0], drawn.codes[1])


def test_branching_from_nothing_is_the_first_step():
    options = replace(OPTIONS, guidance=1.0)
    drawn = branch(
        ToyGenerator(), read_prompts(ToyGenerator(), TEXTS, options), nothing_known(3, 16), [1, 2, 3], options, 1
    )
    first = next(decode(ToyGenerator(), TEXTS, [1, 2, 3], options))
    assert drawn.index == 0 and torch.equal(drawn.codes, first.codes) and torch.equal(drawn.masked, first.masked)


def test_a_seed_too_few_for_the_branches_is_refused():
    with pytest.raises(ValueError, match="expected 3 x 2 seeds, got 5"):
        branch(ToyGenerator(), None, nothing_known(3, 16), [0] * 5, OPTIONS, 2)

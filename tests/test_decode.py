"""Masked-token decoding on a model small enough to reason about."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from cotlib.decode import DecodeOptions, decode, draw, final, n_masked_after, remask_temperature
from cotlib.seeds import sample_seed


@dataclass
class ToyGenerator:
    """Predicts code (position + number of words) % V, more surely towards the end; no prompt, no opinion."""

    n_tokens: int = 16
    codebook: int = 8

    @property
    def config(self):
        return SimpleNamespace(num_vq_tokens=self.n_tokens)

    def text_ids(self, texts):
        return torch.tensor([[len(t.split())] for t in texts])

    def hidden(self, text, codes, masked):
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
    [{"steps": 3}, {"guidance": 0.0}, {"temperature": 0.0}, {"schedule": "linear"}, {"remask_temperature": "maskgit"}],
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
    drawn = draw(p.log().expand(1000, -1), u)
    assert torch.bincount(drawn, minlength=4).tolist() == pytest.approx([100, 0, 600, 300], abs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"guidance": -1}, ">= 0"),
        ({"schedule": "cosin"}, "unknown schedule"),
        ({"remask_temperature": "x"}, "known: showo, maskgit"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DecodeOptions(**options)


def test_texts_without_seeds_are_refused():
    with pytest.raises(ValueError, match="one seed per text"):
        final(decode(ToyGenerator(), ["a", "b"], [1], OPTIONS))

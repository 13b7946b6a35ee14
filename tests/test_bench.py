"""The plain loop and ours: the same tokens, for any mixture of prompts, from less work."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cotlib import bench
from cotlib.__main__ import main
from cotlib.bench import Comparison, ParmComparison, compare, recorded, reference
from cotlib.decode import DecodeOptions, RecordedNoise, decode, final
from cotlib.parm import Parm
from cotlib.precision import has_bf16
from cotlib.prompts import geneval_prompts, take
from cotlib.showo import BLOCK, PHI_ROPE, Showo, ShowoConfig
from cotlib.words import build_tokenizer

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
CONFIG = ShowoConfig(300, codebook_size=64, num_vq_tokens=16, text_length=129, **SIZES, **PHI_ROPE)
OPTIONS = DecodeOptions(steps=5, guidance=5.0, always_mask_one=True, precision="fp32")
DOG, LONG = "a photo of a dog", "a photo of a dog" + " and a red car" * 12
MIXED = [DOG, LONG, "", "a photo of two cats", DOG]  # blocks of 32, 64, 32, 32, 32


@pytest.fixture(scope="module")
def model() -> Showo:
    torch.manual_seed(0)
    model = Showo(CONFIG, build_tokenizer()).eval()
    for parameter in model.parameters():  # as published weights: nothing is zero, no code is as likely as another
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return model


def test_prompts_of_any_length_in_one_batch_give_the_tokens_of_the_plain_loop(model):
    noise = recorded(0, OPTIONS.steps, len(MIXED), 16, 64)
    together = final(decode(model, MIXED, noise, OPTIONS)).codes
    assert torch.equal(together, reference(model, MIXED, noise, OPTIONS))
    for i, text in enumerate(MIXED):
        own = RecordedNoise(noise.exponential[:, i : i + 1], noise.uniform[:, i : i + 1])
        assert torch.equal(together[i], final(decode(model, [text], own, OPTIONS)).codes[0])


def test_the_prompt_and_its_length_matter(model):
    noise = recorded(0, OPTIONS.steps, 1, 16, 64)
    made = [final(decode(model, [text], noise, OPTIONS)).codes for text in (DOG, LONG, "")]
    assert not torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


@pytest.mark.parametrize(("texts", "columns"), [([DOG], BLOCK), ([DOG, LONG], 2 * BLOCK), (["red " * 126], 129)])
def test_only_the_blocks_of_padding_that_a_prompt_reaches_are_read(model, texts, columns):
    prefix = model.prefix(texts)
    assert prefix.is_seen.shape == (len(texts), columns) and prefix.keys[0].shape[2] == columns
    codes, masked = torch.zeros(len(texts), 16, dtype=torch.long), torch.ones(len(texts), 16, dtype=torch.bool)
    with torch.no_grad():
        whole = model.hidden(model.text_ids(texts), codes, masked)
        assert (model.hidden_after(prefix, codes, masked) - whole).abs().max() < 1e-5


def work_of(decoder, model: Showo, steps: int) -> int:
    """Operations of matrix products, which no busy machine changes. Attention is not counted."""
    noise = recorded(0, steps, 1, model.config.num_vq_tokens, model.config.codebook_size)
    with FlopCounterMode(display=False) as counted:
        decoder(model, [DOG], noise, replace(bench.OPTIONS, steps=steps))
    return counted.get_total_flops()


def test_ours_does_a_third_of_the_work():
    """On an eighth of the benchmark's numbers and vocabulary, so that the network and its head share as they do there.

    3.0 in 4 steps, 3.1 in 18, for what a prompt costs comes once; 2.8 if its padding were read.
    """
    sizes = {"hidden_size": 64, "intermediate_size": 256, "codebook_size": 1024, "llm_vocab_size": 6277}
    torch.manual_seed(0)
    model = Showo(replace(bench.CONFIG, **sizes), build_tokenizer()).eval()
    ours = work_of(lambda *request: final(decode(*request)), model, 4)
    assert work_of(reference, model, 4) > 2.95 * ours


def test_a_comparison_times_all_three_and_counts_tokens_that_differ(monkeypatch):
    options = replace(OPTIONS, steps=2)
    same = compare(CONFIG, options, rounds=2)
    assert same.n_different == 0 and same.n_tokens == 32
    timed = (same.reference, same.fp32, *([same.bf16] if has_bf16() else []))
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in timed)
    monkeypatch.setattr(
        Showo, "head", lambda self, hidden: -torch.nn.functional.linear(hidden, self.showo.lm_head.weight[310:374])
    )
    assert compare(CONFIG, options, rounds=1).n_different > 0


def test_the_ratio_is_the_median_of_the_rounds():
    compared = Comparison(
        reference=[6.0, 8.0, 9.0], fp32=[2.0, 2.0, 9.0], bf16=[1.0, 1.0, 1.0], n_different=0, n_tokens=3
    )
    assert compared.ratios == {"speed/decode-ratio": 3.0, "speed/decode-ratio-bf16": 8.0}


@pytest.mark.parametrize(("n_different", "code"), [(0, 0), (1, 3)])
def test_the_command_prints_ratios_of_equal_tokens_only(monkeypatch, capsys, n_different, code):
    monkeypatch.setattr(bench, "compare", lambda rounds: Comparison([6.0], [2.0], [1.0], n_different, 256))
    monkeypatch.setattr(bench, "compare_parm", lambda: ParmComparison(8.0, 2.0, []))
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--rounds", "1"])
    said = capsys.readouterr()
    assert ended.value.code == code
    assert ("speed/parm-ratio: 4.00" in said.out) == (code == 0)
    assert ("speed/decode-ratio: 3.00" in said.out) == (code == 0) == ("1 of 256 tokens differ" not in said.err)


# --- The search ---


def test_the_released_shape_chooses_what_the_search_chooses_and_reads_more(model):
    """In float32, where the plain loop draws the same tokens: equal choices from less work."""
    prompts = take(geneval_prompts(), 1)[:2]
    pseudo = lambda pictures, prompts: [float(p.sum() % 97) / 97 for p in pictures]  # noqa: E731
    asked = {"clarity": 0, "potential": 0, "outcome": 0}

    def counted(name):
        def score(pictures, prompts):
            asked[name] += len(pictures)
            return pseudo(pictures, prompts)

        return score

    judge = Parm(*(counted(name) for name in asked))
    options = replace(OPTIONS, steps=4, always_mask_one=False)
    compared = bench.compare_search(model, model, prompts, 5, options, lambda codes: codes.numpy(), judge)
    assert all(a == b for a, b in compared.chosen) and len({a for a, _ in compared.chosen}) == 2
    # Both ask about clarity three times a path (clear after step 2 of 0..3), potential once, the outcome of half.
    assert asked == {"clarity": 2 * 2 * 5 * 3, "potential": 2 * 2 * 5, "outcome": 2 * 2 * 5 // 2}
    assert compared.reference > compared.ours > 0 and compared.ratio == compared.reference / compared.ours


def test_a_prescribed_judge_is_asked_and_says_clear_at_its_step_and_every_other_path_promising():
    seen = []
    asked = Parm(*[lambda pictures, prompts: seen.append(len(pictures)) or [0.1] * len(pictures)] * 3)
    judge = bench.prescribed(asked, clear=1)
    pictures, prompts = torch.zeros(3, 4), take(geneval_prompts(), 1)[:3]
    assert judge.clarity(pictures, prompts) == [0.0] * 3 and judge.clarity(pictures, prompts) == [1.0] * 3
    assert judge.potential(pictures, prompts) == [1.0, 0.0, 1.0] and judge.potential(pictures, prompts)[0] == 0.0
    assert judge.outcome(pictures, prompts) == [0.1] * 3 and seen == [3] * 5

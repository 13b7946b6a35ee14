"""Masked-image DPO on a tiny Show-o: pairs, inputs, loss and gradients, guidance, resuming, files."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from cotlib import preference
from cotlib.decode import DecodeOptions
from cotlib.errors import CotlibError, ForeignError
from cotlib.losses import LossOptions, dpo_loss, image_logps
from cotlib.preference import (
    Guide,
    MaskedDPOTrainer,
    MaskedPairs,
    PreferenceOptions,
    align,
    preference_pairs,
    split_pairs,
)
from cotlib.prompts import training_prompts
from cotlib.search import Pool
from cotlib.showo import Showo, ShowoConfig
from cotlib.words import build_tokenizer

L, V = 16, 8
TEXTS = ("a photo of a red dog", "a photo of two cats", "a photo of a bus left of a tie")
OPTIONS = PreferenceOptions(epochs=2, batch_size=4, learning_rate=3e-3)


@pytest.fixture
def model() -> Showo:
    torch.manual_seed(0)
    words = build_tokenizer()
    config = ShowoConfig(
        len(words), codebook_size=V, num_vq_tokens=L, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    return Showo(config, words).eval()


def pairs(n=12):
    """Chosen pictures have low codes, rejected ones high codes."""
    rng = np.random.default_rng(0)
    return [
        {
            "source": str(i % 3),
            "task": "colors",
            "prompt": TEXTS[i % 3],
            "chosen_codes": rng.integers(0, V // 2, L).tolist(),
            "rejected_codes": rng.integers(V // 2, V, L).tolist(),
        }
        for i in range(n)
    ]


def trainer_of(model, folder, options=OPTIONS, n=12):
    return MaskedDPOTrainer(
        model=model.showo,
        ref_model=copy.deepcopy(model.showo),
        args=replace_bf16(preference._settings(model, options, 3, folder)),
        processing_class=model.tokenizer,
        data_collator=MaskedPairs(model, options),
        train_dataset=preference._dataset(pairs(n), options, 1, 0),
    )


def replace_bf16(settings):
    return replace(settings, bf16=False)


# --- Pairs ---


def pool_of(labels):
    prompts = training_prompts(1, 1)[: len(labels)]
    rng = np.random.default_rng(0)
    paths = {
        p.id: rng.integers(0, V, (len(row), 2, L)).astype(np.int16) for p, row in zip(prompts, labels, strict=True)
    }
    labelled = zip(prompts, labels, strict=True)
    return Pool(prompts, paths), {p.id: {"asked": [p.text], "right": [[x] for x in row]} for p, row in labelled}


def test_a_pair_is_a_right_and_a_wrong_picture_and_one_sided_prompts_have_none():
    pool, labels = pool_of([[True, False, False, True], [True] * 4, [False] * 4, [False, True, False, False]])
    made = preference_pairs(pool, labels, seed=0)
    assert [p["prompt"] for p in made] == [pool.prompts[0].text, pool.prompts[3].text]
    assert made[1]["chosen_codes"] == pool.codes[pool.prompts[3].id][1].tolist()
    assert preference_pairs(pool, labels, 0) == made
    many = preference_pairs(pool, labels, 0, per_prompt=9)
    assert len(many) == 3  # two of each kind in the first prompt, one right picture in the last
    used = [tuple(p[side]) for p in many for side in ("chosen_codes", "rejected_codes")]
    assert len(set(used)) == len(used)
    assert sum(preference.count_pairs(many).values()) == 3


def test_what_is_wrong_for_its_prompt_is_chosen_for_the_one_that_it_shows():
    pool, labels = pool_of([[False, False, False]])
    (prompt,) = pool.prompts
    labels[prompt.id] = {"asked": [prompt.text, "another", "a third"], "right": [[0, 1, 0], [0, 0, 0], [0, 1, 0]]}
    made = preference_pairs(pool, labels, seed=0, per_prompt=4)
    assert [(p["source"], p["prompt"]) for p in made] == [(prompt.id, "another")]
    assert made[0]["rejected_codes"] == pool.codes[prompt.id][1].tolist()
    assert preference_pairs(pool, labels, seed=0, per_prompt=4, neighbours=False) == []


def test_pairs_of_a_prompt_are_held_out_together():
    train, held = split_pairs(pairs(30), held_out=0.34)
    assert train and held and not {p["source"] for p in train} & {p["source"] for p in held}
    assert split_pairs(pairs(1)) == (pairs(1), [])


# --- Inputs ---


def test_both_pictures_of_a_pair_share_mask_and_caption_unless_asked_otherwise(model):
    options = replace(OPTIONS, caption_dropout=0.5)
    rows = preference._dataset(pairs(), options, 1, 0).to_list()
    shared = MaskedPairs(model, options)(rows)
    chosen, rejected = shared["completion_mask"].chunk(2)
    assert torch.equal(chosen, rejected) and chosen.sum(1).min() >= 1
    T = model.config.text_length
    text = shared["input_ids"][:, :T]
    assert torch.equal(*text.chunk(2)) and len({tuple(row) for row in text.tolist()}) == 4  # three texts and none
    apart = MaskedPairs(model, replace(options, mask_sharing="independent"))(rows)
    assert torch.equal(apart["completion_mask"].chunk(2)[0], chosen)
    assert not torch.equal(*apart["completion_mask"].chunk(2))


def test_labels_are_the_true_tokens_where_the_input_is_masked(model):
    rows = preference._dataset(pairs(), OPTIONS, 1, 0).to_list()
    inputs = MaskedPairs(model, OPTIONS)(rows)
    is_masked = inputs["input_ids"] == model.config.mask_id
    assert torch.equal(is_masked, inputs["shift_labels"] != -100)
    codes = torch.tensor([r[s] for s in ("chosen_codes", "rejected_codes") for r in rows]) + model.config.image_offset
    image = slice(model.config.text_length + 1, -1)
    assert torch.equal(inputs["shift_labels"][:, image][is_masked[:, image]], codes[is_masked[:, image]])


# --- Loss and gradients ---


def plain_dpo(policy, reference, batch, beta, per_token=False, sft_weight=0.0):
    """Written from the formula: sums of log-softmax at the labelled positions, Eq. 7 of arXiv:2305.18290."""
    n_masked = (batch["shift_labels"] != -100).sum(1)

    def log_probs(model):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        labels = batch["shift_labels"]
        each = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != -100)
        return each.sum(1) / (n_masked if per_token else 1)

    (pc, pr), (rc, rr) = log_probs(policy).chunk(2), log_probs(reference).detach().chunk(2)
    sft = -pc.sum() / n_masked.chunk(2)[0].sum() if sft_weight else 0.0
    return -F.logsigmoid(beta * ((pc - rc) - (pr - rr))).mean() + sft_weight * sft


def held_to_official(model, policy, reference, batch, beta):
    T, labels = model.config.text_length, batch["shift_labels"]
    rows = pairs()
    codes = torch.tensor([row[side] for side in ("chosen_codes", "rejected_codes") for row in rows])
    masked = labels[:, T + 1 : -1] != -100
    log_ps = []
    for phi in (policy, reference):
        other = copy.copy(model)
        other._modules = {**model._modules, "showo": phi}
        both = image_logps(other, batch["input_ids"][:, :T], codes, masked, LossOptions(vocabulary="full"))
        log_ps += both.detach().chunk(2)
    return dpo_loss(*log_ps, beta)[0].mean()


@pytest.mark.parametrize(
    "options",
    [{}, {"mask_sharing": "independent"}, {"beta": 0.5, "per_token": True}, {"sft_weight": 0.3}],
    ids=str,
)
def test_loss_and_gradients_are_those_of_the_formula(model, tmp_path, options):
    options = replace(OPTIONS, **options)
    plain, reference = copy.deepcopy(model.showo), copy.deepcopy(model.showo)
    for p in reference.parameters():
        p.data += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    trainer = trainer_of(model, tmp_path, options)
    trainer.ref_model.load_state_dict(reference.state_dict())
    batch = trainer.data_collator(trainer.train_dataset.to_list())
    loss = trainer.compute_loss(trainer.model, {k: v for k, v in batch.items()})
    wanted = plain_dpo(plain, reference, batch, options.beta, options.per_token, options.sft_weight)
    assert torch.allclose(loss, wanted, atol=1e-5)
    if not options.per_token and not options.sft_weight:  # the losses that are held to the official code's
        assert torch.allclose(loss, held_to_official(model, plain, reference, batch, options.beta), atol=1e-5)
    loss.backward()
    wanted.backward()
    ours = {n: p.grad for n, p in trainer.model.named_parameters()}
    for name, p in plain.named_parameters():
        if p.grad is not None:
            assert torch.allclose(ours[name], p.grad, atol=1e-5), name
    assert max(p.grad.abs().max() for p in plain.parameters() if p.grad is not None) > 1e-3


def test_the_loss_is_the_same_whatever_the_attention(model, tmp_path):
    losses, logs = {}, {}
    for attention in ("sdpa", "eager"):
        mine = copy.deepcopy(model)
        mine.showo.set_attn_implementation(attention)
        trainer = trainer_of(mine, tmp_path)
        batch = trainer.data_collator(trainer.train_dataset.to_list())
        trainer.ref_model.lm_head.weight.data *= 1.5
        losses[attention] = trainer.compute_loss(trainer.model, batch).item()
        mine = copy.deepcopy(model)
        mine.showo.set_attn_implementation(attention)
        logs[attention] = align(mine, pairs(), [], OPTIONS, tmp_path / attention).log
    assert losses["eager"] == pytest.approx(losses["sdpa"], abs=1e-5) and losses["sdpa"] != pytest.approx(
        0.6931, abs=1e-3
    )
    assert logs["eager"][0]["logps/chosen"] == pytest.approx(logs["sdpa"][0]["logps/chosen"], rel=1e-2)  # in bfloat16
    assert all(np.isfinite(value) for record in logs["eager"] for value in record.values())


def test_training_prefers_what_was_chosen_also_on_held_out_pairs(model, tmp_path):
    before = torch.get_rng_state()
    aligned = align(model, pairs(24), pairs(6), replace(OPTIONS, epochs=4), tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    assert aligned.log[-1]["loss"] < aligned.log[0]["loss"] and aligned.log[-1]["rewards/margins"] > 0
    assert aligned.pair_accuracy > 0.9
    assert not model.training and "forward" not in model.showo.__dict__


def test_adapters_are_merged_and_the_aligned_copy_reloads_in_the_official_layout(model, tmp_path):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    align(model, pairs(), [], replace(OPTIONS, lora_rank=2, learning_rate=1e-2), tmp_path / "run")
    assert set(model.state_dict()) == set(before)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all("self_attn" in k or "mlp" in k for k in changed)
    model.save_pretrained(tmp_path / "saved")
    again = Showo.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())


def test_a_killed_training_goes_on_and_ends_alike(model, tmp_path, monkeypatch):
    whole, options = copy.deepcopy(model), replace(OPTIONS, epochs=4)
    log = align(whole, pairs(), [], options, tmp_path / "whole").log

    class Killed(BaseException):
        pass

    def dies(n, seen=[]):  # noqa: B006
        seen.append(n)
        if len(seen) == 8:
            raise Killed

    torn = copy.deepcopy(model)
    with pytest.raises(Killed):
        align(torn, pairs(), [], options, tmp_path / "torn", advance=dies)
    resumed, steps = copy.deepcopy(model), []
    again = align(resumed, pairs(), [], options, tmp_path / "torn", advance=steps.append).log
    assert 0 < len(steps) < 12  # it did not begin anew
    assert [r["loss"] for r in again] == pytest.approx([r["loss"] for r in log], abs=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


# --- Guidance ---


def guide_of(model, guidance="policy-gradient", prompts=None):
    def likes_low_codes(pictures, prompts):
        return [float((picture < V // 2).mean()) for picture in pictures]

    options = replace(OPTIONS, guidance=guidance, n_guided_prompts=2, n_guided_images=8)
    prompts = prompts or training_prompts(1, 1)[:2]
    return Guide(model, prompts, lambda codes: codes.numpy(), likes_low_codes, DecodeOptions(steps=3), options)


def test_guidance_has_a_gradient_that_raises_what_the_verifier_likes(model):
    guide = guide_of(model)
    text, codes = model.text_ids([guide.prompts[0].text] * V), torch.arange(V)[:, None].expand(V, L)

    def liked_and_disliked():
        """By how much liked codes are likelier than disliked ones, and how likely those are: mean log p."""
        with torch.no_grad():
            log_p = image_logps(model, text, codes, torch.ones(V, L, dtype=torch.bool)) / L
        return float(log_p[: V // 2].mean() - log_p[V // 2 :].mean()), float(log_p[V // 2 :].mean())

    before, optimizer = liked_and_disliked(), torch.optim.SGD(model.parameters(), 1.0)
    for step in range(8):
        optimizer.zero_grad()
        guide.loss(step).backward()
        optimizer.step()
    after = liked_and_disliked()
    assert after[0] > before[0] + 0.5 and after[1] < before[1] - 0.05
    assert np.mean(guide.rewards[-3:]) > np.mean(guide.rewards[:3])


def test_the_released_guidance_has_none(model):
    loss = guide_of(model, "detached").loss(0)
    assert loss > 0 and not loss.requires_grad


def test_a_picture_that_is_liked_no_more_than_the_others_of_its_prompt_changes_nothing(model):
    guide = guide_of(model)
    guide.score = lambda pictures, prompts: [0.7] * len(pictures)
    guide.loss(0).backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-6 for p in model.parameters())


def test_guided_alignment_adds_its_term_and_detached_does_not_change_the_weights(model, tmp_path):
    ends = {}
    for guidance in ("none", "detached", "policy-gradient"):
        mine = copy.deepcopy(model)
        guide = None if guidance == "none" else guide_of(mine, guidance)
        aligned = align(mine, pairs(), [], replace(OPTIONS, guidance=guidance), tmp_path / guidance, guide=guide)
        ends[guidance] = (mine, aligned)
    same = zip(ends["none"][0].parameters(), ends["detached"][0].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    other = zip(ends["none"][0].parameters(), ends["policy-gradient"][0].parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in other)
    assert len(ends["policy-gradient"][1].rewards) == 6


def test_a_guided_gradient_is_that_of_both_terms(model, tmp_path, monkeypatch):
    """Though they are computed one after the other, to fit into memory."""
    first, clip = {}, Accelerator.clip_grad_norm_

    def followed(self, parameters, *limits):
        parameters = list(parameters)
        first.setdefault(guidance, [p.grad.clone() for p in parameters])
        return clip(self, parameters, *limits)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", followed)
    for guidance in ("none", "policy-gradient"):
        mine = copy.deepcopy(model)
        guide = None if guidance == "none" else guide_of(mine)
        align(mine, pairs(), [], replace(OPTIONS, guidance=guidance), tmp_path / guidance, guide=guide)
    (OPTIONS.guidance_weight * guide_of(model).loss(0)).backward()
    for p, alone, both in zip(model.parameters(), first["none"], first["policy-gradient"], strict=True):
        assert torch.allclose(alone + p.grad, both, rtol=1e-4, atol=1e-6)
    assert sum(float(p.grad.abs().sum()) for p in model.parameters()) > 0.01


def test_a_killed_guided_training_goes_on_with_its_rewards(model, tmp_path):
    def trained(folder, advance=lambda n: None):
        mine = copy.deepcopy(model)
        return align(mine, pairs(), [], options, folder, guide=guide_of(mine), advance=advance).rewards

    class Killed(BaseException):
        pass

    def dies(n, seen=[]):  # noqa: B006
        seen.append(n)
        if len(seen) == 8:
            raise Killed

    options, steps = replace(OPTIONS, epochs=4, guidance="policy-gradient"), []
    with pytest.raises(Killed):
        trained(tmp_path / "torn", dies)
    resumed = trained(tmp_path / "torn", steps.append)
    assert 0 < len(steps) < 12 and len(resumed) == 12
    assert resumed == pytest.approx(trained(tmp_path / "whole"), abs=1e-6)


# --- What is refused ---


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"mask_sharing": "both"}, "known: shared, independent"),
        ({"guidance": "reward"}, "known: none, policy-gradient, detached"),
        ({"beta": 0.0}, "beta must be positive"),
        ({"epochs": 0}, "epochs must be positive"),
        ({"caption_dropout": 1.0}, "below 1"),
        ({"guidance": "policy-gradient", "n_guided_images": 1}, "at least 2"),
    ],
)
def test_options_that_make_no_sense(bad, said):
    with pytest.raises(ValueError, match=said):
        PreferenceOptions(**bad)


def test_no_usable_pair(model, tmp_path):
    with pytest.raises(ValueError, match="all right or all wrong"):
        align(model, [], [], OPTIONS, tmp_path)


def test_pairs_of_another_tokenizer_and_a_reference_of_another_vocabulary(model, tmp_path):
    foreign = [{**pairs(1)[0], "rejected_codes": [V] * L}]
    with pytest.raises(ForeignError, match=f"pair 0, rejected_codes: expected {L} codes of 0..{V - 1}"):
        align(model, foreign, [], OPTIONS, tmp_path)
    other = Showo(replace(model.config, codebook_size=2 * V), model.tokenizer)
    with pytest.raises(ForeignError, match="reference has a vocabulary"):
        align(model, pairs(), [], OPTIONS, tmp_path, reference=other)


def test_guidance_without_a_verifier(model, tmp_path):
    with pytest.raises(ValueError, match="needs a guide"):
        align(model, pairs(), [], replace(OPTIONS, guidance="detached"), tmp_path)


def test_a_loss_that_is_no_number_stops_the_training_and_names_the_batch(model, tmp_path):
    model.showo.lm_head.weight.data[0] = torch.nan
    with pytest.raises(CotlibError, match="loss is nan in the batch of step 1"):
        align(model, pairs(), [], OPTIONS, tmp_path)

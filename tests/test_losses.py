"""Masks, losses and gradients against those of the official training code, and each difference from it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_parity import FIXTURES, TINY, L, error

from cotlib.losses import (
    AS_RELEASED,
    OURS,
    Draws,
    LossOptions,
    dpo_loss,
    draw,
    draw_pair,
    image_logps,
    masked_nll,
    token_logps,
)
from cotlib.showo import Showo

CASES = json.loads((FIXTURES / "train_losses.json").read_text())
NAMES = ("timestep_rand", "perm_rand", "dropout_rand")
TOLERANCE = 1e-6  # issue 5 asks for 1e-4


def load(tmp_path: Path, weights: str) -> Showo:
    (tmp_path / "config.json").write_text(json.dumps(TINY["showo_config"]))
    (tmp_path / "model.safetensors").write_bytes((FIXTURES / weights).read_bytes())
    return Showo.from_pretrained(tmp_path, FIXTURES / "tokenizer_tiny", TINY["max_seq_length"])


@pytest.fixture
def policy(tmp_path) -> Showo:
    return load(tmp_path, "showo_tiny.safetensors")


@pytest.fixture
def reference(tmp_path) -> Showo:
    (tmp_path / "ref").mkdir()
    return load(tmp_path / "ref", "showo_tiny_ref.safetensors")


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / "train_losses.safetensors")


def batch(model: Showo, official: dict, prefix: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Text, codes and mask made of the recorded random numbers; prefix "t2i.", "dpo.chosen_" or "dpo.rejected_"."""
    draws = Draws(*(official[prefix + name] for name in NAMES))
    prompts = CASES[prefix.partition(".")[0]]["prompts"]
    said = ["" if dropped else prompt for prompt, dropped in zip(prompts, draws.dropped, strict=True)]
    return model.text_ids(said), official[prefix + "codes"], draws.masked


# --- Against the official code ---


@pytest.mark.parametrize("prefix", ["t2i.", "dpo.chosen_", "dpo.rejected_"])
def test_recorded_draws_give_the_official_sequences_and_labels(policy, official, prefix):
    text, codes, masked = batch(policy, official, prefix)
    assert torch.equal(policy.sequence(text, codes, masked), official[prefix + "input_ids"])
    labels = official[prefix + "labels"][:, text.shape[1] :]  # of what upstream's loss looks at
    truth = policy.sequence(text[:, :0], codes, torch.zeros_like(masked))
    _, counts = token_logps(policy, text, codes, masked, AS_RELEASED)
    assert torch.equal(truth.masked_fill(~counts, -100), labels)


def test_the_text_to_image_loss_and_its_gradients_are_the_official_ones(policy, official):
    text, codes, masked = batch(policy, official, "t2i.")
    assert masked.sum(-1).tolist() == CASES["t2i"]["masked_per_row"]
    loss = masked_nll(policy, text, codes, masked, AS_RELEASED)
    assert error(loss.detach(), official["t2i.loss"]) < TOLERANCE
    loss.backward()
    check_gradients(policy, official, "t2i.grad.")


def check_gradients(model: Showo, official: dict, prefix: str) -> None:
    gradients = {name.removeprefix(prefix): grad for name, grad in official.items() if name.startswith(prefix)}
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert len(gradients) >= 4 and set(gradients) <= set(ours)
    for name, theirs in gradients.items():
        assert float(theirs.abs().max()) > 1e-6 and error(ours[name], theirs) < TOLERANCE, name


@pytest.fixture
def logps(policy, reference, official) -> dict[str, torch.Tensor]:
    """By "policy_chosen" and so on, with gradients of the policy."""
    found = {}
    for side in ("chosen", "rejected"):
        inputs = batch(policy, official, f"dpo.{side}_")
        found[f"policy_{side}"] = image_logps(policy, *inputs, AS_RELEASED)
        with torch.no_grad():
            found[f"reference_{side}"] = image_logps(reference, *inputs, AS_RELEASED)
    return found


def test_log_probabilities_are_the_official_ones(logps, official):
    for name, ours in logps.items():
        assert error(ours.detach(), official[f"dpo.{name}_logps"]) < 2e-5, name


def test_the_dpo_loss_and_its_gradients_are_the_official_ones(policy, logps, official):
    losses, chosen, rejected = dpo_loss(**logps, beta=CASES["dpo"]["beta"])
    assert error(losses.detach(), official["dpo.losses"]) < 4e-6  # a tenth of the error of sums of about 100
    assert error(losses.detach().mean(), official["dpo.loss"]) < 4e-6
    assert error((chosen - rejected) / CASES["dpo"]["beta"], official["dpo.pair_logit"]) < 4e-5
    assert not chosen.requires_grad and not rejected.requires_grad
    losses.mean().backward()
    check_gradients(policy, official, "dpo.grad.")
    assert sum(name.startswith("dpo.grad.") for name in official) == len(list(policy.parameters()))


def test_with_another_beta_and_the_supervised_term_it_is_the_official_sum(policy, logps, official):
    sft = masked_nll(policy, *batch(policy, official, "dpo.chosen_"), AS_RELEASED)
    assert error(sft.detach(), official["dpo.sft_loss"]) < TOLERANCE
    both = dpo_loss(**logps, beta=2.0)[0].mean() + 0.5 * sft
    assert error(both.detach(), official["dpo.loss_beta2_sft0.5"]) < 1e-4  # a sum of about 100 to 2e-5, times beta


@pytest.mark.parametrize("options", [OURS, AS_RELEASED])
def test_the_loss_does_not_depend_on_the_attention_kernel(policy, official, options):
    inputs = batch(policy, official, "t2i.")
    with torch.no_grad():
        fused = masked_nll(policy, *inputs, options)
        policy.showo.set_attn_implementation("eager")
        assert error(masked_nll(policy, *inputs, options), fused) < 1e-5


# --- Differences from upstream ---


def by_hand(model, text, codes, masked, rows: slice) -> torch.Tensor:
    """log p of every image token [B, L], the softmax over these rows of the vocabulary."""
    allowed = model.attention_mask(text)
    logits = model.showo(model.sequence(text, codes, masked), attention_mask=allowed).logits
    image = logits[:, text.shape[1] + 1 : -1, rows].log_softmax(-1)
    return image.gather(-1, (codes + model.config.image_offset - rows.start)[..., None])[..., 0]


@pytest.mark.parametrize("vocabulary", ["codebook", "full"])
def test_without_edges_only_masked_tokens_count(policy, official, vocabulary):
    text, codes, masked = batch(policy, official, "t2i.")
    config = policy.config
    rows = slice(config.image_offset, config.mask_id) if vocabulary == "codebook" else slice(0, config.vocab_size)
    with torch.no_grad():
        expected = by_hand(policy, text, codes, masked, rows)
        options = LossOptions(vocabulary)
        assert error(masked_nll(policy, text, codes, masked, options), -expected[masked].mean()) < 1e-5
        sums = (expected * masked).sum(-1)
        assert error(image_logps(policy, text, codes, masked, options), sums) < 2e-5


def test_each_option_moves_the_numbers(policy, official):
    inputs = batch(policy, official, "t2i.")
    with torch.no_grad():
        found = [masked_nll(policy, *inputs, o) for o in (OURS, LossOptions("full"), AS_RELEASED)]
    assert found[0] < found[1] - 1e-3  # fewer words to tell apart
    assert abs(found[1] - found[2]) > 1e-3


def test_pairs_share_their_mask_unless_told_otherwise():
    one, other = draw_pair(4, L, torch.Generator().manual_seed(0))
    assert torch.equal(one.masked, other.masked) and torch.equal(one.dropped, other.dropped)
    one, other = draw_pair(4, L, torch.Generator().manual_seed(0), "independent")
    assert one.masked.sum() != other.masked.sum() and not torch.equal(one.dropout, other.dropout)


def test_masks_follow_the_cosine_and_captions_are_dropped_one_time_in_ten():
    draws = draw(4000, L, torch.Generator().manual_seed(0))
    n = draws.masked.sum(-1)
    assert int(n.min()) == 1 and int(n.max()) == L
    assert float(n.float().mean() / L) == pytest.approx(2 / torch.pi, abs=0.02)  # the mean of a cosine
    assert float(draws.masked.float().mean(0).std()) < 0.02  # no place is preferred
    assert float(draws.dropped.float().mean()) == pytest.approx(0.1, abs=0.02)


def test_equal_policies_lose_log_two_and_a_better_chosen_picture_less():
    zero = torch.zeros(2)
    losses, chosen, rejected = dpo_loss(torch.tensor([0.0, 5.0]), zero, zero, zero)
    assert losses[0] == pytest.approx(0.6931472) and losses[1] < losses[0]
    assert chosen.tolist() == [0, 0.5] and rejected.tolist() == [0, 0]


# --- Bad requests ---


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LossOptions("words"), "unknown vocabulary 'words'; known: codebook, full"),
        (lambda: LossOptions(edges=True), "vocabulary must be 'full'"),
        (lambda: draw_pair(1, 4, torch.Generator(), "alike"), "unknown mask_sharing 'alike'"),
        (lambda: dpo_loss(*[torch.zeros(1)] * 4, beta=0.0), "beta must be > 0, got 0.0"),
    ],
)
def test_a_bad_option_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_picture_of_which_nothing_is_masked_is_refused(policy, official):
    text, codes, masked = batch(policy, official, "t2i.")
    masked = masked.clone()
    masked[1] = False
    with pytest.raises(ValueError, match="nothing of picture 1 is masked"):
        image_logps(policy, text, codes, masked)
    with pytest.raises(ValueError, match="a bool mask of that shape"):
        image_logps(policy, text, codes, masked.long())

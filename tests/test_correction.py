"""Self-correction on a tiny Show-o: what it reads, that what it knew stays, groups, training."""

import numpy as np
import pytest
import torch

from cotlib import correction
from cotlib.correction import Corrections, Corrector, Note, able_to_read, correction_groups, correction_text, readable
from cotlib.decode import DecodeOptions, decode
from cotlib.prompts import training_prompts
from cotlib.search import Pool
from cotlib.showo import Showo, ShowoConfig
from cotlib.tuning import TuneOptions
from cotlib.words import build_tokenizer

L, V = 16, 8
DOGS, CAT = "a photo of two dogs", "a photo of a red dog and a blue cat"
REASON = "expected 2 dogs, found 13"


@pytest.fixture
def model() -> Showo:
    torch.manual_seed(0)
    words = build_tokenizer()
    config = ShowoConfig(
        len(words), codebook_size=V, num_vq_tokens=L, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    return Showo(config, words).eval()


def picture(seed, n=2):
    return torch.randint(0, V, (n, L), generator=torch.Generator().manual_seed(seed))


def masks(n=2):
    return torch.rand(n, L, generator=torch.Generator().manual_seed(9)) < 0.5


# --- What is read ---


def test_new_words_change_nothing_that_the_generator_knew(model):
    able = able_to_read(model)
    with pytest.raises(ValueError, match="expected"):
        model.text_ids([correction_text(DOGS, REASON)])
    assert able.text_ids([correction_text(DOGS, REASON)]).shape == (1, correction.TEXT_LENGTH)
    with torch.no_grad():
        before = model(model.text_ids([DOGS, CAT]), picture(0), masks())
        after = able(able.text_ids([DOGS, CAT]), picture(0), masks())
    assert (before - after).abs().max() < 1e-5
    assert len(model.tokenizer) == model.config.llm_vocab_size  # the original is as it was


def test_a_vocabulary_that_holds_the_words_is_kept(model):
    able = able_to_read(model)
    again = able_to_read(able)
    assert again.config == able.config
    assert all(torch.equal(a, b) for a, b in zip(able.parameters(), again.parameters(), strict=True))


def test_the_new_words_survive_the_files(model, tmp_path):
    able = able_to_read(model)
    able.save_pretrained(tmp_path)
    loaded = Showo.from_pretrained(tmp_path)
    text = correction_text("a photo of a kite left of a cat", "expected a kite left of a cat, found it below it")
    assert torch.equal(loaded.text_ids([text]), able.text_ids([text]))


def test_a_correction_read_once_is_the_whole_pass(model):
    able, texts = able_to_read(model), [correction_text(DOGS, REASON), ""]
    inputs = able.correction(able.text_ids(texts), picture(0), masks(), picture(1))
    with torch.no_grad():
        whole = able.showo.model(**inputs, use_cache=False).last_hidden_state[:, -L - 1 : -1]
        read = able.hidden_after(able.prefix(texts, picture(1)), picture(0), masks())
    assert (whole - read).abs().max() < 1e-5


def test_the_picture_to_correct_is_seen_and_an_absent_one_is_not(model):
    def hidden(previous):
        inputs = model.correction(model.text_ids([DOGS, CAT]), picture(0), masks(), previous)
        return model.showo.model(**inputs, use_cache=False).last_hidden_state[:, -L - 1 : -1]

    absent = torch.full((2, L), -1)
    with torch.no_grad():
        plain = model.hidden(model.text_ids([DOGS, CAT]), picture(0), masks())
        assert (hidden(absent) - plain).abs().max() < 1e-5
        assert (hidden(picture(1)) - plain).abs().max() > 1e-3
        mixed = hidden(torch.cat([picture(1)[:1], absent[1:]]))
    assert (mixed[1] - plain[1]).abs().max() < 1e-5
    assert (mixed[0] - plain[0]).abs().max() > 1e-3


def test_a_corrector_reads_the_note_of_each_prompt_with_and_without_its_text(model):
    able = able_to_read(model)
    notes = {DOGS: Note(picture(1)[0], REASON), CAT: Note(picture(1)[1], "")}
    corrector = Corrector(able, notes)
    read = corrector.prefix([CAT, DOGS, "", ""])
    before = picture(1).flip(0).repeat(2, 1)
    expected = able.prefix([correction_text(CAT, ""), correction_text(DOGS, REASON), "", ""], before)
    assert all(torch.equal(a, b) for a, b in zip(read.keys, expected.keys, strict=True))
    assert torch.equal(read.is_seen, expected.is_seen)
    seen = [next(decode(c, [DOGS], [1], DecodeOptions(steps=3))).confidence for c in (corrector, able)]
    assert not torch.equal(*seen)
    with pytest.raises(ValueError, match="no picture of the prompt 'a photo of a tie'"):
        corrector.text_ids(["a photo of a tie"])


def test_faults_that_cannot_be_read_are_left_out(model):
    able = able_to_read(model)
    assert readable(able, DOGS, (REASON, "the dogs look sad", "expected a cat, found none")) == (
        f"{REASON}, expected a cat, found none"
    )
    assert readable(able, DOGS, ("what a mess",)) == ""
    long = readable(able, DOGS, (REASON,) * 9)
    assert REASON in long
    assert able.text_ids([correction_text(DOGS, long)]).shape[1] == correction.TEXT_LENGTH


# --- Groups and training ---


def pool_of(right):
    (prompt,) = training_prompts(1, 1)[:1]
    rng = np.random.default_rng(0)
    pool = Pool((prompt,), {prompt.id: rng.integers(0, V, (len(right), 2, L)).astype(np.int16)})
    reasons = [[[] if r else [f"expected a cat, found {k + 1}"]] for k, r in enumerate(right)]
    return pool, {prompt.id: {"asked": [prompt.text], "right": [[r] for r in right], "reasons": reasons}}


def test_a_wrong_picture_is_grouped_with_its_reason_and_the_right_one_most_like_it():
    pool, labels = pool_of([True, False, True, False])
    (prompt,) = pool.prompts
    path = pool.paths[prompt.id]
    path[3, -1] = path[2, -1]
    path[3, -1, 0] = (path[3, -1, 0] + 1) % V
    groups = correction_groups(pool, labels, seed=0, per_prompt=4)
    assert sorted(g["reasons"] for g in groups) == ["expected a cat, found 2", "expected a cat, found 4"]
    nearest = next(g for g in groups if g["reasons"].endswith("4"))
    assert nearest["rejected_codes"] == path[3, -1].tolist()
    assert nearest["chosen_codes"] == path[2, -1].tolist()
    assert len(correction_groups(pool, labels, 0, per_prompt=1)) == 1
    assert correction_groups(*pool_of([False, False]), 0, 4) == []


def groups(n=8):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, V, (n, L)).tolist()
    return [
        {"prompt": DOGS, "reasons": REASON, "rejected_codes": r, "chosen_codes": [(c + 1) % V for c in r]} for r in rows
    ]


def test_labels_are_the_masked_tokens_of_the_right_picture(model):
    able = able_to_read(model)
    rows = [{**g, "mask_seed": i} for i, g in enumerate(groups(64))]
    batch = Corrections(able)(rows)
    config, labels = able.config, batch["shift_labels"]
    P = L + 2
    image = slice(P + config.text_length + 1, P + config.text_length + 1 + L)
    is_masked = batch["input_ids"][:, image] == config.mask_id
    assert torch.equal(is_masked, labels[:, image] != -100)
    assert (labels != -100).sum() == is_masked.sum()
    right = torch.tensor([g["chosen_codes"] for g in groups(64)]) + config.image_offset
    assert torch.equal(labels[:, image][is_masked], right[is_masked])
    is_plain = ~batch["attention_mask"][:, 0, -1, :P].any(1)  # booleans: the attention is a fused one
    assert 4 <= int(is_plain.sum()) <= 30  # a quarter of 64, give or take


def test_training_learns_what_the_previous_picture_tells(model, tmp_path):
    """The right picture is the wrong one with 1 added to each token: unlearnable without seeing it."""
    options = TuneOptions(epochs=30, batch_size=8, learning_rate=1e-2)
    able, log = correction.learn_to_correct(model, groups(), options, tmp_path)
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), _fresh(model).parameters(), strict=True))
    with pytest.raises(ValueError, match="no examples"):
        correction.learn_to_correct(model, [], options, tmp_path)


def _fresh(model):
    torch.manual_seed(0)
    return Showo(model.config, model.tokenizer)


def test_no_task_drowns_the_others():
    from cotlib.correction import without_glut

    groups = [
        {"task": task, "i": i} for task, n in (("position", 60), ("counting", 10), ("colors", 8)) for i in range(n)
    ]
    kept = without_glut(groups, 0)
    assert {t: sum(g["task"] == t for g in kept) for t in ("position", "counting", "colors")} == {
        "position": 15,
        "counting": 10,
        "colors": 8,
    }
    assert kept == without_glut(groups, 0) and kept == [g for g in groups if g in kept] and without_glut([], 0) == []

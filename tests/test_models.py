"""Generator, tokenizer and detector at tiny random size: layout, masks, files, refusals."""

import json

import numpy as np
import pytest
import torch

from cotlib.errors import CorruptError
from cotlib.pocket.detector import PocketDetector, PocketEvaluator
from cotlib.pocket.tokenizer import PocketTokenizer, psnr
from cotlib.showo import Showo, ShowoConfig
from cotlib.words import build_tokenizer, split


@pytest.fixture(scope="module")
def generator() -> Showo:
    torch.manual_seed(0)
    words = build_tokenizer()
    config = ShowoConfig(
        len(words), codebook_size=32, num_vq_tokens=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return Showo(config, words).eval()


# --- Words ---


def test_class_names_are_single_tokens_and_the_longest_match_wins():
    words = build_tokenizer()
    ids = split(words, "a photo of two hot dogs left of an orange orange and a dog")
    assert words.convert_ids_to_tokens(ids) == [
        *("a photo of", "two", "hot dogs", "left of", "an", "orange", "orange", "and", "a", "dog")
    ]


def test_an_unknown_word_is_named_with_its_nearest():
    with pytest.raises(ValueError, match="'zebar' is outside the pocket vocabulary; nearest known: zebra"):
        split(build_tokenizer(), "a photo of a zebar")


# --- Generator ---


def test_the_sequence_is_show_os(generator):
    config = generator.config
    text = generator.text_ids(["a photo of a dog", ""])
    assert text[1].tolist()[-3:] == [config.special("t2i"), generator.tokenizer.eos_token_id] + [
        generator.tokenizer.eos_token_id
    ]
    assert (text[:, 0] == config.pad_id).all()
    masked = torch.tensor([[True, False, True, False]] * 2)
    ids = generator.sequence(text, torch.zeros(2, 4, dtype=torch.long), masked)
    assert ids[0, -6:].tolist() == [
        config.special("soi"),
        *(config.mask_id, config.image_offset, config.mask_id, config.image_offset),
        config.special("eoi"),
    ]


def test_text_never_sees_the_image_and_nobody_sees_padding(generator):
    text = generator.text_ids(["a photo of a dog"])
    allowed = generator.attention_mask(text)[0, 0]
    T, pads = text.shape[1], int((text == generator.config.pad_id).sum())
    assert not allowed[:T, T:].any()
    assert not allowed[pads:, :pads].any()
    assert allowed[T:, pads:].all()
    assert torch.equal(allowed[pads:T, pads:T], torch.ones(T - pads, T - pads, dtype=torch.bool).tril())


def test_the_prompt_and_the_known_codes_change_the_prediction(generator):
    codes, masked = torch.zeros(1, 4, dtype=torch.long), torch.tensor([[True, True, False, False]])
    with torch.no_grad():
        dog, cat = (generator(generator.text_ids([f"a photo of a {c}"]), codes, masked) for c in ("dog", "cat"))
        other = generator(generator.text_ids(["a photo of a dog"]), codes + 5, masked)
    assert not torch.allclose(dog, cat) and not torch.allclose(dog, other)


def test_image_tokens_after_a_prefix_are_those_of_the_whole_sequence(generator):
    texts = ["a photo of a dog", "", "a photo of two hot dogs", "a photo of a dog"]
    codes, masked = torch.arange(16).view(4, 4), torch.arange(16).view(4, 4) % 3 == 0
    with torch.no_grad():
        whole = generator.hidden(generator.text_ids(texts), codes, masked)
        prefix = generator.prefix(texts)
        first, again = (generator.hidden_after(prefix, codes, masked) for _ in range(2))
    assert torch.allclose(whole, first, atol=1e-5) and torch.equal(first, again)


def test_guidance_on_hidden_states_is_guidance_on_logits(generator):
    a, b = torch.randn(2, 3, generator.config.hidden_size)
    with torch.no_grad():
        assert torch.allclose(
            2.5 * generator.head(a) - 1.5 * generator.head(b), generator.head(2.5 * a - 1.5 * b), atol=1e-5
        )


def test_attention_kernels_agree(generator):
    text, codes = generator.text_ids(["a photo of a dog", ""]), torch.zeros(2, 4, dtype=torch.long)
    with torch.no_grad():
        fused = generator.hidden(text, codes, codes == 0)
        generator.showo.set_attn_implementation("eager")
        eager = generator.hidden(text, codes, codes == 0)
        generator.showo.set_attn_implementation("sdpa")
    assert torch.allclose(fused, eager, atol=1e-5)


def test_a_masked_code_is_not_seen(generator):
    text, masked = generator.text_ids(["a photo of a dog"]), torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        a, b = (generator(text, torch.full((1, 4), k), masked) for k in (0, 7))
    assert torch.equal(a, b)


def test_the_generator_survives_a_round_trip_to_disk(generator, tmp_path):
    generator.save_pretrained(tmp_path)
    again = Showo.from_pretrained(tmp_path)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in generator.state_dict().items())
    assert all(k.startswith("showo.") for k in again.state_dict())


def test_truncated_weights_are_named(generator, tmp_path):
    generator.save_pretrained(tmp_path)
    file = tmp_path / "pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CorruptError, match="pytorch_model.safetensors"):
        Showo.from_pretrained(tmp_path)


def test_a_prompt_that_is_too_long_is_refused(generator):
    with pytest.raises(ValueError, match="at most 13"):
        generator.text_ids(["a photo of a dog" + " and a dog" * 10])


# --- Tokenizer and detector ---


def test_the_same_cell_has_the_same_code_wherever_it_stands():
    torch.manual_seed(0)
    tokenizer = PocketTokenizer(width=32, hidden=32)
    image = np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3), np.uint8)
    moved = np.roll(image, (12, 24), axis=(1, 2))
    codes = tokenizer.encode(image).view(8, 8)
    assert torch.equal(tokenizer.encode(moved).view(8, 8), codes.roll((1, 2), (0, 1)))


def test_codes_are_signs_most_significant_channel_first():
    tokenizer = PocketTokenizer(bits=3, width=32, hidden=32)
    z = torch.tensor([0.5, -1.0, 0.0]).view(1, 3, 1, 1)
    assert tokenizer.quantize(z).item() == 4  # zero counts as negative
    assert tokenizer.signs(torch.tensor([[[4]]])).flatten().tolist() == [1, -1, -1]


@pytest.mark.parametrize("shape", [(1, 64, 64, 3), (96, 96, 3), (1, 96, 96, 4)])
def test_a_picture_of_the_wrong_size_is_refused(shape):
    with pytest.raises(ValueError, match="96, 96, 3"):
        PocketTokenizer(width=32, hidden=32).encode(np.zeros(shape, np.uint8))


def test_mask_tokens_left_in_are_refused():
    with pytest.raises(ValueError, match="were mask tokens left in"):
        PocketTokenizer(width=32, hidden=32).decode(torch.full((1, 64), 4096))


def test_psnr_of_a_known_error():
    a = np.zeros((1, 2, 2, 3), np.uint8)
    assert psnr(a, a + 255) == pytest.approx(0)
    assert psnr(a, a + 1) == pytest.approx(20 * np.log10(255))


def test_of_overlapping_candidates_the_strongest_is_the_one_object():
    evaluator = PocketEvaluator(PocketDetector(width=16, depth=1))
    color = torch.zeros(11, 8, 8)
    color[2, 1:4, 1:4] = 1.0
    scores = {3: torch.zeros(80, 6, 6), 4: torch.zeros(80, 5, 5)}
    scores[3][16, 1, 1], scores[3][16, 1, 2], scores[4][7, 1, 1] = 0.95, 0.6, 0.5
    (only,) = evaluator._objects(color, scores).items()
    assert only[0].cls == "dog" and only[0].box == (12.0, 12.0, 48.0, 48.0) and only[1] == "yellow"


def test_one_prompt_per_picture():
    with pytest.raises(ValueError, match="one prompt per picture"):
        PocketEvaluator(PocketDetector(width=16, depth=1)).evaluate(np.zeros((1, 96, 96, 3), np.uint8), [])


def test_saved_hub_models_carry_their_sizes(tmp_path):
    PocketTokenizer(width=32, hidden=32).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["hidden"] == 32
    assert PocketTokenizer.from_pretrained(tmp_path).codebook_size == 4096

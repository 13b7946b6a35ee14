"""Show-o and its decoding against the official code: same sequences, logits, tokens and masks; files in and out."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from cotlib.decode import (
    DecodeOptions,
    RecordedNoise,
    decode,
    final,
    given,
    n_masked_after,
    remask_temperature,
)
from cotlib.errors import CorruptError, ForeignError, IncompleteError
from cotlib.magvit import Magvit, MagvitConfig
from cotlib.showo import PHI_ROPE, PHI_SIZES, Showo, ShowoConfig
from cotlib.words import build_tokenizer

FIXTURES = Path(__file__).parent / "fixtures" / "showo"
TINY = json.loads((FIXTURES / "showo_tiny.json").read_text())
TRACES = json.loads((FIXTURES / "sampling.json").read_text())
MORE = json.loads((FIXTURES / "sampling_more.json").read_text())
PROMPTS = TRACES["A"]["prompts"]
L = TINY["num_vq_tokens"]
OFFSET, MASK = TINY["code_offset"], TINY["mask_token_id"]
pytestmark = pytest.mark.filterwarnings("ignore:prompt .* does not read the rest")


@pytest.fixture
def snapshot(tmp_path) -> Path:
    """A folder as published: weights under Show-o's name, a config without Phi's sizes, a text tokenizer beside it."""
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "Showo", **TINY["showo_config"]}))
    shutil.copy(FIXTURES / "showo_tiny.safetensors", tmp_path / "pytorch_model.safetensors")
    shutil.copytree(FIXTURES / "tokenizer_tiny", tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Showo:
    folder = tmp_path_factory.mktemp("showo")
    (folder / "config.json").write_text(json.dumps(TINY["showo_config"]))
    shutil.copy(FIXTURES / "showo_tiny.safetensors", folder / "model.safetensors")
    return Showo.from_pretrained(folder, tokenizer=FIXTURES / "tokenizer_tiny", max_seq_length=TINY["max_seq_length"])


@pytest.fixture(scope="module")
def forward() -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / "showo_forward.safetensors")


def codes_of(image_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Official image ids [..., L] -> codes, masked."""
    masked = image_ids == MASK
    return (image_ids - OFFSET).masked_fill(masked, 0), masked


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


# --- Sequences and network ---


def test_prompts_are_laid_out_as_in_the_official_code(model, forward):
    text = model.text_ids(TINY["prompts"])  # short, medium, empty, too long, repeated
    codes, masked = codes_of(forward["prompt.image_ids"])
    assert torch.equal(model.sequence(text, codes, masked), forward["prompt.t2i_gen.input_ids"])
    assert torch.equal(model.sequence(text, codes, masked), forward["prompt.t2i_train_keep.input_ids"])
    nothing = model.text_ids([""] * 5)
    assert torch.equal(model.sequence(nothing, codes, masked), forward["prompt.t2i_train_drop.input_ids"])


def test_a_prompt_cut_short_is_told(model):
    with pytest.warns(UserWarning, match="has 20 tokens; this generator takes at most 10 and does not read the rest"):
        model.text_ids(TINY["prompts"])


@pytest.mark.parametrize("token", ["<|soi|>", "<|t2i|>", "[PAD]", "<|endoftext|>"])
def test_the_text_of_a_special_token_is_refused(model, token):
    with pytest.raises(ValueError, match="is no text but a special token"):
        model.text_ids([f"w1 {token} w2"])


@pytest.fixture(scope="module")
def batch(model, forward) -> tuple:
    """The ten rows of classifier-free guidance: prompts, then empty ones."""
    codes, masked = codes_of(forward["fwd_t2i_cfg.input_ids"][:, -L - 1 : -1])
    return [*TINY["prompts"], *[""] * 5], codes, masked


def test_logits_and_hidden_states_are_the_official_ones(model, forward, batch):
    texts, codes, masked = batch
    text = model.text_ids(texts)
    image, columns = slice(-L - 1, -1), slice(OFFSET, MASK)
    with torch.no_grad():
        assert torch.equal(model.attention_mask(text), forward["fwd_t2i_cfg.attention_mask_bool"])
        assert error(model(text, codes, masked), forward["fwd_t2i_cfg.logits"][:, image, columns]) < 1e-5
        assert error(model.hidden(text, codes, masked), forward["fwd_t2i_cfg.hidden_2"][:, image]) < 1e-5


def test_a_prompt_read_once_gives_the_official_logits(model, forward, batch):
    texts, codes, masked = batch
    with torch.no_grad():
        hidden = model.hidden_after(model.prefix(texts), codes, masked)
        assert error(hidden, forward["fwd_t2i_cfg.hidden_2"][:, -L - 1 : -1]) < 1e-5
        assert error(model.head(hidden), forward["fwd_t2i_cfg.logits"][:, -L - 1 : -1, OFFSET:MASK]) < 1e-5


@pytest.mark.parametrize("name", ["t2i_cfg", "lm", "mmu", "causal_nomask"])
def test_the_stock_backbone_is_the_official_one(model, forward, name):
    ids, mask = forward[f"fwd_{name}.input_ids"], forward.get(f"fwd_{name}.attention_mask_additive")
    with torch.no_grad():
        logits = model.showo(ids, attention_mask=None if mask is None else mask == 0).logits
    assert error(logits, forward[f"fwd_{name}.logits"]) < 1e-5


# --- Decoding ---


def options_of(case: dict, **change) -> DecodeOptions:
    names = DecodeOptions.__dataclass_fields__
    return DecodeOptions(**{k: v for k, v in case.items() if k in names}, precision="fp32", **change)


@pytest.mark.parametrize("name", TRACES)
def test_under_recorded_noise_every_token_and_mask_is_the_official_one(model, name):
    trace, case = load_file(FIXTURES / f"sampling_{name}.safetensors"), TRACES[name]
    options = options_of(case, always_mask_one=True)
    steps = list(decode(model, case["prompts"], RecordedNoise(trace["exp_noise"], trace["uniform_noise"]), options))
    assert torch.equal(torch.stack([s.codes for s in steps], 1), trace["step_sampled_ids"])
    masked = torch.stack([s.masked for s in steps])
    assert torch.equal(masked, trace["masking"])
    assert torch.equal(masked.sum(-1, keepdim=True), trace["mask_len"].long())
    assert torch.equal(steps[-1].codes, trace["final_ids"])
    assert [remask_temperature(s, options) for s in range(options.steps)] == trace["temperature"].tolist()
    assert error(torch.stack([s.confidence for s in steps]), trace["selected_probs"].clamp(max=1)) < 1e-5


def run_more(model, name, **change):
    trace = {k.split(".")[1]: v for k, v in load_file(FIXTURES / "sampling_more.safetensors").items() if name in k}
    start = given(*codes_of(trace["image_ids"][0]))
    noise = RecordedNoise(trace["exp_noise"], trace["uniform_noise"])
    return list(decode(model, PROMPTS, noise, options_of(MORE[name], **change), start)), trace


@pytest.mark.parametrize("name", MORE)
def test_so_it_is_in_the_corners(model, name):
    steps, trace = run_more(model, name, always_mask_one=True)
    codes, masked = codes_of(trace["image_ids"][1:])
    assert torch.equal(torch.stack([s.masked for s in steps]), masked)
    assert torch.equal(torch.stack([s.codes.masked_fill(s.masked, 0) for s in steps]), codes)
    assert torch.equal(steps[-1].codes, trace["final_ids"])


@pytest.mark.parametrize("name", [name for name in MORE if name != "nothing_unknown"])
def test_without_the_quirk_only_the_last_mask_differs(model, name):
    steps, trace = run_more(model, name)
    assert torch.equal(torch.stack([s.masked for s in steps[:-1]]), codes_of(trace["image_ids"][1:-1])[1])
    assert torch.equal(steps[-1].codes, trace["final_ids"]) and not steps[-1].masked.any()


def test_a_finished_picture_stays_as_it_is_unless_the_quirk_is_asked_for(model):
    steps, trace = run_more(model, "nothing_unknown")
    before, _ = codes_of(trace["image_ids"][0, 0])
    assert all(torch.equal(s.codes[0], before) for s in steps)
    assert not torch.equal(trace["final_ids"][0], before)


def test_the_schedules_leave_as_many_tokens_as_the_official_ones():
    tables = json.loads((FIXTURES / "schedules.json").read_text())
    for name, table in tables["raw_mask_len_floor(N*schedule(ratio)) before clamping"].items():
        schedule, n_tokens, steps = name.split("/")
        n_tokens, steps = int(n_tokens[1:]), int(steps[1:])
        ours = [n_masked_after(s, steps, n_tokens, schedule) for s in range(steps)]
        assert ours == [max(0, n) for n in table], name
    ours = [remask_temperature(s, DecodeOptions(steps=18)) for s in range(18)]
    assert ours == tables["temperature_18_steps_T0=1"]


def test_carried_over_the_temperature_is_that_of_the_released_loop():
    loops = json.loads((FIXTURES / "parm_loop_stats.json").read_text())
    for loop in (loops["parm"], loops["orm"]):
        options = DecodeOptions(steps=loop["steps"], remask_temperature="upstream-carry")
        for candidate, temperatures in enumerate(loop["temps_per_candidate"]):
            assert [remask_temperature(s, options, candidate) for s in range(8)] == temperatures


def test_carried_over_the_first_candidate_is_as_ever_and_the_others_are_without_noise(model):
    carried, reset = (DecodeOptions(remask_temperature=t, precision="fp32") for t in ("upstream-carry", "showo"))
    texts, seeds = PROMPTS[:1] * 3, [1, 2, 3]
    a = final(decode(model, texts, seeds, carried, candidates=[0, 1, 2])).codes
    b, c = (final(decode(model, texts, seeds, replace(reset, temperature=t))).codes for t in (1.0, 0.0))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1:], c[1:]) and not torch.equal(a, b)
    with pytest.raises(ValueError, match="pass candidates="):
        final(decode(model, texts, seeds, carried))


@pytest.mark.parametrize("k", [0, 3, 6])
def test_candidates_resumed_at_a_step_equal_unbroken_ones(model, k):
    options, texts = DecodeOptions(precision="fp32"), [*PROMPTS, PROMPTS[0]]
    whole = list(decode(model, texts, [1, 2, 3], options))
    kept = [2, 0]
    rest = list(decode(model, [texts[i] for i in kept], [3, 1], options, start=whole[k].rows(kept)))
    assert [s.index for s in rest] == list(range(k + 1, 8))
    for mine, theirs in zip(rest, whole[k + 1 :], strict=True):
        assert torch.equal(mine.codes, theirs.codes[kept]) and torch.equal(mine.masked, theirs.masked[kept])


def test_the_precision_reaches_the_network(model):
    confidence = [next(decode(model, PROMPTS, [1, 2], DecodeOptions(precision=p))).confidence for p in ("fp32", "bf16")]
    assert not torch.equal(*confidence)


def test_mask_tokens_passed_as_known_are_refused(model):
    codes = torch.full((1, L), TINY["codebook_size"])
    with pytest.raises(ValueError, match="are mask tokens marked as unknown"):
        final(decode(model, PROMPTS[:1], [0], DecodeOptions(), start=given(codes, codes < 0)))


def test_the_picture_of_every_step_is_the_official_one():
    sizes = json.loads((FIXTURES / "magvit5.json").read_text())["config"]
    encoder, decoder = sizes["encoder"], sizes["decoder"]
    blocks = tuple(encoder["num_res_blocks"]), tuple(decoder["num_res_blocks"])
    widths = tuple(encoder["ch_mult"]), tuple(decoder["ch_mult"])
    vision = Magvit(MagvitConfig(encoder["ch"], widths[0], blocks[0], widths[1], blocks[1], 6, 64)).eval()
    vision.load_state_dict(load_file(FIXTURES / "magvit5.safetensors"))
    trace = load_file(FIXTURES / "sampling_A.safetensors")
    images = torch.from_numpy(vision.decode(trace["step_sampled_ids"].flatten(0, 1)))
    off = (images.int() - trace["step_images_uint8"].flatten(0, 1).int()).abs()
    assert off.max() <= 1 and off.float().mean() < 1e-3  # a value on the edge between two bytes may fall either way


# --- Files ---


def test_the_sizes_of_an_official_snapshot_are_read_from_its_weights(snapshot):
    model = Showo.from_pretrained(snapshot, max_seq_length=12)
    assert model.config == ShowoConfig(
        llm_vocab_size=100,
        codebook_size=64,
        num_vq_tokens=16,
        text_length=13,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=160,
        overlong="truncate",
        **PHI_ROPE,
    )
    assert Showo.from_pretrained(snapshot).config.text_length == 129
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("n_tokens", "sequence"), [(256, 387), (1024, 1155)])
def test_the_published_sizes_have_the_published_weights(n_tokens, sequence):
    published = json.loads((FIXTURES / "state_dict_shapes_default.json").read_text())["showo"]
    config = ShowoConfig(50295, 8192, n_tokens, 129, **PHI_SIZES, **PHI_ROPE)
    with torch.device("meta"):
        state = Showo(config, build_tokenizer()).state_dict()
    assert {name: [list(t.shape), str(t.dtype)] for name, t in state.items()} == published
    assert sum(t.numel() for t in state.values()) == 1_448_176_770
    assert config.image_offset == 50305 and config.mask_id == 58497
    assert config.text_length + n_tokens + 2 == sequence


def test_the_512_px_generator_differs_in_its_number_of_tokens_only(snapshot, model):
    config = json.loads((snapshot / "config.json").read_text()) | {"num_vq_tokens": 4 * L, "max_seq_length": 20}
    (snapshot / "config.json").write_text(json.dumps(config))
    large = Showo.from_pretrained(snapshot)
    last = final(decode(large, PROMPTS, [1, 2], DecodeOptions(steps=3)))
    assert last.codes.shape == (2, 4 * L) and large.text_ids(PROMPTS).shape == (2, 21)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in large.state_dict().items())


def test_what_is_saved_is_what_the_official_code_reads(model, tmp_path):
    model.save_pretrained(tmp_path)
    saved, published = (
        load_file(f) for f in (tmp_path / "pytorch_model.safetensors", FIXTURES / "showo_tiny.safetensors")
    )
    assert saved.keys() == published.keys() and all(torch.equal(saved[k], published[k]) for k in saved)
    config = json.loads((tmp_path / "config.json").read_text())
    for name, value in TINY["showo_config"].items():
        assert config[name] == ("." if name == "llm_model_path" else value)
    phi = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "qk_layernorm")
    for name in (*phi, "rope_theta", "partial_rotary_factor", "model_type", "vocab_size"):
        assert config[name] == TINY["phi_config"][name]
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast" and tokenizer["bos_token"] == "<|endoftext|>"
    again = Showo.from_pretrained(tmp_path)
    assert again.config == model.config and torch.equal(again.text_ids(PROMPTS), model.text_ids(PROMPTS))


def test_a_configuration_of_before_is_still_read(model, tmp_path):
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    added = ("overlong", "_class_name", "model_type", "w_clip_vit", "load_from_showo", "llm_model_path")
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in stored.items() if k not in added}))
    assert Showo.from_pretrained(tmp_path).config == replace(model.config, overlong="refuse")


def test_pickled_weights_are_refused_with_the_way_to_convert_them(snapshot):
    (snapshot / "pytorch_model.safetensors").rename(snapshot / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"(?s)never loaded.*weights_only=True.*save_file.*pytorch_model.safetensors"):
        Showo.from_pretrained(snapshot)


def changed(snapshot: Path, change) -> Path:
    state = load_file(snapshot / "pytorch_model.safetensors")
    change(state)
    save_file(state, snapshot / "pytorch_model.safetensors")
    return snapshot


BIAS = "showo.model.layers.1.mlp.fc2.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(BIAS), f"1 missing: {BIAS}"),
        (lambda s: s.update({"mm_projector.0.bias": torch.zeros(2)}), "1 extra: mm_projector.0.bias"),
        (lambda s: s.update({BIAS: torch.zeros(2)}), rf"1 of another shape: {BIAS} is \[2\], not \[64\]"),
        (lambda s: [s.pop(k) for k in list(s) if "norm" in k], "14 missing: .*, \\.\\.\\."),
    ],
)
def test_weights_that_do_not_fit_are_listed(snapshot, change, message):
    with pytest.raises(ForeignError, match=message):
        Showo.from_pretrained(changed(snapshot, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"codebook_size": 32},
            r"expected a vocabulary of 143 \(100 words \+ 10 specials \+ 32 codes .*another codebook",
        ),
        ({"vocab_size": 176}, "got 176 vocab_size"),
        ({"mask_token_id": 173}, "got 174 mask_token_id"),
    ],
)
def test_another_codebook_is_an_error(snapshot, change, message):
    config = json.loads((snapshot / "config.json").read_text()) | change
    (snapshot / "config.json").write_text(json.dumps(config))
    with pytest.raises(ForeignError, match=message):
        Showo.from_pretrained(snapshot)


@pytest.mark.parametrize(
    ("name", "error_class", "message"),
    [
        ("pytorch_model.safetensors", IncompleteError, "expected pytorch_model.safetensors or model.safetensors"),
        ("config.json", IncompleteError, "no config.json"),
        ("tokenizer.json", IncompleteError, "hf download microsoft/phi-1_5 tokenizer.json"),
    ],
)
def test_files_that_are_missing_are_named(snapshot, name, error_class, message):
    (snapshot / name).unlink()
    with pytest.raises(error_class, match=message):
        Showo.from_pretrained(snapshot)


@pytest.mark.parametrize("name", ["pytorch_model.safetensors", "config.json", "tokenizer.json"])
def test_files_cut_short_are_named(snapshot, name):
    (snapshot / name).write_bytes((snapshot / name).read_bytes()[:40])
    with pytest.raises(CorruptError, match=str(snapshot)):
        Showo.from_pretrained(snapshot)


def test_a_text_tokenizer_of_phis_kind_is_read(snapshot):
    """Byte pairs, one token for beginning, end and unknown, and the class that Phi-1.5's configuration names."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet())[:89], "Ġ"]
    vocabulary = {piece: i for i, piece in enumerate([*letters, "<|endoftext|>", "do", "dog"])}
    bpe = Tokenizer(models.BPE(vocabulary, [("d", "o"), ("do", "g")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.add_special_tokens(["<|endoftext|>"])
    bpe.save(str(snapshot / "tokenizer.json"))
    end = {f"{name}_token": "<|endoftext|>" for name in ("bos", "eos", "unk")}
    config = {"tokenizer_class": "CodeGenTokenizer", "add_prefix_space": False, "model_max_length": 2048, **end}
    (snapshot / "tokenizer_config.json").write_text(json.dumps(config))
    row = Showo.from_pretrained(snapshot, max_seq_length=12).text_ids(["dog do"])[0].tolist()
    assert row[-7:] == [100, 105, 90, vocabulary["dog"], vocabulary["Ġ"], vocabulary["do"], 90]


def test_two_files_of_weights_are_one_too_many(snapshot):
    shutil.copy(snapshot / "pytorch_model.safetensors", snapshot / "model.safetensors")
    with pytest.raises(ValueError, match="both there"):
        Showo.from_pretrained(snapshot)


def test_a_foreign_text_tokenizer_is_refused(snapshot):
    config = json.loads((snapshot / "config.json").read_text())
    words = {"llm_vocab_size": 50, "codebook_size": 114}  # the sum stays, the end token 90 is none of 50 words
    (snapshot / "config.json").write_text(json.dumps(config | words))
    with pytest.raises(ForeignError, match="expected a text tokenizer of 50 words"):
        Showo.from_pretrained(snapshot)

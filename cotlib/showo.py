"""Show-o: one transformer over a text block and masked image tokens (arXiv:2408.12528), on stock Phi.

The backbone is `transformers.PhiForCausalLM` with `qk_layernorm=True`, nothing else. A sequence is

    [PAD]*k <|t2i|> <sot> words <eot> | <|soi|> N image tokens <|eoi|>

and the vocabulary is text, [PAD], nine special tokens, the codebook, and the mask token last. Text attends causally
to text; everything from <|soi|> on attends to the whole text and to itself in both directions ("omni-attention").
Text never sees the image. The unconditional prompt is `<|t2i|> <sot> <eot>`, the dropped caption of training.

A picture to correct stands before the text, <|soi|> N tokens <|eoi|> of its own (Sec. 5, arXiv:2501.13926, says what is
read, not where). Its tokens see each other, all that follows sees them, and their positions are negative: text and new
picture stand where they stand without it, so a generator that never saw one is disturbed as little as can be.

Because the text never sees the image, decoding reads a prompt once (`prefix`) and then passes image tokens only. Most
of a text block is padding, which nobody sees: blocks of it that no prompt of a batch reaches are not read at all. The
unconditional prompt is read with every batch, a thousandth of its cost, so that nothing is stale after training.
torch.compile is not used: on a CPU it gained nothing (0.41 s a step either way at the sizes of `bench`, 0.24 s in
bfloat16) for 100 s of compiling.

Official snapshots are read as published (`showlab/show-o`, `showlab/show-o-512x512`, and the paper's own checkpoints as
safetensors) beside the text tokenizer of Phi-1.5, and `save_pretrained` writes what the official code reads.

Left out: the understanding mode, and `mm_projector`, its second picture encoder.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn
from transformers import DynamicCache, PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

from . import checkpoint
from .errors import CorruptError, ForeignError, IncompleteError
from .words import load_tokenizer, split

PHI = "microsoft/phi-1_5"  # whose sizes and text tokenizer the official checkpoints have
PHI_SIZES = {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32, "intermediate_size": 8192}
PHI_ROPE = {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}
MAX_SEQ_LENGTH = 128  # of every published configuration: text tokens, special ones included, less one
BLOCK = 32  # text tokens that are dropped together where all are padding: GenEval's prompts all keep one block, so that
# rounding, which depends on the number of columns, is the same in any batch
SPECIALS = ("soi", "eoi", "sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg")  # ids follow [PAD], in this order


@dataclass(frozen=True)
class ShowoConfig:
    llm_vocab_size: int  # text tokens, [PAD] not counted
    codebook_size: int = 4096
    num_vq_tokens: int = 64
    text_length: int = 16  # of the padded text block, special tokens included
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    intermediate_size: int = 1024
    rope_theta: float = 200.0  # sequences are 82 tokens long: 10000 would leave most phases still
    partial_rotary_factor: float = 0.5
    overlong: str = "refuse"  # "truncate": a prompt too long loses its end and keeps <eot>, as in the official code

    def __post_init__(self) -> None:
        if self.overlong not in ("refuse", "truncate"):
            raise ValueError(f"unknown overlong {self.overlong!r}; known: refuse, truncate")

    @property
    def pad_id(self) -> int:
        return self.llm_vocab_size

    @property
    def image_offset(self) -> int:
        return self.llm_vocab_size + 1 + len(SPECIALS)

    @property
    def mask_id(self) -> int:
        return self.image_offset + self.codebook_size

    @property
    def vocab_size(self) -> int:
        return self.mask_id + 1

    def special(self, name: str) -> int:
        return self.pad_id + 1 + SPECIALS.index(name)

    def phi(self) -> PhiConfig:
        return PhiConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            qk_layernorm=True,
            hidden_act="gelu_pytorch_tanh",  # the same function as phi's gelu_new, in one fused kernel
            rope_parameters={
                "rope_type": "default",
                "rope_theta": self.rope_theta,
                "partial_rotary_factor": self.partial_rotary_factor,
            },
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attention_dropout=0.0,
            pad_token_id=self.pad_id,
            bos_token_id=None,
            eos_token_id=None,
        )


@dataclass(frozen=True)
class Prefix:
    """What image tokens need of prompts that were read: keys and values of every layer, and which tokens count.

    T: the picture to correct, if there is one, and the last columns of a text block, as many as the longest prompt
    reaches.
    """

    keys: list[torch.Tensor]  # per layer, float [B, heads, T, D]
    values: list[torch.Tensor]
    is_seen: torch.Tensor  # bool [B, T]; the rest is padding

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The cache protocol of `transformers`, except that nothing is remembered: the next step starts here again."""
        before = self.keys[layer].to(keys.dtype), self.values[layer].to(values.dtype)
        return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)

    def get_seq_length(self) -> int:
        return self.is_seen.shape[1]


class Showo(nn.Module):
    """The generator. Codes in and out are 0..codebook_size-1; `masked` is True where a token is still unknown."""

    def __init__(self, config: ShowoConfig, tokenizer: PreTrainedTokenizerFast):
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.reserved = ("[PAD]", *(f"<|{name}|>" for name in SPECIALS), *tokenizer.all_special_tokens)
        self.showo = PhiForCausalLM(config.phi())

    # --- Sequences ---

    def text_ids(self, texts: list[str]) -> torch.Tensor:
        """Prompts -> text blocks int64 [B, text_length]; an empty text is the unconditional prompt.

        Raises ValueError for a word outside the vocabulary (naming the nearest known ones), for the text of a special
        token, and for a text too long, unless the configuration says that it is truncated, which gives a warning.
        """
        rows = [self.text_row(text) for text in texts]
        return torch.tensor(rows, dtype=torch.long, device=self.device)

    def text_row(self, text: str) -> list[int]:
        """One row of `text_ids`, which raises likewise."""
        config, sot = self.config, self.tokenizer.eos_token_id  # sot = eot = <|endoftext|>, as in phi
        if found := [token for token in self.reserved if token in text]:
            raise ValueError(f"prompt {text!r} contains {found[0]!r}, which is no text but a special token: remove it")
        row = [config.special("t2i"), sot, *split(self.tokenizer, text), sot]
        if len(row) > config.text_length:
            has = f"prompt {text!r} has {len(row) - 3} tokens; this generator takes at most {config.text_length - 3}"
            if config.overlong == "refuse":
                raise ValueError(f"{has}: shorten the prompt")
            warnings.warn(f"{has} and does not read the rest", stacklevel=4)
            row = [*row[: config.text_length - 1], sot]
        return [config.pad_id] * (config.text_length - len(row)) + row

    def _image(self, tokens: torch.Tensor) -> torch.Tensor:
        """Image tokens [B, L] between <|soi|> and <|eoi|>."""
        soi, eoi = (torch.full_like(tokens[:, :1], self.config.special(name)) for name in ("soi", "eoi"))
        return torch.cat([soi, tokens, eoi], dim=1)

    def sequence(self, text_ids: torch.Tensor, codes: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """[B, T] text blocks, codes [B, L], masked [B, L] -> token ids [B, T + L + 2]."""
        config = self.config
        return torch.cat([text_ids, self._image((codes + config.image_offset).masked_fill(masked, config.mask_id))], 1)

    def correction(
        self, text_ids: torch.Tensor, codes: torch.Tensor, masked: torch.Tensor, previous: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Inputs of Phi for pictures to be drawn from text and a picture to correct, previous [B, L]; a row of -1 has
        none. Token ids and positions [B, S], attention mask [B, 1, S, S]: S = (L + 2) + T + (L + 2)."""
        before = self._image(previous.clamp(min=0) + self.config.image_offset)
        ids = torch.cat([before, self.sequence(text_ids, codes, masked)], dim=1)
        P = before.shape[1]
        return {
            "input_ids": ids,
            "attention_mask": self.as_mask(self._correction_mask(text_ids, previous[:, 0] >= 0)),
            "position_ids": torch.arange(-P, ids.shape[1] - P, device=ids.device).expand(len(ids), -1),
        }

    def _correction_mask(self, text_ids: torch.Tensor, is_there: torch.Tensor) -> torch.Tensor:
        """Omni-attention with a picture before the text in the rows where it is there: bool [B, 1, S, S]."""
        after = self.attention_mask(text_ids)[:, 0]
        B, S, P = len(after), after.shape[1], self.config.num_vq_tokens + 2
        is_there = is_there[:, None, None]
        is_pad = nn.functional.pad(text_ids == self.config.pad_id, (0, S - text_ids.shape[1]))[..., None]
        within = torch.cat([is_there.expand(B, P, P), after.new_zeros(B, P, S)], dim=2)
        later = torch.cat([(is_there & ~is_pad).expand(B, S, P), after], dim=2)
        alone = torch.eye(P + S, dtype=torch.bool, device=after.device)  # a row that sees nothing is NaN
        return (torch.cat([within, later], dim=1) | alone)[:, None]

    def attention_mask(self, text_ids: torch.Tensor) -> torch.Tensor:
        """Omni-attention: bool [B, 1, S, S], True = attends."""
        B, T = text_ids.shape
        S = T + self.config.num_vq_tokens + 2
        position = torch.arange(S, device=text_ids.device)
        is_pad = torch.zeros(B, S, dtype=torch.bool, device=text_ids.device)
        is_pad[:, :T] = text_ids == self.config.pad_id
        is_image = position >= T
        allowed = (position[:, None] >= position[None]) | is_image[:, None]  # causal text, two-way image
        allowed = allowed[None] & (~is_pad[:, None, :] | is_pad[:, :, None])  # pads are seen by pads only
        return allowed[:, None]

    def as_mask(self, allowed: torch.Tensor) -> torch.Tensor:
        """As the backbone's attention wants it: the eager one adds its mask, the fused ones read booleans."""
        if self.showo.config._attn_implementation != "eager":
            return allowed
        return torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, -torch.inf)

    # --- Forward ---

    def hidden(self, text_ids: torch.Tensor, codes: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """Last hidden states of the image tokens [B, L, D]."""
        ids, mask = self.sequence(text_ids, codes, masked), self.as_mask(self.attention_mask(text_ids))
        out = self.showo.model(input_ids=ids, attention_mask=mask, use_cache=False)
        return out.last_hidden_state[:, text_ids.shape[1] + 1 : -1]

    @torch.inference_mode()
    def prefix(self, texts: list[str], previous: torch.Tensor | None = None) -> Prefix:
        """Read prompts, equal ones once; before each the picture to correct, where there are some: codes int64 [B, L].

        Raises ValueError as `text_ids` does.
        """
        pictures = [()] * len(texts) if previous is None else map(tuple, previous.tolist())
        asked = list(zip(texts, pictures, strict=True))
        distinct = list(dict.fromkeys(asked))
        ids, row = self.text_ids([text for text, _ in distinct]), [distinct.index(one) for one in asked]
        longest = int((ids != self.config.pad_id).sum(1).max())
        ids = ids[:, -min(self.config.text_length, -(-longest // BLOCK) * BLOCK) :]
        is_seen, T = ids != self.config.pad_id, ids.shape[1]
        position = torch.arange(self.config.text_length - T, self.config.text_length, device=self.device)
        if previous is None:
            allowed = self.attention_mask(ids)[:, :, :T, :T]
        else:
            there = torch.ones(len(ids), dtype=torch.bool, device=self.device)
            codes = torch.tensor([codes for _, codes in distinct], device=self.device)
            before = self._image(codes + self.config.image_offset)
            P = before.shape[1]
            allowed = self._correction_mask(ids, there)[:, :, : P + T, : P + T]
            ids, is_seen = torch.cat([before, ids], dim=1), nn.functional.pad(is_seen, (P, 0), value=True)
            position = torch.cat([torch.arange(-P, 0, device=self.device), position])
        cache = DynamicCache()
        self.showo.model(
            input_ids=ids,
            attention_mask=self.as_mask(allowed),
            position_ids=position[None],
            past_key_values=cache,
        )
        keys, values = ([getattr(layer, name)[row] for layer in cache.layers] for name in ("keys", "values"))
        return Prefix(keys, values, is_seen[row])

    def hidden_after(self, prefix: Prefix, codes: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """`hidden` for prompts that were read: [B, L, D]."""
        B, T = len(codes), self.config.text_length
        ids = self.sequence(prefix.is_seen[:, :0].long(), codes, masked)
        allowed = nn.functional.pad(prefix.is_seen, (0, ids.shape[1]), value=True)[:, None, None]
        out = self.showo.model(
            input_ids=ids,
            attention_mask=self.as_mask(allowed.expand(B, 1, ids.shape[1], -1)),
            position_ids=torch.arange(T, T + ids.shape[1], device=ids.device)[None],
            past_key_values=prefix,
        )
        return out.last_hidden_state[:, 1:-1]

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Codebook logits [..., codebook_size]: only the codebook's rows of the language model head."""
        rows = slice(self.config.image_offset, self.config.mask_id)
        return nn.functional.linear(hidden, self.showo.lm_head.weight[rows], self.showo.lm_head.bias[rows])

    def forward(self, text_ids: torch.Tensor, codes: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """Codebook logits for every image position [B, L, codebook_size]."""
        return self.head(self.hidden(text_ids, codes, masked))

    @property
    def device(self) -> torch.device:
        return self.showo.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the transformer's weights are stored in."""
        return self.showo.model.dtype

    def store_backbone(self, dtype: torch.dtype) -> Showo:
        """Store the transformer's weights in another type, but not the frequencies of its rotary embedding: those of
        bfloat16 turn the last of a thousand positions by a fifth of a radian."""
        phi = self.showo.model.to(dtype)
        phi.rotary_emb = type(phi.rotary_emb)(phi.config).to(self.device)
        return self

    # --- Files: Show-o's own layout, `pytorch_model.safetensors` with the prefix `showo.` ---

    def save_pretrained(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Weights, configuration and text tokenizer, as `from_pretrained` and the official code read them.

        The configuration is Phi's as well, so that the official class finds its sizes in the same folder:
        `Showo.from_pretrained(folder, llm_model_path=folder)`.
        """
        config = self.config
        official = {
            "_class_name": "Showo",
            "model_type": "phi",
            "w_clip_vit": False,
            "load_from_showo": True,
            "llm_model_path": PHI if _is_phi(config) else ".",
            "vocab_size": config.vocab_size,
            "mask_token_id": config.mask_id,
            "hidden_act": "gelu_new",
            "qk_layernorm": True,
        }
        checkpoint.save(self, folder, {**asdict(config), **official}, dtype)
        self.tokenizer.save_pretrained(folder)
        _name_for_older_code(Path(folder) / "tokenizer_config.json", self.tokenizer)

    @classmethod
    def from_pretrained(cls, folder: Path, tokenizer: Path | None = None, max_seq_length: int | None = None) -> Showo:
        """Load a folder written by `save_pretrained`, or an official snapshot, float32 on the CPU.

        tokenizer: folder of the text tokenizer, if it is another. max_seq_length: as the official configurations count,
        one less than `text_length`; 128 unless the folder says otherwise.
        Raises IncompleteError for files that are missing, CorruptError for torn ones, ForeignError for weights that are
        not what config.json describes, and ValueError for pickled weights.
        """
        folder = Path(folder)
        file, stored = checkpoint.weights_file(folder), checkpoint.read_config(folder)
        config = _own_config(stored, folder) if "hidden_size" in stored else _official_config(stored, file)
        if max_seq_length is not None:
            config = replace(config, text_length=max_seq_length + 1)
        _check_vocabulary(config, stored, file)
        words = _text_tokenizer(Path(tokenizer or folder), config)
        with torch.device("meta"):  # no time for random numbers that are not kept
            model = cls(config, words)
        checkpoint.fill(model, file)
        phi = model.showo.model
        phi.rotary_emb = type(phi.rotary_emb)(config.phi())  # its buffer is in no file
        return model.eval()


def _name_for_older_code(file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The official code wants a bos token; its transformers (4.41) does not know the class that newer ones write."""
    stored = json.loads(file.read_text())
    stored |= {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": tokenizer.bos_token or tokenizer.eos_token}
    file.write_text(json.dumps(stored, indent=2) + "\n")


def _is_phi(config: ShowoConfig) -> bool:
    return all(getattr(config, name) == value for name, value in {**PHI_SIZES, **PHI_ROPE}.items())


def _own_config(stored: Mapping, folder: Path) -> ShowoConfig:
    try:
        return ShowoConfig(**{k: v for k, v in stored.items() if k in ShowoConfig.__dataclass_fields__})
    except (TypeError, ValueError) as error:
        raise CorruptError(f"{folder / 'config.json'}: {error}; fetch the file again") from error


def _official_config(stored: Mapping, file: Path) -> ShowoConfig:
    """The published config.json leaves out Phi's sizes: the weights tell them, and Phi-1.5 the rest."""
    if "llm_vocab_size" not in stored:
        raise CorruptError(f"{file.parent / 'config.json'}: no llm_vocab_size, so no Show-o; fetch the file again")
    shapes, layers = checkpoint.shapes_of(file), "showo.model.layers."
    hidden = shapes.get("showo.model.embed_tokens.weight", (0, PHI_SIZES["hidden_size"]))[-1]
    head = shapes.get(f"{layers}0.self_attn.q_layernorm.weight", (64,))[0]
    sizes = {
        "hidden_size": hidden,
        "num_hidden_layers": len({name.split(".")[3] for name in shapes if name.startswith(layers)}),
        "num_attention_heads": hidden // head,
        "intermediate_size": shapes.get(f"{layers}0.mlp.fc1.weight", (PHI_SIZES["intermediate_size"],))[0],
    }
    return ShowoConfig(
        stored["llm_vocab_size"],
        codebook_size=stored.get("codebook_size", 8192),
        num_vq_tokens=stored.get("num_vq_tokens", 256),
        text_length=stored.get("max_seq_length", MAX_SEQ_LENGTH) + 1,
        overlong="truncate",
        **sizes,
        **PHI_ROPE,
    )


def _check_vocabulary(config: ShowoConfig, stored: Mapping, file: Path) -> None:
    """Text, specials, codebook and mask token must add up: another codebook would shift every picture's codes."""
    parts = f"{config.llm_vocab_size} words + {1 + len(SPECIALS)} specials + {config.codebook_size} codes + 1 mask"
    found = {
        "vocab_size in config.json": stored.get("vocab_size", config.vocab_size),
        "mask_token_id + 1 in config.json": stored.get("mask_token_id", config.mask_id) + 1,
        "rows of the embedding": checkpoint.shapes_of(file).get(
            "showo.model.embed_tokens.weight", (config.vocab_size,)
        )[0],
    }
    if wrong := [f"{value} {name}" for name, value in found.items() if value != config.vocab_size]:
        raise ForeignError(
            f"{file}: expected a vocabulary of {config.vocab_size} ({parts}), got {', '.join(wrong)}: this generator "
            "was trained on another codebook; fetch weights and config.json from one place"
        )


def _text_tokenizer(folder: Path, config: ShowoConfig) -> PreTrainedTokenizerFast:
    if not (folder / "tokenizer.json").is_file():
        raise IncompleteError(
            f"no text tokenizer in {folder}: expected tokenizer.json; of Phi, get it with: "
            f"hf download {PHI} tokenizer.json tokenizer_config.json special_tokens_map.json --local-dir FOLDER, and "
            "pass tokenizer=FOLDER"
        )
    try:
        words = load_tokenizer(folder)
    except Exception as error:  # tokenizers raises bare Exceptions
        raise CorruptError(f"cannot load the text tokenizer of {folder}: {error}; fetch the files again") from error
    if words.eos_token_id is None or words.eos_token_id >= config.llm_vocab_size:
        raise ForeignError(
            f"{folder}: expected a text tokenizer of {config.llm_vocab_size} words with an end token among them, "
            f"got {len(words)} words and end token {words.eos_token_id}; use that of {PHI}"
        )
    return words

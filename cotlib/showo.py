"""Show-o: one transformer over a text block and masked image tokens (arXiv:2408.12528), on stock Phi.

The backbone is `transformers.PhiForCausalLM` with `qk_layernorm=True`, nothing else. A sequence is

    [PAD]*k <|t2i|> <sot> words <eot> | <|soi|> N image tokens <|eoi|>

and the vocabulary is text, [PAD], nine special tokens, the codebook, and the mask token last. Text attends causally
to text; everything from <|soi|> on attends to the whole text and to itself in both directions ("omni-attention").
Text never sees the image. The unconditional prompt is `<|t2i|> <sot> <eot>`, the dropped caption of training.

Left out so far: the prefix cache, the understanding mode, the official checkpoints' text tokenizer.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

from .errors import CorruptError
from .words import load_tokenizer, split

SPECIALS = ("soi", "eoi", "sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg")  # ids follow [PAD], in this order


@dataclass(frozen=True)
class ShowoConfig:
    llm_vocab_size: int  # text tokens, [PAD] not counted
    codebook_size: int = 4096
    num_vq_tokens: int = 64
    text_length: int = 20  # of the padded text block, special tokens included
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    intermediate_size: int = 1024
    rope_theta: float = 200.0  # sequences are 86 tokens long: 10000 would leave most phases still
    partial_rotary_factor: float = 0.5

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


class Showo(nn.Module):
    """The generator. Codes in and out are 0..codebook_size-1; `masked` is True where a token is still unknown."""

    def __init__(self, config: ShowoConfig, tokenizer: PreTrainedTokenizerFast):
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.showo = PhiForCausalLM(config.phi())

    # --- Sequences ---

    def text_ids(self, texts: list[str]) -> torch.Tensor:
        """Prompts -> text blocks int64 [B, text_length]; an empty text is the unconditional prompt.

        Raises ValueError for a word outside the vocabulary (naming the nearest known ones) and for a text too long.
        """
        rows = [self._text_row(text) for text in texts]
        return torch.tensor(rows, dtype=torch.long, device=self.device)

    def _text_row(self, text: str) -> list[int]:
        config, sot = self.config, self.tokenizer.eos_token_id  # sot = eot = <|endoftext|>, as in phi
        row = [config.special("t2i"), sot, *split(self.tokenizer, text), sot]
        if len(row) > config.text_length:
            raise ValueError(
                f"prompt {text!r} has {len(row) - 3} tokens; this generator takes at most "
                f"{config.text_length - 3}: shorten the prompt"
            )
        return [config.pad_id] * (config.text_length - len(row)) + row

    def sequence(self, text_ids: torch.Tensor, codes: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """[B, T] text blocks, codes [B, L], masked [B, L] -> token ids [B, T + L + 2]."""
        config = self.config
        image = (codes + config.image_offset).masked_fill(masked, config.mask_id)
        soi, eoi = (torch.full_like(image[:, :1], config.special(name)) for name in ("soi", "eoi"))
        return torch.cat([text_ids, soi, image, eoi], dim=1)

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

    # --- Forward ---

    def hidden(self, text_ids: torch.Tensor, codes: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """Last hidden states of the image tokens [B, L, D]."""
        ids = self.sequence(text_ids, codes, masked)
        out = self.showo.model(input_ids=ids, attention_mask=self.attention_mask(text_ids), use_cache=False)
        return out.last_hidden_state[:, text_ids.shape[1] + 1 : -1]

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

    # --- Files: Show-o's own layout, `pytorch_model.safetensors` with the prefix `showo.` ---

    def save_pretrained(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.to(dtype).contiguous() for k, v in self.state_dict().items()}
        save_file(state, folder / "pytorch_model.safetensors")
        sizes = {"vocab_size": self.config.vocab_size, "mask_token_id": self.config.mask_id}
        (folder / "config.json").write_text(json.dumps({**asdict(self.config), **sizes}, indent=2) + "\n")
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> Showo:
        """Load a folder written by `save_pretrained`. Raises CorruptError for weights that are torn or do not fit."""
        folder = Path(folder)
        stored = json.loads((folder / "config.json").read_text())
        config = ShowoConfig(**{k: v for k, v in stored.items() if k in ShowoConfig.__dataclass_fields__})
        model = cls(config, load_tokenizer(folder))
        file = folder / "pytorch_model.safetensors"
        try:
            model.load_state_dict({k: v.float() for k, v in load_file(file).items()})
        except Exception as error:  # safetensors and torch raise their own, and neither says which file
            raise CorruptError(f"cannot load the generator from {file}: {error}; fetch the file again") from error
        return model.eval()

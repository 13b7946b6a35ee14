"""Self-correction: the generator decodes a picture anew, with the wrong one and the reason beside the prompt.

Sec. 5 of arXiv:2501.13926, whose code was never released: Show-o is fine-tuned on groups of a prompt, a wrong picture,
why it is wrong, and a right picture. Here the loss is Show-o's own, the masked tokens of the right picture, and what it
reads is

    <|soi|> wrong picture <|eoi|> | [PAD]*k <|t2i|> <sot> prompt ". The previous image is wrong:" reasons <eot> | image

A part of the rows is plain, the prompt and nothing else, so that plain generation is kept; the caption is dropped as in
all training of Show-o, the wrong picture stays. So guidance pushes from "some picture after this one" to "the picture
after this one that mends this fault".

Differences from the paper: the right picture of a group is the one most like the wrong one, not a random one, as a
correction keeps what is right; texts one clause away have groups too, as in `preference.py`.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from tokenizers import AddedToken
from torch import nn

from .geneval import REASON_WORDS
from .losses import CAPTION_DROPOUT, draw
from .preference import LORA_TARGETS
from .search import Pool
from .seeds import sample_seed
from .showo import Prefix, Showo, ShowoConfig
from .tuning import TuneOptions, supervise

WRONG = ". The previous image is wrong:"
TEXT_LENGTH = 48  # tokens of a prompt and its reasons, where the generator's own text block is shorter
PLAIN = 0.25  # share of the rows without a picture to correct


def correction_text(prompt: str, reasons: str) -> str:
    """What the generator reads; reasons may be empty, where the judge gave none that can be read."""
    return f"{prompt}{WRONG} {reasons}".strip()


# --- Groups -----------------------------------------------------------------------------------------------------


def correction_groups(pool: Pool, labels: Mapping[str, dict], seed: int, per_prompt: int) -> list[dict[str, Any]]:
    """Wrong pictures, each with the right picture of the same text that is most like it: {"source", "task", "prompt",
    "reasons", "rejected_codes", "chosen_codes"}.

    At most `per_prompt` a text, drawn at random. A text whose pictures are all right or all wrong has none. labels: as
    `ranking.label_pool` gives them.
    """
    groups = []
    for prompt in pool.prompts:
        label, codes = labels[prompt.id], pool.codes[prompt.id]
        for q, text in enumerate(label["asked"]):
            right = torch.tensor([row[q] for row in label["right"]], dtype=torch.bool)
            if not right.any():
                continue
            rng = torch.Generator().manual_seed(sample_seed(seed, prompt.id, q, "corrections"))
            wrong = torch.nonzero(~right).flatten()
            for b in wrong[torch.randperm(len(wrong), generator=rng)][:per_prompt].tolist():
                alike = (codes == codes[b]).sum(1).masked_fill(~right, -1)
                groups.append(
                    {
                        "source": prompt.id,
                        "task": prompt.task,
                        "prompt": text,
                        "reasons": ", ".join(label["reasons"][b][q]),
                        "rejected_codes": codes[b].tolist(),
                        "chosen_codes": codes[int(alike.argmax())].tolist(),
                    }
                )
    return groups


def without_glut(groups: Sequence[Mapping[str, Any]], seed: int) -> list[Mapping[str, Any]]:
    """The groups, at random no more of any task than one and a half times the tasks' median, in the order they had.

    Prompts about places have most neighbours that their pictures are right for; they would drown the others.
    """
    count = Counter(group["task"] for group in groups)
    most, rng, kept = int(1.5 * median(count.values())) if count else 0, torch.Generator().manual_seed(seed), set()
    for task in count:
        mine = [i for i, group in enumerate(groups) if group["task"] == task]
        kept |= {mine[j] for j in torch.randperm(len(mine), generator=rng)[:most].tolist()}
    return [group for i, group in enumerate(groups) if i in kept]


# --- A generator that can read reasons --------------------------------------------------------------------------


def able_to_read(generator: Showo, phrases: Sequence[str] = (WRONG, *REASON_WORDS)) -> Showo:
    """A copy whose vocabulary holds the phrases and whose text block holds a reason; on all it knew before, it answers
    as before. A generator that has the words already, as that of Show-o, keeps its vocabulary."""
    old, tokenizer = generator.config, copy.deepcopy(generator.tokenizer)
    new = [p for p in phrases if tokenizer.unk_token_id in tokenizer(p, add_special_tokens=False)["input_ids"]]
    tokenizer.add_tokens([AddedToken(p, single_word=p[0].isalnum(), normalized=False) for p in new])
    V, rng = old.llm_vocab_size, torch.Generator().manual_seed(0)
    config = replace(old, llm_vocab_size=V + len(new), text_length=max(old.text_length, TEXT_LENGTH))

    def grown(rows: torch.Tensor) -> torch.Tensor:
        """Rows of the vocabulary, the new ones spread as the words there are."""
        noise = torch.randn(len(new), *rows.shape[1:], generator=rng).to(rows)
        return torch.cat([rows[:V], rows[:V].mean(0) + rows[:V].std(0) * noise, rows[V:]])

    made, state = Showo(config, tokenizer), generator.state_dict()
    for name in ("showo.model.embed_tokens.weight", "showo.lm_head.weight", "showo.lm_head.bias"):
        state[name] = grown(state[name])
    made.load_state_dict(state)
    made.showo.set_attn_implementation(generator.showo.config._attn_implementation)
    return made.to(generator.device).eval()


@dataclass(frozen=True)
class Note:
    """A picture to correct, codes int64 [L], and why."""

    codes: torch.Tensor
    reasons: str


@dataclass(frozen=True)
class Corrector:
    """A generator as decoding wants it, which reads beside each prompt the note on it."""

    generator: Showo
    notes: Mapping[str, Note]  # by the text of the prompt

    @property
    def config(self) -> ShowoConfig:
        return self.generator.config

    @property
    def device(self) -> torch.device:
        return self.generator.device

    @property
    def dtype(self) -> torch.dtype:
        return self.generator.dtype

    def text_ids(self, texts: list[str]) -> torch.Tensor:
        """Raises ValueError for a reason that the generator cannot read, and for a prompt without a note."""
        return self.generator.text_ids([self._text(text) for text in texts])

    def _text(self, text: str) -> str:
        if text not in self.notes:
            raise ValueError(f"no picture of the prompt {text!r} to correct; known: {len(self.notes)} prompts")
        return correction_text(text, self.notes[text].reasons)

    def prefix(self, texts: list[str]) -> Prefix:
        """The unconditional prompts, which follow the others in the same order, keep the picture."""
        asked = [text for text in texts if text]
        before = torch.stack([self.notes[text].codes for text in asked])
        read = [self._text(text) if text else "" for text in texts]
        return self.generator.prefix(read, before.repeat(len(texts) // len(asked), 1))

    def hidden_after(self, prefix: Prefix, codes: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        return self.generator.hidden_after(prefix, codes, masked)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.generator.head(hidden)


def readable(generator: Showo, prompt: str, faults: Sequence[str]) -> str:
    """The faults that the generator can read, as one reason; those outside its vocabulary or too long are left out."""
    kept: list[str] = []
    for fault in faults:
        try:
            generator.text_ids([correction_text(prompt, ", ".join([*kept, fault]))])
        except ValueError:
            continue
        kept.append(fault)
    return ", ".join(kept)


# --- Training ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corrections:
    """Rows of `correction_groups`, each with "mask_seed", to inputs of Phi and labels: the masked tokens of the right
    picture."""

    model: Showo

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        texts, masks, previous = [], [], []
        for row in rows:
            rng = torch.Generator().manual_seed(row["mask_seed"])
            draws, is_plain = draw(1, len(row["chosen_codes"]), rng), float(torch.rand((), generator=rng)) < PLAIN
            text = row["prompt"] if is_plain else correction_text(row["prompt"], row["reasons"])
            texts.append("" if float(draws.dropout) < CAPTION_DROPOUT else text)
            masks.append(draws.masked)
            previous.append([-1] * len(row["rejected_codes"]) if is_plain else row["rejected_codes"])
        where = self.model.device
        codes, masked = torch.tensor([row["chosen_codes"] for row in rows], device=where), torch.cat(masks).to(where)
        before = torch.tensor(previous, device=where)
        inputs = self.model.correction(self.model.text_ids(texts), codes, masked, before)
        labels = (codes + self.model.config.image_offset).masked_fill(~masked, -100)
        n_before = inputs["input_ids"].shape[1] - labels.shape[1] - 1
        return {**inputs, "shift_labels": nn.functional.pad(labels, (n_before, 1), value=-100)}


def learn_to_correct(
    generator: Showo, groups: Sequence[dict], options: TuneOptions, folder: Path
) -> tuple[Showo, list[dict[str, float]]]:
    """A copy of the generator that corrects, and the log of its training (see `tuning.supervise`).

    Every epoch masks anew. Raises ValueError for no groups, and for a reason that does not fit the vocabulary.
    """
    model = able_to_read(generator)
    rows = [
        {name: group[name] for name in ("prompt", "reasons", "chosen_codes", "rejected_codes")}
        | {"mask_seed": sample_seed(options.seed, str(i), epoch, "corrections")}
        for epoch in range(int(options.epochs))
        for i, group in enumerate(groups)
    ]
    data, once = Dataset.from_list(rows), replace(options, epochs=1)
    model.showo, log = supervise(model.showo, model.tokenizer, data, Corrections(model), once, folder, LORA_TARGETS)
    return model.eval(), log

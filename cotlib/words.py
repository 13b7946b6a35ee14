"""The pocket vocabulary: an ordinary `transformers` fast tokenizer whose tokens are whole words and known phrases.

A class name ("traffic light"), its plural and the fixed sentence frames of the judge's questions are one token each,
as a byte-pair encoding would make them from enough text. Text is matched longest phrase first, then word by word.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .prompts import CLASSES, COLORS, NUMBER_WORDS, RELATIONS, plural

UNKNOWN, END = "<unk>", "<|endoftext|>"
PHRASES = ("a photo of", "a picture of", *CLASSES, *(plural(c) for c in CLASSES), *RELATIONS)
WORDS = ("a", "an", "and", *COLORS, *NUMBER_WORDS[1:5])


def build_tokenizer(extra_phrases: tuple[str, ...] = (), specials: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Word-level tokenizer over the pocket vocabulary, plus fixed phrases and special tokens of a model's own."""
    phrases = sorted({*PHRASES, *extra_phrases}, key=lambda p: (-len(p), p))
    vocabulary = [END, UNKNOWN, *specials, *sorted({*phrases, *WORDS})]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token=UNKNOWN))
    pattern = "|".join(_bounded(p) for p in phrases) + r"|\w+|[^\w\s]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNKNOWN, eos_token=END, pad_token=END, extra_special_tokens=list(specials)
    )


def _bounded(phrase: str) -> str:
    """The phrase as a pattern that does not match inside a longer word."""
    start, end = r"\b" if phrase[0].isalnum() else "", r"\b" if phrase[-1].isalnum() else ""
    return start + re.escape(phrase).replace(r"\ ", " ") + end


def split(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a prompt. Raises ValueError for a word outside the vocabulary, naming the nearest known ones."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.unk_token_id in ids:
        for special in tokenizer.all_special_tokens:
            text = text.replace(special, " ").strip()
        pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        word = next(piece for piece, _ in pieces if piece not in tokenizer.get_vocab())
        near = difflib.get_close_matches(word.lower(), tokenizer.get_vocab(), n=3, cutoff=0.5)
        hint = f"; nearest known: {', '.join(near)}" if near else ""
        raise ValueError(f"prompt {text!r}: the word {word!r} is outside the pocket vocabulary{hint}")
    return ids


def unknown(tokenizer: PreTrainedTokenizerFast, text: str, n: int = 3) -> dict[str, list[str]]:
    """The words of a text outside the vocabulary, in their order, and at most n near known ones of each."""
    if tokenizer.unk_token_id not in tokenizer(text, add_special_tokens=False)["input_ids"]:
        return {}
    vocabulary = [word for word in tokenizer.get_vocab() if word not in tokenizer.all_special_tokens]
    pieces = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    words = dict.fromkeys(piece for piece in pieces if piece not in vocabulary)
    return {word: difflib.get_close_matches(word.lower(), vocabulary, n=n, cutoff=0.5) for word in words}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(folder)

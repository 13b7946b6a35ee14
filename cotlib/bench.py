"""How much faster decoding is than the plain loop of the official code, in processor seconds and in one run.

`reference` is that loop, written out: at every step both padded sequences go through the network from their first
token, every position gets the logits of the whole vocabulary, guidance is applied to all of them. Both decoders are
given the same noise, drawn before the clock starts, so in float32 they must give the same tokens.

The default network is large enough that the time is spent where Show-o spends it: 85 million random weights.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from .decode import LOG_CERTAIN, DecodeOptions, RecordedNoise, decode, final, gumbel, remask, remask_temperature
from .showo import PHI_ROPE, Showo, ShowoConfig
from .words import build_tokenizer

SIZES = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2048}
CONFIG = ShowoConfig(50295, codebook_size=8192, num_vq_tokens=256, text_length=129, **SIZES, **PHI_ROPE)
OPTIONS = DecodeOptions(steps=18, guidance=5.0, always_mask_one=True, precision="fp32")
PROMPTS = ("a photo of a dog", "a photo of a red car and a white sheep")


@dataclass(frozen=True)
class Comparison:
    """Processor seconds per image, a number for each round, and how many tokens differ from the reference's."""

    reference: list[float]
    fp32: list[float]
    bf16: list[float]
    n_different: int  # in float32
    n_tokens: int

    @property
    def ratios(self) -> dict[str, float]:
        """How many times the reference takes what ours takes: the median over rounds, each a ratio of its own."""
        pairs = {"speed/decode-ratio": self.fp32, "speed/decode-ratio-bf16": self.bf16}
        return {name: float(np.median(np.divide(self.reference, ours))) for name, ours in pairs.items()}


@torch.inference_mode()
def reference(model: Showo, texts: list[str], noise: RecordedNoise, options: DecodeOptions) -> torch.Tensor:
    """Codes int64 [B, L] by the plain loop."""
    B, L, config = len(texts), model.config.num_vq_tokens, model.config
    text = model.text_ids([*texts, *[""] * B])
    mask = torch.zeros(()).masked_fill(~model.attention_mask(text), torch.finfo(torch.float32).min)  # [2B, 1, S, S]
    codes, masked = torch.zeros(B, L, dtype=torch.long), torch.ones(B, L, dtype=torch.bool)
    for step in range(options.steps):
        ids = model.sequence(text, codes.repeat(2, 1), masked.repeat(2, 1))
        asked, free = model.showo(input_ids=ids, attention_mask=mask, use_cache=False).logits.chunk(2)
        logits = (1 + options.guidance) * asked - options.guidance * free
        p = logits[:, -L - 1 : -1, config.image_offset : config.mask_id].softmax(-1)  # [B, L, V]
        drawn = (p / noise.exponential[step]).argmax(-1)
        codes = torch.where(masked, drawn, codes)
        confidence = p.gather(-1, codes[..., None])[..., 0].clamp(1e-20).log().where(masked, LOG_CERTAIN)
        noisy = confidence + remask_temperature(step, options) * gumbel(noise.uniform[step])
        masked = remask(noisy, masked, step, options)
    return codes


def recorded(seed: int, steps: int, B: int, L: int, V: int) -> RecordedNoise:
    rng = torch.Generator().manual_seed(seed)
    return RecordedNoise(
        torch.empty(steps, B, L, V).exponential_(generator=rng), torch.rand(steps, B, L, generator=rng)
    )


def compare(config: ShowoConfig = CONFIG, options: DecodeOptions = OPTIONS, rounds: int = 3) -> Comparison:
    """Reference and ours in turn, on one thread; one image of another prompt each round."""
    torch.manual_seed(0)
    model = Showo(config, build_tokenizer()).eval()
    half, rounded = copy.deepcopy(model), replace(options, precision="bf16")
    half.showo.model.to(torch.bfloat16)  # as `load_generator` does
    jobs: dict[str, Callable[..., torch.Tensor]] = {
        "reference": lambda *request: reference(model, *request, options),
        "fp32": lambda *request: final(decode(model, *request, options)).codes,
        "bf16": lambda *request: final(decode(half, *request, rounded)).codes,
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    n_different = 0
    with one_thread():
        for i in range(rounds):
            noise = recorded(i, options.steps, 1, config.num_vq_tokens, config.codebook_size)
            codes = {name: _timed(seconds[name], job, [PROMPTS[i % len(PROMPTS)]], noise) for name, job in jobs.items()}
            n_different += int((codes["reference"] != codes["fp32"]).sum())
    return Comparison(**seconds, n_different=n_different, n_tokens=rounds * config.num_vq_tokens)


def _timed(seconds: list[float], job: Callable[..., torch.Tensor], texts: list[str], noise: RecordedNoise):
    """Processor time of this process, which a busy machine changes less than the clock on the wall."""
    start = time.process_time()
    codes = job(texts, noise)
    seconds.append((time.process_time() - start) / len(texts))
    return codes


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""Masked-token decoding, a step at a time (MaskGIT, arXiv:2202.04200, in the form Show-o uses).

At each step the generator predicts every image token; all of them are drawn; the unlikely ones among the new are
masked again for the next step, fewer each time. The drawn grid is the step's prediction of the final picture, which is
what a verifier looks at. `decode` is a generator of `Step`s, pure in model, prompts, seeds and options; it knows
nothing of verifiers.

Differences from upstream, each tested:
1. Every candidate has its own noise, so its tokens do not depend on its batch, its order or the number of candidates.
2. The re-mask temperature is reset for each image (the released code carries it over, `upstream-carry`, not offered
   here yet); `remask_temperature="maskgit"` makes it linear instead of compounding.
3. A token is drawn from one uniform number by inverting the cumulative distribution: equal in distribution to
   torch.multinomial, which draws one number per code of the codebook.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from .seeds import generators

SCHEDULES = {
    "cosine": lambda t: math.cos(math.pi / 2 * t),
    "linear": lambda t: 1 - t,
}
REMASK_TEMPERATURES = ("showo", "maskgit")


@dataclass(frozen=True)
class DecodeOptions:
    steps: int = 8
    guidance: float = 1.75  # Muse form: (1 + g) * conditional - g * unconditional; 0 switches it off
    temperature: float = 1.0  # of the Gumbel noise on confidences, at the start
    schedule: str = "cosine"
    remask_temperature: str = "showo"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"decoding steps must be at least 1, got {self.steps}")
        if self.guidance < 0 or self.temperature < 0:
            raise ValueError(f"guidance and temperature must be >= 0, got {self.guidance} and {self.temperature}")
        for name, value, known in (
            ("schedule", self.schedule, tuple(SCHEDULES)),
            ("remask_temperature", self.remask_temperature, REMASK_TEMPERATURES),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")


@dataclass(frozen=True)
class Step:
    index: int  # 0..steps-1
    codes: torch.Tensor  # int64 [B, L]: the step's prediction of the whole picture, known tokens kept
    masked: torch.Tensor  # bool [B, L]: True = still unknown after this step
    confidence: torch.Tensor  # float [B, L]: probability of the drawn token; 1 where the token was known


class Generator(Protocol):
    """What decoding needs of a model: text blocks, hidden states of image tokens, codebook logits."""

    def text_ids(self, texts: list[str]) -> torch.Tensor: ...
    def hidden(self, text_ids: torch.Tensor, codes: torch.Tensor, masked: torch.Tensor) -> torch.Tensor: ...
    def head(self, hidden: torch.Tensor) -> torch.Tensor: ...


def n_masked_after(step: int, steps: int, n_tokens: int, schedule: str) -> int:
    """How many tokens the schedule leaves unknown after step 0..steps-1 (0 after the last)."""
    return max(0, math.floor(n_tokens * SCHEDULES[schedule]((step + 1) / steps) + 1e-6))


def remask_temperature(step: int, options: DecodeOptions) -> float:
    """Show-o multiplies the temperature by (1 - (s+1)/T) at every step; MaskGIT sets it to that factor."""
    if options.remask_temperature == "maskgit":
        return options.temperature * (1 - (step + 1) / options.steps)
    return options.temperature * math.prod(1 - (j + 1) / options.steps for j in range(step + 1))


def uniform(shape: tuple[int, ...], rngs: Sequence[torch.Generator]) -> torch.Tensor:
    """Uniform noise [B, *shape] in [0, 1), row b drawn from rngs[b]."""
    return torch.stack([torch.rand(shape, generator=rng) for rng in rngs])


def gumbel(u: torch.Tensor) -> torch.Tensor:
    """Uniform to standard Gumbel noise."""
    return -torch.log((-torch.log(u.clamp(1e-20))).clamp(1e-20))


def draw(log_p: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """One code per row of log_p [M, V] from one uniform number per row u [M], by the inverse of the CDF."""
    cdf = log_p.exp().cumsum(-1)
    return torch.searchsorted(cdf, (u * cdf[:, -1])[:, None]).squeeze(-1).clamp(max=log_p.shape[-1] - 1)


@torch.inference_mode()
def decode(model: Generator, texts: list[str], seeds: list[int], options: DecodeOptions) -> Iterator[Step]:
    """Decode one picture per (text, seed), yielding every step; the last step's `codes` are the pictures.

    Raises ValueError before any compute where texts and seeds differ in number or a text does not fit the vocabulary.
    """
    if len(texts) != len(seeds) or not texts:
        raise ValueError(f"decode: expected one seed per text, got {len(texts)} texts and {len(seeds)} seeds")
    text, unconditional = model.text_ids(texts), model.text_ids([""]).expand(len(texts), -1)
    B, L = len(texts), model.config.num_vq_tokens
    rngs = generators(seeds)
    codes = torch.zeros(B, L, dtype=torch.long)
    masked = torch.ones(B, L, dtype=torch.bool)
    for step in range(options.steps):
        log_p = _guided_log_probabilities(model, text, unconditional, codes, masked, options.guidance)  # [M, V]
        # Noise is drawn for every position, masked or not: a row's stream must not depend on what is known.
        drawn = draw(log_p, uniform((L,), rngs)[masked])
        codes = codes.masked_scatter(masked, drawn)
        log_confidence = torch.full((B, L), math.inf)
        log_confidence[masked] = log_p.gather(-1, drawn[:, None])[:, 0]
        still = _remask(log_confidence, gumbel(uniform((L,), rngs)), step, options)
        yield Step(step, codes.clone(), still, log_confidence.exp().clamp(max=1.0))
        masked = still


def _remask(log_confidence: torch.Tensor, noise: torch.Tensor, step: int, options: DecodeOptions) -> torch.Tensor:
    """The least confident of the tokens drawn now are masked again: bool [B, L], True = unknown."""
    n = n_masked_after(step, options.steps, log_confidence.shape[1], options.schedule)
    noisy = log_confidence + remask_temperature(step, options) * noise
    order = noisy.argsort(dim=-1, stable=True)  # tokens known before this step are +inf, last in order
    return torch.zeros_like(log_confidence, dtype=torch.bool).scatter(1, order[:, :n], True)


def _guided_log_probabilities(
    model: Generator,
    text: torch.Tensor,
    unconditional: torch.Tensor,
    codes: torch.Tensor,
    masked: torch.Tensor,
    guidance: float,
) -> torch.Tensor:
    """Log-probabilities of the masked positions only, row-major: float32 [M, V]."""
    device = text.device
    codes, masked = codes.to(device), masked.to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        if guidance:
            both = model.hidden(torch.cat([text, unconditional]), codes.repeat(2, 1), masked.repeat(2, 1))
            given, free = both.chunk(2)
            logits = (1 + guidance) * model.head(given[masked]).float() - guidance * model.head(free[masked]).float()
        else:
            logits = model.head(model.hidden(text, codes, masked)[masked]).float()
    return logits.log_softmax(-1).cpu()


def final(steps: Iterator[Step]) -> Step:
    """Run the decoding to its end."""
    return deque(steps, maxlen=1).pop()

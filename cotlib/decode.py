"""Masked-token decoding, a step at a time (MaskGIT, arXiv:2202.04200, in the form Show-o uses).

At each step the generator predicts every image token; all unknown ones are drawn; the unlikely ones among the new are
masked again for the next step, fewer each time. The drawn grid is the step's prediction of the final picture, which is
what a verifier looks at. `decode` is a generator of `Step`s, pure in model, prompts, noise, options and the state it
starts from; it knows nothing of verifiers.

Differences from upstream, each tested:
1. Every candidate has its own noise, so its tokens do not depend on its batch, its order or the number of candidates.
   `RecordedNoise` takes upstream's noise instead, and then every token and mask is upstream's.
2. The re-mask temperature is reset for each image. The released code carries it over, so that every candidate of a
   prompt but the first is re-masked without noise: `remask_temperature="upstream-carry"`. "maskgit" is linear.
3. A token is drawn from one uniform number by inverting the cumulative distribution: equal in distribution to
   torch.multinomial, which draws one number per code of the codebook.
4. After the last step nothing is masked, and a picture without unknown tokens stays as it is; `always_mask_one=True`
   masks one token in both cases, as upstream does.
5. The network runs in bfloat16 where processor or GPU multiply it natively, else in float32 (`precision`).
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch

from .precision import best_precision
from .seeds import generators

PRECISIONS = ("bf16", "fp32")
REMASK_TEMPERATURES = ("showo", "maskgit", "upstream-carry")
LOG_CERTAIN = torch.tensor(torch.finfo(torch.float32).max).log()  # upstream's log-confidence of a known token


def _sigmoid(t: torch.Tensor) -> torch.Tensor:
    low, high, now = (torch.sigmoid(torch.as_tensor(x, dtype=torch.float32)) for x in (-3.0, 3.0, t * 6 - 3))
    return ((high - now) / (high - low)).clamp(1e-6, 1)


# Share of the steps done, 0..1, to the share of the tokens left unknown.
SCHEDULES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "cosine": lambda t: torch.cos(t * math.pi * 0.5),
    "linear": lambda t: (1 - t).clamp(1e-6, 1),
    "sigmoid": _sigmoid,
}
POWER = re.compile(r"pow(\d+(?:\.\d+)?)")  # "pow2": 1 - t^2


def schedule_named(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """A schedule of `SCHEDULES`, or a power such as "pow2". Raises ValueError for any other name."""
    if power := POWER.fullmatch(str(name)):
        return lambda t: (1 - t ** float(power[1])).clamp(1e-6, 1)
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(SCHEDULES)}, pow2 or another power")
    return SCHEDULES[name]


@dataclass(frozen=True)
class DecodeOptions:
    steps: int = 8
    guidance: float = 1.75  # Muse form: (1 + g) * conditional - g * unconditional; 0 switches it off
    temperature: float = 1.0  # of the Gumbel noise on confidences, at the start
    schedule: str = "cosine"
    remask_temperature: str = "showo"
    always_mask_one: bool = False  # upstream's: at least one token is masked after every step, come what may
    precision: str = field(default_factory=best_precision)  # "bf16" or "fp32"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"decoding steps must be at least 1, got {self.steps}")
        if self.guidance < 0 or self.temperature < 0:
            raise ValueError(f"guidance and temperature must be >= 0, got {self.guidance} and {self.temperature}")
        schedule_named(self.schedule)
        for name, value, known in (
            ("remask_temperature", self.remask_temperature, REMASK_TEMPERATURES),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")


@dataclass(frozen=True)
class Step:
    index: int  # 0..steps-1; -1 before the first
    codes: torch.Tensor  # int64 [B, L]: the step's prediction of the whole picture, known tokens kept
    masked: torch.Tensor  # bool [B, L]: True = still unknown after this step
    confidence: torch.Tensor  # float [B, L]: probability of the drawn token; 1 where the token was known

    def rows(self, keep: Sequence[int]) -> Step:
        """The same step of some candidates only."""
        return Step(self.index, self.codes[keep], self.masked[keep], self.confidence[keep])


def given(codes: torch.Tensor, masked: torch.Tensor) -> Step:
    """A picture to complete, as `decode` takes it: codes int64 [B, L], of which those `masked` are to be drawn."""
    return Step(-1, codes, masked, 1 - masked.float())


class Generator(Protocol):
    """What decoding needs of a model: prompts read once, hidden states of image tokens, codebook logits."""

    device: torch.device

    def text_ids(self, texts: list[str]) -> torch.Tensor: ...  # refuses a text that it cannot read
    def prefix(self, texts: list[str]) -> Any: ...
    def hidden_after(self, prefix: Any, codes: torch.Tensor, masked: torch.Tensor) -> torch.Tensor: ...
    def head(self, hidden: torch.Tensor) -> torch.Tensor: ...  # affine: guidance is applied to its input


# --- Noise ------------------------------------------------------------------------------------------------------


def uniform(shape: tuple[int, ...], rngs: Sequence[torch.Generator]) -> torch.Tensor:
    """Uniform noise [B, *shape] in [0, 1), row b drawn from rngs[b]."""
    return torch.stack([torch.rand(shape, generator=rng) for rng in rngs])


def gumbel(u: torch.Tensor) -> torch.Tensor:
    """Uniform to standard Gumbel noise."""
    return -torch.log((-torch.log(u.clamp(1e-20))).clamp(1e-20))


def draw(p: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """One code per row of probabilities p [M, V] from one uniform number per row u [M], by the inverse of the CDF."""
    cdf = p.cumsum(-1)
    return torch.searchsorted(cdf, (u * cdf[:, -1])[:, None]).squeeze(-1).clamp(max=p.shape[-1] - 1)


@runtime_checkable
class Noise(Protocol):
    """What decoding draws from. Steps are asked for in order; a resumed decoding asks for a late one first."""

    def tokens(self, step: int, p: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """Codes int64 [M] drawn from probabilities p [M, V] of the masked [B, L] positions, row-major."""

    def confidence(self, step: int) -> torch.Tensor:
        """Gumbel noise on the confidences, float [B, L]."""


class SeededNoise:
    """Each row's own generator: two uniform numbers per position and step, needed or not.

    So a row's stream depends neither on its batch nor on what is known, and step k can be reached without the others.
    """

    def __init__(self, seeds: Sequence[int], n_tokens: int):
        self.rngs, self.n_tokens, self.n_drawn = generators(list(seeds)), n_tokens, 0

    def tokens(self, step: int, p: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        while self.n_drawn < 2 * step:  # what the steps before a resumed one have used
            self._uniform()
        return draw(p, self._uniform()[masked].to(p.device))

    def confidence(self, step: int) -> torch.Tensor:
        return gumbel(self._uniform())

    def _uniform(self) -> torch.Tensor:
        self.n_drawn += 1
        return uniform((self.n_tokens,), self.rngs)


@dataclass(frozen=True)
class RecordedNoise:
    """Noise as upstream draws it: torch.multinomial(p, 1) is argmax p / q with q exponential."""

    exponential: torch.Tensor  # float [S, B, L, V]
    uniform: torch.Tensor  # float [S, B, L], of the Gumbel noise

    def tokens(self, step: int, p: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        return (p / self.exponential[step][masked].to(p.device)).argmax(-1)

    def confidence(self, step: int) -> torch.Tensor:
        return gumbel(self.uniform[step])


# --- Masking again ----------------------------------------------------------------------------------------------


def n_masked_after(step: int, steps: int, n_tokens: int, schedule: str) -> int:
    """How many of n_tokens unknown ones the schedule leaves so after step 0..steps-1 (0 after the last).

    In float32, as upstream: of 1024 tokens, the cosine leaves 511 at two thirds of the way, not 512.
    """
    share = schedule_named(schedule)(torch.tensor((step + 1) / steps, dtype=torch.float32))
    return max(0, int((n_tokens * share).floor()))


def remask_temperature(step: int, options: DecodeOptions, candidate: int = 0) -> float:
    """Show-o multiplies the temperature by (1 - (s+1)/T) at every step; MaskGIT sets it to that factor.

    Carried over as in the released code, it is 0 from the second candidate of a prompt on: the last factor was 0.
    """
    if options.remask_temperature == "maskgit":
        return options.temperature * (1 - (step + 1) / options.steps)
    if options.remask_temperature == "upstream-carry" and candidate > 0:
        return 0.0
    return math.prod((1 - (j + 1) / options.steps for j in range(step + 1)), start=options.temperature)


def remask(confidence: torch.Tensor, unknown: torch.Tensor, step: int, options: DecodeOptions) -> torch.Tensor:
    """The least confident of the tokens drawn now are masked again: bool [B, L], True = unknown.

    At least one token is kept and, before the last step, at least one masked; where confidences tie, fewer are masked.
    confidence: float [B, L], logarithms with noise; unknown: bool [B, L], True = drawn at this step.
    """
    L = unknown.shape[1]
    scheduled = n_masked_after(step, options.steps, L, options.schedule)
    n = (unknown.sum(-1, keepdim=True) - 1).clamp(max=scheduled)
    at_least = (unknown.any(-1, keepdim=True) & (step + 1 < options.steps)) | options.always_mask_one
    n = torch.maximum(n, at_least.long())
    cut = confidence.sort(-1).values.gather(1, n.clamp(max=L - 1))
    return confidence < cut


# --- Decoding ---------------------------------------------------------------------------------------------------


@torch.inference_mode()
def decode(
    model: Generator,
    texts: list[str],
    seeds: Sequence[int] | Noise,
    options: DecodeOptions,
    start: Step | None = None,
    candidates: Sequence[int] | None = None,
) -> Iterator[Step]:
    """Decode one picture per (text, seed), yielding every step; the last step's `codes` are the pictures.

    start: go on after this step (of `decode`, or `rows` of one, or `given` for inpainting), with the seeds of its rows;
    the result is that of an unbroken decoding. candidates: each row's place in the loop over its prompt's candidates,
    0 the first, which matters to `upstream-carry` only.
    Raises ValueError before any compute where these differ in number, where `start` has another size, unknown codes or
    no step left, and where a text does not fit the vocabulary.
    """
    state = start or nothing_known(len(texts), model.config.num_vq_tokens)
    _check_request(model, texts, seeds, options, state, candidates)
    noise = seeds if isinstance(seeds, Noise) else SeededNoise(seeds, model.config.num_vq_tokens)
    p = _first_probabilities(model, texts, options) if state.masked.all() else None
    prefix = read_prompts(model, texts, options)
    while state.index + 1 < options.steps:
        state = _advance(model, prefix, state, noise, options, candidates or [0], p=p)
        p = None
        yield state


def _first_probabilities(model: Generator, texts: list[str], options: DecodeOptions) -> torch.Tensor | None:
    """Of pictures of which nothing is known, as `_guided_probabilities`: those of one prompt are the same, and computed
    once. None where every prompt is there once."""
    distinct, L = list(dict.fromkeys(texts)), model.config.num_vq_tokens
    if len(distinct) == len(texts):
        return None
    blank, prefix = nothing_known(len(distinct), L), read_prompts(model, distinct, options)
    p = _guided_probabilities(model, prefix, blank.codes, blank.masked, options)
    return p.view(len(distinct), L, -1)[[distinct.index(text) for text in texts]].flatten(0, 1)


def read_prompts(model: Generator, texts: list[str], options: DecodeOptions) -> Any:
    """The prompts, and with guidance the empty prompt beside each, as `branch` takes them.

    Raises ValueError for float32 (`options.precision`) from a model whose `dtype`, if it has any, is another.
    """
    stored = getattr(model, "dtype", torch.float32)
    if options.precision == "fp32" and stored != torch.float32:
        raise ValueError(
            f"decode: precision 'fp32' for a generator stored in {stored}; load it with "
            "cotlib.loaders.generator_to_train(scale)"
        )
    return model.prefix([*texts, *[""] * len(texts)] if options.guidance else texts)


@torch.inference_mode()
def branch(model: Generator, prefix: Any, state: Step, seeds: Sequence[int], options: DecodeOptions, n: int) -> Step:
    """One step on from each of B states, in n ways: a step of B * n rows, those of one state side by side.

    Row b * n + k is what `decode` draws with its seed from state b; the network reads each state once, not n times.
    prefix: `read_prompts` of the B prompts. Raises ValueError for a number of seeds other than B * n.
    """
    if len(seeds) != len(state.codes) * n:
        raise ValueError(f"branch: expected {len(state.codes)} x {n} seeds, got {len(seeds)}")
    return _advance(model, prefix, state, SeededNoise(seeds, state.codes.shape[1]), options, [0], n)


def _advance(
    model: Generator,
    prefix: Any,
    state: Step,
    noise: Noise,
    options: DecodeOptions,
    candidates: Sequence[int],
    n: int = 1,
    p: torch.Tensor | None = None,
) -> Step:
    """One step on; p: probabilities [M, V] of the unknown tokens where they are known already."""
    step, codes, masked = state.index + 1, state.codes.cpu(), state.masked.cpu()
    if p is None:
        p = _guided_probabilities(model, prefix, codes, masked, options)
    if n > 1:
        rows = torch.repeat_interleave(torch.arange(len(codes)), n)
        first = torch.cat([torch.zeros(1, dtype=torch.long), masked.sum(-1).cumsum(0)])  # row b's part of p
        p = torch.cat([p[first[b] : first[b + 1]] for b in rows])
        codes, masked = codes[rows], masked[rows]
    drawn = noise.tokens(step, p, masked)
    codes = codes.masked_scatter(masked, drawn.cpu())
    log_p = p.gather(-1, drawn[:, None])[:, 0].clamp(1e-20).log().cpu()
    confidence = LOG_CERTAIN.expand(masked.shape).masked_scatter(masked, log_p)
    heat = torch.tensor([[remask_temperature(step, options, k)] for k in candidates])
    still = remask(confidence + heat * noise.confidence(step), masked, step, options)
    return Step(step, codes, still, confidence.exp().clamp(max=1.0))


def nothing_known(B: int, L: int) -> Step:
    """Where every decoding starts: B pictures of L unknown tokens."""
    return given(torch.zeros(B, L, dtype=torch.long), torch.ones(B, L, dtype=torch.bool))


def _check_request(
    model: Generator,
    texts: list[str],
    seeds: Sequence[int] | Noise,
    options: DecodeOptions,
    start: Step,
    candidates: Sequence[int] | None,
) -> None:
    B, L = len(texts), model.config.num_vq_tokens
    n_seeds = B if isinstance(seeds, Noise) else len(seeds)
    if not texts or n_seeds != B:
        raise ValueError(f"decode: expected one seed per text, got {B} texts and {n_seeds} seeds")
    if candidates is None and options.remask_temperature == "upstream-carry":
        raise ValueError(
            "decode: remask_temperature 'upstream-carry' depends on the order of candidates; "
            "pass candidates=[0, 1, ...], each row's place among those of its prompt"
        )
    if candidates is not None and (len(candidates) != B or min(candidates) < 0):
        raise ValueError(f"decode: expected one candidate number >= 0 per text, got {list(candidates)} for {B} texts")
    if start.codes.shape != (B, L) or start.masked.shape != (B, L) or start.masked.dtype != torch.bool:
        raise ValueError(
            f"decode: to start from, expected codes [{B}, {L}] and a bool mask of that shape, got "
            f"{list(start.codes.shape)} and {start.masked.dtype} {list(start.masked.shape)}; `Step.rows` picks rows"
        )
    if not -1 <= start.index < options.steps - 1:
        raise ValueError(f"decode: no step is left after step {start.index} of 0..{options.steps - 1}; raise steps")
    known, size = start.codes[~start.masked], getattr(model.config, "codebook_size", None)
    if size and known.numel() and not 0 <= int(known.min()) <= int(known.max()) < size:
        raise ValueError(
            f"decode: known codes must lie in 0..{size - 1}, got {int(known.min())}..{int(known.max())}; "
            "are mask tokens marked as unknown?"
        )


def _guided_probabilities(
    model: Generator, prefix: Any, codes: torch.Tensor, masked: torch.Tensor, options: DecodeOptions
) -> torch.Tensor:
    """Of every code at the masked positions only, row-major: float32 [M, V], where the model is; noise comes to it.

    The head is affine, so (1 + g) * head(a) - g * head(b) = head((1 + g) * a - g * b), at half the cost.
    """
    codes, masked, g = codes.to(model.device), masked.to(model.device), options.guidance
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=options.precision == "bf16"):
        if g:
            asked, free = model.hidden_after(prefix, codes.repeat(2, 1), masked.repeat(2, 1)).float().chunk(2)
            hidden = (1 + g) * asked[masked] - g * free[masked]
        else:
            hidden = model.hidden_after(prefix, codes, masked)[masked].float()
        logits = model.head(hidden)
    return logits.float().softmax(-1)


def final(steps: Iterator[Step]) -> Step:
    """Run the decoding to its end."""
    return deque(steps, maxlen=1).pop()

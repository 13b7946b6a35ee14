"""How much faster decoding is than the plain loop of the official code, in processor seconds and in one run.

`reference` is that loop, written out: at every step both padded sequences go through the network from their first
token, every position gets the logits of the whole vocabulary, guidance is applied to all of them. Both decoders are
given the same noise, drawn before the clock starts, so in float32 they must give the same tokens.

The default network is large enough that the time is spent where Show-o spends it: 85 million random weights.

`compare_parm` does the same for the search: the released loop's shape, one candidate after the other, decoded by that
plain loop, every step painted and judged alone, nothing stopped, against `parm.search`, both with the pocket models.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from .config import SCALES
from .decode import (
    LOG_CERTAIN,
    DecodeOptions,
    Noise,
    RecordedNoise,
    SeededNoise,
    Step,
    decode,
    final,
    remask,
    remask_temperature,
)
from .loaders import generator_to_train, load_generator, load_judge, load_tokenizer
from .parm import Parm, ParmOptions, released_loop, search
from .precision import has_bf16
from .prompts import Prompt, geneval_prompts, take
from .search import Paint
from .showo import PHI_ROPE, Showo, ShowoConfig
from .store import Ledger
from .verifiers import parm_of
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
    bf16: list[float]  # empty where the processor only emulates it
    n_different: int  # in float32
    n_tokens: int

    @property
    def ratios(self) -> dict[str, float]:
        """How many times the reference takes what ours takes: the median over rounds, each a ratio of its own."""
        pairs = {"speed/decode-ratio": self.fp32, "speed/decode-ratio-bf16": self.bf16}
        return {name: float(np.median(np.divide(self.reference, ours))) for name, ours in pairs.items() if ours}


@torch.inference_mode()
def reference(model: Showo, texts: list[str], noise: RecordedNoise, options: DecodeOptions) -> torch.Tensor:
    """Codes int64 [B, L] by the plain loop."""
    return final(plain_steps(model, texts, noise, options)).codes


@torch.inference_mode()
def plain_steps(
    model: Showo,
    texts: list[str],
    noise: Sequence[int] | Noise,
    options: DecodeOptions,
    candidates: Sequence[int] | None = None,
) -> Iterator[Step]:
    """The plain loop, called as `decode` is."""
    B, L, config = len(texts), model.config.num_vq_tokens, model.config
    noise = noise if isinstance(noise, Noise) else SeededNoise(noise, L)
    heat = [[remask_temperature(step, options, k) for k in candidates or [0]] for step in range(options.steps)]
    text = model.text_ids([*texts, *[""] * B])
    mask = torch.zeros((), device=model.device)
    mask = mask.masked_fill(~model.attention_mask(text), torch.finfo(torch.float32).min)  # [2B, 1, S, S]
    codes, masked = torch.zeros(B, L, dtype=torch.long), torch.ones(B, L, dtype=torch.bool)
    for step in range(options.steps):
        ids = model.sequence(text, *(known.repeat(2, 1).to(model.device) for known in (codes, masked)))
        asked, free = model.showo(input_ids=ids, attention_mask=mask, use_cache=False).logits.chunk(2)
        logits = (1 + options.guidance) * asked - options.guidance * free
        p = logits[:, -L - 1 : -1, config.image_offset : config.mask_id].softmax(-1).cpu()  # [B, L, V]
        codes = codes.masked_scatter(masked, noise.tokens(step, p[masked], masked))
        confidence = p.gather(-1, codes[..., None])[..., 0].clamp(1e-20).log().where(masked, LOG_CERTAIN)
        noisy = confidence + torch.tensor(heat[step])[:, None] * noise.confidence(step)
        masked = remask(noisy, masked, step, options)
        yield Step(step, codes, masked, confidence.exp().clamp(max=1.0))


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
    half.store_backbone(torch.bfloat16)  # as `load_generator` does
    jobs: dict[str, Callable[..., torch.Tensor]] = {
        "reference": lambda *request: reference(model, *request, options),
        "fp32": lambda *request: final(decode(model, *request, options)).codes,
        "bf16": lambda *request: final(decode(half, *request, rounded)).codes,
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    n_different = 0
    if not has_bf16():
        del jobs["bf16"]
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


# --- The search -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParmComparison:
    """Seconds per selected image, and which candidates the two chose, by prompt."""

    reference: float
    ours: float
    chosen: list[tuple[int, int]]

    @property
    def ratio(self) -> float:
        return self.reference / self.ours


def prescribed(asked: Parm, clear: int) -> Parm:
    """A judge that is asked everything, while what it is taken to say is fixed: a path is clear after its step `clear`
    (0 the first), and every other path has potential. So the work is the same for any judge and on any machine.
    """
    n = {"clarity": 0, "potential": 0}

    def clarity(pictures: np.ndarray, prompts: list[Prompt]) -> list[float]:
        asked.clarity(pictures, prompts)
        n["clarity"] += 1  # of a path alone, or of all paths of a group together: either way once a step
        return [float(n["clarity"] % (clear + 1) == 0)] * len(prompts)

    def potential(pictures: np.ndarray, prompts: list[Prompt]) -> list[float]:
        asked.potential(pictures, prompts)
        first = n["potential"]
        n["potential"] += len(prompts)
        return [float((first + i) % 2 == 0) for i in range(len(prompts))]

    return Parm(clarity, potential, asked.outcome)


def compare_search(
    plain: Showo, ours: Showo, prompts: Sequence[Prompt], n: int, decoding: DecodeOptions, paint: Paint, asked: Parm
) -> ParmComparison:
    """The released loop's shape and `parm.search` over the same candidates, on one thread.

    Seconds are of the processor, which a busy machine changes less; on a GPU they are of the clock on the wall, after a
    first search that loads its kernels.
    """
    clear, options = decoding.steps // 2, ParmOptions()
    on_gpu, request = ours.device.type == "cuda", (n, 0, decoding, paint)
    now = time.perf_counter if on_gpu else time.process_time
    with one_thread(), TemporaryDirectory() as folder:

        def together(name: str) -> dict[str, dict]:
            ledger = Ledger(Path(folder) / name, "")
            return search(ours, prompts, *request, prescribed(asked, clear), options, ledger, group=len(prompts))

        if on_gpu:
            together("first.jsonl")
        judge, whole = prescribed(asked, clear), replace(options, stop=False)
        start = now()
        alone = [released_loop(plain, p, *request, judge, options=whole, decoder=plain_steps) for p in prompts]
        middle = now()
        found = together("parm.jsonl")
        end = now()
    chosen = [(k, found[p.id]["chosen"]) for k, p in zip(alone, prompts, strict=True)]
    return ParmComparison((middle - start) / len(prompts), (end - middle) / len(prompts), chosen)


def compare_parm(n: int = 20, n_prompts: int = 2) -> ParmComparison:
    """With the shipped pocket models; the judge is the zero-shot one, whose answers are prescribed."""
    scale = SCALES["pocket"]
    decoding = DecodeOptions(steps=scale.steps, guidance=scale.guidance, temperature=scale.temperature)
    asked = parm_of(load_judge(scale), untrained=True)
    prompts = take(geneval_prompts(), 1)[1 : 1 + n_prompts]
    models = generator_to_train(scale), load_generator(scale)
    return compare_search(*models, prompts, n, decoding, load_tokenizer(scale).decode, asked)

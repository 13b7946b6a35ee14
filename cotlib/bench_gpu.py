"""Show-o at its full size on a GPU, with random weights: how fast it decodes, and what a step of DPO takes.

Random weights do the work that published ones do, token for token, so speed and memory are those of `showo` scale.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from .bench import PROMPTS
from .config import SCALES
from .decode import DecodeOptions, decode, final
from .errors import CotlibError
from .fetch import GB
from .preference import PreferenceOptions, align
from .showo import MAX_SEQ_LENGTH, PHI_ROPE, PHI_SIZES, Showo, ShowoConfig
from .words import build_tokenizer

SCALE = SCALES["showo"]
CONFIG = ShowoConfig(
    50295, codebook_size=8192, num_vq_tokens=SCALE.n_tokens, text_length=MAX_SEQ_LENGTH + 1, **PHI_SIZES, **PHI_ROPE
)
PAIRS = 10  # a batch of the paper's
TOO_LARGE = "does not fit into this card's memory"


def random_generator(config: ShowoConfig, device: str) -> Showo:
    torch.manual_seed(0)
    with torch.device(device):
        return Showo(config, build_tokenizer()).eval()


def matmul_rate(n: int = 8192, rounds: int = 10) -> float:
    """Floating-point operations a second of bfloat16 products of two [n, n] matrices: what the card gives."""
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / _seconds(lambda: a @ b, rounds)


def operations(config: ShowoConfig, steps: int) -> float:
    """Of one image decoded plainly with guidance: twice the blocks' weights for each image token of two sequences."""
    layer = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    return 2 * config.num_hidden_layers * layer * (config.num_vq_tokens + 2) * 2 * steps


def decoding_rate(model: Showo, options: DecodeOptions, n: int, rounds: int = 3) -> float:
    """Images a second, n of one prompt in a batch."""
    return n / _seconds(lambda: final(decode(model, [PROMPTS[0]] * n, list(range(n)), options)), rounds)


def seconds_per_pair_step(model: Showo, options: PreferenceOptions, n_steps: int = 4) -> float:
    """Of one step of DPO, the first, which loads kernels, left out."""
    rng, L = torch.Generator().manual_seed(0), model.config.num_vq_tokens
    codes = torch.randint(model.config.codebook_size, (n_steps * options.batch_size, 2, L), generator=rng).tolist()
    pairs = [{"prompt": PROMPTS[0], "chosen_codes": a, "rejected_codes": b} for a, b in codes]
    ends: list[float] = []

    def advance(_: int) -> None:
        torch.cuda.synchronize()
        ends.append(time.perf_counter())

    with TemporaryDirectory() as folder:
        align(model, pairs, [], options, Path(folder), advance=advance, checkpoints=False)
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def _seconds(job: Callable[[], object], rounds: int) -> float:
    """Mean wall time of a job, after a first one."""
    job()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(rounds):
        job()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / rounds


def report(config: ShowoConfig = CONFIG, lora_rank: int = 64) -> Iterator[str]:
    """What was measured, a line each. Raises CotlibError where there is no GPU."""
    if not torch.cuda.is_available():
        raise CotlibError("cotlib bench --full-size needs a GPU; without it, measure the ratios with: cotlib bench")
    card = matmul_rate()
    yield f"{torch.cuda.get_device_name()}: {card / 1e12:.0f} TFLOP/s in bfloat16 products"
    options = DecodeOptions(steps=SCALE.steps, guidance=SCALE.guidance, temperature=SCALE.temperature, precision="bf16")
    model = random_generator(config, "cuda")
    yield f"Show-o: {sum(p.numel() for p in model.parameters()) / 1e9:.2f} billion random weights"
    model.store_backbone(torch.bfloat16)
    for n in (20, 80):
        torch.cuda.reset_peak_memory_stats()
        try:
            rate = decoding_rate(model, options, n)
        except torch.OutOfMemoryError:
            yield f"decoding, {n} images a batch: {TOO_LARGE}"
            continue
        share = rate * operations(config, options.steps) / card
        yield (
            f"decoding, {config.num_vq_tokens} tokens in {options.steps} steps, {n} images a batch: {rate:.1f} "
            f"images/s, {share:.0%} of the card's rate, {torch.cuda.max_memory_allocated() / GB:.1f} GB"
        )
    del model
    aligning = PreferenceOptions(batch_size=PAIRS, learning_rate=1e-5)
    for name, changed in ((f"LoRA {lora_rank}", replace(aligning, lora_rank=lora_rank)), ("every weight", aligning)):
        gc.collect()  # a trainer refers to itself
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            spent = seconds_per_pair_step(random_generator(config, "cuda"), changed)
        except torch.OutOfMemoryError:
            yield f"DPO, {name}, {PAIRS} pairs a batch: {TOO_LARGE}"
            continue
        peak = torch.cuda.max_memory_allocated() / GB
        yield f"DPO, {name}, {PAIRS} pairs a batch: {spent:.2f} s a step, {peak:.1f} GB"

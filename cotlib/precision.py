"""Where bfloat16 is worth it: on machines that multiply it natively (AMX, AVX512-BF16, Arm's BF16, a GPU).

Elsewhere it is emulated, and slower than float32. `cotlib doctor` says which kind this machine is.
"""

from __future__ import annotations

from functools import cache

import torch

NATIVE = ("amx_bf16", "avx512_bf16", "avx10_2", "bf16", "sve_bf16")  # as torch names what a processor can do


@cache
def has_bf16(device: str = "cpu") -> bool:
    """Whether a device ("cpu", "cuda") multiplies bfloat16 natively."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capable = torch.cpu.get_capabilities()
    return any(capable.get(name) for name in NATIVE)


def best_dtype(device: str = "cpu") -> torch.dtype:
    """bfloat16 where it is native, else float32."""
    return torch.bfloat16 if has_bf16(device) else torch.float32


def best_precision(device: str | None = None) -> str:
    """The same, as `decode.DecodeOptions` names it; by default of where models run, the GPU if there is one."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return "bf16" if has_bf16(device) else "fp32"


def autocast(device: str = "cpu") -> torch.autocast:
    """Compute in bfloat16 within, where it is native."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=has_bf16(device))

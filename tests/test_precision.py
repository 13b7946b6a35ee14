"""bfloat16 where the processor multiplies it natively, float32 elsewhere."""

import pytest
import torch

from cotlib import config, loaders, precision
from cotlib.decode import DecodeOptions


@pytest.fixture(params=[{"avx2": True}, {"avx512_bf16": True}, {"amx_bf16": True, "avx512_bf16": False}])
def processor(request, monkeypatch):
    """Pretend to have a processor of some kind; whether it multiplies bfloat16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: request.param)
    precision.has_bf16.cache_clear()
    loaders.load_generator.cache_clear()
    yield any("bf16" in name and there for name, there in request.param.items())
    precision.has_bf16.cache_clear()
    loaders.load_generator.cache_clear()


def test_what_is_emulated_is_not_used(processor):
    assert DecodeOptions().precision == ("bf16" if processor else "fp32")
    with precision.autocast():
        assert torch.is_autocast_enabled("cpu") == processor
    backbone = loaders.load_generator(config.SCALES["pocket"]).showo.model
    assert next(backbone.parameters()).dtype == (torch.bfloat16 if processor else torch.float32)

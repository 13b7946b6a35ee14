"""bfloat16 where the processor multiplies it natively, float32 elsewhere."""

import pytest
import torch

from cotlib import config, loaders, precision
from cotlib.decode import DecodeOptions, decode, final


@pytest.fixture(params=[{"avx2": True}, {"avx512_bf16": True}, {"amx_bf16": True, "avx512_bf16": False}])
def processor(request, monkeypatch):
    """Pretend to have a processor of some kind; whether it multiplies bfloat16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    precision.has_bf16.cache_clear()
    loaders._decoding.cache_clear()
    yield any("bf16" in name and there for name, there in request.param.items())
    precision.has_bf16.cache_clear()
    loaders._decoding.cache_clear()


def test_what_is_emulated_is_not_used(processor):
    assert DecodeOptions().precision == ("bf16" if processor else "fp32")
    with precision.autocast():
        assert torch.is_autocast_enabled("cpu") == processor
    generator, exact = (load(config.SCALES["pocket"]) for load in (loaders.load_generator, loaders.generator_to_train))
    assert generator.dtype == (torch.bfloat16 if processor else torch.float32)
    frequencies, expected = (g.showo.model.rotary_emb.inv_freq for g in (generator, exact))
    assert frequencies.dtype == torch.float32 and torch.equal(frequencies, expected)


def test_float32_is_refused_where_the_weights_are_not(processor):
    generator = loaders.load_generator(config.SCALES["pocket"])
    if processor:
        with pytest.raises(ValueError, match="stored in torch.bfloat16.*generator_to_train"):
            next(decode(generator, ["a photo of a dog"], [0], DecodeOptions(precision="fp32")))
    for g in (0.0, 1.75):
        assert len(final(decode(generator, ["a photo of a dog"], [0], DecodeOptions(guidance=g, steps=2))).codes) == 1

"""What `cotlib bench --full-size` counts, and what it does where there is no GPU."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cotlib import bench_gpu, preference
from cotlib.__main__ import main
from cotlib.bench_gpu import CONFIG

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TINY = replace(CONFIG, llm_vocab_size=400, codebook_size=64, num_vq_tokens=16, text_length=24, **SIZES)


def test_full_size_is_that_of_show_o():
    model = bench_gpu.random_generator(CONFIG, "meta")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(1.45e9, rel=0.01)
    assert bench_gpu.operations(CONFIG, steps=18) == pytest.approx(23e12, rel=0.05)


def test_operations_are_those_of_the_layers_weights():
    model = bench_gpu.random_generator(TINY, "cpu")
    ids = torch.zeros(2, TINY.num_vq_tokens + 2, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.showo.model(input_ids=ids, use_cache=False)
    linear = counter.get_flop_counts()["Global"][torch.ops.aten.addmm]
    assert bench_gpu.operations(TINY, steps=3) == 3 * linear


def test_without_a_gpu_it_says_what_can_be_measured(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["bench", "--full-size"])
    assert "needs a GPU; without it, measure the ratios with: cotlib bench" in capsys.readouterr().err


def test_a_step_of_dpo_is_timed_and_leaves_no_checkpoint(monkeypatch):
    folders = []
    settings = preference._settings

    def noted(model, options, n_steps, folder, checkpoints):
        folders.append((n_steps, sorted(p.name for p in folder.iterdir()), checkpoints))
        return settings(model, options, n_steps, folder, checkpoints)

    monkeypatch.setattr(preference, "_settings", noted)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    options = preference.PreferenceOptions(batch_size=2)
    assert bench_gpu.seconds_per_pair_step(bench_gpu.random_generator(TINY, "cpu"), options, n_steps=3) > 0
    assert folders == [(3, [], False)]


@pytest.mark.parametrize("checkpoints", [True, False])
def test_an_alignment_keeps_checkpoints_only_if_it_is_asked_to(tmp_path, checkpoints):
    pairs = [{"prompt": "a photo of a dog", "chosen_codes": [1] * 16, "rejected_codes": [2] * 16}] * 2
    model, options = bench_gpu.random_generator(TINY, "cpu"), preference.PreferenceOptions(batch_size=2, epochs=6)
    preference.align(model, pairs, [], options, tmp_path, checkpoints=checkpoints)
    assert bool(list(tmp_path.glob("checkpoint-*"))) is checkpoints

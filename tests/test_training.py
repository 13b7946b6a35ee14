"""The training loop: budget, schedule, resuming."""

import json

import pytest
import torch
from torch import nn

from cotlib.pocket.training import FLOOR, Budget, Loop, learning_rate_factor, muon_and_adamw


def make(folder, minutes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    optimizers = muon_and_adamw(model, 1e-2, [model[0].weight])
    return Loop(model, optimizers, Budget(minutes, warmup=1, log_every=5), folder)


def step_of(loop):
    def step(i):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(i))
        return {"loss": (loop.model(x) - x.sum(1, keepdim=True)).square().mean()}

    return step


def test_the_rate_warms_up_stays_and_falls_to_its_floor():
    budget = Budget(1, warmup=10, decay=0.5)
    assert learning_rate_factor(0, 0.0, budget) == pytest.approx(0.1)
    assert learning_rate_factor(99, 0.4, budget) == 1.0
    assert learning_rate_factor(99, 0.75, budget) == pytest.approx(0.5)
    assert learning_rate_factor(99, 1.0, budget) == FLOOR


def test_a_run_stops_at_its_budget_and_learns(tmp_path):
    loop = make(tmp_path, 0.04)
    loop.run(step_of(loop))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert loop.seconds >= 2.4
    assert losses[-1] < 0.8 * losses[0]


def test_of_a_killed_run_the_log_keeps_what_its_checkpoint_knows(tmp_path):
    first = make(tmp_path, 0.005)
    first.run(step_of(first))
    kept = first.log.read_text()
    with first.log.open("a") as file:
        file.write(json.dumps({"step": first.steps + 5, "loss": 1.0}) + "\n")
    assert make(tmp_path, 0.01).log.read_text() == kept
    first.checkpoint.unlink()
    assert make(tmp_path, 0.01).log.read_text() == ""


def test_a_stopped_run_goes_on_with_its_optimizer_state_and_its_clock(tmp_path):
    first = make(tmp_path, 0.005)
    first.run(step_of(first))
    again = make(tmp_path, 0.005)
    assert (again.steps, again.seconds) == (first.steps, first.seconds)
    for a, b in zip(first.optimizers, again.optimizers, strict=True):
        states = zip(a.state_dict()["state"].values(), b.state_dict()["state"].values(), strict=True)
        assert all(torch.equal(torch.as_tensor(x[k]), torch.as_tensor(y[k])) for x, y in states for k in x)
    before = again.steps
    again.run(step_of(again))
    assert again.steps == before  # the budget is spent already

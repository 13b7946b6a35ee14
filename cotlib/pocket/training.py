"""A training loop with a wall-clock budget, for the pocket models: log, checkpoint, resume.

The learning rate is a function of the fraction of the budget that is spent, not of a step count that nobody can
predict on another machine: a short warm-up, a plateau, then a straight line down over the last part. A run that was
stopped goes on from its last checkpoint, with the seconds already spent counted. Checkpoints are safetensors: weights,
optimizer moments and counters, no pickle.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ..store import atomic_write

CHECKPOINT = "checkpoint.safetensors"
FLOOR = 0.02  # of the peak learning rate, at the end


@dataclass(frozen=True)
class Budget:
    minutes: float
    warmup: int = 200  # steps
    decay: float = 0.6  # the last fraction of the budget, in which the learning rate falls to FLOOR
    log_every: int = 100  # steps
    checkpoint_every: float = 120.0  # seconds


def muon_and_adamw(model: nn.Module, lr: float, matrices: Sequence[nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest: at equal time it memorises rare facts much faster."""
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.03, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate_factor(step: int, spent: float, budget: Budget) -> float:
    """In (0, 1]: warm-up over steps, plateau, linear fall over the last `decay` of the budget (`spent` in 0..1)."""
    return min(1.0, (step + 1) / budget.warmup) * max(FLOOR, min(1.0, (1 - spent) / budget.decay))


def spent(folder: Path) -> tuple[int, float]:
    """Steps and seconds of the training whose checkpoint lies in a folder."""
    with safe_open(folder / CHECKPOINT, "pt") as file:
        counters = file.metadata()
    return int(counters["steps"]), float(counters["seconds"])


class Loop:
    """Runs `step(i) -> {"loss": tensor, ...}` until the budget is spent; what must survive is in `folder`."""

    def __init__(
        self, model: nn.Module, optimizers: list[torch.optim.Optimizer], budget: Budget, folder: Path, clip: float = 1.0
    ):
        self.model, self.optimizers, self.budget, self.folder, self.clip = model, optimizers, budget, folder, clip
        self.peak = [[group["lr"] for group in o.param_groups] for o in optimizers]
        self.steps, self.seconds = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self._restore()
        lines = self.log.read_text().splitlines(keepends=True) if self.log.exists() else []
        whole = [line for line in lines if line.endswith("}\n")]  # a full disk tears one
        atomic_write(self.log, "".join(line for line in whole if json.loads(line)["step"] <= self.steps))

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    def run(self, step: Callable[[int], dict[str, torch.Tensor]]) -> None:
        sums, since = defaultdict(float), 0
        saved = tick = time.monotonic()
        self.model.train()
        while self.seconds < 60 * self.budget.minutes:
            metrics = step(self.steps)
            self._update(metrics["loss"])
            now = time.monotonic()
            self.seconds, tick = self.seconds + now - tick, now
            self.steps, since = self.steps + 1, since + 1
            for name, value in metrics.items():
                sums[name] = sums[name] + value.detach()
            if since == self.budget.log_every:
                self._write({name: round(float(total) / since, 4) for name, total in sums.items()})
                sums.clear()
                since = 0
            if now - saved > self.budget.checkpoint_every:
                self.save()
                saved = time.monotonic()
        self.save()
        self.model.eval()

    def _update(self, loss: torch.Tensor) -> None:
        spent = self.seconds / (60 * self.budget.minutes)
        factor = learning_rate_factor(self.steps, spent, self.budget)
        for optimizer, peaks in zip(self.optimizers, self.peak, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        for optimizer in self.optimizers:
            optimizer.step()

    def _write(self, metrics: dict[str, float]) -> None:
        record = {"step": self.steps, "seconds": round(self.seconds), **metrics}
        with self.log.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(" ".join(f"{k}={v}" for k, v in record.items()), flush=True)

    def save(self) -> None:
        tensors = {f"model.{k}": v.contiguous() for k, v in self.model.state_dict().items()}
        for i, optimizer in enumerate(self.optimizers):
            for j, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{j}.{k}": torch.as_tensor(v).contiguous() for k, v in state.items()}
        partial = self.checkpoint.with_suffix(".partial")
        counters = {"steps": str(self.steps), "seconds": str(self.seconds)}
        save_file({k: v.clone() for k, v in tensors.items()}, partial, counters)
        partial.replace(self.checkpoint)

    def _restore(self) -> None:
        with safe_open(self.checkpoint, "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        for i, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
            for name, value in tensors.items():
                if name.startswith(f"optimizer.{i}."):
                    _, _, j, field = name.split(".", 3)
                    state[int(j)][field] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(state)})
        self.steps, self.seconds = spent(self.folder)
        print(f"resumed {self.folder} at step {self.steps}, {self.seconds / 60:.1f} min spent", flush=True)

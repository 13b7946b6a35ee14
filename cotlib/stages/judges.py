"""Judges of a run, fine-tuned once, and what a verifier says with them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .. import models, ranking, store
from ..judge import outcome_question, process_question
from ..loaders import judge_to_train, load_judge, load_tokenizer
from ..run import Run
from ..search import Score
from ..tuning import TuneOptions, fine_tune
from ..verifiers import Verifier
from .data import ranking_data, rolled_out
from .sources import weights_digest


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned judge on disk, and the log of its training."""

    folder: Path
    log: list[dict[str, float]]  # records {"step", "loss", "mean_token_accuracy", ...}
    seconds: float
    n_examples: int


def outcome_judge(run: Run) -> Tuned:
    """The judge fine-tuned on finished pictures (ORM)."""
    data = ranking_data(run)
    return _tuned(run, "orm", ranking.outcome_examples(data.pool, data.labels, outcome_question), data.identity)


def process_judge(run: Run) -> Tuned:
    """The judge fine-tuned on pictures of any step (PRM)."""
    data = ranking_data(run)
    examples = ranking.process_examples(data.pool, rolled_out(run, data), data.labels, process_question)
    return _tuned(run, "prm", examples, {**data.identity, "n_rolled_out": run.params["n_rolled_out"]})


def _tuned(run: Run, name: str, examples: list[dict], depends_on: Mapping[str, Any]) -> Tuned:
    """Fine-tune the zero-shot judge on examples, once. The data set is kept beside the weights, with a card."""
    options = TuneOptions(epochs=run.params["tune_epochs"], seed=run.seed)
    if not run.scale.offline:
        options = replace(options, batch_size=8, learning_rate=1e-5, lora_rank=64)
    what = {
        "scale": run.scale.name,
        "seed": run.seed,
        "examples": store.digest(examples),
        "options": asdict(options),
        **weights_digest(run, "judge", "tokenizer"),
    }

    def train(folder: Path) -> dict[str, Any]:
        start = time.perf_counter()
        data = ranking.balanced(examples, run.seed)
        ranking.save(data, folder / "data", depends_on)
        judge = judge_to_train(run.scale)
        log = fine_tune(judge, data, load_tokenizer(run.scale).decode, options, folder)
        judge.save_pretrained(folder)
        return {"log": log, "seconds": round(time.perf_counter() - start, 1), "examples": len(data)}

    folder = models.trained(run.models, name, what, train)
    made = models.notes(folder)
    return Tuned(folder, made["log"], made["seconds"], made["examples"])


def verifier_score(run: Run, verifier: Verifier) -> tuple[Score, dict[str, str]]:
    """How a verifier scores pictures, and what its scores depend on."""
    identity = weights_digest(run, "tokenizer")
    if verifier.judge == "zero-shot":
        return verifier.scorer(load_judge(run.scale)), {**identity, **weights_digest(run, "judge")}
    folder = {"orm": outcome_judge, "prm": process_judge}[verifier.judge](run).folder
    return verifier.scorer(load_judge(run.scale, folder)), {**identity, "judge": folder.name}

"""Ranking data of a run: training prompts, decoded and labelled once, and their paths completed from the middle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import ranking
from ..loaders import load_generator, load_tokenizer, trusted_evaluator
from ..prompts import training_prompts
from ..run import Run
from ..search import Pool, decode_pool
from .sources import Source, base, decode_options, once, weights_digest, without

NOT_OF_A_PATH = ("n_neighbours", "prompts")  # what a completed path does not depend on: a ledger may grow
TRAINING_SUITE = 1000  # GenEval's generator at this seed plus the run's gives the training prompts


@dataclass(frozen=True)
class Ranking:
    """Candidates of training prompts, with the evaluator's labels by prompt id (see `ranking.label_pool`)."""

    pool: Pool
    labels: Mapping[str, dict]
    identity: Mapping[str, Any]  # what it depends on


def ranking_data(run: Run, source: Source | None = None) -> Ranking:
    """Training prompts, decoded by a generator (the base) and labelled."""
    return _ranking_data(run, source or base(run))


@once
def _ranking_data(run: Run, source: Source) -> Ranking:
    suite = TRAINING_SUITE + run.seed
    prompts = training_prompts(suite, run.params["n_train_prompts_per_task"])
    K, n_neighbours = run.params["n_train_candidates"], run.params["n_neighbours"]
    identity = {"suite": suite, "n_candidates": K, **source.made_by}
    name = "train" if source.folder is None else f"train-{source.name}"
    pool = decode_pool(
        load_generator(run.scale, source.folder),
        prompts,
        K,
        run.seed,
        decode_options(run),
        run.ledger(name, **identity),
        batch_size=run.params["batch_size"],
    )
    identity |= {"n_neighbours": n_neighbours, **weights_digest(run, "tokenizer", "detector")}
    labels = ranking.label_pool(
        pool,
        load_tokenizer(run.scale).decode,
        trusted_evaluator(run.scale),
        run.ledger(f"{name}-labels", reasons=True, **identity),
        n_neighbours,
        run.seed,
    )
    return Ranking(pool, labels, {**identity, "prompts": len(prompts)})


def rolled_out(run: Run, data: Ranking) -> dict[str, list[dict]]:
    """Training paths completed from the middle (see `ranking.roll_out`)."""
    n_paths, n_steps = run.params["n_rolled_out"], max(1, 3 * run.params["steps"] // 8)
    return ranking.roll_out(
        data.pool,
        load_generator(run.scale),
        decode_options(run),
        load_tokenizer(run.scale).decode,
        trusted_evaluator(run.scale),
        run.ledger("train-roll-outs", n_rolled_out=n_paths, n_steps=n_steps, **without(data.identity, *NOT_OF_A_PATH)),
        run.seed,
        n_paths,
        n_steps,
    )

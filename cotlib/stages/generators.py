"""Generators of a run, by name, aligned once."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .. import models, store
from ..config import suggest
from ..loaders import generator_to_train
from ..preference import PreferenceOptions, align, count_pairs, preference_pairs, split_pairs
from ..progress import progress
from ..run import Run
from .data import ranking_data
from .sources import Source, base, decode_options


@dataclass(frozen=True)
class AlignedGenerator:
    """An aligned generator on disk, and how its training went."""

    folder: Path
    log: list[dict[str, float]]  # the trainer's: {"step", "loss", "rewards/accuracies", "rewards/margins", ...}
    pair_accuracy: float | None  # on held-out pairs
    pairs: Mapping[str, int]  # training pairs of each task
    seconds: float

    @property
    def key(self) -> str:
        return self.folder.name


def preference_options(run: Run, **changes: Any) -> PreferenceOptions:
    """The options of a scale; `changes` are recorded with the model that they make."""
    options = PreferenceOptions(epochs=run.params["align_epochs"], seed=run.seed)
    if not run.scale.offline:  # of the paper: one pass, batches of 10, 1e-5
        options = replace(options, batch_size=10, learning_rate=1e-5)
    return replace(options, **changes)


def aligned(run: Run, name: str, **changes: Any) -> AlignedGenerator:
    """A generator aligned by DPO, trained once: "dpo" from the base, "it-dpo" from "dpo" with its own pictures.

    `changes` to the options, such as mask_sharing="independent" or seed=1, make another model.
    Raises ValueError for an unknown name, and where no prompt has both right and wrong pictures.
    """
    start = {"dpo": "base", "it-dpo": "dpo"}.get(name)
    if start is None:
        raise ValueError(f"unknown generator {name!r}; {suggest(name, ('base', 'dpo', 'it-dpo'))}")
    before = source(run, start)
    data, options = ranking_data(run, before), preference_options(run, **changes)
    pairs = preference_pairs(data.pool, data.labels, run.seed, run.params["n_pairs"])
    training, held_out = split_pairs(pairs)
    what = {"pairs": store.digest(pairs), "options": asdict(options), **before.made_by}

    def train(folder: Path) -> dict[str, Any]:
        begun, checkpoints = time.perf_counter(), folder / "checkpoints"
        model = generator_to_train(run.scale, before.folder)
        n_steps = -(-len(training) * options.epochs * options.masks_per_pair // options.batch_size)
        with progress(n_steps, f"aligning {name}", "steps") as advance:
            made = align(model, training, held_out, options, checkpoints, advance=advance)
        model.save_pretrained(folder)
        shutil.rmtree(checkpoints)
        seconds = round(time.perf_counter() - begun, 1)
        return {
            "log": made.log,
            "pair_accuracy": made.pair_accuracy,
            "seconds": seconds,
            "pairs": count_pairs(training),
        }

    folder = models.trained(run.models, name, what, train)
    made = models.notes(folder)
    return AlignedGenerator(folder, made["log"], made["pair_accuracy"], made["pairs"], made["seconds"])


def source(run: Run, generator: str) -> Source:
    """A generator of any name; an aligned one is trained if it is not there yet."""
    if generator == "base":
        return base(run)
    made = aligned(run, generator)
    return Source(generator, made.folder, {**asdict(decode_options(run)), "generator": made.key})

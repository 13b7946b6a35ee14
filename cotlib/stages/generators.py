"""Generators of a run, by name, aligned once."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import models, store
from ..config import suggest
from ..correction import correction_groups, learn_to_correct, without_glut
from ..loaders import generator_to_train, load_tokenizer
from ..preference import Guide, PreferenceOptions, align, count_pairs, preference_pairs, split_pairs
from ..progress import progress
from ..prompts import Prompt
from ..run import Run
from ..search import Score
from ..seeds import sample_seed
from ..showo import Showo
from ..tuning import TuneOptions, seconds_before
from ..verifiers import named
from .data import ranking_data
from .judges import verifier_score
from .sources import Source, base, decode_options, decoded_by, once


@dataclass(frozen=True)
class Recipe:
    """How a generator is aligned: whose pictures make the pairs (it goes on from there), and who guides it."""

    start: str
    guide: str | None = None  # a verifier of finished pictures


RECIPES = {
    "dpo": Recipe("base"),
    "it-dpo": Recipe("dpo"),
    "it-dpo-orm": Recipe("dpo", guide="orm"),
    "it-dpo-parm": Recipe("dpo", guide="parm"),
}
REFLECT = "reflect"  # the generator that corrects
# Then both gradients are about as long: at the first steps 0.3 to 0.6 of the guide's term, 1.8 to 2.6 of the pairs'. At
# pocket scale, where it was measured; elsewhere the pairs' term sums over more tokens and nobody has compared them yet.
GUIDANCE_WEIGHT = 4.0


def recipe(name: str) -> Recipe:
    """The recipe of a name; "it-dpo-3" is a third round, from "it-dpo", the second, and so on without end.

    Raises ValueError for an unknown name.
    """
    if further := re.fullmatch(r"it-dpo-([3-9]|[1-9]\d+)", name):
        n = int(further[1])
        return Recipe("it-dpo" if n == 3 else f"it-dpo-{n - 1}")
    if name not in RECIPES:
        raise ValueError(f"unknown generator {name!r}; {suggest(name, ('base', *RECIPES, 'it-dpo-3'))}")
    return RECIPES[name]


def known_generators() -> tuple[str, ...]:
    """Every generator that can be made here, the base first."""
    return ("base", *RECIPES)


@dataclass(frozen=True)
class AlignedGenerator:
    """An aligned generator on disk, and how its training went."""

    folder: Path
    log: list[dict[str, float]]  # the trainer's: {"step", "loss", "rewards/accuracies", "rewards/margins", ...}
    pair_accuracy: float | None  # on held-out pairs
    pairs: Mapping[str, int]  # training pairs of each task
    seconds: float
    rewards: list[float]  # mean P(yes) of the pictures sampled at each step; empty without a guide

    @property
    def key(self) -> str:
        return self.folder.name


def preference_options(run: Run, **changes: Any) -> PreferenceOptions:
    """The options of a scale; `changes` are recorded with the model that they make.

    The pocket generator has hundreds or thousands of pairs and a skill to learn: it also imitates the chosen pictures.
    """
    options = PreferenceOptions(epochs=run.params["align_epochs"], seed=run.seed, learning_rate=1e-4, sft_weight=1.0)
    if not run.scale.offline:  # of the paper, which makes one pass: batches of 10, 1e-5, no imitation
        options = replace(options, batch_size=10, learning_rate=1e-5, sft_weight=0.0)
    return replace(options, **changes)


@once
def aligned(run: Run, name: str, **changes: Any) -> AlignedGenerator:
    """A generator aligned by its recipe, trained once: by DPO on what its start gets right and wrong.

    A guided one sees the same pairs as without its guide. `changes` to the options, such as
    mask_sharing="independent", guidance="detached" or seed=1, make another model, named a variant.
    Raises as `recipe`, and ValueError where no prompt has both right and wrong pictures.
    """
    how, label = recipe(name), name + models.VARIANT if changes else name
    if how.guide is not None:
        changes = {"guidance": "policy-gradient", "guidance_weight": GUIDANCE_WEIGHT, **changes}
    before = source(run, how.start)
    data, options = ranking_data(run, before), preference_options(run, **changes)
    pairs = preference_pairs(data.pool, data.labels, run.seed, run.params["n_pairs"])
    training, held_out = split_pairs(pairs)
    what = {"pairs": store.digest(pairs), "options": asdict(options), **before.made_by}
    score = None
    if how.guide is not None:
        score, identity = verifier_score(run, named(how.guide))
        what |= {"guide": how.guide, "guide_depends_on": dict(identity)}

    def train(folder: Path) -> dict[str, Any]:
        checkpoints = folder / models.CHECKPOINTS
        begun = time.perf_counter() - seconds_before(checkpoints)
        model = generator_to_train(run.scale, before.folder)
        asked = _asked(data.pool.prompts, held_out, options.seed)
        guide = None if score is None else _guide(run, model, asked, score, options)
        n_steps = -(-len(training) * options.epochs * options.masks_per_pair // options.batch_size)
        with progress(n_steps, f"aligning {name}", "steps") as advance:
            made = align(model, training, held_out, options, checkpoints, guide=guide, advance=advance)
        model.save_pretrained(folder)
        return {
            "log": made.log,
            "pair_accuracy": made.pair_accuracy,
            "seconds": round(time.perf_counter() - begun, 1),
            "pairs": count_pairs(training),
            "rewards": made.rewards,
        }

    folder = run.trained(label, what, train)
    made = models.notes(folder)
    rewards = made.get("rewards", [])  # models of earlier versions have none
    return AlignedGenerator(folder, made["log"], made["pair_accuracy"], made["pairs"], made["seconds"], rewards)


def _asked(prompts: tuple[Prompt, ...], held_out: list[dict], seed: int) -> list[Prompt]:
    """The prompts that a guide samples, shuffled, as they come by task; those of held-out pairs are left out."""
    apart = {pair["source"] for pair in held_out}
    rng = np.random.default_rng(sample_seed(seed, "", 0, "guided-prompts"))
    return [prompts[i] for i in rng.permutation(len(prompts)) if prompts[i].id not in apart]


def _guide(run: Run, model: Showo, asked: list[Prompt], score: Score, options: PreferenceOptions) -> Guide:
    return Guide(model, asked, load_tokenizer(run.scale).decode, score, decode_options(run), options)


@dataclass(frozen=True)
class Corrected:
    """The base, fine-tuned to correct its pictures."""

    folder: Path
    log: list[dict[str, float]]  # the trainer's: {"step", "loss", ...}
    groups: Mapping[str, int]  # of each task, that it learned from
    seconds: float


CORRECTIONS_PER_TEXT = 4  # wrong pictures of each training prompt, and of each prompt one clause away, at most


@once
def correcting(run: Run) -> Corrected:
    """The generator of self-correction, trained once from the base's wrong pictures (see `correction.py`)."""
    data = ranking_data(run)
    groups = without_glut(correction_groups(data.pool, data.labels, run.seed, CORRECTIONS_PER_TEXT), run.seed)
    options = TuneOptions(epochs=run.params["correct_epochs"], seed=run.seed, learning_rate=1e-4)
    if not run.scale.offline:
        options = replace(options, batch_size=8, lora_rank=64)

    def train(folder: Path) -> dict[str, Any]:
        begun = time.perf_counter() - seconds_before(folder / models.CHECKPOINTS)
        model, log = learn_to_correct(generator_to_train(run.scale), groups, options, folder)
        model.save_pretrained(folder)
        return {"log": log, "groups": count_pairs(groups), "seconds": round(time.perf_counter() - begun, 1)}

    what = {"groups": store.digest(groups), "options": asdict(options), **base(run).made_by}
    folder = run.trained(REFLECT, what, train)
    made = models.notes(folder)
    return Corrected(folder, made["log"], made["groups"], made["seconds"])


def source(run: Run, generator: str) -> Source:
    """A generator of any name; an aligned one, and the one that corrects, is trained if it is not there yet."""
    if generator == "base":
        return base(run)
    folder = (correcting(run) if generator == REFLECT else aligned(run, generator)).folder
    return Source(generator, folder, {**decoded_by(run), "generator": folder.name})

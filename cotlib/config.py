"""Scales, efforts, the notebooks and the parameters each accepts; strict checking of a request.

A notebook has two dials, `scale` (which weights) and `effort` (how many samples), a `seed`, and a few
overrides. `check` turns what was typed into effective values, or raises ValueError before any compute.
Nothing here reads a file or imports a model.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scale:
    """Sizes of one family of weights. Nothing but the weights and these numbers differs between scales."""

    name: str
    image_size: int  # px, pictures are square
    grid: int  # tokens per side; L = grid * grid
    steps: int  # decoding steps
    guidance: float  # g in (1 + g) * conditional - g * unconditional
    temperature: float  # of the noise on confidences when tokens are masked again
    batch_size: int  # candidates decoded together; changes speed, never a result
    offline: bool  # everything it needs ships with the package

    @property
    def n_tokens(self) -> int:
        return self.grid * self.grid

    @property
    def has_ground_truth(self) -> bool:
        """Its world is drawn by the package, so scenes are known and not only looked at."""
        return self.offline


SCALES = {
    "pocket": Scale("pocket", 96, 8, steps=8, guidance=1.75, temperature=1.0, batch_size=64, offline=True),
    # 18 steps and g = 1.75 are the defaults of the paper's code; 50 and 5 those of the 512 px checkpoint.
    "showo": Scale("showo", 256, 16, steps=18, guidance=1.75, temperature=1.0, batch_size=16, offline=False),
    "showo512": Scale("showo512", 512, 32, steps=50, guidance=5.0, temperature=1.0, batch_size=4, offline=False),
}


@dataclass(frozen=True)
class Effort:
    """How much of the protocol is run."""

    name: str
    n_prompts_per_task: int | None  # the first n of each of the six tasks; None: all 553 prompts
    n_images: int  # selected images per prompt, each from its own pool
    n_candidates: int  # N of best-of-N
    n_train_prompts_per_task: int  # training prompts of each of the five tasks that have any
    n_train_candidates: int  # pictures of each training prompt
    n_neighbours: int  # prompts one clause away that each training picture is asked about as well
    n_rolled_out: int  # paths of each training prompt that are completed from the middle
    tune_epochs: int  # passes over the ranking data when a judge is fine-tuned
    n_pairs: int  # of right and wrong pictures of each training prompt, at most
    align_epochs: int  # passes over the pairs when a generator is aligned
    n_aligned_candidates: int  # N on aligned generators
    n_train_seeds: int  # trainings of DPO and of iterative DPO; if several, the paper's variants are trained as well
    correct_epochs: int  # passes over the groups when the generator learns to correct
    watermark: bool  # True: too few samples to be a result, and every figure says so


EFFORTS = {
    "smoke": Effort(
        "smoke",
        n_prompts_per_task=1,
        n_images=1,
        n_candidates=4,
        n_train_prompts_per_task=2,
        n_train_candidates=4,
        n_neighbours=1,
        n_rolled_out=1,
        tune_epochs=1,
        n_pairs=2,
        align_epochs=1,
        n_aligned_candidates=2,
        n_train_seeds=2,
        correct_epochs=1,
        watermark=True,
    ),
    "quick": Effort(
        "quick",
        n_prompts_per_task=8,
        n_images=1,
        n_candidates=20,
        n_train_prompts_per_task=15,
        n_train_candidates=8,
        n_neighbours=3,
        n_rolled_out=1,
        tune_epochs=2,
        n_pairs=4,
        align_epochs=2,
        n_aligned_candidates=8,
        n_train_seeds=1,
        correct_epochs=2,
        watermark=False,
    ),
    "full": Effort(
        "full",
        n_prompts_per_task=None,
        n_images=3,
        n_candidates=20,
        n_train_prompts_per_task=300,
        n_train_candidates=12,
        n_neighbours=3,
        n_rolled_out=2,
        tune_epochs=2,
        n_pairs=4,
        align_epochs=3,
        n_aligned_candidates=20,
        n_train_seeds=3,
        correct_epochs=2,
        watermark=False,
    ),
}


@dataclass(frozen=True)
class Parameter:
    """One override: its type, the closed range it may take, where its value comes from when it is None."""

    type: type
    low: float
    high: float
    source: str  # "scale" or "effort"
    help: str


PARAMETERS = {
    "n_prompts_per_task": Parameter(int, 1, 553, "effort", "prompts of each of the six tasks"),
    "n_images": Parameter(int, 1, 16, "effort", "selected images per prompt"),
    "n_candidates": Parameter(int, 1, 1000, "effort", "N of best-of-N"),
    "steps": Parameter(int, 1, 256, "scale", "decoding steps"),
    "guidance": Parameter(float, 0.0, 20.0, "scale", "classifier-free guidance g"),
    "temperature": Parameter(float, 0.0, 4.0, "scale", "temperature of re-masking"),
    "batch_size": Parameter(int, 1, 4096, "scale", "candidates decoded together; changes no result"),
    "n_train_prompts_per_task": Parameter(int, 1, 10000, "effort", "training prompts of each task"),
    "n_train_candidates": Parameter(int, 1, 1000, "effort", "pictures of each training prompt"),
    "n_neighbours": Parameter(int, 0, 20, "effort", "prompts one clause away asked about each training picture"),
    "n_rolled_out": Parameter(int, 1, 1000, "effort", "paths of each training prompt completed from the middle"),
    "tune_epochs": Parameter(int, 1, 1000, "effort", "passes over the ranking data"),
    "n_pairs": Parameter(int, 1, 1000, "effort", "pairs of right and wrong pictures of each training prompt, at most"),
    "align_epochs": Parameter(int, 1, 1000, "effort", "passes over the pairs"),
    "n_aligned_candidates": Parameter(int, 1, 1000, "effort", "N on aligned generators"),
    "n_train_seeds": Parameter(int, 1, 10, "effort", "trainings of DPO and iterative DPO"),
    "correct_epochs": Parameter(int, 1, 1000, "effort", "passes over wrong pictures and their corrections"),
}
NOT_IN_KEY = ("batch_size",)  # recorded, but a result does not depend on it
SAMPLING = (
    *("n_prompts_per_task", "n_images", "n_candidates"),
    *("steps", "guidance", "temperature", "batch_size"),
)
TRAINING = ("n_train_prompts_per_task", "n_train_candidates", "n_neighbours", "tune_epochs")
ALIGNING = ("n_pairs", "align_epochs", "n_aligned_candidates", "n_train_seeds")
PARTS = ("generator", "text-tokenizer", "tokenizer", "detector", "clip", "judge")  # weights of a scale that ships none
WITHOUT_JUDGE = PARTS[:-1]


@dataclass(frozen=True)
class Notebook:
    """What a notebook reads, and which overrides it takes."""

    upstream: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    in_chain: bool = True
    needs_upstream: bool = True  # False: it reports whatever is there
    weights: tuple[str, ...] = PARTS  # which of them it reads itself


COMPUTED = (
    *("01_baseline", "02_outcome_verifier", "03_process_verifier"),
    *("04_preference_alignment", "05_parm", "06_integration", "07_reflection"),
)
NOTEBOOKS = {
    "01_baseline": Notebook(overrides=SAMPLING, weights=WITHOUT_JUDGE),
    "02_outcome_verifier": Notebook(upstream=("01_baseline",), overrides=(*SAMPLING, *TRAINING)),
    "03_process_verifier": Notebook(
        upstream=("01_baseline", "02_outcome_verifier"), overrides=(*SAMPLING, *TRAINING, "n_rolled_out")
    ),
    "04_preference_alignment": Notebook(
        upstream=("01_baseline", "02_outcome_verifier"), overrides=(*SAMPLING, *TRAINING, *ALIGNING)
    ),
    "05_parm": Notebook(
        upstream=("01_baseline", "02_outcome_verifier", "03_process_verifier"),
        overrides=(*SAMPLING, *TRAINING, "n_rolled_out"),
    ),
    "06_integration": Notebook(
        upstream=("01_baseline", "02_outcome_verifier", "04_preference_alignment", "05_parm"),
        overrides=(*SAMPLING, *TRAINING, *ALIGNING),
    ),
    "07_reflection": Notebook(
        upstream=("01_baseline", "02_outcome_verifier", "05_parm"),
        overrides=(*SAMPLING, *TRAINING, "n_aligned_candidates", "correct_epochs"),
    ),
    "08_report": Notebook(upstream=COMPUTED, weights=()),
    "00_index": Notebook(upstream=(*COMPUTED, "08_report"), needs_upstream=False, weights=()),
    "90_explore": Notebook(overrides=("n_candidates", "steps", "guidance"), in_chain=False),
    "91_teach_decoding": Notebook(in_chain=False, weights=WITHOUT_JUDGE),
    "92_teach_best_of_n": Notebook(in_chain=False),
    "93_teach_dpo": Notebook(in_chain=False, weights=WITHOUT_JUDGE),
    "94_teach_parm": Notebook(in_chain=False),
    "_template": Notebook(overrides=("n_candidates",), in_chain=False),
}


@dataclass(frozen=True)
class Settings:
    """A checked request."""

    notebook: str
    scale: Scale
    effort: Effort
    seed: int
    passed: dict[str, Any] = field(default_factory=dict)  # overrides as typed, those left None included
    params: dict[str, Any] = field(default_factory=dict)  # every parameter with the value that is used


def suggest(name: str, known: Iterable[str]) -> str:
    """'did you mean X? known: A, B' for an error message."""
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    listing = ", ".join(names) or "none"
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {listing}"


def _choose(what: str, name: Any, known: Mapping[str, Any]) -> Any:
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"unknown {what} {name!r}; {suggest(name, known)}")
    return known[name]


def _is_number(value: Any, kind: type) -> bool:
    """bool is not a number, the string "3" is not 3, and 2.0 is not an int."""
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _check_value(notebook: str, name: str, value: Any) -> Any:
    """The value in its declared type."""
    spec = PARAMETERS[name]
    what = {int: "an int", float: "a finite float"}[spec.type]
    allowed, instead = f"{spec.low:g}..{spec.high:g}", f"leave it None for the value of the {spec.source}"
    if not _is_number(value, spec.type):
        raise ValueError(
            f"{notebook}: {name} must be {what}, got {value!r} ({type(value).__name__}); give one in {allowed}, or "
            f"{instead}"
        )
    if not spec.low <= value <= spec.high:
        raise ValueError(f"{notebook}: {name} ({spec.help}) must lie in {allowed}, got {value!r}; or {instead}")
    return spec.type(value)


def check(notebook: str, /, *, scale: str, effort: str, seed: int, **overrides: Any) -> Settings:
    """Settings with every parameter filled in. An override of None takes the value of the scale or effort.

    Raises ValueError for an unknown name (naming the nearest valid one), a wrong type or a value out of range.
    """
    spec: Notebook = _choose("notebook", notebook, NOTEBOOKS)
    chosen_scale, chosen_effort = _choose("scale", scale, SCALES), _choose("effort", effort, EFFORTS)
    if not _is_number(seed, int):
        raise ValueError(f"{notebook}: seed must be an int, got {seed!r} ({type(seed).__name__}); for example seed=0")
    if not 0 <= seed < 2**31:
        raise ValueError(f"{notebook}: seed must lie in 0..{2**31 - 1}, got {seed}; for example seed=0")
    for name in overrides:
        if name not in spec.overrides:
            known = ("scale", "effort", "seed", *spec.overrides)
            raise ValueError(f"notebook {notebook} has no parameter {name!r}; {suggest(name, known)}")
    params: dict[str, Any] = {}
    for name, parameter in PARAMETERS.items():
        typed = overrides.get(name)
        default = getattr(chosen_scale if parameter.source == "scale" else chosen_effort, name)
        params[name] = default if typed is None else _check_value(notebook, name, typed)
    return Settings(notebook, chosen_scale, chosen_effort, seed, dict(overrides), params)

"""What several notebooks need of one run: the pools of candidates, what the evaluator and the judges say of them.

Each stage is kept in a ledger under `pools/`, keyed by the weights and options it depends on, one line per prompt; a
notebook that finds it there reads it, one that does not makes it. Fine-tuned judges lie under `models/`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from . import hub, models, ranking, stats, store
from .batches import Batches
from .config import suggest
from .decode import DecodeOptions, decode, final
from .geneval import THRESHOLD
from .judge import outcome_question, process_question
from .loaders import (
    generator_to_train,
    judge_to_train,
    load_evaluator,
    load_generator,
    load_judge,
    load_tokenizer,
    trusted_evaluator,
    weights_folder,
)
from .preference import PreferenceOptions, align, count_pairs, preference_pairs, split_pairs
from .progress import progress
from .prompts import TASKS, Prompt, take, training_prompts
from .run import Run
from .search import Pool, Score, best_of_n, decode_pool, expected_best_of_n, picture_distance, score_pool, stepwise
from .seeds import sample_seed
from .stats import Estimate
from .tuning import TuneOptions, fine_tune
from .verifiers import Verifier, named

TRAINING_SUITE = 1000  # GenEval's generator at this seed plus the run's gives the training prompts

ALSO_READ = {"generator": ("text-tokenizer",), "detector": ("clip",)}  # where weights do not ship with the package


def weights_digest(run: Run, *parts: str) -> dict[str, str | None]:
    """The first 12 hex digits of each part's weights."""
    if not run.scale.offline:
        return hub.digests(run.scale, [read for part in parts for read in (part, *ALSO_READ.get(part, ()))])
    files = {part: sorted(weights_folder(run.scale, part).glob("*.safetensors")) for part in parts}
    return {part: store.digest([store.sha256(file) for file in found])[:12] for part, found in files.items()}


def decode_options(run: Run) -> DecodeOptions:
    return DecodeOptions(
        steps=run.params["steps"], guidance=run.params["guidance"], temperature=run.params["temperature"]
    )


def _folder(run: Run, generator: str) -> Path | None:
    """Where an aligned generator lies, which is trained if it is not there yet; None for the base."""
    return None if generator == "base" else aligned(run, generator).folder


def _made_by(run: Run, generator: str = "base") -> dict:
    """What a decoded path depends on, beside its prompt and seed."""
    weights = weights_digest(run, "generator") if generator == "base" else {"generator": aligned(run, generator).key}
    return {**asdict(decode_options(run)), **weights}


@dataclass(frozen=True)
class Pools:
    """Candidates by one generator, one pool per image of a prompt, and what they depend on."""

    generator: str
    pools: list[Pool]
    identity: Mapping[str, Any]

    def __iter__(self):
        return iter(self.pools)

    def __getitem__(self, image: int) -> Pool:
        return self.pools[image]

    def __len__(self) -> int:
        return len(self.pools)


def pools_of(run: Run, generator: str = "base", n_candidates: int | None = None) -> Pools:
    """One pool of candidates per image of a prompt, by a generator of any name."""
    K = n_candidates or run.params["n_candidates"]
    identity = {"n_candidates": K, **_made_by(run, generator)}
    model = load_generator(run.scale, _folder(run, generator))
    decoded = [
        decode_pool(
            model,
            run.prompts,
            K,
            run.seed,
            decode_options(run),
            run.ledger(f"{generator}-{image}", image=image, **identity),
            image=image,
            batch_size=run.params["batch_size"],
        )
        for image in range(run.params["n_images"])
    ]
    return Pools(generator, decoded, identity)


def verdicts(run: Run, pools: Pools) -> list[dict[str, list[dict]]]:
    """Per pool and prompt id, the evaluator's verdict on each candidate: {"correct": bool, "reasons": [text, ...]}.

    Raises DetectorError where the evaluator fails its canary.
    """
    return _scored(run, pools, "verdicts", _verdict_score(run), weights_digest(run, "tokenizer", "detector"))


def _verdict_score(run: Run) -> Score:
    evaluator = trusted_evaluator(run.scale)
    return lambda images, prompts: [asdict(verdict) for verdict in evaluator.evaluate(images, prompts)]


def outcome_scores(run: Run, pools: Pools, verifier: str = "orm-zero-shot") -> list[dict[str, list]]:
    """Per pool and prompt id, an outcome verifier's P(yes) on each candidate's final picture; None where unscored."""
    score, identity = _verifier_score(run, named(verifier))
    return _scored(run, pools, verifier, score, identity)


def _scored(run: Run, pools: Pools, what: str, score: Score, identity: Mapping[str, str]) -> list[dict]:
    paint = load_tokenizer(run.scale).decode
    return [
        score_pool(
            pool.prompts,
            pool.codes,
            paint,
            score,
            run.ledger(f"{pools.generator}-{image}-{what}", image=image, **pools.identity, **identity),
            what,
        )
        for image, pool in enumerate(pools)
    ]


# --- Ranking data and fine-tuned judges -------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """Candidates of training prompts, with the evaluator's labels by prompt id (see `ranking.label_pool`)."""

    pool: Pool
    labels: Mapping[str, dict]
    identity: Mapping[str, Any]  # what it depends on


def ranking_data(run: Run, generator: str = "base") -> Ranking:
    """Training prompts, decoded by a generator and labelled."""
    suite = TRAINING_SUITE + run.seed
    prompts = take(
        training_prompts(suite, run.params["n_train_prompts_per_task"]), run.params["n_train_prompts_per_task"]
    )
    K, n_neighbours = run.params["n_train_candidates"], run.params["n_neighbours"]
    identity = {"suite": suite, "n_candidates": K, **_made_by(run, generator)}
    name = "train" if generator == "base" else f"train-{generator}"
    pool = decode_pool(
        load_generator(run.scale, _folder(run, generator)),
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
        run.ledger(f"{name}-labels", **identity),
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
        run.ledger("train-roll-outs", n_rolled_out=n_paths, n_steps=n_steps, **_without(data.identity, "n_neighbours")),
        run.seed,
        n_paths,
        n_steps,
    )


def _without(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


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


def _verifier_score(run: Run, verifier: Verifier) -> tuple[Score, dict[str, str]]:
    """How a verifier scores pictures, and what its scores depend on."""
    identity = weights_digest(run, "tokenizer")
    if verifier.judge == "zero-shot":
        return verifier.scorer(load_judge(run.scale)), {**identity, **weights_digest(run, "judge")}
    folder = {"orm": outcome_judge, "prm": process_judge}[verifier.judge](run).folder
    return verifier.scorer(load_judge(run.scale, folder)), {**identity, "judge": folder.name}


# --- Aligned generators -----------------------------------------------------------------------------------------


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
    data, options = ranking_data(run, start), preference_options(run, **changes)
    pairs = preference_pairs(data.pool, data.labels, run.seed, run.params["n_pairs"])
    training, held_out = split_pairs(pairs)
    what = {"pairs": store.digest(pairs), "options": asdict(options), **_made_by(run, start)}

    def train(folder: Path) -> dict[str, Any]:
        begun, checkpoints = time.perf_counter(), folder / "checkpoints"
        model = generator_to_train(run.scale, _folder(run, start))
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


def accuracy_of_seed(run: Run, name: str, seed: int, n_candidates: int) -> dict[str, float]:
    """Accuracy by prompt of the same alignment with another training seed; every candidate of one pool counts."""
    model = aligned(run, name, seed=seed)
    made_by = {"n_candidates": n_candidates, **asdict(decode_options(run)), "generator": model.key}
    pool = decode_pool(
        load_generator(run.scale, model.folder),
        run.prompts,
        n_candidates,
        run.seed,
        decode_options(run),
        run.ledger(f"{name}-seed-{seed}-0", image=0, **made_by),
        batch_size=run.params["batch_size"],
    )
    return mean_of(run, [correct_of(row) for row in verdicts(run, Pools(f"{name}-seed-{seed}", [pool], made_by))])


def diversity(run: Run, pool: Pool, n_candidates: int, places: int = 3) -> pd.DataFrame:
    """How unlike the first candidates of each prompt are: columns prompt, distance (grey levels), distinct (scenes).

    Two scenes are the same if the detector sees the same classes in the same of `places` x `places` parts.
    """
    paint, evaluator = load_tokenizer(run.scale).decode, trusted_evaluator(run.scale)
    rows = []
    for prompt in run.prompts:
        images = paint(pool.codes[prompt.id][:n_candidates])
        side = images.shape[1] / places
        scenes = {
            tuple(sorted((d.cls, *(int((a + b) / 2 // side) for a, b in (d.box[::2], d.box[1::2]))) for d in found))
            for found in ([d for d in one if d.score > THRESHOLD] for one in evaluator.detect(images))
        }
        rows.append({"prompt": prompt.id, "distance": picture_distance(images), "distinct": len(scenes)})
    return pd.DataFrame(rows)


# --- Step-wise search -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Climbed:
    """What step-wise best-of-n chose for each prompt, and what it saw on the way (see `search.stepwise`)."""

    codes: Mapping[str, torch.Tensor]  # int64 [L]
    correct: Mapping[str, bool]
    scores: Mapping[str, list]  # [T][n]
    distance: Mapping[str, list[float]]  # [T], grey levels


def climb(run: Run, verifier: str, n: int) -> list[Climbed]:
    """Step-wise best-of-n with a process verifier, for each image of a prompt. Raises ValueError for another one."""
    if not named(verifier).every_step:
        raise ValueError(f"{verifier} looks at finished pictures only; climb with prm-zero-shot or prm")
    score, identity = _verifier_score(run, named(verifier))
    made_by = {"n": n, **_made_by(run), **identity}
    paint, searched = load_tokenizer(run.scale).decode, []
    for image in range(run.params["n_images"]):
        found = stepwise(
            load_generator(run.scale),
            run.prompts,
            n,
            run.seed,
            decode_options(run),
            paint,
            score,
            run.ledger(f"step-{image}-{verifier}-{n}", image=image, **made_by),
            image=image,
        )
        codes = {id: torch.tensor([record["codes"]]) for id, record in found.items()}
        ledger = run.ledger(
            f"step-{image}-{verifier}-{n}-verdicts", image=image, **made_by, **weights_digest(run, "detector")
        )
        judged = score_pool(run.prompts, codes, paint, _verdict_score(run), ledger, "verdicts")
        searched.append(
            Climbed(
                {id: rows[0] for id, rows in codes.items()},
                {id: row[0]["correct"] for id, row in judged.items()},
                {id: record["scores"] for id, record in found.items()},
                {id: record["distance"] for id, record in found.items()},
            )
        )
    return searched


def climbed_accuracy(run: Run, searched: Sequence[Climbed]) -> dict[str, float]:
    """Accuracy by prompt, averaged over its images."""
    return {p.id: float(np.mean([found.correct[p.id] for found in searched])) for p in run.prompts}


def process_scores(run: Run, pools: Pools, verifier: str, n_candidates: int) -> list[dict[str, list]]:
    """A process verifier's P(yes) on the first candidates' pictures after each step: [T] of {prompt id: [K]}."""
    score, identity = _verifier_score(run, named(verifier))
    paint, pool = load_tokenizer(run.scale).decode, pools[0]
    return [
        score_pool(
            run.prompts,
            {id: codes[:n_candidates] for id, codes in pool.at(step).items()},
            paint,
            score,
            run.ledger(
                f"{pools.generator}-0-{verifier}-step-{step}", image=0, asked=n_candidates, **pools.identity, **identity
            ),
            verifier,
        )
        for step in range(pool.n_steps)
    ]


def measure_speed(run: Run) -> dict[str, tuple[float, int]]:
    """Pictures a second on this machine, {name: (rate, pictures)}: one batch of candidates as the pools have it.

    The judge of photographs is no part of it: notebooks that judge nothing do not read its weights.
    """
    tokenizer, per_prompt, n = load_tokenizer(run.scale), run.params["n_candidates"], run.params["batch_size"]
    prompts = [run.prompts[k // per_prompt % len(run.prompts)] for k in range(n)]
    generator, evaluator = load_generator(run.scale), load_evaluator(run.scale)
    seeds = [sample_seed(run.seed, p.id, k, "speed") for k, p in enumerate(prompts)]
    texts, in_batches = [p.text for p in prompts], Batches(n, "decoding")

    def finish(requests: Sequence[tuple[str, int]]) -> list[torch.Tensor]:
        return list(final(decode(generator, *map(list, zip(*requests, strict=True)), decode_options(run))).codes)

    codes, decoding = _timed(lambda: in_batches(finish, list(zip(texts, seeds, strict=True))))
    images = tokenizer.decode(torch.stack(codes))
    _, evaluating = _timed(lambda: evaluator.evaluate(images, prompts))
    seconds = {"speed/decode": decoding, "speed/evaluate": evaluating}
    if run.scale.offline:
        judge, questions = load_judge(run.scale), [outcome_question(text) for text in texts]
        _, seconds["speed/judge"] = _timed(lambda: judge.p_yes(images, questions))
    return {name: (n / spent, n) for name, spent in seconds.items()}


def _timed(job: Callable[[], Any]) -> tuple[Any, float]:
    """Result and median wall time, s, of three calls after a first that fills caches."""
    result, seconds = job(), []
    for _ in range(3):
        start = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - start)
    return result, float(np.median(seconds))


# --- From verdicts to estimates ---------------------------------------------------------------------------------


def correct_of(judged: Mapping[str, list[dict]]) -> dict[str, list[bool]]:
    return {prompt: [verdict["correct"] for verdict in row] for prompt, row in judged.items()}


def chosen(
    run: Run, correct: Sequence[Mapping[str, list[bool]]], scores: Sequence[Mapping[str, Sequence[float]]], n: int
) -> dict[str, float]:
    """Expected accuracy of best-of-n by prompt, averaged over its images."""
    return {
        p.id: float(np.mean([expected_best_of_n(s[p.id], c[p.id], n) for s, c in zip(scores, correct, strict=True)]))
        for p in run.prompts
    }


def mean_of(run: Run, correct: Sequence[Mapping[str, list[bool]]]) -> dict[str, float]:
    """Accuracy of the generator alone by prompt: the mean over every candidate of every pool."""
    return {p.id: float(np.mean([c[p.id] for c in correct])) for p in run.prompts}


def estimates(run: Run, per_prompt: Mapping[str, float]) -> dict[str, Estimate]:
    """Each task and overall, with intervals by bootstrap over prompts."""
    by_task = {task: stats.task(run.prompts, per_prompt, task, seed=run.seed) for task in TASKS}
    return {**by_task, "overall": stats.overall(run.prompts, per_prompt, seed=run.seed)}


def record_estimates(run: Run, generator: str, verifier: str, by_task: Mapping[str, Estimate]) -> None:
    for task, e in by_task.items():
        run.record(f"geneval/{generator}/{verifier}/{task}", e.value, e.low, e.high, e.n)


@dataclass(frozen=True)
class Choice:
    """A verifier's favourite among the candidates of one prompt."""

    prompt: Prompt
    candidate: int
    p_yes: float
    correct: bool


def disagreements(run: Run, correct: Mapping[str, list[bool]], scores: Mapping[str, Sequence[float]]) -> list[Choice]:
    """The judge's favourite of each prompt, those that it rates most unlike the evaluator first.

    A prompt without a scored candidate has no favourite and is left out.
    """
    choices = []
    for p in run.prompts:
        k = best_of_n(scores[p.id], len(scores[p.id]))
        if scores[p.id][k] is None:
            continue
        choices.append(Choice(p, k, float(scores[p.id][k]), bool(correct[p.id][k])))
    # Wrong and sure first (-1 .. 0), then right, the sure ones before the unsure (0 .. 1).
    return sorted(choices, key=lambda c: 1 - c.p_yes if c.correct else -c.p_yes)


def answers(
    run: Run, correct: Sequence[Mapping[str, list[bool]]], scores: Sequence[Mapping[str, Sequence[float | None]]]
) -> pd.DataFrame:
    """One row per scored candidate: prompt, task, p_yes, correct. Unscored ones are left out; `verifiers.unscored`
    counts them."""
    rows = [
        {"prompt": p.id, "task": p.task, "p_yes": score, "correct": right}
        for of_pool, judged in zip(scores, correct, strict=True)
        for p in run.prompts
        for score, right in zip(of_pool[p.id], judged[p.id], strict=False)  # fewer scores: the first candidates'
        if score is not None
    ]
    return pd.DataFrame(rows)


def auc_by_task(answered: pd.DataFrame, seed: int) -> dict[str, Estimate]:
    """AUC of P(yes) within each task and overall, intervals over prompts; a task of one kind only is left out."""
    parts = {"overall": answered, **{task: answered[answered.task == task] for task in TASKS}}
    return {
        name: stats.auc_interval(part.p_yes, part.correct, part.prompt, seed=seed)
        for name, part in parts.items()
        if part.correct.nunique() == 2
    }

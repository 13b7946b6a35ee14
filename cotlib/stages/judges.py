"""Judges of a run, fine-tuned once, and what a verifier says with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from .. import models, parm_data, ranking, store
from ..clauses import ask_facts, reflect_by_clause
from ..config import suggest
from ..judge import Question, clarity_question, outcome_question, potential_question, process_question
from ..loaders import judge_to_train, load_judge, load_tokenizer, trusted_evaluator, weights_folder
from ..parm import Parm
from ..reflection import Look, reflect, reflection_examples
from ..run import Run
from ..search import Score
from ..tuning import TuneOptions, fine_tune, seconds_before
from ..verifiers import PARM_TASKS, REFLECTING_TASKS, Verifier, ask, remembered
from .data import NOT_OF_A_PATH, ranking_data, rolled_out
from .sources import once, weights_digest, without


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned judge on disk, and the log of its training."""

    folder: Path
    log: list[dict[str, float]]  # records {"step", "loss", "mean_token_accuracy", ...}
    seconds: float
    n_examples: int


@once
def outcome_judge(run: Run) -> Tuned:
    """The judge fine-tuned on finished pictures (ORM)."""
    data = ranking_data(run)
    return _tuned(run, "orm", ranking.outcome_examples(data.pool, data.labels, outcome_question), data.identity)


@once
def process_judge(run: Run) -> Tuned:
    """The judge fine-tuned on pictures of any step (PRM)."""
    data = ranking_data(run)
    examples = ranking.process_examples(data.pool, rolled_out(run, data), data.labels, process_question)
    return _tuned(run, "prm", examples, {**data.identity, "n_rolled_out": run.params["n_rolled_out"]})


PARM_PATHS, PARM_STEPS = 4, 2  # of each training prompt: paths, and steps of each path, that PARM's judge learns from
PARM_EPOCHS = 1  # passes over PARM's data, by a judge that is an outcome verifier already
N_FACTS = 4  # asked of each finished picture beside the outcome, of the judge that learns facts


def settled(run: Run) -> dict[str, list[int]]:
    """The step from which the evaluator's verdict on some training paths stands (see `parm_data.settle`)."""
    data = ranking_data(run)
    ledger = run.ledger("train-settled", n_paths=PARM_PATHS, **without(data.identity, *NOT_OF_A_PATH))
    paint, evaluator = load_tokenizer(run.scale).decode, trusted_evaluator(run.scale)
    return parm_data.settle(data.pool, paint, evaluator, ledger, PARM_PATHS)


@once
def parm_judge(run: Run, clarity: str = "settled") -> Tuned:
    """The outcome verifier's judge, further trained on clarity, potential and finished pictures together (PARM).

    The paper trains one judge on all of it from the start; one that goes on from the outcome verifier's chooses better
    among finished pictures. The paper asks about potential after the 11th of 18 steps, here any step may be asked
    about. Raises ValueError for clarity labels other than "settled" and "static".
    """
    if clarity not in parm_data.CLARITY_LABELS:
        raise ValueError(f"unknown clarity labels {clarity!r}; {suggest(clarity, parm_data.CLARITY_LABELS)}")
    data = ranking_data(run)
    ends = ranking.outcome_examples(data.pool, data.labels, outcome_question)
    n_questions = max(2, len(ends[0]["questions"]))  # of a step at least both, potential and clarity
    ends = [{**e, **{field: (2 * e[field])[:n_questions] for field in ("questions", "answers")}} for e in ends]
    steps = parm_data.step_examples(
        data.pool,
        data.labels,
        settled(run) if clarity == "settled" else None,
        run.seed,
        PARM_PATHS,
        PARM_STEPS,
        n_questions,
    )
    examples, depends_on = _in_turns((*ends, *steps)), {**data.identity, "clarity": clarity}
    return _tuned(run, "parm", examples, depends_on, PARM_TASKS, outcome_judge(run).folder, PARM_EPOCHS)


def _in_turns(examples: Iterable[dict]) -> list[dict]:
    """Questions of one turn and of several in one form, as a data set needs them."""
    return [{**e, "questions": [[q] if isinstance(q, str) else list(q) for q in e["questions"]]} for e in examples]


@once
def facts_judge(run: Run) -> Tuned:
    """The judge fine-tuned on facts about finished pictures, which PARM++ asks for, with the outcome beside them."""
    data = ranking_data(run)
    ends = ranking.outcome_examples(data.pool, data.labels, outcome_question)
    ends = [{**e, "questions": e["questions"][:1], "answers": e["answers"][:1]} for e in ends]
    return _tuned(run, "facts", ask_facts(ends, data.pool, data.labels, run.seed, N_FACTS), data.identity)


@once
def reflecting_judge(run: Run) -> Tuned:
    """PARM's judge, further trained to say what is wrong (PARM++), on as many pictures as it learned PARM from.

    The paper trains one judge on all of it from the start; this costs the reflections only. Every picture is also asked
    about as the outcome verifier asks, so that this is not forgotten.
    """
    data = ranking_data(run)
    examples = _in_turns(reflection_examples(data.pool, data.labels, outcome_question, run.seed))
    return _tuned(run, "parm++", examples, data.identity, REFLECTING_TASKS, start=parm_judge(run).folder)


def _tuned(
    run: Run,
    name: str,
    examples: list[dict],
    depends_on: Mapping[str, Any],
    trained_for: Sequence[str] = (),
    start: Path | None = None,
    epochs: int | None = None,
) -> Tuned:
    """Fine-tune the zero-shot judge, or one in folder `start`, on examples, once. The data set is kept beside the
    weights, with a card.

    trained_for: the questions that it now can answer, kept in its configuration. epochs: None for the run's.
    """
    options = TuneOptions(epochs=epochs or run.params["tune_epochs"], seed=run.seed)
    if not run.scale.offline:
        # Adapters take ten times the rate of the paper's training of all weights: where they are merged into bfloat16,
        # changes far below half a unit in the last place are rounded away.
        options = replace(options, batch_size=8, lora_rank=64)
    what = {
        **({} if start is None else {"start": start.name}),
        "scale": run.scale.name,
        "seed": run.seed,
        "examples": store.digest(examples),
        "options": asdict(options),
        **weights_digest(run, "judge", "tokenizer"),
    }

    def train(folder: Path) -> dict[str, Any]:
        begun = time.perf_counter() - seconds_before(folder / models.CHECKPOINTS)
        data = ranking.balanced(examples, run.seed)
        ranking.save(data, folder / "data", depends_on)
        judge = judge_to_train(run.scale, start)
        log = fine_tune(judge, data, load_tokenizer(run.scale).decode, options, folder)
        judge.model.config.trained_for = list(trained_for)
        judge.save_pretrained(folder)
        return {"log": log, "seconds": round(time.perf_counter() - begun, 1), "examples": len(data)}

    folder = run.trained(name, what, train)
    made = models.notes(folder)
    return Tuned(folder, made["log"], made["seconds"], made["examples"])


JUDGES = {"orm": outcome_judge, "prm": process_judge, "parm": parm_judge}


def _asked(run: Run, folder: Path | None, question: Callable[[str], Question]) -> Score:
    """P(yes) by a judge that is loaded when it is asked: for answers that are stored, none is."""
    folder = folder or weights_folder(run.scale, "judge")  # once, and told early where there are none
    return lambda images, prompts: ask(load_judge(run.scale, folder), question)(images, prompts)


def verifier_score(run: Run, verifier: Verifier) -> tuple[Score, dict[str, str]]:
    """How a verifier scores pictures, and what its scores depend on."""
    if verifier.judge == "parm":
        parm, identity = parm_scores(run)
        asked = {"parm": parm.outcome, "parm-clarity": parm.clarity, "parm-potential": parm.potential}
        return asked[verifier.name], identity
    identity = weights_digest(run, "tokenizer")
    if verifier.judge == "zero-shot":
        return _asked(run, None, verifier.question), {**identity, **weights_digest(run, "judge")}
    folder = JUDGES[verifier.judge](run).folder
    return _asked(run, folder, verifier.question), {**identity, "judge": folder.name}


@once
def parm_scores(run: Run) -> tuple[Parm, dict[str, str]]:
    """PARM's three answers by its judge, and what they depend on. Searches with other limits ask the same again, which
    costs nothing."""
    folder = parm_judge(run).folder
    questions = (clarity_question, potential_question, outcome_question)
    parm = Parm(*(remembered(_asked(run, folder, question)) for question in questions))
    return parm, {**weights_digest(run, "tokenizer"), "judge": folder.name}


REFLECTIONS = ("clauses", "zero-shot", "trained")


def reflection_of(run: Run, how: str = "clauses") -> tuple[Look, dict[str, str]]:
    """What PARM++ says is wrong with pictures, in words, and what that depends on.

    "clauses": PARM's judge says whether, one that has learnt facts is asked for them (`clauses.py`). "zero-shot": the
    one that was not fine-tuned is. "trained": one judge writes its reasons in one go, as in the paper. Raises
    ValueError for another way.
    """
    if how not in REFLECTIONS:
        raise ValueError(f"unknown way to reflect {how!r}; {suggest(how, REFLECTIONS)}")
    if how == "trained":
        folder = reflecting_judge(run).folder
        identity = {**weights_digest(run, "tokenizer"), "judge": folder.name}
        return _when_asked(lambda: reflect(load_judge(run.scale, folder))), identity
    parm, identity = parm_scores(run)
    folder = facts_judge(run).folder if how == "clauses" else None
    facts = weights_digest(run, "judge") if folder is None else folder.name
    look = _when_asked(lambda: reflect_by_clause(load_judge(run.scale, folder), parm.outcome))
    return look, {**identity, "facts": facts}


def _when_asked(make: Callable[[], Look]) -> Look:
    """What `make` makes, from the first question on: it keeps its judge, as it asks it in turn with PARM's."""
    made = cache(make)
    return lambda images, prompts: made()(images, prompts)

"""Exploring by hand: the candidates of one prompt step by step, and what every verifier says of every step.

There is no widget here: `explore_view` is a view over this. An `Exploration` goes on only while somebody asks for the
next piece of work, so that to stop it is not to ask. Candidates are those of the notebooks' pools: the same prompt,
seed, options and precision give the same pictures. Nothing is written to disk.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from . import models, parm
from .compare import Pick, Picks
from .config import Scale
from .decode import DecodeOptions, Generator, Step, branch, decode, given, nothing_known, read_prompts
from .errors import CotlibError
from .geneval import Evaluator
from .loaders import load_generator, load_judge, load_tokenizer
from .precision import best_precision
from .prompts import Prompt, geneval_prompts
from .run import Run
from .search import Paint, Score, best_of_n
from .seeds import sample_seed
from .store import read_json
from .verifiers import VERIFIERS, parm_of
from .words import unknown

LIMITS = parm.ParmOptions()
PARM_QUESTIONS = ("parm-clarity", "parm-potential", "parm")
# Who asks which questions, and the notebook that trains the judge: verifiers to choose from, besides "none".
WAYS = {
    "orm-zero-shot": (("orm-zero-shot",), None),
    "prm-zero-shot": (("prm-zero-shot",), None),
    "orm": (("orm",), "02_outcome_verifier"),
    "prm": (("prm",), "03_process_verifier"),
    "parm": (PARM_QUESTIONS, "05_parm"),
}
MAKES_GENERATORS = "04_preference_alignment"
LONGEST_SHOWN = 24  # characters of a word that is named in a sentence


# --- What is asked for --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Typed:
    """A prompt that is none of GenEval's: a text, and an id that follows from it."""

    id: str
    text: str


@dataclass(frozen=True)
class Refusal:
    """Why a text cannot be drawn, in a sentence, and for each unknown word the nearest known ones."""

    sentence: str
    nearest: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """One request. Two of the same prompt and seed differ by nothing but what differs here."""

    prompt: Prompt | Typed
    n: int = 4
    seed: int = 0
    options: DecodeOptions = DecodeOptions()
    verifier: str = "none"
    generator: str = "base"
    start: Step | None = None  # one row: the picture to complete

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"N must be at least 1, got {self.n}")
        if self.start is not None and not bool(self.start.masked.any()):
            raise ValueError("nothing is masked, so there is nothing to draw; choose some cells first")


@cache
def _by_text() -> dict[str, Prompt]:
    return {prompt.text: prompt for prompt in geneval_prompts()}


def prompt_of(text: str) -> Prompt | Typed:
    """GenEval's prompt of this text if there is one. Spaces at the ends and doubled ones do not count."""
    text = " ".join(text.split())
    return _by_text().get(text) or Typed(f"typed-{hashlib.sha256(text.encode()).hexdigest()[:8]}", text)


def refusal(generator: Generator, text: str) -> Refusal | None:
    """What keeps the generator from reading a text; None if nothing does."""
    text = " ".join(text.split())
    if not text:
        return Refusal("There is no prompt: type some words, such as “a photo of two dogs”, or choose one of a task.")
    nearest = unknown(generator.tokenizer, text) if hasattr(generator, "tokenizer") else {}
    plain = text.lower().rstrip(" .!?")
    if nearest and plain and not unknown(generator.tokenizer, plain):
        return Refusal("This generator reads small letters and no full stop.", {text: [plain]})
    if nearest:
        words = [_shortened(word) for word in nearest]
        named = ", ".join(f"“{word}”" for word in words[:3]) + (f" and {len(words) - 3} more" if words[3:] else "")
        verb = "is" if len(words) == 1 else "are"
        return Refusal(f"{named} {verb} outside the vocabulary of this generator. Use other words.", nearest)
    try:
        generator.text_ids([text])
    except ValueError as error:
        return Refusal(f"The {str(error).replace(f' {text!r}', '')}.")
    return None


def _shortened(word: str) -> str:
    return word if len(word) <= LONGEST_SHOWN else f"{word[: LONGEST_SHOWN // 2]}…"


# --- What it is done with -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """Models to explore with, each loaded when it is first called for."""

    generators: Mapping[str, Callable[[], Generator]]
    scores: Mapping[str, Callable[[], Score]]  # P(yes) by question, a name of `verifiers.VERIFIERS`
    paint: Paint
    n_tokens: int
    precision: str = field(default_factory=best_precision)
    missing: Mapping[str, str] = field(default_factory=dict)  # what is not here, and what makes it, in a sentence

    @property
    def ways(self) -> list[str]:
        """The verifiers that can choose here."""
        return ["none", *(name for name, (asked, _) in WAYS.items() if set(asked) <= set(self.scores))]


def bench_of(run: Run) -> Bench:
    """The models of a run's scale, and those that its notebooks have trained so far."""
    found, unreadable = trained_models(run.models)
    judges = {name: folder for name, folder in found.items() if name in VERIFIERS}
    others = (*VERIFIERS, "parm++", "facts")  # judges
    aligned = {n: folder for n, folder in found.items() if n not in others and not n.endswith(models.VARIANT)}
    scores = {
        name: partial(_score, run.scale, name, judges.get(v.judge))
        for name, v in VERIFIERS.items()
        if v.judge == "zero-shot" or (v.judge in judges and v.judge in WAYS)
    }
    dials = f"--scale {run.scale.name} --effort {run.effort.name} --seed {run.seed}"
    missing = {
        name: f"{name} is not trained yet; make it with: cotlib run {notebook} {dials}"
        for name, (asked, notebook) in WAYS.items()
        if not set(asked) <= set(scores)
    }
    if not aligned:
        missing["aligned generators"] = (
            f"no aligned generator is trained yet; make them with: cotlib run {MAKES_GENERATORS} {dials}"
        )
    generators = {name: partial(_generator, run.scale, folder) for name, folder in aligned.items()}
    return Bench(
        {"base": partial(_generator, run.scale, None), **generators},
        scores,
        partial(_paint, run.scale),
        run.scale.n_tokens,
        best_precision(),
        {**missing, **unreadable},
    )


def trained_models(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Finished models by name, the newest of each, and of those that are not as expected what is wrong."""
    found, unreadable = {}, {}
    manifests = sorted(Path(folder).glob(f"*/{models.MANIFEST}"), key=lambda path: path.stat().st_mtime)
    for path in manifests:
        try:
            name = read_json(path)["name"]
            found[str(name)] = path.parent
        except (CotlibError, KeyError, TypeError):
            where = path.parent.name
            unreadable[where] = f"{where} was made by another version and is left out; remove it, or make it again"
    return found, unreadable


_loading = threading.Lock()  # two explorers may be open at once, and a model is loaded by one thread at a time


def _generator(scale: Scale, folder: Path | None) -> Generator:
    with _loading:
        return load_generator(scale, folder)


def _score(scale: Scale, name: str, folder: Path | None) -> Score:
    with _loading:
        judge = load_judge(scale, folder)
    if name in PARM_QUESTIONS:
        parm_of(judge)  # CotlibError for a judge that was not trained for these questions
    return VERIFIERS[name].scorer(judge)


def _paint(scale: Scale, codes: torch.Tensor) -> np.ndarray:
    with _loading:
        tokenizer = load_tokenizer(scale)
    return tokenizer.decode(codes)


# --- The exploration ----------------------------------------------------------------------------------------------


class Exploration:
    """The candidates of one setting, as far as they are decoded, and what was asked about them.

    `work` does it, a piece at a time. N candidates, T steps, L tokens:
    codes int64 [N, T, L]; masked bool [N, T, L], True = unknown after the step; confidence float32 [N, T, L];
    n_decoded int [N], steps of each; answers {question: float32 [N, T]}, P(yes), NaN where not asked or neither.
    With a process verifier the candidates of a step are N continuations of the one kept before: `kept` [T].
    """

    def __init__(self, setting: Setting, bench: Bench):
        if setting.verifier not in bench.ways:
            raise ValueError(bench.missing.get(setting.verifier, f"unknown verifier {setting.verifier!r}"))
        if setting.generator not in bench.generators:
            raise ValueError(f"there is no generator {setting.generator!r} here; known: {', '.join(bench.generators)}")
        self.setting, self.bench = setting, bench
        shape = (setting.n, setting.options.steps, bench.n_tokens)
        self.codes = np.zeros(shape, np.int64)
        self.masked = np.ones(shape, bool)
        self.confidence = np.zeros(shape, np.float32)
        self.pictures: dict[tuple[int, int], np.ndarray] = {}  # uint8 [H, W, 3] by (candidate, step)
        self.n_decoded = np.zeros(setting.n, int)
        self.answers = {name: np.full(shape[:2], np.nan, np.float32) for name in bench.scores}
        self.is_asked = {name: np.zeros(shape[:2], bool) for name in bench.scores}
        self.clear: list[int | None] = [None] * setting.n  # PARM: the first clear step
        self.promising = [False] * setting.n
        self.kept: list[int] = []
        self.chosen: int | None = None
        self.is_done = False

    @property
    def n_steps(self) -> int:
        return self.setting.options.steps

    @property
    def progress(self) -> float:
        """Share of the steps decoded and answers given, 0..1."""
        if self.is_done:
            return 1.0
        stopped = sum(self.n_steps - self.n_decoded[k] for k in range(self.setting.n) if self.is_stopped(k))
        decoded = self.setting.n * self.n_steps
        asked = sum(int(mask.sum()) for mask in self.is_asked.values())
        return float((self.n_decoded.sum() + stopped + asked) / (decoded * (1 + len(self.is_asked))))

    def is_stopped(self, k: int) -> bool:
        """Whether PARM has stopped candidate k before its last step."""
        return self.clear[k] is not None and not self.promising[k] and self.n_decoded[k] < self.n_steps

    def work(self) -> Iterator[str]:
        """`choice`, then `questions`: all there is to do."""
        yield from self.choice()
        yield from self.questions()

    def choice(self) -> Iterator[str]:
        """Decode, and let the verifier choose; yields after each piece of work what it was.

        Raises ValueError for a prompt that the generator cannot read.
        """
        generator = self.bench.generators[self.setting.generator]()
        if refused := refusal(generator, self.setting.prompt.text):
            raise ValueError(refused.sentence)
        every_step = self.setting.verifier in VERIFIERS and VERIFIERS[self.setting.verifier].every_step
        yield from self._climb(generator) if every_step else self._decode(generator)

    def _row(self) -> Step:
        return self.setting.start or nothing_known(1, self.bench.n_tokens)

    def _decode(self, generator: Generator) -> Iterator[str]:
        """Candidates side by side; with PARM, those without potential are stopped."""
        going = list(range(self.setting.n))
        state = self._row().rows([0] * len(going))
        steps = self._steps(generator, going, state)
        for step in range(self.n_steps):
            state = next(steps)
            self._keep(going, state)
            yield f"step {step + 1} of {self.n_steps}"
            if self.setting.verifier == "parm":
                kept = self._look(going, step)
                if kept != going:
                    state = state.rows([going.index(k) for k in kept])
                    going, steps = kept, self._steps(generator, kept, state)
                yield f"step {step + 1} of {self.n_steps}, judged"
            if not going:
                break
        yield from self._choose(generator)

    def _steps(self, generator: Generator, going: list[int], state: Step) -> Iterator[Step]:
        s = self.setting
        seeds = [sample_seed(s.seed, s.prompt.id, k, "pool-0") for k in going]
        return decode(generator, [s.prompt.text] * len(going), seeds, s.options, start=state, candidates=going)

    def _keep(self, rows: Sequence[int], after: Step) -> None:
        """Remember a step of some candidates, and paint it."""
        for k, picture, r in zip(rows, self.bench.paint(after.codes), range(len(rows)), strict=True):
            self.codes[k, after.index], self.masked[k, after.index] = after.codes[r], after.masked[r]
            self.confidence[k, after.index] = after.confidence[r]
            self.pictures[k, after.index] = picture
            self.n_decoded[k] = after.index + 1

    def _ask(self, name: str, rows: Sequence[int], step: int) -> list[float | None]:
        """P(yes) to a question about some candidates after a step, asked once; None: neither yes nor no."""
        new = [k for k in rows if not self.is_asked[name][k, step]]
        if new:
            pictures = np.stack([self.pictures[k, step] for k in new])
            said = self.bench.scores[name]()(pictures, [self.setting.prompt] * len(new))
            self.answers[name][new, step] = [np.nan if p is None else p for p in said]
            self.is_asked[name][new, step] = True
        return [None if np.isnan(p) else float(p) for p in self.answers[name][list(rows), step]]

    def _look(self, going: list[int], step: int) -> list[int]:
        """Clarity of those not clear yet, potential of those that now are; the candidates that go on (see `parm`)."""
        newly, is_last = [k for k in going if self.clear[k] is None], step + 1 == self.n_steps
        if newly and not is_last:  # a finished picture counts as clear
            said = self._ask("parm-clarity", newly, step)
            newly = [k for k, p in zip(newly, said, strict=True) if p is not None and p >= LIMITS.clear]
        for k, p in zip(newly, self._ask("parm-potential", newly, step) if newly else [], strict=True):
            self.clear[k], self.promising[k] = step, p is not None and p >= LIMITS.promising
        return going if is_last else [k for k in going if self.clear[k] is None or self.promising[k]]

    def _choose(self, generator: Generator) -> Iterator[str]:
        """The outcome question about the finished pictures; PARM's choice is finished first if every path stopped."""
        verifier, last = self.setting.verifier, self.n_steps - 1
        if verifier == "none":
            return
        rows = [k for k in range(self.setting.n) if verifier != "parm" or self.promising[k]]
        said = dict(zip(rows, self._ask(verifier, rows, last) if rows else [], strict=True))
        if verifier == "parm":
            potential = [self._potential(k) for k in range(self.setting.n)]
            outcome = [said.get(k) for k in range(self.setting.n)]
            scores = parm.scores({"promising": self.promising, "potential": potential, "outcome": outcome})
        else:
            scores = [said[k] for k in rows]
        self.chosen = best_of_n(scores, len(scores))
        if (at := self.n_decoded[self.chosen] - 1) < last:
            k = self.chosen
            for after in self._steps(generator, [k], self.state(k, at)):
                self._keep([k], after)
                yield f"every candidate was stopped; finishing the best, step {after.index + 1} of {self.n_steps}"
        yield "chosen"

    def _potential(self, k: int) -> float | None:
        p = float("nan") if self.clear[k] is None else float(self.answers["parm-potential"][k, self.clear[k]])
        return None if np.isnan(p) else p

    def _climb(self, generator: Generator) -> Iterator[str]:
        """Step-wise best-of-N, as `search.stepwise` does it."""
        s, state = self.setting, self._row()
        prefix, rows = read_prompts(generator, [s.prompt.text], s.options), list(range(s.n))
        for step in range(self.n_steps):
            seeds = [sample_seed(s.seed, s.prompt.id, k, f"step-0-{step}") for k in rows]
            drawn = branch(generator, prefix, state, seeds, s.options, s.n)
            self._keep(rows, drawn)
            yield f"step {step + 1} of {self.n_steps}"
            self.kept.append(best_of_n(self._ask(s.verifier, rows, step), s.n))
            state = drawn.rows([self.kept[-1]])
            yield f"step {step + 1} of {self.n_steps}, judged"
        self.chosen = self.kept[-1]

    def questions(self) -> Iterator[str]:
        """Ask every question about every decoded step, the last steps first."""
        for name in sorted(self.bench.scores, key=lambda name: name != self.setting.verifier):
            for step in reversed(range(self.n_steps)):
                rows = [k for k in range(self.setting.n) if step < self.n_decoded[k]]
                if rows and not self.is_asked[name][rows, step].all():
                    self._ask(name, rows, step)
                    yield f"asking {name}, step {step + 1}"
        self.is_done = True

    def state(self, k: int, step: int) -> Step:
        """Where candidate k stood after a step, as `decode(start=...)` takes it; one row."""
        codes, masked, confidence = (torch.from_numpy(a[k, step][None]) for a in self._arrays())
        return Step(int(step), codes, masked, confidence)

    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.codes, self.masked, self.confidence

    def said(self, k: int, step: int) -> dict[str, float | None]:
        """Answers about a step so far, by question."""
        asked = [name for name, mask in self.is_asked.items() if mask[k, step]]
        found = {name: float(self.answers[name][k, step]) for name in asked}
        return {name: None if np.isnan(p) else p for name, p in found.items()}

    def inpainting(self, k: int, masked: np.ndarray) -> Setting:
        """The setting that draws some tokens of candidate k's last picture anew; masked bool [L], True = draw.

        Raises ValueError where nothing is masked, or where the candidate has no picture yet.
        """
        if not self.n_decoded[k]:
            raise ValueError("there is no picture to change yet; decode some first")
        codes = torch.from_numpy(self.codes[k, self.n_decoded[k] - 1][None].copy())
        start = given(codes, torch.as_tensor(np.asarray(masked, bool))[None])
        return replace(self.setting, start=start, verifier="none" if self.kept else self.setting.verifier)


def finished(setting: Setting, bench: Bench, ask: bool = True) -> Exploration:
    """An exploration worked to its end; ask=False: without the questions that no choice depends on."""
    exploration = Exploration(setting, bench)
    deque(exploration.work() if ask else exploration.choice(), maxlen=0)
    return exploration


def first_stopped(setting: Setting, bench: Bench, prompts: Sequence[Prompt]) -> Exploration:
    """The setting's search for one prompt after the other, until a candidate is stopped; the last one if none is."""
    for prompt in prompts:
        exploration = finished(replace(setting, prompt=prompt), bench, ask=False)
        if any(exploration.is_stopped(k) for k in range(setting.n)):
            break
    return exploration


def picks_of(name: str, explorations: Sequence[Exploration], evaluator: Evaluator) -> Picks:
    """What was chosen in explorations of GenEval's prompts, judged by the evaluator; the first where nobody chose."""
    found = {}
    for e in explorations:
        k, prompt = e.chosen or 0, e.setting.prompt
        verdict = evaluator.evaluate(e.pictures[k, e.n_steps - 1][None], [prompt])[0]
        score = e.said(k, e.n_steps - 1).get(e.setting.verifier)
        codes = e.codes[k, e.n_steps - 1]
        found[prompt.id] = Pick(prompt, k, codes, bool(verdict.correct), tuple(verdict.reasons), score)
    return Picks(name, found)

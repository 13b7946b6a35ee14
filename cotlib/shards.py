"""Work ahead of the notebooks: models trained one by one, pools and scores made by many processes.

Each process takes its share of the prompts and writes a ledger of its own.

A shard lies beside the ledger that the notebooks read, under the same key: pools/base-0.shard-1-of-2.jsonl. Nobody
waits for anybody. The process that finds every line there merges them; a notebook takes over what there is and makes
what is missing. A process that was killed goes on from its own shard. No token depends on the number of processes,
because a candidate has its own noise, and no answer of a judge, because its passes have one size.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from . import models, stages, store
from .config import suggest
from .errors import CorruptError, IncompleteError
from .loaders import weights_folder
from .prompts import Prompt
from .run import Run

STAGES: dict[str, Callable[..., Any]] = {  # what is made of the pools; each works on a run's prompts only
    "decode": lambda run, pools: None,
    "verdicts": stages.verdicts,
    "orm-zero-shot": stages.outcome_scores,
    "orm": lambda run, pools: stages.outcome_scores(run, pools, "orm"),
    "parm": stages.parm_records,
    "parm-keep": lambda run, pools: stages.parm_records(run, pools, "parm-keep"),
}
SEARCHES = ("prm-zero-shot", "prm")  # stages that decode for themselves, with the base
JUDGED = ("orm-zero-shot", "orm", "parm", "parm-keep", *SEARCHES)
ALSO_READ = dict.fromkeys(JUDGED, ("judge",))  # beyond the weights of 01_baseline
TRAINED: dict[str, Callable[[Run], Any]] = {  # besides the generators that `stages.aligned` knows
    "data": stages.ranking_data,
    "orm": stages.outcome_judge,
    "prm": stages.process_judge,
    "parm": stages.parm_judge,
    "facts": stages.facts_judge,
    "parm++": stages.reflecting_judge,
    stages.REFLECT: stages.correcting,
}


@dataclass(frozen=True)
class Shard:
    """Share `index` (1 the first) of `count` equal ones."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """ "2/8" -> the second of eight. ValueError for anything else."""
        numbers = re.fullmatch(r"(\d+)/(\d+)", text)
        if not numbers or not 1 <= int(numbers[1]) <= int(numbers[2]):
            raise ValueError(f"--shard wants I/N with I in 1..N, got {text!r}; for example --shard 2/8")
        return cls(int(numbers[1]), int(numbers[2]))

    def part(self, rank: int, n_processes: int) -> Shard:
        """The share of process `rank` (0 the first) among those that share this share."""
        return Shard((self.index - 1) * n_processes + rank + 1, self.count * n_processes)

    def of(self, items: Sequence) -> Sequence:
        """Every `count`-th item: the tasks, which follow one another, are dealt out evenly."""
        return items[self.index - 1 :: self.count]

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"


def this_process(shard: Shard) -> Shard:
    """The share of this process: all of `shard`, or a part of it if `accelerate launch` started several processes.

    Each of those gets a device of its own, which is from then on what "cuda" means. The launcher's environment tells
    rank and device. accelerate's PartialState would connect the processes as well, which nothing here needs: then one
    that starts late fails because another has ended.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return shard
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]) % torch.accelerator.device_count())
    return shard.part(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


class TrainingData(store.Ledger):
    """A ledger that a share of the prompts reads and never adds to."""

    def __init__(self, path: Path, key: str, what: dict[str, Any], refusal: IncompleteError):
        super().__init__(path, key, what)
        self.refusal = refusal

    def _write(self, records: Sequence[dict[str, Any]], only_missing: bool = False) -> None:
        raise self.refusal


@dataclass
class ShardRun(Run):
    """A run that sees its share of the prompts, reads what every process wrote, and writes its own shards only."""

    shard: Shard = field(default_factory=Shard)
    opened: dict[str, dict[str, Any]] = field(default_factory=dict)  # what each ledger depends on, by name

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        return self.shard.of(self.whole.prompts)

    def trained(self, name: str, what: Mapping[str, Any], train: Callable[[Path], Mapping[str, Any]]) -> Path:
        """A model that is there. IncompleteError for one that is not: every process would train it."""
        folder = models.folder_of(self.models, name, what)
        if not models.is_whole(folder):
            raise self._untrained(folder.name)
        return super().trained(name, what, train)

    def _untrained(self, what: str) -> IncompleteError:
        typed = f"--scale {self.scale.name} --effort {self.effort.name} --seed {self.seed}" + "".join(
            f" --set {name}={value}" for name, value in self.settings.passed.items() if value is not None
        )
        return IncompleteError(
            f"{what} is not there or damaged, and a share of the prompts trains nothing; make first what this stage or "
            f"generator needs: cotlib train NAME {typed}, with NAME one of {', '.join(TRAINED)}, dpo, it-dpo, ..."
        )

    @property
    def whole(self) -> Run:
        """The same run over all prompts."""
        return Run(self.settings, self.key, self.folder, self.depends_on, self.started)

    def ledger(self, name: str, **what: Any) -> store.Ledger:
        """This process's shard of a shared ledger, which also answers for what is in the ledger and its other shards.

        Training data is read only. ForeignError if a ledger depends on something else. One that is damaged is left to
        its writer and not read.
        """
        path, key, identity = self._ledger(name, what)
        if name.split("-")[0] == "train":
            if not path.is_file():
                raise self._untrained(path.name)
            return TrainingData(path, key, identity, self._untrained(f"part of {path.name}"))
        self.opened[name] = what
        own = store.Ledger(store.shard_path(path, self.shard.index, self.shard.count), key, identity, mend=True)
        for other in (path, *store.shard_paths(path)):
            try:
                own.borrow(store.Ledger(other, key, identity).by_prompt() if other != own.path else {})
            except CorruptError as error:
                print(f"{error}; not read here", flush=True)
        return own


def check_stages(names: Sequence[str]) -> None:
    for name in names:
        if name not in (*STAGES, *SEARCHES):
            raise ValueError(f"unknown stage {name!r}; {suggest(name, (*STAGES, *SEARCHES))}")


MADE_BY = {  # the first notebook that makes a thing; aligned generators and all that is theirs: 06_integration
    **dict.fromkeys(("decode", "verdicts"), "01_baseline"),
    **dict.fromkeys(("data", "orm-zero-shot", "orm"), "02_outcome_verifier"),
    **dict.fromkeys(SEARCHES, "03_process_verifier"),
    **dict.fromkeys(("parm", "parm-keep"), "05_parm"),
    **dict.fromkeys(("facts", "parm++", stages.REFLECT), "07_reflection"),
}


def notebook_of(generator: str, names: Sequence[str]) -> str:
    """The notebook whose parameters a request takes: the last of those that first make what it asks for."""
    if generator != "base":
        return MADE_BY.get(generator, "06_integration")
    return max(MADE_BY.get(name, "06_integration") for name in names)


def train(run: Run, names: Sequence[str]) -> None:
    """Train models by name, and what they need first. ValueError for an unknown name, before any compute."""
    for name in names:
        try:
            _ = name in TRAINED or stages.recipe(name)
        except ValueError:
            known = (*TRAINED, *stages.known_generators()[1:])
            raise ValueError(f"unknown model {name!r}; {suggest(name, known)}") from None
    for name in names:
        made = TRAINED[name](run) if name in TRAINED else stages.aligned(run, name)
        print(f"{name}: {getattr(made, 'folder', None) or run.pools / 'train.jsonl'}", flush=True)


def make(run: Run, shard: Shard, names: Sequence[str], generator: str = "base") -> None:
    """Bring this process's share of a generator's pools, and of the named stages, up to date; merge what is complete.

    Before any compute, ValueError for an unknown stage or generator and for a search with another generator than the
    base, IncompleteError for weights that are not there, in a shard also for models that are not trained yet;
    ForeignError if a shard belongs to another run.
    """
    check_stages(names)
    if generator not in ("base", stages.REFLECT):
        stages.recipe(generator)
    if generator != "base" and (own := [name for name in names if name in SEARCHES]):
        raise ValueError(f"{own[0]} searches with the base only; leave --generator {generator} out")
    for part in {part for name in names for part in ALSO_READ.get(name, ())}:
        weights_folder(run.scale, part)
    if shard.count == 1:
        _make(run, names, generator)
        return
    own = ShardRun(run.settings, run.key, run.folder, run.depends_on, run.started, shard=shard)
    print(f"{shard}: {len(own.prompts)} of {len(run.prompts)} prompts", flush=True)
    if own.prompts:
        _make(own, names, generator)
    for name, what in list(own.opened.items()):
        there = own.ledger(name, **what)
        n = sum(prompt.id in there for prompt in run.prompts)
        if n == len(run.prompts):
            run.ledger(name, **what)
        state = "merged" if n == len(run.prompts) else "whoever needs the others makes them"
        print(f"{name}: {n} of {len(run.prompts)} prompts are there, {state}", flush=True)


def _make(run: Run, names: Sequence[str], generator: str) -> None:
    for name in names:
        judge = name.removesuffix("-keep")
        if judge in TRAINED:  # so that a judge that is not there is told before anything is decoded
            TRAINED[judge](run)
    if pooled := [name for name in names if name in STAGES]:
        pools = stages.pools_of(run, generator, n_of(run, generator))
        for name in pooled:
            STAGES[name](run, pools)
    for name in names:
        if name in SEARCHES:
            stages.climb(run, name, run.params["n_candidates"])


def n_of(run: Run, generator: str) -> int:
    """Candidates of each pool of a generator, as the notebooks decode them."""
    n, aligned = run.params["n_candidates"], run.params["n_aligned_candidates"]
    return n if generator == "base" else aligned if generator == stages.REFLECT else min(n, aligned)

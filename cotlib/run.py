"""One run of one notebook: its settings, its places, and every number, table and figure it leaves behind."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cotlib import earlier, provenance, store
from cotlib.config import NOTEBOOKS, Effort, Scale, Settings, check, suggest
from cotlib.errors import CorruptError, CotlibError, ForeignError, IncompleteError
from cotlib.provenance import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from matplotlib.figure import Figure

    from cotlib.player import Page
    from cotlib.prompts import Prompt

RESULTS = "results.json"
WATERMARK = "SMOKE, not a result"
DIGEST = re.compile(r"(.+-)?[0-9a-f]{12}")  # of weights, or of all that a trained model depends on


@dataclass(frozen=True)
class Upstream:
    """Finished results of another notebook."""

    notebook: str
    folder: Path
    manifest: dict[str, Any]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return store.read_json(self.folder / METRICS)

    def table(self, name: str) -> pd.DataFrame:
        """A table by name; ValueError names the tables there are."""
        import pandas as pd

        path = self.folder / "tables" / f"{name}.csv"
        if not path.is_file():
            known = sorted(p.stem for p in path.parent.glob("*.csv"))
            raise ValueError(f"{self.notebook} has no table {name!r}; {suggest(name, known)}")
        return pd.read_csv(path)


@dataclass
class Run:
    """What `load` hands to a notebook. Nothing is touched on disk before the first record, table or figure."""

    settings: Settings
    key: str
    folder: Path
    depends_on: dict[str, Any]  # the parts of the key
    started: float = field(default_factory=time.time)  # s since 1970
    _metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    _files: list[str] = field(default_factory=list)
    _ledgers: list[store.Ledger] = field(default_factory=list)
    made: dict[str, Any] = field(default_factory=dict, repr=False)  # by `stages`: what several of them need, once
    _began: bool = False

    @property
    def notebook(self) -> str:
        return self.settings.notebook

    @property
    def scale(self) -> Scale:
        return self.settings.scale

    @property
    def effort(self) -> Effort:
        return self.settings.effort

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def params(self) -> dict[str, Any]:
        """Every parameter with the value in use."""
        return self.settings.params

    @property
    def pools(self) -> Path:
        """Folder of what several notebooks share."""
        return self.folder.parent / "pools"

    @property
    def models(self) -> Path:
        """Folder of the models that were trained here."""
        return self.folder.parent / "models"

    @cached_property
    def git(self) -> dict[str, Any]:
        return provenance.git_state()

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts of this effort, in the official order."""
        from cotlib import prompts

        everything, n = prompts.geneval_prompts(), self.params["n_prompts_per_task"]
        return everything if n is None else prompts.take(everything, n)

    def __str__(self) -> str:
        mark = f"  [{WATERMARK}]" if self.effort.watermark else ""
        return (
            f"{self.notebook}: scale {self.scale.name}, effort {self.effort.name}, seed {self.seed}, "
            f"key {self.key}{mark}\n{self.folder}"
        )

    @property
    def footer(self) -> str:
        """One line that says what made a figure."""
        commit = (self.git["commit"] or "no commit")[:9] + ("+dirty" if self.git["dirty"] else "")
        n = f" · n = {len(self.prompts)} prompts" if "n_prompts_per_task" in NOTEBOOKS[self.notebook].overrides else ""
        return f"{commit} · {self.scale.name} · {self.effort.name} · seed {self.seed} · key {self.key}{n}"

    def trained(self, name: str, what: Mapping[str, Any], train: Callable[[Path], Mapping[str, Any]]) -> Path:
        """The folder of a model of this run, trained if it is not there yet (see `models.trained`)."""
        from cotlib import models

        return models.trained(self.models, name, what, train)

    def ledger(self, name: str, **what: Any) -> store.Ledger:
        """The shared ledger pools/`name`.jsonl of units that depend on `what` (and on scale and seed), nothing else.

        A damaged one is set aside as *.corrupt, and its good lines are kept. What processes of `cotlib pool` have left
        in shards beside it is taken over. One that depends on something else is a ForeignError, but in the chain it is
        set aside as *.outdated if the notebook was forced, or if only weights differ, and taken back when they return.
        """
        path, key, what = self._ledger(name, what)
        *shards, opened = [_open(at, key, what) for at in (*store.shard_paths(path), path)]
        opened.take_over({prompt: record for shard in shards for prompt, record in shard.by_prompt().items()})
        self._ledgers.append(opened)
        return opened

    def _ledger(self, name: str, what: Mapping[str, Any]) -> tuple[Path, str, dict[str, Any]]:
        """Path, key and identity of a shared ledger."""
        identity = {"scale": self.scale.name, "seed": self.seed, **what}
        return self.pools / f"{name}.jsonl", store.digest(identity)[:12], identity

    def record(
        self,
        name: str,
        value: float | None,
        low: float | None = None,
        high: float | None = None,
        n: int | None = None,
        unit: str = "",
    ) -> None:
        """Keep one measured number under its stable name; the same name again overwrites.

        low, high: the interval; n: how many units it rests on. ValueError for NaN, infinities, text and bools.
        """
        if not isinstance(name, str) or not name.strip("/ ") or name != name.strip("/ ") or "\n" in name:
            raise ValueError(f"a measurement needs a slash-separated name such as 'tokenizer/psnr', got {name!r}")
        if not isinstance(unit, str):
            raise ValueError(f"{name}: unit must be text, got {unit!r}")
        numbers = {"value": value, "low": low, "high": high, "n": n}
        entry = {key: _number(f"{name}, {key}", x) for key, x in numbers.items()}
        if (low is None) != (high is None) or (low is not None and entry["low"] > entry["high"]):
            raise ValueError(f"{name}: an interval has two ends, low <= high, got {low!r}..{high!r}")
        origin = {"notebook": self.notebook, "seeds": [self.seed], "commit": self.git["commit"]}
        self._metrics[name] = {"name": name, **entry, "unit": unit, **origin}

    def table(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        """Keep a table as tables/`name`.csv (without its index) and return it for display."""
        self._write(f"tables/{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
        return frame

    def figure(self, name: str, figure: Figure) -> Path:
        """Keep a figure as figures/`name`.png with its provenance below, and a watermark on smoke runs."""
        import io

        _stamp(figure, self.footer, WATERMARK if self.effort.watermark else None)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", metadata={"Description": self.footer})
        return self._write(f"figures/{name}.png", buffer.getvalue())

    def page(self, name: str, page: Page) -> Path:
        """Keep a self-contained page, such as a player of steps, as pages/`name`.html."""
        return self._write(f"pages/{name}.html", page.html)

    def upstream(self, notebook: str) -> Upstream:
        """Finished results of a notebook this one reads, of the same scale, effort and seed.

        IncompleteError names the command that makes them; ForeignError if they are of another seed.
        """
        known = NOTEBOOKS[self.notebook].upstream
        if notebook not in known:
            raise ValueError(
                f"{self.notebook} does not read {notebook!r} (NOTEBOOKS in config.py); {suggest(notebook, known)}"
            )
        folder = self.folder.parent / notebook
        again = provenance.command(notebook, self.scale.name, self.effort.name, self.seed)
        try:
            manifest = provenance.read_manifest(folder)
        except IncompleteError:
            raise IncompleteError(
                f"{self.notebook} needs {notebook}, not finished in {folder}; make it with: {again}"
            ) from None
        if manifest["seed"] != self.seed:
            raise ForeignError(
                f"{folder} has seed {manifest['seed']} (key {manifest['key']}), "
                f"this run has {self.seed} (key {self.key}); make it with: {again} --force"
            )
        if label := earlier.label(folder):
            print(f"{notebook} is stale. {label}")
        return Upstream(notebook, folder, manifest)

    def finished_upstream(self) -> tuple[dict[str, Upstream], dict[str, str]]:
        """What of all that this notebook reads is finished, and for the rest why it is not there and what makes it."""
        there, missing = {}, {}
        for notebook in NOTEBOOKS[self.notebook].upstream:
            try:
                there[notebook] = self.upstream(notebook)
            except IncompleteError as error:
                missing[notebook] = str(error)
        return there, missing

    def records(self) -> list[dict[str, Any]]:
        """The measurements so far."""
        return list(self._metrics.values())

    def finish(self, *, ok: int, failed: int = 0, unscored: int = 0) -> Path:
        """Write metrics.json, then run.json: from here on the results count. Counts are of finished units."""
        counts = {"ok": ok, "failed": failed, "unscored": unscored}
        for name, count in counts.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise ValueError(f"finish: {name} must be a count, got {count!r}")
        seconds = time.time() - self.started
        self.record(f"cost/{self.notebook}", round(seconds, 3), unit="s")
        self._write(METRICS, store.dump_json(self.records()))
        return provenance.write_manifest(self.folder, self._manifest(counts, seconds))

    def _manifest(self, counts: Mapping[str, int], seconds: float) -> dict[str, Any]:
        typed = {"scale": self.scale.name, "effort": self.effort.name, "seed": self.seed, **self.settings.passed}
        return {
            "notebook": self.notebook,
            "key": self.key,
            "scale": self.scale.name,
            "effort": self.effort.name,
            "seed": self.seed,
            "seeds": {"run": self.seed},
            "watermark": self.effort.watermark,
            "request": provenance.request(self.settings),
            "parameters": {"passed": typed, "effective": self.params},
            "depends_on": self.depends_on,
            "upstream": self.depends_on["upstream"],
            "counts": dict(counts),
            "notes": [note for ledger in self._ledgers for note in ledger.notes],
            "started": self.started,
            "seconds": round(seconds, 3),
            "git": self.git,
            "versions": provenance.versions(),
            "machine": provenance.machine(),
            "files": {name: provenance.file_entry(self.folder / name) for name in self._files},
        }

    def _write(self, name: str, data: bytes | str) -> Path:
        self._begin()
        if name not in self._files:
            self._files.append(name)
        return store.atomic_write(self.folder / name, data)

    def _begin(self) -> None:
        """At the first write, set an earlier result aside, then clear its place, the manifest first."""
        if self._began:
            return
        earlier.set_aside(self.folder)
        earlier.clear(self.folder)
        spec = NOTEBOOKS[self.notebook]
        if spec.in_chain and spec.needs_upstream:  # the merged results rest on what is being replaced
            (self.folder.parent / RESULTS).unlink(missing_ok=True)
        self._began = True


def _number(what: str, value: Any) -> float | int | None:
    """A finite Python number, or None; numpy and torch scalars are converted."""
    if hasattr(value, "item"):
        value = value.item()
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{what} must be a finite number or None, got {value!r} ({type(value).__name__})")
    return value


def _open(path: Path, key: str, what: dict[str, Any]) -> store.Ledger:
    if not path.exists():  # a run that was killed before its first line set another aside and left none
        _take_back(path, key)
    try:
        return store.Ledger(path, key, what, mend=True)
    except ForeignError as error:
        theirs = store.header_of(path)["what"]
        if theirs.get("precision") != what.get("precision"):
            raise ForeignError(f"{error}. Each precision needs an outputs folder of its own") from None
        if not _may_replace(theirs, what):
            raise ForeignError(f"{error}; `cotlib run NOTEBOOK --force` sets all such ledgers aside") from None
    aside = store.quarantine(path, "outdated")
    _take_back(path, key)
    opened = store.Ledger(path, key, what, mend=True)
    opened.notes.append(f"{path.name} was of another request or of other weights; set aside as {aside.name}")
    print(opened.notes[-1], flush=True)
    return opened


def _take_back(path: Path, key: str) -> None:
    """Of the ledgers of this key that were set aside, the longest becomes the one that is read."""
    ours = [old for old in path.parent.glob(f"{path.name}.outdated*") if _key_of(old) == key]
    for old in sorted(ours, key=lambda old: old.stat().st_size)[-1:]:
        os.replace(old, path)


def _key_of(ledger: Path) -> str | None:
    try:
        return store.header_of(ledger).get("ledger")
    except CorruptError:
        return None


def _may_replace(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether the chain may set a ledger of the same precision aside. No key tells a precision, so notebooks that are
    finished and count as current may rest on one of another. Trained models count as weights."""
    allowed = os.environ.get(provenance.REPLACES)
    changed = [(theirs.get(name), ours.get(name)) for name in {*theirs, *ours} if theirs.get(name) != ours.get(name)]
    only_weights = all(isinstance(value, str) and DIGEST.fullmatch(value) for pair in changed for value in pair)
    return allowed == "anything" or (allowed == "weights" and only_weights)


def _stamp(figure: Figure, footer: str, watermark: str | None) -> None:
    """Footer below the figure, watermark across it; a figure saved twice is stamped once."""
    if any(text.get_gid() == "cotlib-footer" for text in figure.texts):
        return
    figure.text(1, 0, footer, gid="cotlib-footer", ha="right", va="top", fontsize=6, color="0.4")
    if watermark:
        style = {"ha": "center", "va": "center", "fontsize": 30, "color": "0.2", "alpha": 0.4, "rotation": 20}
        figure.text(0.5, 0.5, watermark, gid="cotlib-watermark", zorder=1000, **style)


def load(notebook: str, /, *, scale: str, effort: str, seed: int, **overrides: Any) -> Run:
    """Check a notebook's parameters and say where its results will lie.

    ValueError for a bad parameter, IncompleteError for missing weights, ForeignError if finished results of another
    configuration lie there; all before any compute.
    """
    settings = check(notebook, scale=scale, effort=effort, seed=seed, **overrides)
    provenance.require_weights(settings)
    folder = provenance.outputs_of(scale, effort) / notebook
    key, depends_on = provenance.run_key(settings)
    provenance.refuse_foreign(folder, settings, key)
    run = Run(settings, key, folder, depends_on)
    print(run)
    return run


def merge_results(folder: Path, own: Run | None = None) -> list[dict[str, Any]]:
    """Collect the measurements of every finished notebook of one scale and effort into results.json.

    own: a run in progress, whose measurements replace what its notebook left earlier.
    Two values for one name, two seeds, or results made from an older upstream are errors.
    """
    merged: dict[str, dict[str, Any]] = {}
    for entry in collect(folder, without=own.notebook if own else None) + (own.records() if own else []):
        other = merged.setdefault(entry["name"], entry)
        if other["value"] != entry["value"]:
            raise CotlibError(
                f"{entry['name']} is {other['value']} in {other['notebook']} and {entry['value']} in "
                f"{entry['notebook']}; record a measurement in one notebook only"
            )
    seeds = sorted({seed for entry in merged.values() for seed in entry["seeds"]})
    if len(seeds) > 1:
        raise ForeignError(
            f"{folder} mixes seeds {seeds}; run every notebook with one --seed, or use two outputs folders"
        )
    records = sorted(merged.values(), key=lambda entry: entry["name"])
    store.write_json(folder / RESULTS, records)
    return records


def collect(folder: Path, without: str | None = None) -> list[dict[str, Any]]:
    """Measurements of the finished notebooks of the chain, digests checked; an unfinished notebook adds none.

    Nor does the index, which is made after them and shows whatever is there.
    """
    manifests = {
        name: provenance.read_manifest(folder / name)
        for name, spec in NOTEBOOKS.items()
        if spec.in_chain and spec.needs_upstream and name != without and (folder / name / provenance.MANIFEST).is_file()
    }
    for name, manifest in manifests.items():
        for upstream, key in manifest["upstream"].items():
            if upstream in manifests and manifests[upstream]["key"] != key:
                again = provenance.command(name, manifest["scale"], manifest["effort"], manifest["seed"])
                raise IncompleteError(
                    f"{folder / name} was made from an earlier {upstream}; make it again with: {again}"
                )
    return [entry for name in manifests for entry in store.read_json(folder / name / METRICS)]


def seed_of(records: list[dict[str, Any]]) -> int:
    """The seed of the first of these measurements; 0 if there are none."""
    return records[0]["seeds"][0] if records else 0


def read_results(folder: Path) -> list[dict[str, Any]]:
    """results.json; CorruptError if it is unreadable or not what the notebooks that are finished measured.

    What the report cost is left out of the comparison: it may be newer than what it merged.
    """
    records, made = store.read_json(folder / RESULTS), collect(folder)
    finished = {entry["notebook"] for entry in made}

    def measured(entries: list[dict[str, Any]]) -> dict[str, Any]:
        mine = [e for e in entries if e["notebook"] in finished]
        return {e["name"]: {**e, "value": None} if e["name"] == "cost/08_report" else e for e in mine}

    try:
        fields = {frozenset(entry) for entry in made}
        is_whole = measured(records) == measured(made) and {frozenset(entry) for entry in records} <= fields
    except (KeyError, TypeError, AttributeError):
        is_whole = False
    if not is_whole:
        raise CorruptError(
            f"{folder / RESULTS} is not what the notebooks in {folder} measured; set it aside and merge them again "
            f"with: {provenance.command('08_report', *folder.parts[-2:], seed=seed_of(made))}"
        )
    return records

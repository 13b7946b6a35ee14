"""The command line: `cotlib` or `python -m cotlib`.

Exit codes: 0 done, 1 a notebook failed, 2 bad request, 3 incomplete or corrupt artefacts, 130 or 143 interrupted,
138 a kernel died.
"""

from __future__ import annotations

import fnmatch
import json
import signal
import sys
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from cotlib.config import EFFORTS, SCALES, Scale, suggest
from cotlib.errors import CotlibError, IncompleteError

app = typer.Typer(
    help="Verify and reinforce image generation step by step (arXiv:2501.13926), from prompt to table.",
    epilog="Exit codes: 0 done, 1 a notebook failed, 2 bad request, 3 incomplete or corrupt artefacts, "
    "130/143 interrupted, 138 a kernel died.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
export_app = typer.Typer(help="Write results in other people's formats.", no_args_is_help=True)
app.add_typer(export_app, name="export")

ScaleOption = Annotated[str, typer.Option(help=f"Which weights: {', '.join(SCALES)}.")]
EffortOption = Annotated[str, typer.Option(help=f"How much is run: {', '.join(EFFORTS)}.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A notebook parameter, such as n_candidates=8; repeatable."),
]
SeedOption = Annotated[int, typer.Option(help="Run seed; every candidate's seed follows from it.")]


class Part(StrEnum):
    """The pocket models that can be trained from scratch."""

    tokenizer = "tokenizer"
    detector = "detector"
    generator = "generator"
    judge = "judge"


@app.command()
def run(
    notebooks: Annotated[
        list[str] | None, typer.Argument(help="Names such as 01_baseline; all if none is given.")
    ] = None,
    scale: ScaleOption = "pocket",
    effort: EffortOption = "quick",
    seed: SeedOption = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Run the named notebooks even if they are up to date.")
    ] = False,
    set_: SetOption = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the notebooks and their status; run nothing.")] = False,
) -> None:
    """Run notebooks and what they read, in order. What is up to date is kept; after a kill, run it again."""
    from cotlib import chain

    if list_:
        print_rows(chain.listing(scale, effort))
        return
    signal.signal(signal.SIGTERM, _terminate)
    chain.run_chain(
        notebooks or (),
        scale=scale,
        effort=effort,
        seed=seed,
        parameters=dict(map(_assignment, set_ or [])),
        force=force,
    )


def _terminate(*_: Any) -> NoReturn:
    raise SystemExit(143)  # as an exception, so that kernels are shut down and locks released


def _assignment(text: str) -> tuple[str, Any]:
    """("n_candidates", 8) from "n_candidates=8": the value is JSON, or text if it is no JSON."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"--set wants NAME=VALUE, got {text!r}; for example --set n_candidates=8")
    if name.strip() in ("scale", "effort", "seed"):
        raise ValueError(f"--set {text}: {name.strip()} is an option of its own; type --{name.strip()} {value}")
    try:
        return name.strip(), json.loads(value)
    except json.JSONDecodeError:
        return name.strip(), value


@app.command()
def pool(
    scale: ScaleOption = "pocket",
    effort: EffortOption = "quick",
    seed: SeedOption = 0,
    set_: SetOption = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            help="decode (the pools alone), verdicts, orm-zero-shot, orm, parm, parm-keep; prm-zero-shot, prm, which "
            "search for themselves; repeatable. decode if none is given."
        ),
    ] = None,
    generator: Annotated[str, typer.Option(help="Whose pools: base, dpo, it-dpo, reflect, ...")] = "base",
    shard: Annotated[str, typer.Option(metavar="I/N", help="This process's share of the prompts, 1/N to N/N.")] = "1/1",
) -> None:
    """Decode, evaluate and judge candidates ahead of the notebooks, on many devices: under `accelerate launch -m`.

    Nobody waits for anybody, and after a kill the same command goes on.
    """
    from cotlib import shards
    from cotlib.run import load

    share, names = shards.Shard.parse(shard), stage or ["decode"]
    shards.check_stages(names)
    signal.signal(signal.SIGTERM, _terminate)
    notebook = shards.notebook_of(generator, names)
    loaded = load(notebook, scale=scale, effort=effort, seed=seed, **dict(map(_assignment, set_ or [])))
    shards.make(loaded, shards.this_process(share), names, generator)


@app.command()
def train(
    names: Annotated[
        list[str],
        typer.Argument(help="data (pictures that all learn from), orm, prm, parm, facts, parm++, dpo, it-dpo, ..."),
    ],
    scale: ScaleOption = "pocket",
    effort: EffortOption = "quick",
    seed: SeedOption = 0,
    set_: SetOption = None,
) -> None:
    """Train judges and generators ahead of the notebooks, and what they need first.

    Different ones may be trained by processes side by side, once the data and what they start from are there.
    """
    from cotlib import shards
    from cotlib.run import load

    signal.signal(signal.SIGTERM, _terminate)
    notebook = shards.notebook_of("base", names)
    loaded = load(notebook, scale=scale, effort=effort, seed=seed, **dict(map(_assignment, set_ or [])))
    shards.train(loaded, names)


@app.command()
def status(
    scale: ScaleOption = "pocket",
    effort: EffortOption = "quick",
    seed: Annotated[
        int | None, typer.Option(help="Seed of the results that are wanted; what is there if none.")
    ] = None,
) -> None:
    """Show what is done, stale, failed, corrupt or not run, why, and what it cost. Code 3 if anything is corrupt."""
    from cotlib import chain

    rows = chain.listing(scale, effort, seed)
    cells = ("notebook", "status", "cost", "why")
    others = [("", "corrupt", "", why) for why in chain.corrupt_files(scale, effort).values()]
    rows = [{name: row[name] for name in cells} for row in rows] + [dict(zip(cells, o, strict=True)) for o in others]
    print_rows(rows)
    if any(row["status"] == "corrupt" for row in rows):
        raise CotlibError("corrupt files; the next cotlib run sets them aside as *.corrupt and makes them again")


@app.command()
def results(
    pattern: Annotated[str, typer.Argument(help="Part of a name, or a pattern such as 'geneval/*/overall'.")] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="Full records as JSON.")] = False,
    scale: ScaleOption = "pocket",
    effort: EffortOption = "quick",
    published: Annotated[
        bool, typer.Option("--published", help="Of the published run of this scale, whatever its effort.")
    ] = False,
) -> None:
    """Print what the notebooks measured."""
    wanted = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    measured = _published(scale) if published else _measurements(scale, effort)
    records = [record for record in measured if fnmatch.fnmatchcase(record["name"], wanted)]
    if not records:
        where = f"{scale}, published" if published else f"{scale}/{effort}"
        options = f"--scale {scale} " + ("--published" if published else f"--effort {effort}")
        raise ValueError(f"no measurement matches {pattern!r} at {where}; see them all with: cotlib results {options}")
    if as_json:
        print(json.dumps(records, indent=1))
    else:
        print_rows([_readable(record) for record in records])


def _published(scale: str) -> list[dict[str, Any]]:
    """Measurements of the published run, with a note of what it is."""
    from cotlib import published

    records, manifest = published.read_published(published.results_root() / _scale(scale).name)
    print(
        f"published: scale {scale}, effort {manifest['effort']}, seed {manifest['seed']}, "
        f"commits {', '.join(manifest['commits'])}, {published.cost(manifest)}",
        file=sys.stderr,
    )
    return records


def _measurements(scale: str, effort: str) -> list[dict[str, Any]]:
    """results.json, or what the notebooks left so far, with a note."""
    from cotlib import provenance
    from cotlib.run import RESULTS, collect, read_results, seed_of

    folder = provenance.outputs_of(scale, effort)
    if (folder / RESULTS).is_file():
        return read_results(folder)
    records = collect(folder)
    if not records:
        raise IncompleteError(f"no results in {folder}; make them with: cotlib run --scale {scale} --effort {effort}")
    print(
        f"note: the report is not up to date, these are the notebooks' own measurements; merge them with: "
        f"{provenance.command('08_report', scale, effort, seed_of(records))}",
        file=sys.stderr,
    )
    return records


@app.command()
def publish(
    scale: ScaleOption = "pocket",
    effort: EffortOption = "full",
    force: Annotated[bool, typer.Option("--force", help="Replace a published run of a larger effort.")] = False,
    incomplete: Annotated[
        bool, typer.Option("--incomplete", help="Notebooks that never ran may be lacking; the README says which.")
    ] = False,
) -> None:
    """Copy a finished run's results, tables and figures to docs/results/, for readers and for the README."""
    from cotlib import published

    folder = published.publish(scale, effort, published.results_root(), force, incomplete)
    print(f"published in {folder}; bring the README up to date with: make readme")


@app.command()
def compare(
    run: Annotated[str, typer.Argument(help="SCALE/EFFORT, such as pocket/quick, or a folder with results.json.")],
    with_: Annotated[str, typer.Option("--with", help="published, or another run.")] = "published",
    everything: Annotated[bool, typer.Option("--all", help="Also what agrees.")] = False,
) -> None:
    """Say where two runs differ beyond their intervals."""
    from cotlib import published
    from cotlib.run import RESULTS
    from cotlib.store import read_json

    folder = published.run_folder(run).resolve()
    if with_ == "published":
        scale = next((name for name in (folder.parent.name, folder.name) if name in SCALES), None)
        if scale is None:
            raise ValueError(f"{folder} does not tell its scale; name what to compare it with: --with SCALE/EFFORT")
        theirs = _published(scale)
    else:
        theirs = read_json(published.run_folder(with_) / RESULTS)
    rows = published.compare(read_json(folder / RESULTS), theirs)
    shown = [row for row in rows if everything or row["verdict"] not in ("agrees", "equal")]
    if shown:
        print_rows([{name: _cell(value) for name, value in row.items()} for row in shown])
    verdicts = Counter(row["verdict"] for row in rows)
    print(", ".join(f"{n} {'are ' if verdict == 'other' else ''}{verdict}" for verdict, n in sorted(verdicts.items())))


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _readable(record: dict[str, Any]) -> dict[str, str]:
    """Text cells of one measurement."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.4g}"

    low, high = number(record["low"]), number(record["high"])
    return {
        "name": record["name"],
        "value": number(record["value"]) or "—",
        "interval": f"{low} .. {high}" if low else "",
        "n": "" if record["n"] is None else str(record["n"]),
        "unit": record["unit"],
        "notebook": record["notebook"],
    }


def print_rows(rows: list[dict[str, str]]) -> None:
    """Aligned columns, a heading above."""
    heading = {name: name for name in rows[0]}
    widths = {name: max(len(row[name]) for row in (heading, *rows)) for name in heading}
    for row in (heading, *rows):
        print("  ".join(row[name].ljust(widths[name]) for name in heading).rstrip())


@app.command("geneval")
def score_folder(
    folder: Annotated[Path, typer.Argument(help="Pictures in GenEval's layout: 00000/samples/0000.png and so on.")],
    scale: ScaleOption = "pocket",
    detector: Annotated[
        str | None,
        typer.Option(help="Mask2Former (not pocket): a folder, a hub name, or GenEval's own weights as .safetensors."),
    ] = None,
    clip: Annotated[str | None, typer.Option(help="CLIP: a folder or a hub name (not pocket).")] = None,
    canary: Annotated[
        Path | None, typer.Option(help="Folder in the same layout of pictures known to be right, asked first.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Results, one line per picture; FOLDER/results.jsonl if none.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures looked at together; changes speed.")] = None,
) -> None:
    """Score pictures by GenEval's rules. After an interruption the same command goes on where it was."""
    from cotlib import loaders, scoring, store
    from cotlib.canary import check as canary_check

    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}; {suggest(scale, SCALES)}")
    chosen, out = SCALES[scale], out or folder / "results.jsonl"
    scoring.check_writable(out)
    entries = scoring.read_folder(folder)
    contents = [scoring.examine(entry, chosen.image_size if chosen.offline else None) for entry in entries]
    known = scoring.labelled_folder(canary) if canary else []
    identity = loaders.evaluator_identity(chosen, detector, clip)
    signal.signal(signal.SIGTERM, _terminate)
    with store.one_writer(out.parent):
        ledger = scoring.ledger_of(out, **identity)
        left = [(e, c) for e, c in zip(entries, contents, strict=True) if not scoring.is_done(ledger, e, c)]
        if left:
            evaluator = loaders.trusted_evaluator(chosen, detector, clip, batch_size)
            canary_check(
                evaluator, known, "the evaluator", "see what is wrong with it, or with the pictures of --canary"
            )
            scoring.score(*zip(*left, strict=True), evaluator, ledger, batch_size or evaluator.batch_size)
        scoring.write_results(out, entries, ledger)
    _print_summary(scoring.summary(entries, ledger))
    print(f"results of each picture: {out}")


def _print_summary(rows: list[Any]) -> None:
    """Scores in per cent with their intervals, and what a reader may miss in them."""

    def readable(row: Any) -> dict[str, str]:
        e = row.over_prompts
        interval = f"{100 * e.low:.1f} .. {100 * e.high:.1f}"
        return {
            "": row.name,
            "%": f"{100 * row.value:.2f}",
            "interval": interval,
            "prompts": str(e.n),
            "pictures": str(row.n_pictures),
        }

    print_rows([readable(row) for row in rows])
    if "overall" not in [row.name for row in rows]:
        print("no overall score: it is the mean of all six tasks, and not all have prompts here")
    if any(abs(row.value - row.over_prompts.value) > 1e-9 for row in rows):
        print("prompts differ in their number of pictures: scores count pictures, as GenEval does, intervals prompts")


@app.command()
def pretrain(
    part: Annotated[Part, typer.Argument(help="The tokenizer first: detector and generator learn from its codes.")],
    minutes: Annotated[float, typer.Option(min=0.01, help="Budget of wall-clock time, kept over interruptions.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the weights; the shipped ones are replaced if none.")
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """Train a pocket model from scratch. After an interruption the same command goes on from the last checkpoint."""
    from cotlib.pocket import pretrain as training

    training.run(part.value, minutes, out or training.WEIGHTS, seed)


@app.command()
def fetch(
    scale: ScaleOption = "showo",
    part: Annotated[
        list[str] | None, typer.Option(help="One part, such as generator; repeatable. All if none is given.")
    ] = None,
) -> None:
    """Fetch the weights of a scale from the hub. What is there is kept; after an interruption, fetch again."""
    from cotlib import fetch as fetching

    fetching.fetch(_scale(scale), part or ())


@app.command()
def doctor(
    scale: Annotated[str | None, typer.Option(help=f"One of {', '.join(SCALES)}; all if none is given.")] = None,
) -> None:
    """What this machine has, which weights are there, what will run where and how long. Asks no network."""
    from cotlib.doctor import report

    for line in report([_scale(scale).name] if scale else list(SCALES)):
        print(line)


def _scale(name: str) -> Scale:
    if name not in SCALES:
        raise ValueError(f"unknown scale {name!r}; {suggest(name, SCALES)}")
    return SCALES[name]


@app.command()
def bench(
    rounds: Annotated[int, typer.Option(min=1, help="Images each decoder makes; the median ratio counts.")] = 3,
    full_size: Annotated[
        bool, typer.Option("--full-size", help="Instead: random weights of Show-o's size on a GPU, speed and memory.")
    ] = False,
) -> None:
    """How many times faster decoding is than the plain loop of the official code, and PARM's search than the released
    one. Less than three minutes on an idle core."""
    if full_size:
        from cotlib.bench_gpu import report

        for line in report():
            print(line, flush=True)
        return
    from cotlib.bench import compare, compare_parm

    compared = compare(rounds=rounds)
    for name, seconds in (("reference", compared.reference), ("fp32", compared.fp32), ("bf16", compared.bf16)):
        timed = ", ".join(f"{s:.2f}" for s in seconds)
        print(f"{name}: {f'{timed} processor seconds per image' if seconds else 'only emulated by this processor'}")
    if compared.n_different:
        raise CotlibError(
            f"{compared.n_different} of {compared.n_tokens} tokens differ from the reference's, so the ratios mean "
            "nothing; see what changed with: python -m pytest tests/test_bench.py tests/test_parity.py"
        )
    print(f"all {compared.n_tokens} tokens equal to the reference's in fp32")
    for name, ratio in compared.ratios.items():
        print(f"{name}: {ratio:.2f}")
    searched = compare_parm()
    print(f"released loop: {searched.reference:.2f}, PARM: {searched.ours:.2f} seconds per selected image")
    print(f"speed/parm-ratio: {searched.ratio:.2f}")


@export_app.command()
def geneval(
    out: Annotated[Path, typer.Argument(help="Folder to write; one subfolder per prompt.")],
    scale: ScaleOption = "pocket",
    effort: EffortOption = "quick",
    generator: Annotated[str, typer.Option(help="Whose candidates: the first part of a pool's name.")] = "base",
    candidates: Annotated[int, typer.Option(min=1, help="How many of each pool; there is one pool per image.")] = 1,
) -> None:
    """Write images in GenEval's folder layout, for the official evaluator. An earlier export to OUT is replaced."""
    import torch

    from cotlib import loaders, provenance
    from cotlib.export import export_pools, pools_of

    first, outputs = "01_baseline" if generator == "base" else "", provenance.outputs_of(scale, effort)
    make = provenance.command(first, scale, effort, provenance.seed_of(outputs))
    pools = pools_of(outputs / "pools", generator, make)
    tokenizer = loaders.load_tokenizer(SCALES[scale])
    n = export_pools(pools, out, candidates, lambda codes: tokenizer.decode(torch.tensor(codes)), make)
    print(f"{n} prompts x {len(pools) * candidates} images in {out}")


@app.command()
def info() -> None:
    """Versions, machine, places and weights."""
    import cotlib
    from cotlib import provenance

    git = provenance.git_state()
    facts = {
        "cotlib": f"{cotlib.__version__}, commit {git['commit'] or 'unknown'}{' (dirty)' if git['dirty'] else ''}",
        "package": provenance.PACKAGE,
        "notebooks": provenance.notebook_path("").parent,
        "outputs": provenance.outputs_root(),
        **provenance.machine(),
        **provenance.versions(),
    }
    weights = sorted((provenance.PACKAGE / "pocket" / "weights").rglob("*.safetensors"))
    for path in weights:
        name = path.relative_to(provenance.PACKAGE).as_posix()
        facts[name] = f"{path.stat().st_size / 2**20:.1f} MiB, sha256 {provenance.sha256(path)[:12]}"
    if not weights:
        facts["weights"] = "none; train them with: cotlib pretrain tokenizer --minutes 30"
    for name, fact in facts.items():
        print(f"{name}: {fact}")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit with its code; an expected error is one message without a traceback."""
    try:
        app(arguments)
    except CotlibError as error:
        _fail(error, error.exit_code)
    except ValueError as error:
        _fail(error, 2)
    except OSError as error:  # no permission, no space, a file in the place of a folder
        from cotlib.provenance import outputs_root

        elsewhere = ", or choose another place with export COTLIB_OUTPUTS=another-folder,"
        is_output = error.filename and Path(str(error.filename)).is_relative_to(outputs_root())
        _fail(f"{error}. Put that right{elsewhere if is_output else ''} and type the same command again", 3)
    sys.exit(0)


def _fail(error: Exception | str, code: int) -> NoReturn:
    print(f"cotlib: {error}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()

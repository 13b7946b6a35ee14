"""The notebooks in order: each executed by papermill into a temporary file, confirmed, exported, remembered.

A notebook counts as done when its own manifest says so with the expected key, never because papermill returned:
`sys.exit(0)` in a cell ends a notebook "successfully", and a killed kernel leaves every cell "completed".
A re-run that fails puts the earlier result back, labelled; a corrupt file is set aside as *.corrupt and made again.
Deliberately left out: parallel notebooks, retries. Killed? Type the same command again.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cotlib import earlier, errors, provenance, store
from cotlib.config import NOTEBOOKS, SCALES, Settings, check, suggest
from cotlib.provenance import EXECUTED, METRICS
from cotlib.run import RESULTS, merge_results, read_results

DAG = {name: spec.upstream for name, spec in NOTEBOOKS.items() if spec.in_chain}
RUNNING, FAILED = "executed.running.ipynb", "executed.failed.ipynb"
Say = Callable[[str], None]

# ---- the paper's items ----------------------------------------------------------------------------------------

# (item, what it shows, notebook or None, remark). Numbered as in v2 of arXiv:2501.13926. The diagrams are drawn from
# our own candidates and verdicts.
PAPER_ITEMS: tuple[tuple[str, str, str | None, str], ...] = (
    ("Table 1", "verifiers and preference alignment, each alone", "08_report", "rows made by 01 to 04"),
    ("Table 2", "verifiers and alignment together", "06_integration", "beside Tables 1 and 3: 08"),
    ("Table 3", "all methods beside other generators", "08_report", "lower half: 06; other generators: quoted"),
    ("Table 4", "LlamaGen and Janus-Pro", None, "v2 only; other generators, no code released"),
    ("Table 5", "PARM++ with and without reflection", "07_reflection", ""),
    ("Figure 1", "verify, align, both: the idea as a diagram", "06_integration", "on our own pictures"),
    ("Figure 2", "three prompts step by step, with and without a verifier", "01_baseline", "paths that PARM stops: 05"),
    ("Figure 3", "GenEval against N, verifiers on the base model", "03_process_verifier", "PARM: 05"),
    ("Figure 4", "ORM, PRM and PARM, as a diagram", "05_parm", "one path under all three"),
    ("Figure 5", "pictures of early and late steps", "03_process_verifier", "film strip: 01"),
    ("Figure 6", "GenEval against N, verifiers on the DPO model", "06_integration", ""),
    ("Figure 7", "GenEval against N, verifiers on the iterative DPO model", "06_integration", ""),
    ("Figure 8", "PARM++, as a diagram", "07_reflection", "real rounds, the judge's words"),
    ("Figure 9", "pictures mended by reflection", "07_reflection", ""),
    *((f"Figure {i}", "pictures side by side, all methods", "06_integration", "base model: 01") for i in range(10, 15)),
)
# Numbers in v1: it lacks Table 4 and the curves on aligned generators, and shows early and late steps last.
IN_V1 = {
    **{f"Table {i}": f"Table {i}" for i in (1, 2, 3)},
    **{f"Figure {i}": f"Figure {i}" for i in (1, 2, 3, 4)},
    **{"Table 5": "Table 4", "Figure 5": "Figure 12", "Figure 8": "Figure 5", "Figure 9": "Figure 6"},
    **{f"Figure {i}": f"Figure {i - 3}" for i in range(10, 15)},
}


def status(folder: Path) -> str:
    """'done', 'SMOKE' (done, too small to be a result), 'corrupt', 'failed', 'stale', 'unfinished' or 'not run'."""
    has_failed = (folder / FAILED).exists()
    try:
        manifest = provenance.read_manifest(folder)
    except errors.IncompleteError:
        state = "failed" if has_failed else "unfinished" if (folder / RUNNING).exists() else "not run"
        return f"{state}, earlier result kept" if (folder / earlier.ASIDE).exists() else state
    except errors.CotlibError:
        return "corrupt"
    if earlier.label(folder):
        return "failed, earlier result kept" if has_failed else "stale"
    return "SMOKE" if manifest["watermark"] else "done"


def examine(scale: str, effort: str, seed: int | None = None, as_asked: bool = True) -> dict[str, tuple[str, str]]:
    """{notebook of the chain: (status, why)}, in order: `status`, or 'stale' if `cotlib run` would make it again.

    seed: of the results that are wanted; that of each result if None. as_asked: with the parameters that were set for
    each result, which a `cotlib run` without them would refuse; else with the effort's own.
    """
    outputs, found, keys = provenance.outputs_of(scale, effort), {}, {}
    for name in DAG:
        folder = outputs / name
        manifest, state, why = provenance.peek(folder) or {}, status(folder), earlier.label(folder)
        wanted = manifest.get("seed", 0) if seed is None else seed
        if provenance.notebook_path(name).is_file():
            asked = manifest["parameters"]["passed"] if manifest and as_asked else {}
            changed = {key: asked[key] for key in NOTEBOOKS[name].overrides if asked.get(key) is not None}
            settings = _settings(name, {**changed, "scale": scale, "effort": effort, "seed": wanted})
            keys[name], parts = provenance.run_key(settings, keys)
            if state in ("done", "SMOKE") and manifest["key"] != keys[name]:
                state, why = "stale", "; ".join(provenance.differences(manifest["depends_on"], parts))
        if state == "corrupt":
            why = "; ".join(f"{path.name}: {what}" for path, what in provenance.damage(folder).items()) or "moved here"
        elif state in ("failed", "unfinished"):
            why = f"see {folder / (FAILED if state == 'failed' else RUNNING)}"
        found[name] = (state, why)
    return found


def corrupt_files(scale: str, effort: str) -> dict[str, str]:
    """{path below the outputs: what is wrong} of the ledgers and the merged results."""
    folder = provenance.outputs_of(scale, effort)
    reads = {path: store.Ledger.existing for path in sorted((folder / "pools").glob("*.jsonl"))}
    if (folder / RESULTS).exists():
        reads[folder / RESULTS] = lambda path: read_results(path.parent)
    found = {}
    for path, read in reads.items():
        try:
            read(path)
        except errors.CorruptError as error:
            found[path.relative_to(folder).as_posix()] = str(error)
        except errors.CotlibError:
            continue  # a notebook is stale or damaged, which is told elsewhere
    return found


def overview(scale: str, effort: str) -> list[dict[str, str]]:
    """One row per paper item: item, number in v1, shows, notebook, cost of the last run, status, remark."""
    folder, states = provenance.outputs_of(scale, effort), examine(scale, effort)
    rows = []
    for item, shows, notebook, remark in PAPER_ITEMS:
        cost, state = "", "—"
        if notebook:
            exists = provenance.notebook_path(notebook).is_file()
            cost, state = cost_of(folder / notebook), states[notebook][0] if exists else "not yet"
        row = {
            "item": item,
            "in v1": IN_V1.get(item, "—"),
            "shows": shows,
            "notebook": notebook or "—",
            "cost": cost,
            "status": state,
            "remark": remark,
        }
        rows.append(row)
    return rows


def link(notebook: str) -> str:
    """HTML link to a notebook's source where there is one, else the bare name; `to_html` points it at the page."""
    there = provenance.notebook_path(notebook).is_file()
    return f'<a href="{notebook}.ipynb">{notebook}</a>' if there else notebook


def cost_of(folder: Path) -> str:
    """Wall time of the last finished run, such as '12 s' or '3.5 min'; empty if there is none."""
    manifest = provenance.peek(folder)
    if manifest is None:
        return ""
    seconds = manifest["seconds"]
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


# ---- planning: everything that can be refused is refused before the first notebook starts ----------------------


@dataclass(frozen=True)
class Task:
    """One notebook to run: `parameters` are what papermill injects."""

    settings: Settings
    parameters: dict[str, Any]
    folder: Path
    force: bool

    @property
    def name(self) -> str:
        return self.settings.notebook


def declared_parameters(notebook: Path) -> dict[str, Any]:
    """{name: default} of the one cell tagged `parameters`. CorruptError unless it holds literals only."""
    cells = [cell for cell in provenance.read_notebook(notebook)["cells"] if provenance.is_parameters(cell)]
    if len(cells) != 1:
        raise errors.CorruptError(f"{notebook}: {len(cells)} cells tagged 'parameters', expected exactly 1")
    try:
        lines = ast.parse(provenance.source(cells[0])).body
    except SyntaxError as error:
        raise errors.CorruptError(
            f"{notebook}, parameters cell, line {error.lineno}: {error.msg}, got {(error.text or '').strip()!r}; "
            f"expected lines of `name = literal` only; restore it with: git checkout {notebook}"
        ) from None
    return dict(_assignment(notebook, line) for line in lines)


def _assignment(notebook: Path, line: ast.stmt) -> tuple[str, Any]:
    targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
    try:
        value = ast.literal_eval(line.value)
        if len(targets) != 1 or not isinstance(targets[0], ast.Name) or not _is_literal(value):
            raise ValueError
    except (ValueError, AttributeError):
        raise errors.CorruptError(
            f"{notebook}, parameters cell: {ast.unparse(line)!r} is not `name = literal`; papermill does not "
            f"recompute derived values, so derive them in the next cell"
        ) from None
    return targets[0].id, value


def _is_literal(value: Any) -> bool:
    """What papermill injects unchanged; it turns a tuple into a string without a word."""
    return value is None or isinstance(value, bool | int | float | str)


def _refuse_exit(notebook: Path) -> None:
    """CorruptError for a cell that calls exit() or quit(): in a kernel the cells after it run all the same."""
    for number, cell in enumerate(provenance.read_notebook(notebook)["cells"], start=1):
        call = re.search(r"^\s*(?:exit|quit)\s*\(", provenance.source(cell), re.MULTILINE)
        if cell["cell_type"] == "code" and call:
            raise errors.CorruptError(
                f"{notebook}, cell {number}: {call[0].strip()}) ends nothing here, the cells after it would still run; "
                f"raise an error, or end the notebook by run.finish(...) in its last cell"
            )


def order(names: Iterable[str]) -> list[str]:
    """`names` and everything they read, each after what it reads; all of the chain if no names are given."""
    wanted = list(names) or list(DAG)
    ordered: list[str] = []

    def visit(name: str) -> None:
        if name not in NOTEBOOKS:
            raise ValueError(f"unknown notebook {name!r}; {suggest(name, NOTEBOOKS)}")
        if name in ordered:
            return
        for upstream in NOTEBOOKS[name].upstream if NOTEBOOKS[name].needs_upstream else ():
            visit(upstream)
        ordered.append(name)

    for name in wanted:
        visit(name)
    return ordered


def plan(
    names: Iterable[str], *, scale: str, effort: str, seed: int, parameters: Mapping[str, Any], force: bool
) -> list[Task]:
    """The tasks in order, all checked. `force` concerns the named notebooks; `parameters` concern them and, of what
    they read, the notebooks that take them. Without names each gets what it takes, and some notebook must take each.
    """
    names = list(names)
    dials = {"scale": scale, "effort": effort, "seed": seed}
    ordered = order(names)
    taken = {name: {key: v for key, v in parameters.items() if key in NOTEBOOKS[name].overrides} for name in ordered}
    strays = [key for key in parameters if not any(key in of for of in taken.values())]
    tasks = []
    for name in ordered:
        is_named = not names or name in names
        injected = {**dials, **(parameters if name in names or strays else taken[name])}
        settings = _settings(name, injected)
        folder = provenance.outputs_of(scale, effort) / name
        tasks.append(Task(settings, injected, folder, force and is_named))
    for task in tasks:
        provenance.require_weights(task.settings)
        if not task.force:
            provenance.refuse_foreign(task.folder, task.settings, provenance.run_key(task.settings)[0])
    return tasks


def _settings(name: str, injected: Mapping[str, Any]) -> Settings:
    """The checked settings that the notebook will see; ValueError for a parameter it does not declare."""
    notebook = provenance.notebook_path(name)
    declared = declared_parameters(notebook)
    _refuse_exit(notebook)
    for parameter, value in injected.items():
        if parameter not in declared:
            raise ValueError(f"notebook {name} declares no parameter {parameter!r}; {suggest(parameter, declared)}")
        if not _is_literal(value):
            raise ValueError(f"{parameter} must be a number, text, true, false or null, got {value!r}")
    return check(name, **{**declared, **injected})


# ---- running --------------------------------------------------------------------------------------------------


def run_chain(
    names: Iterable[str] = (),
    *,
    scale: str,
    effort: str,
    seed: int = 0,
    parameters: Mapping[str, Any] | None = None,
    force: bool = False,
    say: Say = print,
) -> dict[str, str]:
    """Bring notebooks and what they read up to date; returns {notebook: "kept" | "done"}.

    ValueError for a bad request, before anything runs. NotebookError or KernelDiedError stops the chain; what
    was finished stays finished and is kept by the next call.
    """
    outputs = provenance.outputs_of(scale, effort)
    done: dict[str, str] = {}
    try:
        tasks = plan(names, scale=scale, effort=effort, seed=seed, parameters=parameters or {}, force=force)
        with store.one_writer(outputs), _own_kernel(SCALES[scale].offline):
            store.sweep(outputs)
            for number, task in enumerate(tasks, start=1):
                done[task.name] = _bring_up_to_date(task, f"[{number}/{len(tasks)}] {task.name}", say)
            if "08_report" in done:  # once more: now with the true costs
                _merge(scale, effort, say)
    except OSError as error:  # no space, no permission, no such disk
        raise errors.CotlibError(
            f"cannot write in {outputs}: {error}. Finished work is kept: make room, or choose another place with "
            f"export COTLIB_OUTPUTS=another-folder, and type the same command again"
        ) from error
    return done


def _merge(scale: str, effort: str, say: Say) -> None:
    """Write results.json; one that is damaged is set aside first."""
    folder = provenance.outputs_of(scale, effort)
    for name, why in corrupt_files(scale, effort).items():
        if name == RESULTS:
            say(f"{why}; now {store.quarantine(folder / name).name}")
    merge_results(folder)


def _bring_up_to_date(task: Task, title: str, say: Say) -> str:
    _quarantine(task.folder, title, say)
    earlier.settle(task.folder)
    key, _ = provenance.run_key(task.settings)
    if not task.force and is_current(task.folder, key):
        say(f"{title}: kept (key {key})")
        return "kept"
    before, last = cost_of(task.folder), provenance.peek(task.folder)
    spent = last.get("spent", last["seconds"]) if last else 0.0
    say(f"{title}: running ..." + (f" (last time {before})" if before else ""))
    earlier.set_aside(task.folder)
    if task.force:
        (task.folder / provenance.MANIFEST).unlink(missing_ok=True)
    os.environ[provenance.REPLACES] = "anything" if task.force else "weights"
    started = time.time()
    try:
        _execute(task)
        seconds = time.time() - started
        _confirm(task, key, started)
        _publish(task, seconds, spent)
    except BaseException as error:  # Ctrl-C too
        earlier.put_back(
            task.folder, f"{type(error).__name__}: {error}" if str(error) else "the re-run was interrupted"
        )
        raise
    earlier.forget(task.folder)
    say(f"{title}: done in {seconds:.1f} s (key {key})")
    return "done"


def _quarantine(folder: Path, title: str, say: Say) -> None:
    """Say what is damaged and set it aside; the rest of such a result is made again."""
    for path, why in provenance.damage(folder).items():
        where = f"set aside as {store.quarantine(path).name}" if path.exists() else "lost"
        say(f"{title}: {path.name} is corrupt, {why}; {where}, making it again")


def is_current(folder: Path, key: str) -> bool:
    """Whether the folder is finished, undamaged, made with this key, has its executed notebook and no STALE label."""
    try:
        manifest = provenance.read_manifest(folder)
    except errors.CotlibError:
        return False
    has_page = all(name in manifest["files"] for name in EXECUTED)
    return manifest["key"] == key and has_page and not earlier.label(folder)


def _execute(task: Task) -> None:
    """Run the notebook into `executed.running.ipynb`; on failure that file becomes `executed.failed.ipynb`."""
    import papermill
    import zmq
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    task.folder.mkdir(parents=True, exist_ok=True)
    running = task.folder / RUNNING
    encryption = "auto" if zmq.has("curve") else "disabled"
    try:
        papermill.execute_notebook(
            provenance.notebook_path(task.name),
            running,
            parameters=task.parameters,
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            cwd=str(provenance.project_root() or Path.cwd()),
            config=Config(KernelManager={"transport_encryption": encryption}),  # others may share the machine's ports
        )
    except DeadKernelError as error:
        raise errors.KernelDiedError(_failure(task, "its kernel died, most likely for want of memory")) from error
    except papermill.PapermillExecutionError as error:
        raise _state_error(error.ename)(_failure(task, f"{error.ename}: {error.evalue}")) from error
    except (FileNotFoundError, NoSuchKernel, RuntimeError) as error:
        why = f"its kernel did not start ({error}); see whether this works: {sys.executable} -m ipykernel --version"
        raise errors.NotebookError(_failure(task, why)) from error


def _failure(task: Task, why: str) -> str:
    """The message; the executed copy is put where the next run does not overwrite it."""
    failed = task.folder / FAILED
    with contextlib.suppress(FileNotFoundError):
        os.replace(task.folder / RUNNING, failed)
    return f"{task.name} failed: {why}. See {failed}; finished work is kept, type the same command to go on"


def _state_error(name: str) -> type[errors.CotlibError]:
    """An error of our family raised in a notebook keeps its class, hence its exit code."""
    return {kind.__name__: kind for kind in errors.CotlibError.__subclasses__()}.get(name, errors.NotebookError)


def _confirm(task: Task, key: str, started: float) -> None:
    """The notebook wrote its manifest in this run, with the key that was expected before it."""
    try:
        manifest = provenance.read_manifest(task.folder)
    except errors.IncompleteError:
        manifest = {"started": 0.0}
    if manifest["started"] < started:
        raise errors.NotebookError(_failure(task, "it ended without run.finish(...), perhaps by exit()"))
    if manifest["key"] != key:
        why = f"key {key} was expected, it recorded {manifest['key']}: notebook, sources or weights changed meanwhile"
        raise errors.ForeignError(_failure(task, why))


def _publish(task: Task, seconds: float, spent: float) -> None:
    """Executed notebook and HTML under their final names, the true cost, then the manifest once more, last.

    `spent` s were taken by the runs before: what they left ready costs this one nothing, so the manifest has the sum.
    """
    notebook, html = (task.folder / name for name in EXECUTED)
    store.atomic_write(html, to_html(task.folder / RUNNING))
    os.replace(task.folder / RUNNING, notebook)
    (task.folder / FAILED).unlink(missing_ok=True)
    manifest = provenance.read_manifest(task.folder)
    (task.folder / provenance.MANIFEST).unlink()  # killed between these lines: unfinished, not corrupt
    metrics = store.read_json(task.folder / METRICS)
    for entry in metrics:
        if entry["name"] == f"cost/{task.name}":
            entry["value"] = round(seconds, 3)  # with kernel start and imports, which the notebook cannot see
    store.write_json(task.folder / METRICS, metrics)
    files = {name: provenance.file_entry(task.folder / name) for name in (*manifest["files"], *EXECUTED)}
    times = {"seconds": round(seconds, 3), "spent": round(spent + seconds, 3)}
    provenance.write_manifest(task.folder, {**manifest, **times, "files": files})


def _search_path() -> str:
    """The kernel imports the cotlib that runs the chain, whose sources are in the key, before any other."""
    return os.pathsep.join(filter(None, [str(provenance.PACKAGE.parent), os.environ.get("PYTHONPATH")]))


@contextlib.contextmanager
def _own_kernel(offline: bool) -> Iterator[None]:
    """Kernels run the interpreter that runs this, whatever kernels are registered for the user or the machine."""
    from ipykernel.kernelspec import get_kernel_dict

    with tempfile.TemporaryDirectory(prefix="cotlib-kernel-") as folder:
        kernel = Path(folder) / "kernels" / "python3" / "kernel.json"
        argv = [sys.executable, "-m", "cotlib.kernel", "-f", "{connection_file}"]
        store.atomic_write(kernel, json.dumps({**get_kernel_dict(), "argv": argv}))
        changed = {
            "JUPYTER_PATH": folder,
            "COTLIB_OUTPUTS": str(provenance.outputs_root()),
            "PYTHONPATH": _search_path(),
            provenance.REPLACES: "weights",  # of each notebook its own, set before it runs; here to be put back
            "COTLIB_PROGRESS": "bar" if sys.stdout.isatty() else "lines",
        }
        if weights := provenance.weights_root():
            changed[provenance.WEIGHTS] = str(weights)
        if offline:  # read once at import by the hub client, so it must be set before the kernel starts
            changed["HF_HUB_OFFLINE"] = "1"
        before = {name: os.environ.get(name) for name in changed}
        os.environ.update(changed)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


# ---- HTML -----------------------------------------------------------------------------------------------------

WIDGET = "application/vnd.jupyter.widget-view+json"
# nbconvert's page without what it would fetch: require.js, MathJax, Mermaid, the widget manager.
TEMPLATE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
"""


def to_html(executed: Path) -> str:
    """One self-contained page: pictures inline, formulas as MathML, nothing fetched, links between notebooks led to
    executed pages.

    Widgets need a kernel, so they are left out; every one of them stands beside a static figure.
    """
    import nbformat
    from nbconvert import HTMLExporter

    notebook = copy.deepcopy(nbformat.read(executed, as_version=4))
    notebook.metadata.pop("widgets", None)
    notebook.metadata["title"] = _title(notebook)
    formulas: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _take_formulas(cell.source, formulas)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
            for output in cell.outputs:
                if output.output_type == "stream":  # of a progress bar, what a terminal would show in the end
                    output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
    exporter = HTMLExporter(raw_template=TEMPLATE, embed_images=True)
    body, _ = exporter.from_notebook_node(notebook, {"metadata": {"path": str(executed.parent)}})
    for i, formula in enumerate(formulas):
        body = body.replace(PLACE.format(i), formula)
    return re.sub(r'href="([\w-]+)\.ipynb([#"])', lambda found: f'href="{_page_of(*found.groups(), executed)}', body)


def _page_of(notebook: str, end: str, executed: Path) -> str:
    """Where a link to a notebook leads from an executed one: to its page, or to its source if the chain makes none."""
    if notebook in DAG:
        return f"../{notebook}/executed.html{end}"
    return quote(os.path.relpath(provenance.notebook_path(notebook), executed.parent)) + end


FORMULA = re.compile(r"(?P<code>`[^`]*`)|\$\$(?P<block>.+?)\$\$|(?<!\\)\$(?P<inline>[^$\n]+)\$", re.DOTALL)
PLACE = "\ue000{}\ue001"  # of a formula while nbconvert makes the page, as it would tear MathML apart


def _take_formulas(markdown: str, formulas: list[str]) -> str:
    """Markdown with places for its formulas, which are appended to `formulas` as MathML; code spans stay."""
    from latex2mathml.converter import convert

    def place(found: re.Match[str]) -> str:
        if found["code"]:
            return found["code"]
        block = found["block"]
        try:
            formulas.append(convert(block or found["inline"], display="block" if block else "inline"))
        except Exception:  # of a formula that it cannot read it says so in many ways; the text says it as well
            return found[0]
        return PLACE.format(len(formulas) - 1)

    return FORMULA.sub(place, markdown)


def _title(notebook: Any) -> str:
    """First heading of a notebook."""
    lines = (line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines())
    return next((line.lstrip("# ") for line in lines if line.startswith("# ")), "cotlib")


def listing(scale: str, effort: str, seed: int | None = None) -> list[dict[str, str]]:
    """One row per notebook of the chain: name, reads, status, why, cost."""
    folder, states = provenance.outputs_of(scale, effort), examine(scale, effort, seed)
    return [
        {
            "notebook": name,
            "reads": ", ".join(DAG[name]) or "—",
            "status": state,
            "cost": cost_of(folder / name),
            "why": why,
        }
        for name, (state, why) in states.items()
    ]

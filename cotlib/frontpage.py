"""The README's part that is made of the published results, and its figure: `make readme`.

Between two marks stand one figure, our table beside the paper's, the orderings and the sentences below; every number is
read from docs/results, so that none can drift from what was measured. A sentence whose measurements are lacking is left
out.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from . import paper, published
from .errors import IncompleteError
from .store import atomic_write

BEGIN, END = "<!-- from docs/results, by make readme -->", "<!-- end of what make readme writes -->"

# Sentences, and what they are about; {name} is a measurement, with a format after "!".
SENTENCES = (
    "The evaluator agrees with ground truth in {evaluator/agreement!.1%} of scenes, "
    "{evaluator/agreement-after-roundtrip!.1%} after the tokenizer.",
    "Judges tell right from wrong generated pictures with an AUC of {judge/orm-zero-shot/auc!.3f} zero-shot and "
    "{judge/orm/auc!.3f} fine-tuned; their calibration errors are {judge/orm-zero-shot/calibration-error!.2f} and "
    "{judge/orm/calibration-error!.2f}.",
    "PARM spends {compute/parm/token-steps!.0%} of best-of-20's token-steps and asks {compute/parm/judge-calls!.1f} "
    "times as many questions.",
    "At the best of ten limits of potential it is as often right as the ORM with "
    "{compute/parm/token-steps-at-orm-accuracy!.0%} of the token-steps.",
    "PARM that asks about potential once, after half of the steps, and keeps the best quarter of the paths is at "
    "{geneval/base/parm-keep/overall!.3f} with {compute/parm-keep/token-steps!.0%} of the token-steps, "
    "{ordering/parm-keep > orm!+.3f} against the ORM.",
    "DPO adds {ordering/dpo > base!+.2f} to GenEval overall, iterative DPO {ordering/it-dpo > base!+.2f}; trainings of "
    "other seeds differ by {dpo/seed-spread!.3f} and {it-dpo/seed-spread!.3f}.",
    "DPO's held-out pair accuracy is {dpo/pair-accuracy!.2f}, iterative DPO's {it-dpo/pair-accuracy!.2f}.",
    "Of the faults that the judge of PARM++ states, {reflection/reason-agreement!.0%} are the evaluator's own; three "
    "rounds of reflection on a single picture add {reflection/gain@1!+.2f} to GenEval overall.",
)
FIGURE = "docs/front_page.png"
PLACE = re.compile(r"\{([^!}]+)!([^}]+)\}")


def block(folder: Path) -> str:
    """The README's part for a published run in `folder`."""
    records, manifest = published.read_published(folder)
    measured = {record["name"]: record for record in records}
    address = f"docs/results/{folder.name}"
    n = measured["geneval/base/none/overall"]["n"]
    return "\n".join(
        [
            BEGIN,
            "",
            f"![GenEval overall of every method, ours beside the paper's]({FIGURE})",
            "",
            *_table(measured),
            "",
            f"Effort `{manifest['effort']}`: {n} prompts, N as in the table, 95 % intervals over prompts, of one "
            "training each (`cotlib results --published seed-spread`: how much others differ); "
            f"{published.cost(manifest)}, work that was found ready not counted. All numbers: "
            f"`cotlib results --published`; tables and figures of the report: [`{address}`]({address})."
            f"{_lacking(manifest)}",
            "",
            *_orderings(measured),
            "",
            *_sentences(measured),
            "",
            END,
        ]
    )


def _lacking(manifest: Mapping[str, Any]) -> str:
    """What this run did not get to, in words."""
    names = ", ".join(f"`{name}`" for name in manifest["lacking"])
    return f" **Not run yet at this effort**: {names}; their rows are left out." if names else ""


def _table(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    from .stages import recorded

    rows = ["| GenEval overall | ours, pocket | N | paper, Show-o |", "|---|---|---|---|"]
    for generator, verifier in (*paper.FRONT, ("base", "oracle")):
        by_task, n = recorded(measured, generator, verifier)
        if "overall" not in by_task:
            continue
        e, theirs = by_task["overall"], paper.value(generator, verifier, "overall")
        name = paper.ROW_NAMES[generator, verifier]
        ours = f"{e.value:.2f} ± {(e.high - e.low) / 2:.2f}"
        rows.append(f"| {name} | {ours} | {n or ''} | {'not reported' if theirs is None else f'{theirs:.2f}'} |")
    return rows


def _orderings(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every ordering, folded under a count of the verdicts."""
    rows, verdicts = [], Counter()
    for name, m in measured.items():
        if name.startswith("ordering/"):
            verdict = paper.verdict(m["low"], m["high"])
            between = f"{m['value']:+.2f} ({m['low']:.2f} to {m['high']:.2f})"
            rows.append(f"| `{name.removeprefix('ordering/')}` | {between} | {verdict} |")
            verdicts[verdict] += 1
    counted = ", ".join(f"{verdict} {verdicts[verdict]}" for verdict in paper.VERDICTS)
    return [
        f"<details><summary>{len(rows)} orderings by paired differences: {counted}</summary>",
        "",
        *("| ordering | paired difference here | verdict |", "|---|---|---|", *rows),
        "",
        "</details>",
    ]


def _sentences(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    written = []
    for sentence in SENTENCES:
        names = [name for name, _ in PLACE.findall(sentence)]
        if all(name in measured and measured[name]["value"] is not None for name in names):
            written.append(PLACE.sub(lambda m: format(measured[m[1]]["value"], m[2]), sentence))
    return written


def figure(folder: Path) -> Figure:
    """All methods of a published run beside the paper's, with what made it below."""
    from .show import beside_the_paper
    from .stages import recorded

    records, manifest = published.read_published(folder)
    measured = {record["name"]: record for record in records}
    found = {row: recorded(measured, *row) for row in paper.FRONT}
    there = {row: by_task for row, (by_task, _) in found.items() if by_task}
    drawn = beside_the_paper(there, {row: n for row, (_, n) in found.items()})
    made = f"{', '.join(manifest['commits'])} · {manifest['scale']} · {manifest['effort']} · seed {manifest['seed']}"
    drawn.text(1, 0, made, ha="right", va="top", fontsize=6, color="0.4")
    return drawn


def in_step(readme: str, folder: Path) -> str:
    """The README's text with its part brought up to date. ValueError where it lacks the two marks, in order."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the README must hold the lines {BEGIN!r} and {END!r}, in this order")
    return before + block(folder) + after


def main() -> None:
    """Bring README.md of the checkout up to date."""
    root = published.results_root()
    if not root.is_dir():
        raise IncompleteError(f"nothing is published in {root}; publish a finished run with: cotlib publish")
    readme = root.parents[1] / "README.md"
    atomic_write(readme, in_step(readme.read_text(), root / "pocket"))
    figure(root / "pocket").savefig(readme.parent / FIGURE, dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    sys.exit(main())

"""How far a loop is and when it will end: a bar where somebody watches, a line now and then where a file does."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

EVERY = 10.0  # seconds between two lines of a log


@contextlib.contextmanager
def progress(total: int, what: str, unit: str) -> Iterator[Callable[[int], None]]:
    """Gives `advance(n)`, to be called after n more units. Nothing is shown if there is nothing to do. Lines have
    `advance.before(n)` too, for units that were there before and say nothing of the time that is left.

    The chain says what its reader sees (COTLIB_PROGRESS = bar or lines); else a notebook gets a widget, a terminal a
    bar, and anything else lines.
    """
    style = os.environ.get("COTLIB_PROGRESS") or ("lines" if not (_in_notebook() or sys.stderr.isatty()) else "auto")
    if not total:
        yield lambda n: None
    elif style == "lines":
        yield _Lines(total, what, unit)
    else:
        from tqdm.auto import tqdm as auto
        from tqdm.std import tqdm as text

        # A kernel of the chain has no terminal of its own: what it writes to stdout is shown in the chain's.
        bar = (
            auto(total=total, desc=what, unit=unit)
            if style == "auto"
            else text(total=total, desc=what, unit=unit, file=sys.stdout, mininterval=0.5)
        )
        with bar:
            yield bar.update


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules and "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None


class _Lines:
    """Prints the first units that took a while, then a line every ten seconds, and the last."""

    def __init__(self, total: int, what: str, unit: str) -> None:
        self.total, self.what, self.unit = total, what, unit
        self.done, self.found, self.started = 0, 0, time.monotonic()
        self.printed = self.started

    def before(self, n: int) -> None:
        self.done, self.found = self.done + n, self.found + n

    def __call__(self, n: int) -> None:
        self.done += n
        now = time.monotonic()
        is_last = self.done >= self.total and self.printed > self.started
        if now - self.printed < EVERY and not is_last:
            return
        self.printed = now
        left = (now - self.started) / (self.done - self.found) * (self.total - self.done)
        share = f"{100 * self.done / self.total:.0f} %"
        print(f"{self.what}: {self.done}/{self.total} {self.unit}, {share}, {_duration(left)} left", flush=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"

"""Widgets over an exploration: choose, watch the candidates appear, stop, walk the steps, draw a mask.

Importing this loads no model, so that the first widget is there before the models are. What is decoded is decoded in a
thread of its own, which is stopped between two steps; errors are sentences in the widget. Nothing here feeds a
notebook: every view is a static figure of `explore_show` as well.
"""

from __future__ import annotations

import base64
import html
import re
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np

from .errors import CotlibError
from .prompts import TASKS, geneval_prompts

if TYPE_CHECKING:
    from .explore import Bench, Exploration, Setting
    from .run import Run

MASK_CELLS = 8  # buttons a side of the mask, whatever the number of tokens
LOADING = "Loading the models …"
LEGEND = "<small>Left: the picture, unknown cells veiled. Right: confidence of each token, dark = unlikely.</small>"
WIDE, NARROW = widgets.Layout(width="98%"), widgets.Layout(width="18em")


class Worker:
    """Pieces of work one after the other in a thread of its own, until there are none or somebody says stop."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    @property
    def is_working(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Iterator[str], on_piece: Callable[[str], None], on_end: Callable[[str], None]) -> None:
        """Begin; what was being done before is stopped first. on_end is told what happened, in a sentence."""
        self.stop()
        self.wait()
        self._stop = stop = threading.Event()

        def run() -> None:
            try:
                for what in work:
                    on_piece(what)
                    if stop.is_set():
                        on_end(f"Stopped after: {what}. What is decoded stays; Decode begins anew.")
                        return
                on_end("Done.")
            except Exception as error:  # a reader gets a sentence, never a traceback
                on_end(sentence(error))

        self._thread = threading.Thread(target=run, name="exploration", daemon=True)
        self._thread.start()

    def stop(self) -> bool:
        """Ask for an end after the piece in work; whether there was anything to stop."""
        was_working = self.is_working and not self._stop.is_set()
        self._stop.set()
        return was_working

    def wait(self, timeout: float | None = 60) -> None:
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)


def sentence(error: BaseException) -> str:
    """An error as a reader needs it: what is wrong and what to do."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, CotlibError | ValueError):
        return text
    return f"That did not work ({type(error).__name__}: {text[:300]}). Choose other values, or restart the kernel."


def picture(png: bytes, alt: str) -> str:
    """A PNG as HTML, with words for a reader who does not see it."""
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{data}" style="max-width:100%">'


class Lane:
    """One setting and its pictures; two of them side by side share the prompt, N and the seed."""

    def __init__(self, guidance: float, steps: int, name: str = ""):
        self.name, self.exploration, self._frames = name, None, {}
        self.guidance = widgets.BoundedFloatText(guidance, min=0, max=20, step=0.25, description="guidance")
        self.steps = widgets.BoundedIntText(steps, min=1, max=64, description="steps")
        self.verifier = widgets.Dropdown(options=["none"], description="verifier")
        self.generator = widgets.Dropdown(options=["base"], description="generator")
        for control in self.controls:
            control.layout = NARROW
        self.overview, self.frame, self.words = widgets.HTML(), widgets.HTML(), widgets.HTML()

    @property
    def controls(self) -> tuple[widgets.Widget, ...]:
        return self.guidance, self.steps, self.verifier, self.generator

    def offer(self, bench: Bench) -> None:
        """The verifiers and generators that are there."""
        self.verifier.options, self.generator.options = bench.ways, list(bench.generators)
        self.verifier.value = "orm-zero-shot" if "orm-zero-shot" in bench.ways else "none"

    def setting(self, prompt: Any, n: int, seed: int, precision: str) -> Setting:
        from .decode import DecodeOptions
        from .explore import Setting

        options = DecodeOptions(steps=self.steps.value, guidance=self.guidance.value, precision=precision)
        return Setting(prompt, n, seed, options, self.verifier.value, self.generator.value)

    def show(self, exploration: Exploration) -> None:
        self.exploration, self._frames = exploration, {}

    def refresh(self, k: int, step: int, with_overview: bool = True) -> None:
        """Pictures and words as they now are; a painted frame is painted once."""
        from . import explore_show

        e = self.exploration
        if e is None:
            return
        k, step = min(k, e.setting.n - 1), min(step, e.n_steps - 1)
        words = explore_show.in_words(e, k, step)
        if (k, step) in e.pictures and (k, step) not in self._frames:
            self._frames[k, step] = explore_show.frame(e, k, step)
        self.frame.value = picture(self._frames.get((k, step)) or explore_show.frame(e, k, step), words)
        self.words.value = html.escape(words)
        if with_overview:
            n = range(e.setting.n)
            said = f"{self.name} {e.setting.prompt.text}. " + "; ".join(explore_show.verdict(e, i) for i in n)
            self.overview.value = picture(explore_show.overview(e), said)

    @property
    def n_steps_shown(self) -> int:
        return 0 if self.exploration is None else int(self.exploration.n_decoded.max())


class Mask:
    """A grid of buttons over the cells of a picture; pressed = to be drawn anew."""

    def __init__(self, on_draw: Callable[[], None]):
        small = widgets.Layout(width="26px", height="26px", padding="0px", margin="0px")
        names = [f"row {i // MASK_CELLS + 1}, column {i % MASK_CELLS + 1}" for i in range(MASK_CELLS**2)]
        first = widgets.ToggleButton(layout=small, tooltip=names[0])  # one style for all: half as many messages
        others = [widgets.ToggleButton(layout=small, style=first.style, tooltip=name) for name in names[1:]]
        self.cells = [first, *others]
        self.draw, self.clear = widgets.Button(description="Draw these anew"), widgets.Button(description="Clear")
        self.draw.on_click(lambda _: on_draw())
        self.clear.on_click(lambda _: self.set(()))
        columns = widgets.Layout(grid_template_columns=f"repeat({MASK_CELLS}, 28px)", grid_gap="2px", width="250px")
        self.box = widgets.VBox(
            [
                widgets.HTML("Press the cells of the candidate's last picture that are to be drawn anew."),
                widgets.GridBox(self.cells, layout=columns),
                widgets.HBox([self.draw, self.clear]),
            ]
        )

    def set(self, pressed: Any) -> None:
        """Press these cells, row-major numbers, and no others."""
        for i, cell in enumerate(self.cells):
            cell.value = i in pressed

    def masked(self, n_tokens: int) -> np.ndarray:
        """bool [L], True = draw anew."""
        grid = int(n_tokens**0.5)
        pressed = np.array([cell.value for cell in self.cells]).reshape(MASK_CELLS, MASK_CELLS)
        at = np.arange(grid) * MASK_CELLS // grid
        return pressed[np.ix_(at, at)].ravel()


class Explorer:
    """The widget. `box` is what is shown; `take(bench)` gives it its models."""

    def __init__(self, guidance: float = 1.75, steps: int = 8, n: int = 4, seed: int = 0, n_lanes: int = 1):
        self.bench: Bench | None = None
        self.worker, self._is_following, self._is_moving = Worker(), True, False
        names = [""] if n_lanes == 1 else [f"setting {chr(65 + i)}:" for i in range(n_lanes)]
        self.lanes = [Lane(guidance, steps, name) for name in names]
        self._make_controls(n, seed, steps)
        self._lay_out()
        self.say(LOADING)

    def _make_controls(self, n: int, seed: int, steps: int) -> None:
        self.task = widgets.Dropdown(options=TASKS, description="task")
        self.example = widgets.Dropdown(options=self._examples(), description="prompt", layout=WIDE)
        self.text = widgets.Text(
            self.example.value, description="or type", placeholder="a photo of two dogs", layout=WIDE
        )
        self.n = widgets.BoundedIntText(n, min=1, max=16, description="N", layout=NARROW)
        self.seed = widgets.BoundedIntText(seed, min=0, max=2**31 - 1, description="seed", layout=NARROW)
        self.start = widgets.Button(description="Decode", button_style="primary", disabled=True)
        self.halt = widgets.Button(description="Stop")
        self.bar = widgets.FloatProgress(0.0, min=0.0, max=1.0, description="progress")
        self.status, self.offers, self.notes = widgets.HTML(), widgets.HBox(), widgets.HTML()
        self.candidate = widgets.IntSlider(1, min=1, max=n, description="candidate", layout=WIDE)
        self.step = widgets.IntSlider(1, min=1, max=steps, description="step", layout=WIDE)
        self.mask = Mask(self._on_draw)
        self.task.observe(lambda _: setattr(self.example, "options", self._examples()), "value")
        self.example.observe(lambda change: setattr(self.text, "value", change.new or ""), "value")
        self.start.on_click(lambda _: self.decode())
        self.halt.on_click(lambda _: self.stop())
        for slider in (self.candidate, self.step):
            slider.observe(self._on_slider, "value")

    def _examples(self) -> list[str]:
        return [p.text for p in geneval_prompts() if p.task == self.task.value]

    def _lay_out(self) -> None:
        lanes = [
            widgets.VBox(
                [
                    widgets.HTML(f"<b>{lane.name}</b>"),
                    *lane.controls,
                    *(lane.overview, lane.frame, widgets.HTML(LEGEND), lane.words),
                ]
            )
            for lane in self.lanes
        ]
        rows = [
            widgets.HBox([self.task, self.n, self.seed], layout=widgets.Layout(flex_flow="row wrap")),
            *(self.example, self.text, self.offers),
            widgets.HBox([self.start, self.halt, self.bar]),
            *(self.status, self.candidate, self.step),
            widgets.HBox(lanes, layout=widgets.Layout(flex_flow="row wrap")),
        ]
        if len(self.lanes) == 1:
            rows.append(widgets.Accordion([self.mask.box], titles=("Inpainting: draw some cells anew",)))
        self.box = widgets.VBox([*rows, self.notes])

    def say(self, text: str) -> None:
        self.status.value = f'<span role="status">{html.escape(text)}</span>'

    # --- What the buttons do ------------------------------------------------------------------------------------

    def take(self, bench: Bench) -> None:
        """Take these models into use."""
        self.bench = bench
        for lane in self.lanes:
            lane.offer(bench)
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in bench.missing.values())
        self.notes.value = f"Not here:<ul>{lines}</ul>" if lines else ""
        self.start.disabled = False
        self.say("Ready: choose a prompt and press Decode.")

    def settings(self) -> list[Setting] | None:
        """What is asked for, one setting a lane; None, and a sentence in the status, where it cannot be drawn."""
        from .explore import prompt_of, refusal

        self.offers.children = ()
        if self.bench is None:
            self.say(LOADING)
            return None
        try:
            for name in dict.fromkeys(lane.generator.value for lane in self.lanes):
                if refused := refusal(self.bench.generators[name](), self.text.value):
                    self.say(refused.sentence)
                    self._offer(refused.nearest)
                    return None
            prompt = prompt_of(self.text.value)
            return [lane.setting(prompt, self.n.value, self.seed.value, self.bench.precision) for lane in self.lanes]
        except Exception as error:  # such as an aligned generator that another version has written
            self.say(sentence(error))
            return None

    def _offer(self, nearest: dict[str, list[str]]) -> None:
        """A button for each near word, which puts it in the place of the unknown one."""
        buttons = []
        for word, near in ((word, near) for word, words in list(nearest.items())[:3] for near in words):
            button = widgets.Button(description=f"{word[:12]} → {near}")
            button.on_click(lambda _, word=word, near=near: self.replace(word, near))
            buttons.append(button)
        self.offers.children = buttons

    def replace(self, word: str, near: str) -> None:
        """Put a known word in the place of an unknown one."""
        self.text.value = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", near, self.text.value)
        self.settings() and self.say("Ready: press Decode.")

    def decode(self) -> None:
        """Decode what is asked for, in the worker's thread."""
        settings = self.settings()
        if settings is not None:
            self.explore(settings)

    def explore(self, settings: list[Setting], in_thread: bool = True) -> None:
        """One exploration a lane, one after the other; not in a thread, only what the verifier's choice needs."""
        from .explore import Exploration

        self.worker.stop()
        self.worker.wait()
        try:
            explorations = [Exploration(setting, self.bench) for setting in settings]
        except ValueError as error:
            return self.say(sentence(error))
        for lane, exploration in zip(self.lanes, explorations, strict=True):
            lane.show(exploration)
        self._reach(max(s.n for s in settings), max(s.options.steps for s in settings))
        self._is_following, self.bar.value = True, 0.0
        if in_thread:
            return self.worker.start(self._work(explorations), self._on_piece, self._on_end)
        for what in (what for e in explorations for what in e.choice()):
            self._on_piece(what)
        self._on_end("Decoded. Press Decode to ask every verifier about every step.")

    def _work(self, explorations: list[Exploration]) -> Iterator[str]:
        """First all the pictures, then all the questions."""
        for part in ("choice", "questions"):
            for lane, exploration in zip(self.lanes, explorations, strict=True):
                yield from (f"{lane.name} {what}".strip() for what in getattr(exploration, part)())

    def _reach(self, n: int, steps: int) -> None:
        """Sliders as long as what there is to see."""
        self._is_moving = True
        self.candidate.value, self.step.value = min(self.candidate.value, n), 1
        self.candidate.max, self.step.max = n, steps
        self._is_moving = False

    def _on_piece(self, what: str) -> None:
        explorations = [lane.exploration for lane in self.lanes]
        self.bar.value = sum(e.progress for e in explorations) / len(explorations)
        self.say(what)
        if self._is_following:
            self._is_moving = True
            self.step.value = max(1, max(lane.n_steps_shown for lane in self.lanes))
            self._is_moving = False
        self._refresh(with_overview="asking" not in what)

    def _on_end(self, text: str) -> None:
        self.say(text)
        self._refresh()

    def _refresh(self, with_overview: bool = True) -> None:
        for lane in self.lanes:
            lane.refresh(self.candidate.value - 1, self.step.value - 1, with_overview)

    def _on_slider(self, _: Any) -> None:
        if not self._is_moving:
            self._is_following = False
            self._refresh(with_overview=False)

    def _on_draw(self) -> None:
        exploration = self.lanes[0].exploration
        if exploration is None:
            return self.say("There is no picture to change yet; press Decode first.")
        try:
            setting = exploration.inpainting(self.candidate.value - 1, self.mask.masked(self.bench.n_tokens))
        except (ValueError, IndexError) as error:
            return self.say(sentence(error))
        self.explore([setting])

    def stop(self) -> None:
        """Stop between two steps; a second time, or with nothing to stop, it says so."""
        if self.worker.stop():
            self.say("Stopping after this step …")
        elif self.worker.is_working:
            self.say("Already stopping …")
        else:
            self.say("Nothing is being decoded.")


def open_explorer(run: Run, n_lanes: int = 1) -> None:
    """Show the widget at once, then load the models and decode the first prompt into it."""
    from IPython.display import display

    params = run.params
    n = min(params["n_candidates"], 8)
    explorer = Explorer(params["guidance"], params["steps"], n, run.seed, n_lanes)
    display(explorer.box)
    try:
        from .explore import bench_of

        explorer.take(bench_of(run))
        if n_lanes == 2:
            explorer.lanes[1].guidance.value = 0.0
        if (settings := explorer.settings()) is not None:
            explorer.explore(settings, in_thread=False)
    except Exception as error:
        explorer.say(sentence(error))

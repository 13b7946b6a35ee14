"""Pages that need nothing but a browser: a player of decoding steps, and a gallery. One HTML file each.

Pictures are data URIs, script and style are inline, nothing is fetched. Arrow keys, Home and End work, every picture
has a description, and the page is as wide as a telephone where the screen is.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.4 system-ui, sans-serif; margin: 0 auto; padding: 8px; max-width: 60rem; }
body { color: #111; background: #fff; }
h1 { font-size: 1.15rem; margin: .3rem 0; }
img { width: 100%; height: auto; image-rendering: pixelated; display: block; }
main:focus-visible, button:focus-visible, input:focus-visible { outline: 3px solid #0072B2; outline-offset: 2px; }
.screen { max-width: 24rem; }
.controls { display: flex; gap: 8px; align-items: center; max-width: 24rem; margin: 8px 0; }
.controls input { flex: 1; min-width: 0; }
button { font: inherit; min-width: 44px; min-height: 44px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 12px; padding: 0; }
figure { margin: 0; }
figure.right img { outline: 4px solid #0072B2; outline-offset: -4px; }
figure.wrong img { outline: 4px dashed #D55E00; outline-offset: -4px; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
"""
SCRIPT = """
const frames = JSON.parse(document.getElementById("frames").textContent);
const parts = ["screen", "words", "bar", "count", "play"].map(id => document.getElementById(id));
const [screen, words, bar, count, button] = parts;
let at = 0, timer = null;
function show(i) {
  at = Math.max(0, Math.min(frames.length - 1, i));
  screen.src = frames[at].src;
  screen.alt = words.textContent = frames[at].words;
  bar.value = at;
  bar.setAttribute("aria-valuetext", frames[at].words);
  count.textContent = `${at + 1} / ${frames.length}`;
}
function halt() { clearInterval(timer); timer = null; button.textContent = "Play"; }
function play() {
  if (timer) return halt();
  if (at === frames.length - 1) show(0);
  button.textContent = "Pause";
  timer = setInterval(() => { show(at + 1); if (at === frames.length - 1) halt(); }, 600);
}
const moves = { ArrowLeft: () => at - 1, ArrowRight: () => at + 1, ArrowDown: () => at - 1, ArrowUp: () => at + 1,
                Home: () => 0, End: () => frames.length - 1 };
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in moves) { halt(); show(moves[event.key]()); event.preventDefault(); }
  else if (event.key === " " && event.target !== button) { play(); event.preventDefault(); }
});
bar.addEventListener("input", () => { halt(); show(+bar.value); });
button.addEventListener("click", play);
show(0);
"""
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{title}</title><style>{style}</style></head>
<body><h1>{title}</h1>
{body}
</body></html>
"""
PLAYER = """<main>
<div class="screen"><img id="screen" src="{src}" alt="{alt}"></div>
<div class="controls"><button id="play" type="button">Play</button>
<input id="bar" type="range" min="0" max="{last}" value="0" aria-label="step"><span id="count">1 / {n}</span></div>
<p id="words" aria-live="polite">{alt}</p>
<p>Arrow keys go step by step, Home and End to the first and the last, the space bar plays.</p>
</main>
<script type="application/json" id="frames">{frames}</script>
<script>{script}</script>"""


@dataclass(frozen=True)
class Page:
    """A self-contained HTML page; a notebook shows it in a frame of its own."""

    html: str
    height: int = 640  # px, of the frame

    def _repr_html_(self) -> str:
        source = html.escape(self.html, quote=True)
        return (
            f'<iframe srcdoc="{source}" title="player" style="width:100%; height:{self.height}px; border:0"></iframe>'
        )


def data_uri(picture: np.ndarray) -> str:
    """uint8 [H, W, 3] as a PNG inside its own address."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def player(frames: Sequence[np.ndarray], words: Sequence[str], title: str) -> Page:
    """A page that steps through pictures uint8 [H, W, 3], each with its description.

    Raises ValueError for no picture and for a picture without its words.
    """
    if not len(frames) or len(frames) != len(words):
        raise ValueError(f"player: expected one description for each picture, got {len(frames)} and {len(words)}")
    made = [{"src": data_uri(frame), "words": text} for frame, text in zip(frames, words, strict=True)]
    body = PLAYER.format(
        src=made[0]["src"],
        alt=html.escape(words[0], quote=True),
        last=len(made) - 1,
        n=len(made),
        frames=json.dumps(made).replace("<", "\\u003c"),  # no text can end the script
        script=SCRIPT,
    )
    return Page(PAGE.format(title=html.escape(title), style=STYLE, body=body))


def gallery(
    pictures: Sequence[np.ndarray], captions: Sequence[str], correct: Sequence[bool | None], title: str
) -> Page:
    """A page of pictures uint8 [H, W, 3] in the order given, framed solid where correct and dashed where wrong."""
    if not len(pictures) == len(captions) == len(correct):
        raise ValueError(
            f"gallery: expected a caption and a verdict for each picture, got {len(pictures)} pictures, "
            f"{len(captions)} captions and {len(correct)} verdicts"
        )
    kinds = {True: "right", False: "wrong", None: "unscored"}
    items = "\n".join(
        f'<figure class="{kinds[verdict]}"><img src="{data_uri(picture)}" '
        f'alt="{html.escape(f"{caption} Evaluator: {kinds[verdict]}.", quote=True)}">'
        f"<figcaption>{html.escape(caption)} Evaluator: {kinds[verdict]}.</figcaption></figure>"
        for picture, caption, verdict in zip(pictures, captions, correct, strict=True)
    )
    return Page(
        PAGE.format(title=html.escape(title), style=STYLE, body=f'<main class="gallery">\n{items}\n</main>'), 900
    )

"""Build the atlas of the pocket world: one RGBA picture per GenEval class, from two Apache-2.0 icon sets.

Run once, by a maintainer; the result (`atlas.png`) ships in the package and nothing is fetched at run time.

    npm pack emoji-datasource-google@16.0.0 @iconify-json/mdi@1.2.3     # then unpack both archives
    pip install resvg_py==0.3.3
    python cotlib/pocket/atlas/build.py --noto emoji-datasource-google/package --mdi iconify-json-mdi/package

67 classes are Noto Emoji (Google, Apache-2.0), 13 are Material Design Icons (Pictogrammers, Apache-2.0), each of
these filled with one colour of its own. `README.md` beside this file carries the licence notices.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

from PIL import Image

TILE = 64  # px; larger than any sprite (48 px), so sprites are only ever scaled down
COLUMNS = 10

NOTO = {
    "person": "1f9cd",
    "bicycle": "1f6b2",
    "car": "1f697",
    "motorcycle": "1f3cd-fe0f",
    "airplane": "2708-fe0f",
    "bus": "1f68c",
    "train": "1f686",
    "truck": "1f69a",
    "boat": "26f5",
    "traffic light": "1f6a6",
    "stop sign": "1f6d1",
    "bird": "1f426",
    "cat": "1f408",
    "dog": "1f415",
    "horse": "1f40e",
    "sheep": "1f411",
    "cow": "1f404",
    "elephant": "1f418",
    "bear": "1f43b",
    "zebra": "1f993",
    "giraffe": "1f992",
    "backpack": "1f392",
    "umbrella": "2602-fe0f",
    "handbag": "1f45c",
    "tie": "1f454",
    "suitcase": "1f9f3",
    "frisbee": "1f94f",
    "skis": "1f3bf",
    "snowboard": "1f3c2",
    "sports ball": "26bd",
    "kite": "1fa81",
    "skateboard": "1f6f9",
    "surfboard": "1f3c4",
    "tennis racket": "1f3be",
    "bottle": "1f37e",
    "wine glass": "1f377",
    "cup": "2615",
    "fork": "1f374",
    "knife": "1f52a",
    "spoon": "1f944",
    "bowl": "1f963",
    "banana": "1f34c",
    "apple": "1f34e",
    "sandwich": "1f96a",
    "orange": "1f34a",
    "broccoli": "1f966",
    "carrot": "1f955",
    "hot dog": "1f32d",
    "pizza": "1f355",
    "donut": "1f369",
    "cake": "1f382",
    "chair": "1fa91",
    "couch": "1f6cb-fe0f",
    "potted plant": "1fab4",
    "bed": "1f6cf-fe0f",
    "toilet": "1f6bd",
    "tv": "1f4fa",
    "laptop": "1f4bb",
    "computer mouse": "1f5b1-fe0f",
    "computer keyboard": "2328-fe0f",
    "cell phone": "1f4f1",
    "book": "1f4d5",
    "clock": "1f570-fe0f",
    "vase": "1f3fa",
    "scissors": "2702-fe0f",
    "teddy bear": "1f9f8",
    "toothbrush": "1faa5",
}

MDI = {
    "fire hydrant": ("fire-hydrant", "#dd3333"),
    "parking meter": ("parking", "#4466cc"),
    "bench": ("bench-back", "#996644"),
    "baseball bat": ("baseball-bat", "#bb8855"),
    "baseball glove": ("baseball", "#aa6644"),
    "dining table": ("table-furniture", "#885533"),
    "tv remote": ("remote-tv", "#333333"),
    "microwave": ("microwave", "#666677"),
    "oven": ("stove", "#555555"),
    "toaster": ("toaster", "#999999"),
    "sink": ("faucet", "#5588aa"),
    "refrigerator": ("fridge", "#77aabb"),
    "hair drier": ("hair-dryer", "#aa44aa"),
}


def noto_tile(folder: Path, code: str) -> Image.Image:
    return Image.open(folder / "img" / "google" / "64" / f"{code}.png").convert("RGBA")


def mdi_tile(folder: Path, icon: str, fill: str) -> Image.Image:
    import resvg_py

    body = json.loads((folder / "icons.json").read_text())["icons"][icon]["body"]
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{TILE}" height="{TILE}" viewBox="0 0 24 24">'
        f"{body.replace('currentColor', fill)}</svg>"
    )
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")


def build(noto: Path, mdi: Path, classes: list[str]) -> Image.Image:
    """One tile per class in the order of `classes`: cropped to its ink, then scaled to touch the tile's edge."""
    rows = -(-len(classes) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * TILE, rows * TILE))
    for i, name in enumerate(classes):
        tile = noto_tile(noto, NOTO[name]) if name in NOTO else mdi_tile(mdi, *MDI[name])
        tile = tile.crop(tile.getbbox())
        scale = TILE / max(tile.size)
        tile = tile.resize([max(1, round(s * scale)) for s in tile.size], Image.LANCZOS)
        x, y = (i % COLUMNS) * TILE, (i // COLUMNS) * TILE
        atlas.paste(tile, (x + (TILE - tile.width) // 2, y + (TILE - tile.height) // 2))
    return atlas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noto", type=Path, required=True, help="unpacked emoji-datasource-google")
    parser.add_argument("--mdi", type=Path, required=True, help="unpacked @iconify-json/mdi")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("atlas.png"))
    args = parser.parse_args()

    from cotlib.prompts import CLASSES

    build(args.noto, args.mdi, list(CLASSES)).save(args.out, optimize=True)


if __name__ == "__main__":
    main()

"""Scale `showo` on tiny weights in the published layout: found, refused, in the key, and run by the notebook."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_weights import TOKENIZER, write_everything, write_generator, write_text_tokenizer, write_tokenizer

from cotlib import hub, loaders, provenance
from cotlib.config import PARTS, SCALES, check
from cotlib.errors import ForeignError, IncompleteError
from cotlib.run import load

SHOWO = SCALES["showo"]
BASELINE = [part for part in PARTS if part != "judge"]


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    return write_everything(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def weights(everything, tmp_path, monkeypatch) -> Path:
    """A folder of links, to be changed at will; models are loaded anew."""
    folder = tmp_path / "weights"
    for file in everything.rglob("*.*"):
        if file.is_file():
            copy = folder / file.relative_to(everything)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(file)
    monkeypatch.setenv("COTLIB_WEIGHTS", str(folder))
    monkeypatch.setenv("COTLIB_OUTPUTS", str(tmp_path / "outputs"))
    forget()
    yield folder
    forget()


def forget() -> None:
    for cached in (loaders.load_tokenizer, loaders.load_generator, loaders._evaluator, loaders.trusted_evaluator):
        cached.cache_clear()


def remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def key(scale: str = "showo", notebook: str = "01_baseline") -> str:
    return provenance.run_key(check(notebook, scale=scale, effort="smoke", seed=0))[0]


# --- The notebook ---


def test_the_baseline_runs_from_prompt_to_table_on_published_folders(everything, tmp_path):
    few = ("n_prompts_per_task=1", "n_candidates=2", "steps=2", "batch_size=2")
    command = [sys.executable, "-m", "cotlib", "run", "01_baseline", "--scale", "showo", "--effort", "smoke"]
    command += [word for setting in few for word in ("--set", setting)]
    places = {"COTLIB_WEIGHTS": str(everything), "COTLIB_OUTPUTS": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **places}, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "showo" / "smoke" / "01_baseline"
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["depends_on"]["weights"].keys() == set(BASELINE) and all(manifest["depends_on"]["weights"].values())
    assert manifest["counts"]["ok"] == 12
    measured = {record["name"] for record in json.loads((folder / "metrics.json").read_text())}
    assert {"geneval/base/none/overall", "speed/decode", "speed/evaluate"} <= measured
    drawn_only = ("evaluator/", "tokenizer/", "speed/judge")
    assert not [name for name in measured if name.startswith(drawn_only)]
    assert {file.stem for file in (folder / "figures").iterdir()} == {"geneval_by_task", "film_strip", "gallery"}
    lines = (tmp_path / "showo/smoke/pools/base-0.jsonl").read_text().splitlines()
    assert len(json.loads(lines[1])["codes"][0]) == 256

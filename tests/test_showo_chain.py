"""The notebooks at scale `showo` on tiny random weights in the published layout, cell by cell: `make showo-test`.

A random detector finds nothing that was asked for, and a random judge says neither yes nor no: a coin stands in for
GenEval's verdict, and each of the judge's answers counts.
"""

import hashlib
import json
import shutil

import matplotlib.pyplot as plt
import pytest
from fake_weights import write_everything
from test_judge import official  # noqa: F401  (fixture)
from test_showo_scale import forget

from cotlib import detect, geneval, models, paths
from cotlib import judge as judging
from cotlib.config import NOTEBOOKS, SCALES
from cotlib.geneval import Verdict
from cotlib.provenance import notebook_path
from cotlib.store import read_json

CHAIN = [name for name, spec in NOTEBOOKS.items() if spec.in_chain]
STEPS = 6


def tossed(self, images, prompts) -> list[Verdict]:
    """Right or wrong by the digits of picture and prompt; a wrong one lacks all that was asked for."""
    heads = [
        hashlib.sha256(i.tobytes() + p.text.encode()).digest()[0] % 2 for i, p in zip(images, prompts, strict=True)
    ]
    missing = [geneval.evaluate(p, [], lambda *_: None).reasons for p in prompts]
    return [Verdict(bool(head), () if head else why) for head, why in zip(heads, missing, strict=True)]


def execute(name: str, **parameters) -> None:
    """A notebook's cells in this process; parameters that it does not have are left out."""
    namespace = {"display": lambda *shown: None}
    for cell in json.loads(notebook_path(name).read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), name, "exec"), namespace)
        if "parameters" in cell["metadata"].get("tags", ()):
            namespace |= {key: value for key, value in parameters.items() if key in namespace}
    plt.close("all")


@pytest.mark.slow
def test_every_notebook_runs_at_scale_showo(tmp_path, monkeypatch, official):  # noqa: F811
    weights = write_everything(tmp_path / "weights")
    shutil.copytree(official, weights / "judge")
    monkeypatch.setenv("COTLIB_WEIGHTS", str(weights))
    monkeypatch.setenv("COTLIB_OUTPUTS", str(tmp_path))
    monkeypatch.setattr(judging, "LEAST_MASS", 0.0)
    monkeypatch.setattr(detect.PhotoEvaluator, "evaluate", tossed)
    monkeypatch.setattr(detect.PhotoEvaluator, "self_check", lambda self: None)
    plt.switch_backend("agg")
    forget()
    for name in CHAIN:
        print(name, flush=True)
        execute(name, scale="showo", effort="smoke", steps=STEPS)
    forget()
    outputs = tmp_path / "showo" / "smoke"
    for name in CHAIN:
        assert read_json(outputs / name / "run.json")["watermark"]
    measured = {record["name"] for record in read_json(outputs / "results.json")}
    assert {"geneval/base/prm/overall@4", "geneval/base/parm/overall@4", "geneval/it-dpo-orm/orm/overall@2"} <= measured
    assert {"geneval/it-dpo-parm/parm-keep/overall@2", "geneval/reflect/parm++/overall@2"} <= measured
    line = (outputs / "pools" / "it-dpo-0.jsonl").read_text().splitlines()[1]
    assert paths.unpack(json.loads(line)["paths"][0]).shape == (STEPS, SCALES["showo"].n_tokens)
    (orm,) = (outputs / "models").glob("orm-*")
    assert models.weights_change(orm, weights / "judge") > 0

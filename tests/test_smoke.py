"""The notebooks themselves, all of them, with the shipped weights at the smallest effort: some minutes."""

import json
import os
import subprocess
import sys

import pandas as pd

from cotlib.config import NOTEBOOKS

CHAIN = [name for name, spec in NOTEBOOKS.items() if spec.in_chain]


def test_every_notebook_of_the_chain_runs_from_prompt_to_report(tmp_path):
    command = [sys.executable, "-m", "cotlib", "run", "--effort", "smoke"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "COTLIB_OUTPUTS": str(tmp_path)}, timeout=2400
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outputs = tmp_path / "pocket" / "smoke"
    for name in CHAIN:
        assert json.loads((outputs / name / "run.json").read_text())["watermark"]
        page = (outputs / name / "executed.html").read_text()
        assert 'src="http' not in page and 'href="http' not in page.replace('href="https://arxiv.org', "")
    records = json.loads((outputs / "results.json").read_text())
    names = {record["name"] for record in records}
    for table in ("table_1", "table_2", "table_3"):
        rows = pd.read_csv(outputs / "08_report" / "tables" / f"{table}.csv", keep_default_na=False)
        absent = rows[rows.notebook.str.endswith("not there")]
        assert set(absent.overall.str[0]) <= {"–"} and set(rows.notebook) - set(absent.notebook) <= set(CHAIN)
    assert len(rows) > len(absent) > 0 or set(rows.notebook) <= set(CHAIN)
    assert {
        f"geneval/base/{v}/overall{at}"
        for v, at in (("none", ""), *((v, "@4") for v in ("orm-zero-shot", "orm", "prm-zero-shot", "prm", "oracle")))
    } <= names
    assert {"geneval/dpo/none/overall", "geneval/it-dpo/none/overall", "diversity/it-dpo/distinct"} <= names
    assert {"ordering/orm > prm", "judge/prm/auc@step-1", "compute/prm/judge-calls"} <= names
    on_guided = {
        f"geneval/{g}/{v}/overall@2" for g in ("it-dpo", "it-dpo-orm") for v in ("orm-zero-shot", "orm", "oracle")
    }
    assert on_guided | {"geneval/it-dpo-orm/none/overall", "it-dpo-orm/reward-gain"} <= names
    assert {"ordering/it-dpo-orm > it-dpo", "ordering/it-dpo-orm/orm@2 > base/none"} <= names
    released = next(r for r in records if r["name"] == "it-dpo-orm/detached-weight-change")
    assert released["value"] == 0  # the released guidance has no gradient
    moved = pd.read_csv(outputs / "06_integration" / "tables" / "guided_training.csv")["weights moved from plain"]
    assert moved[0] > 0 == moved.iloc[-1]
    assert {"evaluator/agreement", "evaluator/false-correct", "speed/decode", "tokenizer/psnr"} <= names
    assert {"ordering/parm-keep > orm", "ordering/it-dpo/parm-keep@2 > it-dpo/orm@2"} <= names
    assert {"geneval/base/parm-keep/overall@4", "geneval/it-dpo-parm/parm-keep/overall@2"} <= names
    manifests = {path.parent.name: json.loads(path.read_text()) for path in (outputs / "models").glob("*/model.json")}
    parm = next(m for name, m in manifests.items() if name.startswith("parm-"))
    assert parm["what"]["start"] in manifests and parm["what"]["start"].startswith("orm-")

"""The notebooks themselves, all of them, with the shipped weights at the smallest effort: about a minute."""

import json
import os
import subprocess
import sys

from cotlib.config import NOTEBOOKS

CHAIN = [name for name, spec in NOTEBOOKS.items() if spec.in_chain]


def test_every_notebook_of_the_chain_runs_from_prompt_to_report(tmp_path):
    command = [sys.executable, "-m", "cotlib", "run", "--effort", "smoke"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "COTLIB_OUTPUTS": str(tmp_path)}, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outputs = tmp_path / "pocket" / "smoke"
    for name in CHAIN:
        assert json.loads((outputs / name / "run.json").read_text())["watermark"]
        page = (outputs / name / "executed.html").read_text()
        assert 'src="http' not in page and 'href="http' not in page.replace('href="https://arxiv.org', "")
    names = {record["name"] for record in json.loads((outputs / "results.json").read_text())}
    assert {
        f"geneval/base/{v}/overall" for v in ("none", "orm-zero-shot", "orm", "prm-zero-shot", "prm", "oracle")
    } <= names
    assert {"geneval/dpo/none/overall", "geneval/it-dpo/none/overall", "diversity/it-dpo/distinct"} <= names
    assert {"ordering/orm > prm", "judge/prm/auc@step-1", "compute/prm/judge-calls"} <= names
    assert {"evaluator/agreement", "evaluator/false-correct", "speed/decode", "tokenizer/psnr"} <= names

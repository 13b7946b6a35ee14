"""The paper's numbers (Table 1, arXiv:2501.13926), to stand beside ours. N = 20."""

from __future__ import annotations

from .prompts import TASKS

# (generator, verifier) -> GenEval by task in the order of TASKS, then overall.
TABLE_1 = {
    ("base", "none"): (0.95, 0.52, 0.49, 0.82, 0.11, 0.28, 0.53),
    ("base", "orm-zero-shot"): (0.99, 0.63, 0.63, 0.84, 0.19, 0.39, 0.61),
    ("base", "orm"): (0.99, 0.72, 0.65, 0.84, 0.25, 0.33, 0.63),
    ("base", "prm-zero-shot"): (0.98, 0.51, 0.54, 0.82, 0.11, 0.23, 0.53),
    ("base", "prm"): (0.98, 0.55, 0.54, 0.83, 0.13, 0.29, 0.55),
    ("dpo", "none"): (0.96, 0.70, 0.50, 0.82, 0.30, 0.43, 0.62),
    ("it-dpo", "none"): (0.98, 0.72, 0.53, 0.84, 0.40, 0.46, 0.65),
}
ROW_NAMES = {
    ("base", "none"): "Baseline",
    ("base", "random"): "Random of 20",
    ("base", "orm-zero-shot"): "ORM, zero-shot",
    ("base", "orm"): "ORM, fine-tuned",
    ("base", "prm-zero-shot"): "PRM, zero-shot",
    ("base", "prm"): "PRM, fine-tuned",
    ("base", "oracle"): "Oracle (the evaluator chooses)",
    ("dpo", "none"): "DPO",
    ("it-dpo", "none"): "Iterative DPO",
}
COLUMNS = (*TASKS, "overall")


def value(generator: str, verifier: str, task: str) -> float | None:
    """The paper's value, or None where it reports none."""
    row = TABLE_1.get((generator, verifier))
    return None if row is None else row[COLUMNS.index(task)]

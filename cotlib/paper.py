"""The paper's numbers (Tables 1, 2, 3 and 5, arXiv:2501.13926v2), to stand beside ours. N = 20.

Printed as they are, errors included, but for one: Table 3 repeats the row "ORM, fine-tuned + iterative DPO" digit for
digit as "iterative DPO guided by ORM"; Table 2's value of that row is taken. Overall is not always the mean of the six
tasks: .74, .72 and .69 are printed where the means are .750, .727 and .703.
"""

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
TABLE_2 = {
    ("it-dpo-orm", "none"): (0.98, 0.78, 0.44, 0.81, 0.50, 0.48, 0.67),
    ("it-dpo", "orm"): (0.98, 0.80, 0.62, 0.83, 0.59, 0.54, 0.72),
    ("it-dpo-orm", "orm"): (0.98, 0.84, 0.64, 0.85, 0.66, 0.52, 0.75),
}
TABLE_3 = {  # its rows that are in neither of the others
    ("base", "parm"): (0.99, 0.77, 0.68, 0.86, 0.29, 0.45, 0.67),
    ("it-dpo", "orm-zero-shot"): (0.99, 0.79, 0.63, 0.85, 0.44, 0.50, 0.70),
    ("it-dpo", "parm"): (0.98, 0.83, 0.64, 0.84, 0.59, 0.62, 0.74),
    ("it-dpo-parm", "none"): (0.97, 0.75, 0.60, 0.83, 0.54, 0.53, 0.69),
    ("it-dpo-parm", "parm"): (0.99, 0.86, 0.67, 0.84, 0.66, 0.64, 0.77),
}
TABLE_5 = {  # all on the generator that corrects
    ("reflect", "none"): (0.92, 0.50, 0.47, 0.79, 0.10, 0.27, 0.51),
    ("reflect", "orm"): (0.97, 0.57, 0.54, 0.86, 0.20, 0.35, 0.58),
    ("reflect", "parm"): (0.98, 0.65, 0.61, 0.91, 0.26, 0.40, 0.64),
    ("reflect", "parm++-no-reflection"): (0.97, 0.60, 0.58, 0.89, 0.24, 0.38, 0.61),
    ("reflect", "parm++"): (0.99, 0.71, 0.69, 0.95, 0.36, 0.49, 0.70),
}
OTHER_GENERATORS = {  # quoted by Table 3; Chameleon reports overall only
    "PixArt-alpha": (0.98, 0.50, 0.44, 0.80, 0.08, 0.07, 0.48),
    "SD v2.1": (0.98, 0.51, 0.44, 0.85, 0.07, 0.17, 0.50),
    "DALL-E 2": (0.94, 0.66, 0.49, 0.77, 0.10, 0.19, 0.52),
    "SDXL": (0.98, 0.74, 0.39, 0.85, 0.15, 0.23, 0.55),
    "SD3 (d=24)": (0.98, 0.74, 0.63, 0.67, 0.34, 0.36, 0.62),
    "LlamaGen": (0.71, 0.34, 0.21, 0.58, 0.07, 0.04, 0.32),
    "Chameleon": (None, None, None, None, None, None, 0.39),
    "LWM": (0.93, 0.41, 0.46, 0.79, 0.09, 0.15, 0.47),
    "SEED-X": (0.97, 0.58, 0.26, 0.80, 0.19, 0.14, 0.49),
}
PUBLISHED = {**TABLE_1, **TABLE_2, **TABLE_3, **TABLE_5}
ROW_NAMES = {
    ("base", "none"): "Baseline",
    ("base", "random"): "Random choice",
    ("base", "orm-zero-shot"): "ORM, zero-shot",
    ("base", "orm"): "ORM, fine-tuned",
    ("base", "prm-zero-shot"): "PRM, zero-shot",
    ("base", "prm"): "PRM, fine-tuned",
    ("base", "oracle"): "Oracle (the evaluator chooses)",
    ("dpo", "none"): "DPO",
    ("it-dpo", "none"): "Iterative DPO",
    ("base", "parm"): "PARM",
    ("base", "parm-keep"): "PARM, best quarter kept",
    ("it-dpo", "orm-zero-shot"): "ORM, zero-shot + iterative DPO",
    ("it-dpo", "orm"): "ORM, fine-tuned + iterative DPO",
    ("it-dpo", "parm"): "PARM + iterative DPO",
    ("it-dpo", "parm-keep"): "PARM, best quarter kept + iterative DPO",
    ("it-dpo-orm", "none"): "Iterative DPO guided by ORM",
    ("it-dpo-parm", "none"): "Iterative DPO guided by PARM",
    ("it-dpo-orm", "orm"): "ORM, fine-tuned + iterative DPO guided by ORM",
    ("it-dpo-parm", "parm"): "PARM + iterative DPO guided by PARM",
    ("it-dpo-parm", "parm-keep"): "Best quarter kept + iterative DPO guided by PARM",
    ("reflect", "none"): "Self-correction fine-tuning",
    ("reflect", "orm"): "ORM, fine-tuned + self-correction",
    ("reflect", "parm"): "PARM + self-correction",
    ("reflect", "parm++-no-reflection"): "PARM++ without reflection",
    ("reflect", "parm++"): "PARM++ with reflection",
}
COLUMNS = (*TASKS, "overall")
FRONT = (  # the rows that tell the paper's story; "parm-keep" is not in the paper
    *(("base", v) for v in ("none", "prm-zero-shot", "prm", "orm-zero-shot", "orm", "parm", "parm-keep")),
    *((g, "none") for g in ("dpo", "it-dpo", "it-dpo-parm")),
    *(("it-dpo", "orm"), ("it-dpo", "parm"), ("it-dpo-parm", "parm"), ("it-dpo-parm", "parm-keep")),
    *(("reflect", v) for v in ("none", "orm", "parm++-no-reflection", "parm++")),
)


def value(generator: str, verifier: str, task: str) -> float | None:
    """The paper's value, or None where it reports none."""
    row = PUBLISHED.get((generator, verifier))
    return None if row is None else row[COLUMNS.index(task)]


def difference(better: tuple[str, str], worse: tuple[str, str]) -> str:
    """How far two (generator, verifier) pairs lie apart overall in the paper, signed; empty where it lacks one."""
    a, b = value(*better, "overall"), value(*worse, "overall")
    return "" if a is None or b is None else f"{a - b:+.2f}"


def made_by(generator: str, verifier: str) -> str:
    """The notebook that measures a row."""
    if generator == "base":
        family = verifier.split("-")[0]
        return {
            "none": "01_baseline",
            "prm": "03_process_verifier",
            "parm": "05_parm",
        }.get(family, "02_outcome_verifier")
    if generator == "reflect":
        return "07_reflection"
    return "04_preference_alignment" if (generator, verifier) in TABLE_1 else "06_integration"


VERDICTS = ("holds", "undecided", "fails")


def verdict(low: float, high: float) -> str:
    """What a difference's interval says of an ordering, the paper's or our own.

    One without width, as of a single prompt a task, shows no variation and so decides nothing.
    """
    if low == high:
        return "undecided"
    return VERDICTS[0 if low > 0 else 2 if high < 0 else 1]

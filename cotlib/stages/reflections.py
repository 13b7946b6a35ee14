"""PARM++ on the generator that corrects its pictures: rounds of reflection, and the evaluator's word on each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np

from .. import store
from ..correction import Corrector, Note, readable
from ..loaders import load_generator, load_tokenizer
from ..parm import search
from ..prompts import Prompt
from ..reflection import Round, read, rounds
from ..run import Run
from ..search import Pool, score_pool
from ..seeds import sample_seed
from .generators import correcting
from .judges import parm_scores, reflection_of
from .pools import Pools, parm_options, parm_records, verdict_score
from .sources import decode_options, weights_digest

SEARCH = "parm-keep"  # how PARM++ chooses among candidates, at first and after each correction


def reflected(run: Run, pools: Pools) -> list[list[Round]]:
    """PARM++ from pools of the generator that corrects: per image of a prompt, the rounds of `reflection.rounds`.

    Each round decodes as many new candidates as the pools have, through PARM that keeps the most promising.
    """
    model, decoding = load_generator(run.scale, correcting(run).folder), decode_options(run)
    (look, identity), (parm, _) = reflection_of(run), parm_scores(run)
    paint, K = load_tokenizer(run.scale).decode, pools[0].n_candidates
    options = parm_options(run, SEARCH, K)
    searched = []
    for image, first in enumerate(parm_records(run, pools, SEARCH)):
        made_by = {"image": image, **pools.identity, **identity, "parm": asdict(options)}

        def ledger(what: str, i: int, image: int = image, made_by: dict = made_by) -> store.Ledger:
            return run.ledger(f"{pools.generator}-{image}-round-{i}-{what}", round=i, **made_by)

        def correct(prompts: list[Prompt], notes: Mapping[str, Note], i: int, ledger=ledger, image: int = image):
            notes = {t: replace(n, reasons=readable(model, t, read(n.reasons).faults)) for t, n in notes.items()}
            seed = sample_seed(run.seed, "", i, "reflection")
            corrector = Corrector(model, notes)
            return search(
                corrector,
                prompts,
                K,
                seed,
                decoding,
                paint,
                parm,
                options,
                ledger("parm", i),
                image,
                run.params["batch_size"],
            )

        searched.append(rounds(run.prompts, first, look, parm.outcome, correct, paint, ledger))
    return searched


def judged_rounds(run: Run, pools: Pools, searched: Sequence[Sequence[Round]]) -> list[list[dict[str, dict]]]:
    """Per image and round, the evaluator's verdict {"correct", "reasons"} on the picture offered, by prompt id."""
    judged, paint = [], load_tokenizer(run.scale).decode
    for image, done in enumerate(searched):
        identity = {"image": image, **pools.identity, **reflection_of(run)[1], **weights_digest(run, "detector")}
        identity["parm"] = asdict(parm_options(run, SEARCH, pools[0].n_candidates))
        of_image = []
        for i, now in enumerate(done):
            codes = {id: row[None] for id, row in now.codes.items()}
            ledger = run.ledger(f"{pools.generator}-{image}-round-{i}-verdicts", round=i, **identity)
            rows = score_pool(run.prompts, codes, paint, verdict_score(run), ledger, "verdicts")
            of_image.append({id: row[0] for id, row in rows.items()})
        judged.append(of_image)
    return judged


def first_candidates(pools: Pools, n: int) -> Pools:
    """Pools of the first n candidates of each prompt. ValueError for more than there are."""
    if not 1 <= n <= pools[0].n_candidates:
        raise ValueError(f"first_candidates: n must lie in 1..{pools[0].n_candidates}, got {n}")
    cut = [Pool(pool.prompts, {id: path[:n] for id, path in pool.paths.items()}) for pool in pools]
    return Pools(f"{pools.generator}-first-{n}", cut, {**pools.identity, "first": n})


def search_cost(pools: Pools, searched: Sequence[Sequence[Round]]) -> list[float]:
    """Token-steps up to and with each round, mean of prompts and images, as a share of decoding every candidate of the
    pools to its end."""
    pool, n_rounds = pools[0], max(map(len, searched))
    whole = pool.n_candidates * pool.n_steps * pool.codes[pool.prompts[0].id].shape[1]
    spent = [[float(np.mean(list(r.token_steps.values()))) for r in done] for done in searched]
    return [float(np.mean([sum(of_image[: i + 1]) for of_image in spent])) / whole for i in range(n_rounds)]

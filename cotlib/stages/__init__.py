"""What several notebooks need of one run, each part made once.

Each stage is kept in a ledger under `pools/`, keyed by the weights and options it depends on, one line per prompt; a
notebook that finds it there reads it, one that does not makes it. Fine-tuned judges and aligned generators lie under
`models/`. Each module needs those before it only: sources, data, judges, generators, pools, reflections, measures.
"""

from .data import Ranking, ranking_data, rolled_out
from .generators import (
    REFLECT,
    AlignedGenerator,
    aligned,
    correcting,
    known_generators,
    preference_options,
    recipe,
    source,
)
from .judges import (
    REFLECTIONS,
    Tuned,
    facts_judge,
    outcome_judge,
    parm_judge,
    parm_scores,
    process_judge,
    reflecting_judge,
    reflection_of,
    settled,
    verifier_score,
)
from .measures import (
    Choice,
    accuracy_of_seed,
    answers,
    auc_by_task,
    chosen,
    climbed_accuracy,
    correct_of,
    disagreements,
    diversity,
    estimates,
    mean_of,
    measure_speed,
    record_estimates,
    record_ordering,
    recorded,
)
from .pools import (
    Climbed,
    Pools,
    climb,
    known_verifiers,
    outcome_scores,
    parm_options,
    parm_records,
    pools_of,
    process_scores,
    pruned,
    scores_of,
    verdicts,
)
from .reflections import first_candidates, judged_rounds, reflected, search_cost
from .sources import Source, base, decode_options, weights_digest, without

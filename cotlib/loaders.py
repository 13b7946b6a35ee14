"""From a scale to its models. The only module besides `pretrain` that knows where pocket weights lie."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from .config import Scale
from .errors import CorruptError, IncompleteError
from .provenance import PACKAGE

if TYPE_CHECKING:
    from .detect import PocketEvaluator
    from .judge import Judge
    from .pocket.tokenizer import PocketTokenizer
    from .showo import Showo

WEIGHTS = PACKAGE / "pocket" / "weights"


def weights_folder(scale: Scale, part: str) -> Path:
    """Folder of a part's weights. Raises ValueError for a scale without shipped weights, IncompleteError if missing."""
    if not scale.offline:
        raise ValueError(
            f"scale {scale.name!r} has no loader yet: this version runs scale 'pocket' only; use --scale pocket"
        )
    folder = WEIGHTS / part
    if not (folder / "config.json").is_file():
        raise IncompleteError(f"no weights in {folder}; train them with: cotlib pretrain {part}")
    return folder


def _hub_model(cls: type, folder: Path):
    try:
        return cls.from_pretrained(folder).float().eval()
    except Exception as error:
        raise CorruptError(f"cannot load {folder}: {error}; restore it with: git checkout {folder}") from error


@lru_cache
def load_tokenizer(scale: Scale) -> PocketTokenizer:
    from .pocket.tokenizer import PocketTokenizer

    return _hub_model(PocketTokenizer, weights_folder(scale, "tokenizer"))


@lru_cache
def load_generator(scale: Scale, name: str = "base") -> Showo:
    """The generator; `base` is the only one so far."""
    from .showo import Showo

    if name != "base":
        raise ValueError(f"unknown generator {name!r}; known: base")
    return Showo.from_pretrained(weights_folder(scale, "generator"))


@lru_cache
def load_evaluator(scale: Scale) -> PocketEvaluator:
    from .detect import PocketDetector, PocketEvaluator

    return PocketEvaluator(_hub_model(PocketDetector, weights_folder(scale, "detector")))


@lru_cache
def load_judge(scale: Scale, name: str = "zero-shot") -> Judge:
    """The judge; `zero-shot` has seen clean rendered scenes only, never a generated picture."""
    from .judge import Judge

    if name != "zero-shot":
        raise ValueError(f"unknown judge {name!r}; known: zero-shot")
    return Judge.from_pretrained(weights_folder(scale, "judge"))

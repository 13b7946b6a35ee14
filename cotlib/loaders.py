"""From a scale to its models. The only module besides `pretrain` that knows where pocket weights lie.

Weights of the other scales are looked for by `hub`. Models run on the GPU where there is one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from .canary import check
from .config import Scale
from .errors import CorruptError, ForeignError, IncompleteError
from .provenance import PACKAGE

if TYPE_CHECKING:
    from .geneval import Evaluator
    from .judge import Judge
    from .magvit import Magvit
    from .pocket.tokenizer import PocketTokenizer
    from .showo import Showo

WEIGHTS = PACKAGE / "pocket" / "weights"


def weights_folder(scale: Scale, part: str) -> Path:
    """Folder of a part's weights. Raises IncompleteError where they are missing, naming what gets them."""
    if not scale.offline:
        from . import hub

        return hub.folder_of(scale, part)
    folder = WEIGHTS / part
    if not (folder / "config.json").is_file():
        raise IncompleteError(
            f"no weights in {folder}; restore them with: git checkout {folder}, or train: cotlib pretrain {part} "
            "--minutes 30"
        )
    return folder


def device() -> str:
    """Where models run: the GPU where there is one; CUDA_VISIBLE_DEVICES= in front of a command hides it."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _hub_model(cls: type, folder: Path):
    try:
        with contextlib.redirect_stdout(None):  # where it announces that a folder is a folder
            model = cls.from_pretrained(folder).float().eval()
    except Exception as error:
        raise CorruptError(f"cannot load {folder}: {error}; restore it with: git checkout {folder}") from error
    return model.to(device())


@lru_cache
def load_tokenizer(scale: Scale) -> PocketTokenizer | Magvit:
    folder = weights_folder(scale, "tokenizer")
    if scale.offline:
        from .pocket.tokenizer import PocketTokenizer

        return _hub_model(PocketTokenizer, folder)
    from .magvit import Magvit

    return Magvit.from_pretrained(folder, image_size=scale.image_size).to(device())


def generator_to_train(scale: Scale, folder: Path | None = None) -> Showo:
    """A generator in float32, anew at each call: the base of a scale, or an aligned one from its folder.

    Raises ForeignError where its pictures are not of the tokenizer's codes.
    """
    from .showo import Showo

    words = None if scale.offline or folder else weights_folder(scale, "text-tokenizer")
    folder = folder or weights_folder(scale, "generator")
    generator = Showo.from_pretrained(folder, words)
    _check_same_codes(scale, generator, folder)
    if scale.offline and device() == "cpu":
        generator.showo.set_attn_implementation("eager")  # so few tokens: its backward pass is faster than the fused
    return generator.to(device())


def load_generator(scale: Scale, folder: Path | None = None) -> Showo:
    """The same, for decoding; the last two stay in memory.

    Where it computes in bfloat16 its backbone is stored so: without casts it is 1.1 times as fast, its loss the same.
    """
    return _decoding(scale, folder)


@lru_cache(maxsize=2)  # of scale showo each is 3 GB, and notebooks go from one to the next
def _decoding(scale: Scale, folder: Path | None) -> Showo:
    from .precision import best_dtype

    generator = generator_to_train(scale, folder)
    return generator.store_backbone(best_dtype(generator.device.type))


def _check_same_codes(scale: Scale, generator: Showo, folder: Path) -> None:
    tokenizer, config = load_tokenizer(scale), generator.config
    expected, got = (tokenizer.n_tokens, tokenizer.codebook_size), (config.num_vq_tokens, config.codebook_size)
    if expected != got:
        raise ForeignError(
            f"{folder}: scale {scale.name!r} and its tokenizer have pictures of {expected[0]} tokens out of "
            f"{expected[1]} codes, this generator makes {got[0]} out of {got[1]}; use the generator of that scale, "
            f"and the tokenizer that it was trained with ({weights_folder(scale, 'tokenizer')} is another)"
        )


def evaluator_weights(scale: Scale, detector: str | None = None, clip: str | None = None) -> dict[str, Path]:
    """Where the evaluator's weights lie, by part. `detector`, `clip`: file, folder or hub name instead of the usual.

    Raises IncompleteError for weights that cannot be had, ValueError for other weights at a scale that ships its own.
    """
    if scale.offline:
        if detector or clip:
            raise ValueError(f"scale {scale.name!r} has a detector of its own; drop --detector and --clip")
        return {"detector": weights_folder(scale, "detector")}
    from . import hub

    named = {"detector": detector, "clip": clip}
    return {part: hub.find(name, part) if name else weights_folder(scale, part) for part, name in named.items()}


def evaluator_identity(scale: Scale, detector: str | None = None, clip: str | None = None) -> dict[str, str]:
    """What verdicts depend on: scale, version and 12 hex digits of each part's weights. Raises as its weights do."""
    from . import __version__, hub

    parts = evaluator_weights(scale, detector, clip)
    return {"cotlib": __version__, "scale": scale.name, **{part: hub.digest_of(path) for part, path in parts.items()}}


def load_evaluator(
    scale: Scale, detector: str | None = None, clip: str | None = None, batch_size: int | None = None
) -> Evaluator:
    """GenEval's rules over the detector of a scale; raises as `evaluator_weights`, and CorruptError for bad weights.

    batch_size: pictures looked at together, by default what suits the machine.
    """
    return _evaluator(scale, detector, clip, batch_size)


@lru_cache
def _evaluator(scale: Scale, detector: str | None, clip: str | None, batch_size: int | None) -> Evaluator:
    weights = evaluator_weights(scale, detector, clip)
    if scale.offline:
        from .pocket.detector import PocketDetector, PocketEvaluator

        return PocketEvaluator(_hub_model(PocketDetector, weights["detector"]), batch_size or 128)
    from . import hub
    from .detect import ColorClassifier, ObjectDetector, PhotoEvaluator

    model, tokenizer, processor = hub.load_clip(weights["clip"])
    return PhotoEvaluator(
        ObjectDetector(hub.load_mask2former(weights["detector"]).to(device())),
        ColorClassifier(model.to(device()), tokenizer, processor),
        batch_size or (8 if device() == "cuda" else 1),
    )


@lru_cache
def trusted_evaluator(
    scale: Scale, detector: str | None = None, clip: str | None = None, batch_size: int | None = None
) -> Evaluator:
    """The evaluator once it has passed its canary, which runs once a process. DetectorError if it fails."""
    evaluator = load_evaluator(scale, detector, clip, batch_size)
    if scale.offline:
        from .pocket.canary import labelled_scenes

        again = "cotlib pretrain detector --minutes 30"
        remedy = f"restore the weights with: git checkout {WEIGHTS / 'detector'}, or train: {again}"
        check(evaluator, labelled_scenes(), f"the detector of {WEIGHTS / 'detector'}", remedy)
    else:
        evaluator.self_check()
    return evaluator


def judge_to_train(scale: Scale, folder: Path | None = None) -> Judge:
    """The judge of a scale, or one from its folder, anew at each call. That of `pocket` has seen clean rendered scenes
    only."""
    return _judge(scale, folder or weights_folder(scale, "judge"))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without transformers' bar, which in a notebook outlives the second that small weights take to load."""
    from transformers.utils import logging

    was = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was:
            logging.enable_progress_bar()


def load_judge(scale: Scale, folder: Path | None = None) -> Judge:
    """A judge to ask: the zero-shot one of a scale, or a fine-tuned one from its folder.

    Small ones stay in memory. Of large ones, 15 GB each, the last does, and goes before another is read: whoever asks
    several in turn should hold none of them.
    """
    folder = folder or weights_folder(scale, "judge")
    if scale.offline:
        return _small(scale, folder)
    if (scale, folder) not in _large:
        _large.clear()
        _large[scale, folder] = _judge(scale, folder)
    return _large[scale, folder]


def _judge(scale: Scale, folder: Path) -> Judge:
    import torch

    from .judge import Judge

    where = device()
    in_half = where == "cuda" and not scale.offline  # 7 billion weights
    with _silent() if scale.offline else contextlib.nullcontext():
        judge = Judge.from_pretrained(folder, torch.bfloat16 if in_half else torch.float32, where)
    if where == "cuda" and scale.offline:
        judge.together = 64  # a few million weights leave a GPU idle; not compared with fewer
    if where == "cpu":  # with a mask of its own and so few tokens, 1.5 times as fast as the fused attention
        judge.model.set_attn_implementation("eager")
    return judge


_small = lru_cache(_judge)
_large: dict[tuple[Scale, Path], Judge] = {}

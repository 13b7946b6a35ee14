"""Weights that others publish: found in a folder or on the hub, loaded whole or not at all, never from a pickle.

A scale whose weights do not ship takes each part from the folder PART/ of `$COTLIB_WEIGHTS` if that is set, and else
from the hub: its cache, or the network where there is one. What names and digests need is imported above, what models
need only where one is loaded: the chain looks for weights without torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants, snapshot_download

from .config import Scale
from .errors import CorruptError, IncompleteError
from .provenance import WEIGHTS as FOLDER
from .provenance import weights_root
from .store import digest, read_json, sha256, write_json

if TYPE_CHECKING:
    from transformers import (
        CLIPImageProcessorPil,
        CLIPModel,
        CLIPTokenizer,
        Mask2FormerForUniversalSegmentation,
        PreTrainedModel,
    )

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"
GENERATORS = {"showo": "showlab/show-o", "showo512": "showlab/show-o-512x512"}
PUBLISHED = {
    "text-tokenizer": "microsoft/phi-1_5",
    "tokenizer": "showlab/magvitv2",
    "detector": DETECTOR,
    "clip": CLIP,
    "judge": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
}
PICKLES = (".pth", ".pt", ".bin", ".pkl", ".pickle", ".ckpt")
SNAPSHOT = ("*.safetensors", "*.json", "*.jinja", "merges.txt")
WORDS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")  # of a text tokenizer, no weights


# --- Where they lie -----------------------------------------------------------------------------------------------


def require(scale: Scale, parts: Sequence[str]) -> None:
    """Have these parts of a scale that ships none on this machine.

    Raises IncompleteError naming all that are missing, where they belong and how to get them; ValueError for pickles.
    """
    missing = []
    for part in parts:
        try:
            folder_of(scale, part)
        except IncompleteError as error:
            missing.append(str(error))
    if missing:
        raise IncompleteError("\n".join([f"scale {scale.name!r} lacks {len(missing)} of its weights:", *missing]))


def folder_of(scale: Scale, part: str, download: bool = True) -> Path:
    """Where a part of a scale that ships none lies; raises as `require`.

    A generator's folder with a text tokenizer of its own, as `Showo.save_pretrained` writes it, is that part as well.
    """
    if part == "text-tokenizer":
        with suppress(IncompleteError):
            generator = folder_of(scale, "generator", download=False)
            if _holds(generator, part):
                return generator
    name, root = published(scale, part), weights_root()
    folder = root / part if root else find(name, part, download)
    if not _holds(folder, part):
        expected = WORDS[0] if part == "text-tokenizer" else "a .safetensors file and its config.json"
        place, export = (root / part, "") if root else (f"FOLDER/{part}", f" and export {FOLDER}=FOLDER")
        raise IncompleteError(
            f"no {part} weights in {folder}: expected {expected}. Put them into {place}{export}; where there is a "
            f"network: {_command(name, part)} --local-dir {place}"
        )
    return folder


def published(scale: Scale, part: str) -> str:
    """Name on the hub of a part of a scale that ships none, perhaps with @REVISION."""
    return PUBLISHED.get(part) or GENERATORS[scale.name]


def patterns_of(part: str) -> tuple[str, ...]:
    """Which files of its repository are read."""
    return WORDS if part == "text-tokenizer" else SNAPSHOT


def fetched() -> dict[str, dict]:
    """What `cotlib fetch` brought: {repository: {"part", "revision", "files": {name: bytes}}}. CorruptError if torn."""
    if not _record().is_file():
        return {}
    try:
        return read_json(_record())
    except CorruptError as error:
        raise CorruptError(f"cannot read {_record()}; remove it, the next cotlib fetch writes it again") from error


def fetched_revision(repository: str) -> str | None:
    """Which revision of a repository `cotlib fetch` brought, or began to bring."""
    return fetched().get(repository, {}).get("revision")


def remember(repository: str, entry: dict) -> None:
    write_json(_record(), {**fetched(), repository: entry})


def place() -> Path:
    """Where weights that do not ship are kept: $COTLIB_WEIGHTS, else the hub's cache."""
    return weights_root() or Path(constants.HF_HUB_CACHE)


def _record() -> Path:
    """Beside the weights, so that it is carried along with them."""
    return place() / "cotlib-fetched.json"


def _holds(path: Path, part: str) -> bool:
    """Whether the part is there; ValueError if only as a pickle."""
    if part == "text-tokenizer":
        return (path / WORDS[0]).is_file()
    with suppress(IncompleteError):
        return path.exists() and bool(files_of(path))
    return False


def digests(scale: Scale, parts: Sequence[str]) -> dict[str, str | None]:
    """Digest of each part of a scale that ships none; None for what is not on this machine. Asks no network."""
    found: dict[str, str | None] = dict.fromkeys(parts)
    for part in parts:
        with suppress(IncompleteError, ValueError):
            folder = folder_of(scale, part, download=False)
            found[part] = _digest(folder / name for name in WORDS) if part == "text-tokenizer" else digest_of(folder)
    return found


def find(name: str, what: str, download: bool = True) -> Path:
    """The file or folder of weights that a path or a hub name (NAME or NAME@REVISION) stands for.

    download: whether the network may be asked. Raises ValueError for a pickle, IncompleteError for what is neither here
    nor to be had.
    """
    path = Path(name).expanduser()
    if path.suffix.lower() in PICKLES:
        raise ValueError(pickle_refusal(path))
    if path.exists():
        return path
    repository, _, revision = name.partition("@")
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", repository):
        raise IncompleteError(f"no {what} weights at {name}: expected a file, a folder, or a hub name such as {CLIP}")
    patterns, revision = list(patterns_of(what)), revision or fetched_revision(repository)
    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=patterns, local_files_only=not download)
        )
    except Exception as error:  # no network, offline, no such name: many classes, one meaning
        option = f" or pass --{what} FOLDER to cotlib geneval" if what in ("detector", "clip") else ""
        raise IncompleteError(
            f"no {what} weights: {name} is no file or folder here, and the hub gave none ({_first_line(error)}). Where "
            f"there is a network: {_command(repository, what)}; else put them into FOLDER/{what} and export "
            f"{FOLDER}=FOLDER{option}"
        ) from error


def _command(repository: str, part: str) -> str:
    return " ".join(["hf download", repository, *(WORDS if part == "text-tokenizer" else ())])


def pickle_refusal(path: Path) -> str:
    """How to turn pickled weights into safetensors, once, out of harm's way."""
    new = path.with_suffix(".safetensors")
    script = (
        "import torch; from safetensors.torch import save_file; "
        f"w = torch.load({str(path)!r}, map_location='cpu', weights_only=True); "
        f"save_file({{k: v.clone() for k, v in w.get('state_dict', w).items()}}, {str(new)!r})"
    )
    return (
        f"{path}: pickled weights are never loaded, a pickle can run any program. Convert the file once, in an "
        "environment to throw away:\n"
        "  python -m venv convert && convert/bin/pip install torch numpy safetensors\n"
        f'  convert/bin/python -c "{script}"\n'
        f"and pass {new}"
    )


def files_of(path: Path) -> list[Path]:
    """The safetensors of a file or folder. ValueError for pickles and other files, IncompleteError if none."""
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(f"{path}: expected weights as .safetensors, got {path.suffix or 'no ending'}")
        return [path]
    found = sorted(path.glob("*.safetensors"))
    if pickled := [file for file in sorted(path.iterdir()) if file.suffix.lower() in PICKLES and not found]:
        raise ValueError(pickle_refusal(pickled[0]))
    if not found:
        raise IncompleteError(f"no weights in {path}: expected a .safetensors file; fetch them again, or pass another")
    return found


def digest_of(path: Path) -> str:
    """12 hex digits of everything that makes the model: weights and, in a folder, its configuration."""
    return _digest(files_of(path) + (sorted(path.glob("*.json")) if path.is_dir() else []))


def _digest(files: Iterable[Path]) -> str:
    found = [(file, file.stat()) for file in files if file.is_file()]
    return digest({file.name: _sha256(file, seen.st_size, seen.st_mtime_ns) for file, seen in found})[:12]


@lru_cache
def _sha256(file: Path, size: int, changed_ns: int) -> str:
    """Gigabytes are read once a process, unless they change."""
    return sha256(file)


# --- Models of the evaluator --------------------------------------------------------------------------------------


def load_mask2former(path: Path) -> Mask2FormerForUniversalSegmentation:
    """The detector, float32, from a folder in the hub's layout or from GenEval's own file as safetensors.

    Raises CorruptError for weights that do not make up the whole network, or that know other classes.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    from .mask2former_keys import UNUSED
    from .prompts import CLASSES

    files = files_of(path)
    if path.is_dir() and (path / "config.json").is_file():
        model = _from_folder(Mask2FormerForUniversalSegmentation, path, UNUSED)
    else:
        model = _from_official(files)
    if model.config.num_labels != len(CLASSES):
        raise CorruptError(
            f"{path}: expected a detector of the {len(CLASSES)} COCO instances, got one of {model.config.num_labels} "
            f"labels; use {DETECTOR}"
        )
    return model


def load_clip(path: Path) -> tuple[CLIPModel, CLIPTokenizer, CLIPImageProcessorPil]:
    """CLIP, float32, with its tokenizer and image processor. Raises CorruptError where a part is missing."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    files_of(path)
    model = _from_folder(CLIPModel, path)
    try:
        return model, CLIPTokenizer.from_pretrained(path), CLIPImageProcessorPil.from_pretrained(path)
    except Exception as error:
        raise CorruptError(f"{path}: no tokenizer or image processor of CLIP ({_first_line(error)})") from error


def _from_folder(cls: type[PreTrainedModel], path: Path, unused: Iterable[str] = ()) -> PreTrainedModel:
    """A stock `from_pretrained`, but missing weights are an error, not random numbers and a warning."""
    import torch

    try:
        model, told = cls.from_pretrained(
            path, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:
        raise CorruptError(f"cannot load {cls.__name__} from {path}: {error}; fetch the files again") from error
    _check_whole(path, set(told["missing_keys"]) - set(unused), told["mismatched_keys"])
    return model.eval()


def _from_official(files: list[Path]) -> Mask2FormerForUniversalSegmentation:
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import Mask2FormerForUniversalSegmentation

    from .mask2former_keys import UNUSED, convert, is_official, official_config

    if len(files) != 1:
        raise ValueError(f"{files[0].parent}: expected a config.json or a single .safetensors, got {len(files)} files")
    try:
        weights = load_file(files[0])
    except (SafetensorError, OSError) as error:
        raise CorruptError(f"cannot read {files[0]}: {error}; convert or fetch it again") from error
    if not is_official(weights):
        raise CorruptError(
            f"{files[0]}: expected mmdetection's names (backbone..., panoptic_head...), got "
            f"{next(iter(weights), None)!r}; of weights in the hub's layout pass the folder, config.json included"
        )
    model = Mask2FormerForUniversalSegmentation(official_config())
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    converted = convert(weights)
    odd = [name for name, tensor in converted.items() if tensor.shape != shapes.get(name)]
    _check_whole(files[0], shapes.keys() - converted.keys() - set(UNUSED), odd)
    model.load_state_dict(converted, strict=False)
    return model.eval()


def _check_whole(path: Path, missing: set[str], odd: Iterable) -> None:
    odd = sorted(map(str, odd))
    if missing or odd:
        wrong = f"weights are missing ({len(missing)})" if missing else f"weights do not fit ({len(odd)})"
        raise CorruptError(
            f"{path}: {wrong}, the first {min(missing) if missing else odd[0]}; "
            "expected every weight of the network; fetch or convert the file again"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""Where candidates come from: a generator, its weights on disk and everything its pictures depend on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from .. import hub, store
from ..decode import DecodeOptions
from ..loaders import weights_folder
from ..precision import best_precision
from ..run import Run

ALSO_READ = {"generator": ("text-tokenizer",), "detector": ("clip",)}  # where weights do not ship with the package


def once(stage: Callable[..., Any]) -> Callable[..., Any]:
    """Each run makes what this stage makes of its arguments once, and keeps it: reading it again would cost seconds."""
    request = inspect.signature(stage)

    @wraps(stage)
    def kept(run: Run, *args: Any, **changes: Any) -> Any:
        asked = request.bind(run, *args, **changes)
        asked.apply_defaults()
        what = f"{stage.__module__}.{stage.__qualname__} {list(asked.arguments.items())[1:]}"
        if what not in run.made:
            run.made[what] = stage(run, *args, **changes)
        return run.made[what]

    return kept


def weights_digest(run: Run, *parts: str) -> dict[str, str | None]:
    """The first 12 hex digits of each part's weights."""
    if not run.scale.offline:
        return hub.digests(run.scale, [read for part in parts for read in (part, *ALSO_READ.get(part, ()))])
    files = {part: sorted(weights_folder(run.scale, part).glob("*.safetensors")) for part in parts}
    return {part: store.digest([store.sha256(file) for file in found])[:12] for part, found in files.items()}


def decode_options(run: Run) -> DecodeOptions:
    return DecodeOptions(
        steps=run.params["steps"],
        guidance=run.params["guidance"],
        temperature=run.params["temperature"],
        precision=best_precision(),
    )


def decoded_by(run: Run) -> dict[str, Any]:
    """What tokens depend on beside the generator. Versions that rounded rotary frequencies to bfloat16 did not say."""
    options = asdict(decode_options(run))
    return {**options, **({"rotary": "fp32"} if options["precision"] == "bf16" else {})}


@dataclass(frozen=True)
class Source:
    """A generator: its name, where its weights lie (None: those of the scale), what a path of it depends on."""

    name: str
    folder: Path | None
    made_by: Mapping[str, Any]


def base(run: Run) -> Source:
    """The generator as it comes."""
    return Source("base", None, {**decoded_by(run), **weights_digest(run, "generator")})


def without(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}

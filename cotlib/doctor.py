"""What this machine has, what will run where, and how long it will take, if anything was measured to tell it by."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from . import __version__, fetch, hub, loaders, provenance, store
from .config import EFFORTS, PARTS, SCALES, Effort, Scale
from .errors import CotlibError, IncompleteError
from .fetch import GB
from .precision import has_bf16
from .prompts import geneval_prompts, take

SPEEDS = ("speed/decode", "speed/evaluate", "speed/judge")  # pictures a second


def report(scales: list[str]) -> Iterator[str]:
    """Lines of text about the machine and each scale. Asks no network."""
    yield from _machine()
    for name in scales:
        yield ""
        yield f"scale {name}"
        yield from _weights(SCALES[name])
        yield from _times(SCALES[name])


def _machine() -> Iterator[str]:
    memory, versions = psutil.virtual_memory(), provenance.versions()
    machine = provenance.machine()
    yield f"cotlib {__version__}, Python {platform.python_version()}, torch {torch.__version__}, " + ", ".join(
        f"{name} {versions[name]}" for name in ("transformers", "accelerate") if name in versions
    )
    threads = f"{machine['cores']} cores for this process, {torch.get_num_threads()} threads of torch"
    arithmetic = "bfloat16" if has_bf16() else "float32, as this processor only emulates bfloat16"
    yield f"processor: {machine['cpu']}, {threads}, {arithmetic}"
    yield f"memory: {memory.total / GB:.1f} GB, {memory.available / GB:.1f} GB free"
    for what, folder in (("outputs", provenance.outputs_root()), ("weights", hub.place())):
        yield f"disk for {what}: {fetch.free_disk(folder) / GB:.1f} GB free in {folder}"
    yield from _gpus()


def _gpus() -> Iterator[str]:
    if not torch.cuda.is_available():
        yield "GPU: none that torch sees" + (
            "; this torch is built without CUDA" if torch.version.cuda is None and shutil.which("nvidia-smi") else ""
        )
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        yield f"GPU {i}: {torch.cuda.get_device_name(i)}, {total / GB:.1f} GB, {free / GB:.1f} GB free"


# --- Weights ------------------------------------------------------------------------------------------------------


def _weights(scale: Scale) -> Iterator[str]:
    """Which parts are there, which are not and where they belong, and whether they fit where they will run."""
    sizes: dict[str, int] = {}
    parts = fetch.POCKET_PARTS if scale.offline else PARTS
    for part in parts:
        try:
            folder = loaders.weights_folder(scale, part) if scale.offline else fetch.check_whole(scale, part)
        except (CotlibError, ValueError) as error:
            yield f"  {part}: {_lack(scale, part, error)}"
        else:
            sizes[part] = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            yield f"  {part}: {sizes[part] / GB:.3f} GB in {folder}"
    if len(sizes) < len(parts) and not scale.offline:
        yield f"  get what is missing with: cotlib fetch --scale {scale.name}"
    on_gpu = torch.cuda.is_available()
    room = torch.cuda.mem_get_info()[1] if on_gpu else psutil.virtual_memory().total
    needed = f"{sum(sizes.values()) / GB:.2f} GB of weights here, {room / GB:.1f} GB of memory"
    fits = "" if sum(sizes.values()) < room else ": they do NOT fit together"
    yield f"  runs on {torch.cuda.get_device_name() if on_gpu else 'the processor'}; {needed}{fits}"


def _lack(scale: Scale, part: str, error: Exception) -> str:
    """What is wrong with a part, in short if it is just not there."""
    if scale.offline or not isinstance(error, IncompleteError):
        return str(error)
    root = provenance.weights_root()
    into = root / part if root else f"FOLDER/{part}, with export {provenance.WEIGHTS}=FOLDER"
    return f"MISSING, {hub.published(scale, part)}; it belongs into {into}"


# --- How long -----------------------------------------------------------------------------------------------------


def _times(scale: Scale) -> Iterator[str]:
    rates, origin = _measured(scale)
    if not rates:
        first = provenance.command("01_baseline", scale.name, "smoke")
        yield f"  how long: unknown, nothing was measured here yet; {first} measures it"
        return
    yield f"  measured {origin}: " + ", ".join(f"{name[6:]} {rate:.3g} pictures/s" for name, rate in rates.items())
    for effort in EFFORTS.values():
        n = _pictures(effort)
        times = ", ".join(f"{name[6:]} {_duration(n / rate)}" for name, rate in rates.items())
        yield f"  effort {effort.name}, {n} pictures: {times}"


def _pictures(effort: Effort) -> int:
    return len(take(geneval_prompts(), effort.n_prompts_per_task)) * effort.n_images * effort.n_candidates


def _measured(scale: Scale) -> tuple[dict[str, float], str]:
    """The newest speeds that a finished notebook recorded for a scale, {name: pictures a second}, and where from.

    Those of this processor and GPU if there are any, else of another machine, which is said.
    """
    here, found = _identity({**provenance.machine(), "gpu": _gpu_name()}), []
    for metrics in provenance.outputs_root().glob(f"{scale.name}/*/*/{provenance.METRICS}"):
        manifest = provenance.peek(metrics.parent)
        rates = _speeds(metrics) if manifest else {}
        if rates:
            is_here = _identity(manifest["machine"]) == here
            found.append((is_here, manifest["started"], rates, manifest["machine"], metrics.parent))
    if not found:
        return {}, ""
    is_here, _, rates, machine, folder = max(found, key=lambda each: each[:2])
    other = "" if is_here else f" on ANOTHER machine ({machine['gpu'] or machine['cpu']}, {machine['cores']} cores)"
    return rates, f"in {'/'.join(folder.parts[-3:])}{other}"


def _speeds(metrics: Path) -> dict[str, float]:
    try:
        values = {entry["name"]: entry["value"] for entry in store.read_json(metrics)}
    except (CotlibError, TypeError, KeyError):  # damaged: `cotlib status` says so
        return {}
    return {name: values[name] for name in SPEEDS if values.get(name)}


def _gpu_name() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _identity(machine: dict[str, Any]) -> tuple:
    return tuple(machine.get(name) for name in ("cpu", "cores", "gpu"))


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"

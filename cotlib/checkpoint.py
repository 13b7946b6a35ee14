"""Files of weights in and out: safetensors only, whole or not at all, and a clear word where they do not fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .errors import CorruptError, ForeignError, IncompleteError

NAMES = ("pytorch_model.safetensors", "model.safetensors")  # Show-o's own name, and the hub's usual one


def weights_file(folder: Path) -> Path:
    """The file of weights in a folder, under either name.

    Raises ValueError for pickled weights, saying how to convert them, and where both names are there; IncompleteError
    where neither is.
    """
    from .hub import PICKLES, pickle_refusal

    folder = Path(folder)
    found = [folder / name for name in NAMES if (folder / name).is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{folder}: {' and '.join(NAMES)} are both there; move the one you do not mean elsewhere")
    pickled = [file for file in sorted(folder.glob("*")) if file.suffix.lower() in PICKLES]
    if pickled:
        raise ValueError(f"{pickle_refusal(pickled[0])}, which is read from {folder} under the name {NAMES[0]}")
    raise IncompleteError(f"no weights in {folder}: expected {' or '.join(NAMES)}; fetch the files again")


def read_config(folder: Path) -> dict:
    """config.json. Raises IncompleteError where there is none, CorruptError where it is no JSON object."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise IncompleteError(f"no config.json in {folder}; fetch the files again")
    try:
        stored = json.loads(file.read_text())
    except ValueError as error:
        raise CorruptError(f"cannot read {file}: {error}; fetch the file again") from error
    if not isinstance(stored, dict):
        raise CorruptError(f"{file}: expected a JSON object, got {type(stored).__name__}; fetch the file again")
    return stored


def shapes_of(file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor, without reading one. Raises CorruptError for a file that is torn."""
    try:
        with safe_open(file, "pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CorruptError(f"cannot read {file}: {error}; fetch the file again") from error


def fill(model: nn.Module, file: Path) -> None:
    """Give a model, which may stand on `meta`, the weights of a file, as float32.

    Raises CorruptError for a file that is torn and ForeignError for one of another network, listing what differs.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    _check_fit(file, shapes_of(file), expected)
    try:
        with safe_open(file, "pt") as weights:
            # Copies: the file may be written again while the model lives.
            state = {name: _widened(weights.get_tensor(name)) for name in expected}
    except (SafetensorError, OSError) as error:
        raise CorruptError(f"cannot read {file}: {error}; fetch the file again") from error
    model.load_state_dict(state, assign=True)


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)


def _check_fit(file: Path, found: Mapping[str, tuple], expected: Mapping[str, tuple]) -> None:
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    odd = [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    wrong = [
        f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for what, names in (("missing", missing), ("extra", extra), ("of another shape", odd))
        if names
    ]
    if wrong:
        raise ForeignError(
            f"{file}: these are not the {len(expected)} weights that its config.json describes; {'; '.join(wrong)}. "
            "Fetch weights and config.json again from one place"
        )


def save(model: nn.Module, folder: Path, config: Mapping, dtype: torch.dtype = torch.float32) -> None:
    """Write `pytorch_model.safetensors` in a floating-point type, and `config.json`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(state, folder / NAMES[0], metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

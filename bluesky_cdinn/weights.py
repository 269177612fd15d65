"""Weights as they travel: one safetensors file that says what it is, and is refused where it doesn't fit.

The header's metadata (all strings, as the format wants) are

``format``
    ``cdinn-weights``, and ``format_version``, a number.
``config``
    The network's configuration as JSON: numbers and strings, among them ``architecture``, ``version`` and
    ``side``.
``normalisation``
    How a measurement is scaled before the network sees it, a tag that code and weights must share.
``card``
    What is known of the weights as JSON: data, seeds, hours, figures. The model card is written from it.

Nothing in it is code, and none of it is unpickled: a file from anywhere can be looked at safely.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from bluesky_cdinn.errors import WeightsError
from bluesky_cdinn.files import replacing

FORMAT, FORMAT_VERSION = "cdinn-weights", 1
# A file is read whole before it is judged; ours have a few million parameters.
MAX_BYTES = 512 * 2**20

Dtype = Literal["float32", "float16", "bfloat16"]
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Weights:
    """Trained weights and what they are.

    Parameters
    ----------
    config
        The network's configuration, JSON's own types.
    state
        Its parameters and buffers by name; floating ones float32.
    normalisation
        Tag of how measurements are scaled.
    card
        What is known of them, JSON's own types.
    name
        Of the file, without its suffix.
    sha256
        Of the file's bytes; empty for weights that were never in one.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    normalisation: str
    card: dict[str, Any]
    name: str = ""
    sha256: str = ""


def save_weights(path: Path, weights: Weights, dtype: Dtype = "float32") -> str:
    """Write weights to a file that is whole or absent, and return its sha256.

    Parameters
    ----------
    path
        The file; its name is what results will name.
    weights
        What to write. ``package_version`` is added to the card.
    dtype
        What floating tensors are stored as. Half the bytes make a file half as large, at a relative
        rounding of 5e-4 (float16) or 4e-3 (bfloat16).

    Raises
    ------
    WeightsError
        A tensor isn't finite, or wouldn't be in ``dtype``, or something isn't JSON.
    """
    stored = {}
    for name, tensor in weights.state.items():
        tensor = tensor.detach().cpu()
        kept = tensor.to(_DTYPES[dtype]) if tensor.is_floating_point() else tensor
        if not torch.isfinite(kept).all():
            raise WeightsError(f"weights must be finite in {dtype}, {name} is not: package another state")
        # A copy, as safetensors refuses tensors that share memory.
        stored[name] = kept.clone(memory_format=torch.contiguous_format)
    card = weights.card | {"package_version": version("bluesky-cdinn"), "stored_as": dtype}
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "config": _json("the network's configuration", weights.config),
        "normalisation": weights.normalisation,
        "card": _json("the card", card),
    }
    content = save(stored, metadata)
    with replacing(path) as stream:
        stream.write(content)
    return hashlib.sha256(content).hexdigest()


def load_weights(
    path: Path | None = None,
    *,
    architectures: Collection[str] | None = None,
    normalisation: str | None = None,
    side: int | None = None,
) -> Weights:
    """Read weights, and refuse those that don't fit.

    Parameters
    ----------
    path
        The file; None for the one that ships with the package.
    architectures
        Names that the caller can build; None takes any.
    normalisation
        The tag of the caller's own scaling; None takes any.
    side
        Grid that the weights must be for, voxels an axis; None takes any.

    Raises
    ------
    WeightsError
        There is no such file, it isn't one of weights, it is damaged, or it is for something else.
    """
    if path is None:
        path = shipped_weights()
        if path is None:
            raise WeightsError("no weights ship with this version: name a safetensors file")
    content = _read(path)
    try:
        state = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} must be a whole safetensors file, it can't be read as one ({error}): fetch it again"
        ) from error
    metadata = _metadata(path, content)
    config, card = (_mapping(path, key, metadata[key]) for key in ("config", "card"))
    if architectures is not None:
        _require(path, "architecture", architectures, config.get("architecture"))
    if normalisation is not None:
        _require(path, "normalisation", [normalisation], metadata["normalisation"])
    if side is not None:
        _require(path, "grid", [side], config.get("side"))
    # Cloned, as what was read shares the file's bytes.
    state = {name: (t.float() if t.is_floating_point() else t).clone() for name, t in state.items()}
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"{path} must hold finite weights, {name} has others: fetch or train it again")
    digest = hashlib.sha256(content).hexdigest()
    return Weights(config, state, metadata["normalisation"], card, path.stem, digest)


def shipped_weights() -> Path | None:
    """Return the weights that ship with the package: the last by name, or None where there are none."""
    folder = resources.files("bluesky_cdinn") / "data" / "weights"
    if not folder.is_dir():
        return None
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".safetensors"))
    return Path(str(folder / names[-1])) if names else None


def fill(network: nn.Module, weights: Weights) -> None:
    """Give a network its weights, all of them.

    Raises
    ------
    WeightsError
        A tensor is missing, too many, or has another shape; the network is left as it was.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.state.items()}
    faults = [f"{name} is missing" for name in wanted.keys() - given.keys()]
    faults += [f"{name} is unknown to it" for name in given.keys() - wanted.keys()]
    faults += [
        f"{name} must be {wanted[name]}, is {given[name]}"
        for name in wanted.keys() & given.keys()
        if wanted[name] != given[name]
    ]
    if faults:
        shown = "; ".join(sorted(faults)[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
        label = weights.name or "these weights"
        raise WeightsError(
            f"{label} must fit the network: {shown}. Build it from the weights' own configuration"
        )
    network.load_state_dict(weights.state)


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise WeightsError(f"weights must be at most {MAX_BYTES:,} bytes, {path} has {size:,}")
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"weights must be a file that can be read: {error}") from error


def _metadata(path: Path, content: bytes) -> dict[str, str]:
    # The format: the header's length as 8 bytes, little end first, then the header as JSON.
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    if metadata.get("format") != FORMAT:
        raise WeightsError(
            f"{path} must say that it is {FORMAT}, its metadata don't: weights are made by `cdinn package`"
        )
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise WeightsError(
            f"{path} must have format version {FORMAT_VERSION}, it has {metadata.get('format_version')}: "
            f"use the package version that wrote it, or package the training run again"
        )
    missing = [key for key in ("config", "normalisation", "card") if key not in metadata]
    if missing:
        raise WeightsError(f"{path} must say its {' and '.join(missing)}: package the training run again")
    return metadata


def _mapping(path: Path, key: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"the {key} in {path} must be JSON: {error}") from error
    if not isinstance(value, dict):
        raise WeightsError(f"the {key} in {path} must be a JSON object, it is {type(value).__name__}")
    return value


def _require(path: Path, what: str, allowed: Collection[Any], value: Any) -> None:
    if value not in allowed:
        wanted = " or ".join(map(str, allowed))
        raise WeightsError(f"weights for {what} {wanted} are required, {path.name} is for {value}")


def _json(what: str, value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(_finite(value), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{what} must hold what JSON can: {error}") from error


def _finite(value: Any) -> Any:
    """Return a value with numbers that JSON doesn't know as None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

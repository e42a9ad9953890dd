"""The authors' checkpoints into our models, and back."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from space.errors import RunError, SpecError
from space.model.network import Network
from space.model.patches import sincos
from space.official.names import POSITIONS, official_names, positions_shape
from space.spec import ModelSpec

ENTRIES = ("ema", "model")
"""What a training checkpoint holds; the averaged weights are those that both papers sample from."""


def load_weights(model: Network, state: Mapping[str, Any] | str | Path, entry: str | None = None) -> None:
    """Copy the authors' parameters into a model in training form.

    `state` is a state dict, a training checkpoint, or a file with either (`.safetensors`, or torch's, which is never unpickled
    beyond tensors and plain data). Of a checkpoint the `ema` entry is taken, or `entry`. Raises SpecError, naming a parameter that
    is missing, extra or of another shape, and RunError for a file that cannot be read; the model is unchanged then.
    """
    found = _state(read(Path(state)) if isinstance(state, (str, Path)) else state, entry)
    places = official_names(model.spec)
    if model.spec.absolute_position == "sincos" and POSITIONS in found:
        _check_positions(model, found.pop(POSITIONS))
    for name, value in found.items():
        if name not in places:
            raise SpecError(f"parameter '{name}' {tuple(value.shape)} has no place in this architecture")
        if tuple(value.shape) != places[name].shape:
            raise SpecError(f"parameter '{name}' has shape {tuple(value.shape)}, but {places[name].shape} is needed")
    parameters = dict(model.named_parameters())
    if any(place.ours not in parameters for place in places.values()):
        raise SpecError("the model is folded; load the weights into one that space.build made")
    missing = [name for name in places if name not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SpecError(f"no value for parameter '{missing[0]}', which needs {places[missing[0]].shape}{more}")
    with torch.no_grad():
        for name, place in places.items():
            parameters[place.ours].copy_(found[name].reshape(parameters[place.ours].shape))


def state_dict(model: Network) -> dict[str, Tensor]:
    """A model's parameters as the authors' state dict; a folded model's under the names of a model that is not re-parameterised.

    Raises SpecError when the authors' code has no such model.
    """
    spec = trained_as(model)
    parameters = dict(model.named_parameters())
    found = {
        name: parameters[place.ours].detach().reshape(place.shape).clone(memory_format=torch.contiguous_format)
        for name, place in official_names(spec).items()
    }
    if spec.absolute_position == "sincos":
        found[POSITIONS] = sincos(spec.grid, spec.channels).reshape(positions_shape(spec))
    return found


def write_state_dict(model: Network, path: Path) -> None:
    """Write `state_dict(model)` as safetensors or, to a name ending in `.pt` or `.pth`, in torch's format."""
    state = state_dict(model)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".pt", ".pth"):
            torch.save(state, path)
        elif path.suffix == ".safetensors":
            save_file(state, path)
        else:
            raise RunError(f"{path}: name a file that ends in .safetensors, .pt or .pth")
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RunError(f"{path} cannot be written: {error}") from None


def trained_as(model: Network) -> ModelSpec:
    """The spec whose training form has the model's parameters: without re-parameterisation for a folded model."""
    folded = not any(".project_in.first." in name for name, _ in model.named_parameters())
    return model.spec.replace({"feed_forward.reparam": False}) if folded else model.spec


def read(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds; raises RunError when it cannot be read without running code from it."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        # DiT's training script stores its command line beside the tensors.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception:
        # Whatever a damaged or foreign file makes the readers stumble over; torch's own advice is to load it unsafely.
        raise RunError(f"{path} cannot be read as tensors and plain data: it is damaged, no checkpoint, or holds code") from None
    if not isinstance(found, dict):
        raise RunError(f"{path} holds {type(found).__name__}, not a state dict or a checkpoint")
    return found


def _state(found: Mapping[str, Any], entry: str | None) -> dict[str, Tensor]:
    held = [name for name in ENTRIES if isinstance(found.get(name), Mapping)]
    if entry is not None and entry not in held:
        raise SpecError(f"the checkpoint has no entry '{entry}'; it has {', '.join(map(str, list(found)[:5]))}")
    inner = found[entry or held[0]] if held else found
    # Saved through DistributedDataParallel, all names begin so.
    state = {str(name).removeprefix("module."): value for name, value in inner.items()}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            wanted = " or ".join(ENTRIES)
            raise SpecError(f"'{name}' is no tensor but {type(value).__name__}; give a state dict or a checkpoint with {wanted}")
    return state


def _check_positions(model: Network, table: Tensor) -> None:
    shape = positions_shape(model.spec)
    if tuple(table.shape) != shape:
        raise SpecError(f"parameter '{POSITIONS}' has shape {tuple(table.shape)}, but {shape} is needed")
    if not torch.allclose(table.float().cpu(), sincos(model.spec.grid, model.spec.channels).reshape(shape), atol=1e-4):
        raise SpecError(f"parameter '{POSITIONS}' is not the fixed sine and cosine table of DiT")

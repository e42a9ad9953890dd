"""Conversion between the authors' checkpoints and our models."""

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
"""The weights in a training checkpoint, preferred first; both papers sample from the averaged ones."""


def load_weights(model: Network, state: Mapping[str, Any] | str | Path, entry: str | None = None) -> None:
    """Copy the authors' parameters into a model in training form.

    The model is unchanged when an error is raised.

    Args:
        model: The model to fill.
        state: A state dict, a training checkpoint, or a file with either: `.safetensors`, or torch's format, of which only tensors
            and plain data are unpickled.
        entry: The entry of a checkpoint to use, in place of `ema`.

    Raises:
        SpecError: When a parameter is missing, extra or of another shape; the message names it.
        RunError: When the file cannot be read.
    """
    values = _state(read(Path(state)) if isinstance(state, (str, Path)) else state, entry)
    wanted = official_names(model.spec)
    if model.spec.absolute_position == "sincos" and POSITIONS in values:
        _check_positions(model, values.pop(POSITIONS))
    for name, value in values.items():
        if name not in wanted:
            raise SpecError(f"parameter '{name}' {tuple(value.shape)} has no place in this architecture")
        if tuple(value.shape) != wanted[name].shape:
            raise SpecError(f"parameter '{name}' has shape {tuple(value.shape)}, but {wanted[name].shape} is needed")
    parameters = dict(model.named_parameters())
    if any(parameter.ours not in parameters for parameter in wanted.values()):
        raise SpecError("the model is folded; load the weights into one that space.build made")
    missing = [name for name in wanted if name not in values]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SpecError(f"no value for parameter '{missing[0]}', which needs {wanted[missing[0]].shape}{more}")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameters[parameter.ours].copy_(values[name].reshape(parameters[parameter.ours].shape))


def state_dict(model: Network) -> dict[str, Tensor]:
    """The parameters of a model as the authors' state dict.

    A folded model has the names of a model that is not re-parameterised.

    Raises:
        SpecError: When the authors' code has no such model.
    """
    spec = trained_as(model)
    parameters = dict(model.named_parameters())
    state = {
        name: parameters[official.ours].detach().reshape(official.shape).clone(memory_format=torch.contiguous_format)
        for name, official in official_names(spec).items()
    }
    if spec.absolute_position == "sincos":
        state[POSITIONS] = sincos(spec.grid, spec.channels).reshape(positions_shape(spec))
    return state


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
    """The content of a checkpoint file; raises RunError when it cannot be read without running code from it."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        # DiT's training script stores its command line beside the tensors.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception:
        # Damaged and foreign files raise errors of many kinds, and torch's own message advises to load them unsafely.
        raise RunError(f"{path} cannot be read as tensors and plain data: it is damaged, no checkpoint, or holds code") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} holds {type(content).__name__}, not a state dict or a checkpoint")
    return content


def _state(content: Mapping[str, Any], entry: str | None) -> dict[str, Tensor]:
    held = [name for name in ENTRIES if isinstance(content.get(name), Mapping)]
    if entry is not None and entry not in held:
        raise SpecError(f"the checkpoint has no entry '{entry}'; it has {', '.join(map(str, list(content)[:5]))}")
    inner = content[entry or held[0]] if held else content
    # DistributedDataParallel adds this prefix to all names.
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

"""Conversion between the authors' checkpoints and our models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from space.errors import RunError, SpecError
from space.files import replace_file
from space.model.network import Network
from space.model.patches import sincos
from space.official.checkpoints import read
from space.official.names import POSITIONS, official_names, positions_shape
from space.spec import ModelSpec

ENTRIES = ("ema", "model")
"""The weights in a training checkpoint, preferred first; both papers sample from the averaged ones."""

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that DistributedDataParallel, torch.compile, FSDP and activation checkpointing put before a module's own names."""

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""The types of imported parameters, which become float32."""


def load_weights(model: Network, state: Mapping[str, Any] | str | Path, entry: str | None = None) -> None:
    """Copy the authors' parameters into a model in training form.

    The model is unchanged when an error is raised.

    Args:
        model: The model to fill.
        state: A state dict, a training checkpoint, or a file with either, of safetensors or in torch's format, of which only
            tensors and plain data are unpickled. Parameters may be half precision or double; they become float32.
        entry: The entry of a checkpoint to use, in place of `ema`.

    Raises:
        SpecError: When a parameter is missing, extra, not finite or of another shape or type; the message names it.
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
    plain = {name: _in_float32(name, values[name]) for name in wanted}
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameters[parameter.ours].copy_(plain[name].reshape(parameters[parameter.ours].shape))


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
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise RunError(f"{path}: name a file that ends in .safetensors, .pt or .pth")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as file:
            if path.suffix == ".safetensors":
                file.write(save(state))
            else:
                torch.save(state, file)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RunError(f"{path} cannot be written: {error}") from None


def trained_as(model: Network) -> ModelSpec:
    """The spec whose training form has the model's parameters: without re-parameterisation for a folded model."""
    folded = not any(".project_in.first." in name for name, _ in model.named_parameters())
    return model.spec.replace({"feed_forward.reparam": False}) if folded else model.spec


def _state(content: Mapping[str, Any], entry: str | None) -> dict[str, Tensor]:
    held = [name for name in ENTRIES if isinstance(content.get(name), Mapping)]
    if entry is not None and entry not in held:
        raise SpecError(f"the checkpoint has no entry '{entry}'; it has {', '.join(map(str, list(content)[:5]))}")
    inner = content[entry or held[0]] if held else content
    state: dict[str, Tensor] = {}
    for full_name, value in inner.items():
        name = ".".join(part for part in str(full_name).split(".") if part not in WRAPPERS)
        if name in state:
            raise SpecError(f"the checkpoint has '{name}' twice, once as '{full_name}'; leave one of the two out")
        if not isinstance(value, Tensor):
            wanted = " or ".join(ENTRIES)
            raise SpecError(f"'{name}' is no tensor but {type(value).__name__}; give a state dict or a checkpoint with {wanted}")
        state[name] = value
    return state


def _in_float32(name: str, value: Tensor) -> Tensor:
    """A parameter of any usual floating point type as float32."""
    if value.dtype not in FLOATS:
        types = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise SpecError(f"parameter '{name}' is {str(value.dtype).removeprefix('torch.')}, perhaps quantised; give one of {types}")
    plain = value.to(torch.float32)
    if not torch.isfinite(plain).all():
        raise SpecError(f"parameter '{name}' holds values that are not finite, as after a training that diverged; take another")
    return plain


def _check_positions(model: Network, table: Tensor) -> None:
    shape, dtype = positions_shape(model.spec), table.dtype
    if tuple(table.shape) != shape:
        raise SpecError(f"parameter '{POSITIONS}' has shape {tuple(table.shape)}, but {shape} is needed")
    table = _in_float32(POSITIONS, table)
    # A table in half precision is rounded: values up to 1, with a step of finfo.eps.
    tolerance = max(1e-4, float(torch.finfo(dtype).eps))
    if not torch.allclose(table.cpu(), sincos(model.spec.grid, model.spec.channels).reshape(shape), rtol=0, atol=tolerance):
        raise SpecError(f"parameter '{POSITIONS}' is not the fixed sine and cosine table of DiT")

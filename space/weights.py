"""Model folders: the spec, the weights, and facts about where they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from space.document import parse
from space.errors import RunError, SpecError
from space.files import replace_file, what_is
from space.model.network import Network, channels_last
from space.spec import ModelSpec, current_words
from space.tensors import read_metadata, read_tensors, write_tensors

WEIGHTS, SPEC = "model.safetensors", "spec.yaml"


def save(model: Network, folder: str | Path, facts: Mapping[str, Any] | None = None, *, folded: bool = True) -> None:
    """Write a model as `model.safetensors` and `spec.yaml`; a crash leaves each file as it was or as it shall be, never a part.

    Args:
        model: The model, in training form.
        folder: The folder to write, made where it is missing.
        facts: Plain data (JSON) about the model, kept in the file of the weights.
        folded: Whether to write the folded form; otherwise every parameter of the training form is written.

    Raises:
        RunError: When the folder cannot be written.
    """
    folder = Path(folder)
    written = model.folded() if folded else model
    plain = model.spec.model_dump(mode="json")
    metadata = {"spec": json.dumps(plain), "facts": json.dumps(dict(facts or {})), "form": "folded" if folded else "training"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replace_file(folder / SPEC) as file:
            file.write(yaml.safe_dump(plain, sort_keys=False).encode())
        write_tensors(folder / WEIGHTS, written.state_dict(), metadata)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{folder} cannot be written: {error}") from None


def load(folder: str | Path) -> Network:
    """The model in a folder that `space.save`, `nas export` or `nas import-official` wrote: folded, in eval mode.

    Raises:
        RunError: When the folder holds no model, or its weights do not fit its spec.
    """
    model = load_as_saved(folder)
    return model.folded() if model.training else model


def load_as_saved(folder: str | Path) -> Network:
    """The model in the form in which it was saved: folded in eval mode, or the training form in training mode.

    Raises:
        RunError: As `load`.
    """
    path = Path(folder) / WEIGHTS
    tensors, metadata = _read(path)
    try:
        model = channels_last(Network(parse(ModelSpec, current_words(json.loads(metadata["spec"])))))
        model = model if metadata.get("form") == "training" else model.folded()
        model.load_state_dict(tensors)
    except (SpecError, RuntimeError, ValueError) as error:
        # torch lists what does not fit below a line that names its own class.
        reason = str(error).splitlines()[-1].strip()
        raise RunError(f"{path}: the weights do not fit the spec ({reason}); export the model again") from None
    return model


def facts_of(folder: str | Path) -> dict[str, Any]:
    """The facts that were saved with a model; raises RunError when the folder holds none, or damaged ones."""
    path = Path(folder) / WEIGHTS
    try:
        facts = json.loads(_read(path, with_tensors=False)[1].get("facts", "{}"))
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise RunError(f"{path}: the facts beside the weights are damaged; export the model again")
    return facts


def _read(path: Path, with_tensors: bool = True) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        tensors, metadata = read_tensors(path) if with_tensors else ({}, read_metadata(path))
    except FileNotFoundError:
        raise RunError(f"{path.parent} is not a model folder: it has no {path.name}") from None
    except (OSError, SafetensorError):
        raise RunError(f"{path} cannot be read as a model's weights: {what_is(path)}") from None
    if "spec" not in metadata:
        raise RunError(f"{path} holds weights without a spec; use a folder that `nas export` wrote")
    return tensors, metadata

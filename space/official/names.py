"""The authors' parameter names and shapes."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch

from space.errors import SpecError
from space.model.network import Network
from space.official.arguments import kwargs_from_spec
from space.spec import ModelSpec


class OfficialParameter(NamedTuple):
    """A parameter of the authors' model: its name in our model, and its shape in theirs."""

    ours: str
    shape: tuple[int, ...]


POSITIONS = "pos_embed"
"""The fixed table of positions, (1, tokens, width), which is in DiT's state dict and not in ours."""

_BLOCKS = {
    "encoder-1": "encoder_level_1",
    "encoder-2": "encoder_level_2",
    "bottleneck": "latent",
    "decoder-2": "decoder_level_2",
    "decoder-1": "decoder_level_1",
}
_UDIT_LAYER = {
    "modulation.": "adaLN_modulation{n}.1.",
    "attention.downsampler.": "attn{n}.downsampler.layer.",
    "attention.qkv.": "attn{n}.to_qkv.",
    "attention.out.": "attn{n}.to_out.",
    "attention.log_scale": "attn{n}.logit_scale",
    "feed_forward.project_in.first.": "mlp{n}.project_in.0.",
    "feed_forward.project_in.second.": "mlp{n}.project_in.1.",
    "feed_forward.project_out.first.": "mlp{n}.project_out.0.",
    "feed_forward.project_out.second.": "mlp{n}.project_out.1.",
    "feed_forward.depthwise.k5.": "mlp{n}.dwconv.0.",
    "feed_forward.depthwise.k3.": "mlp{n}.dwconv.1.",
    "feed_forward.depthwise.k1.": "mlp{n}.dwconv.2.",
    "feed_forward.project_in.": "mlp{n}.project_in.",
    "feed_forward.project_out.": "mlp{n}.project_out.",
    "feed_forward.depthwise.": "mlp{n}.dwconv.",
}
_MLP_LAYER = {"feed_forward.project_in.": "mlp{n}.fc1.", "feed_forward.project_out.": "mlp{n}.fc2."}
_DIT_LAYER = {
    "modulation.": "adaLN_modulation.1.",
    "attention.qkv.": "attn.qkv.",
    "attention.out.": "attn.proj.",
    "feed_forward.project_in.": "mlp.fc1.",
    "feed_forward.project_out.": "mlp.fc2.",
}
_UDIT_REST = {
    "embedding.": "x_embedder.proj.",
    "down.0.convolution.": "down1_2.body.0.",
    "down.1.convolution.": "down2_3.body.0.",
    "up.decoder-2.convolution.": "up3_2.body.0.",
    "up.decoder-1.convolution.": "up2_1.body.0.",
    "skip.decoder-2.": "reduce_chan_level2.",
    "skip.decoder-1.": "reduce_chan_level1.",
    "out.": "output.",
    "out_modulation.": "final_layer.adaLN_modulation.1.",
    "prediction.": "final_layer.out_proj.",
}
_DIT_REST = {
    "embedding.": "x_embedder.proj.",
    "out_modulation.": "final_layer.adaLN_modulation.1.",
    "prediction.": "final_layer.linear.",
}
_CONVOLUTIONS = ("attention.out.", "feed_forward.project", "skip.")
"""Our linear layers that are 1×1 convolutions in the authors' U-DiT."""


def official_names(spec: ModelSpec) -> dict[str, OfficialParameter]:
    """Every parameter of the authors' model of a spec, in training form, by the authors' name.

    Raises:
        SpecError: When the authors' code cannot build the spec.
    """
    kwargs_from_spec(spec)
    with torch.device("meta"):
        model = Network(spec)
    parameters = {}
    for ours, parameter in model.named_parameters():
        parameters[_theirs(ours, spec)] = OfficialParameter(ours, _shape(ours, tuple(parameter.shape), spec))
    return parameters


def _theirs(ours: str, spec: ModelSpec) -> str:
    isotropic = spec.levels == 1
    condition = re.fullmatch(r"conditions\.(\d)\.(\w+)\.(weight|bias)", ours)
    if condition:
        level = "" if isotropic else f"_{int(condition[1]) + 1}"
        if condition[2] == "labels":
            return f"y_embedder{level}.embedding_table.{condition[3]}"
        return f"t_embedder{level}.mlp.{0 if condition[2] == 'time_in' else 2}.{condition[3]}"
    layer = re.fullmatch(r"stages\.([\w-]+)\.(\d+)\.(.*)", ours)
    if not layer:
        return _renamed(ours, _DIT_REST if isotropic else _UDIT_REST)
    index, rest = int(layer[2]), layer[3]
    if isotropic:
        return f"blocks.{index}.{_renamed(rest, _DIT_LAYER)}"
    table = _UDIT_LAYER | (_MLP_LAYER if spec.stages[0].feed_forward == "mlp" else {})
    # The authors' block consists of two of ours.
    return f"{_BLOCKS[layer[1]]}.{index // 2}.{_renamed(rest, table).format(n=index % 2 + 1)}"


def _renamed(name: str, table: dict[str, str]) -> str:
    # The first match is taken, so tables list longer prefixes before shorter ones.
    for ours, theirs in table.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise SpecError(f"the authors' code has nothing like our parameter '{name}'")


def _shape(ours: str, shape: tuple[int, ...], spec: ModelSpec) -> tuple[int, ...]:
    if len(shape) != 2:
        return shape
    if spec.levels == 1:
        # A patch's values are in the order of the kernel: channel, row, column.
        return (shape[0], spec.in_channels, spec.patch, spec.patch) if ours == "embedding.weight" else shape
    return (*shape, 1, 1) if any(part in ours for part in _CONVOLUTIONS) else shape


def positions_shape(spec: ModelSpec) -> tuple[int, ...]:
    """The shape of DiT's table of positions."""
    return 1, spec.grid**2, spec.channels

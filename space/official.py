"""The authors' code and ours: parameter names and constructor arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from space.errors import SpecError
from space.model.network import Network

_LEVELS = {"encoder_level_1": "encoder-1", "encoder_level_2": "encoder-2", "latent": "bottleneck"} | {
    "decoder_level_2": "decoder-2",
    "decoder_level_1": "decoder-1",
}
_LAYER = {
    "adaLN_modulation{n}.1.": "modulation.",
    "attn{n}.downsampler.layer.": "attention.downsampler.",
    "attn{n}.to_qkv.": "attention.qkv.",
    "attn{n}.to_out.": "attention.out.",
    "attn{n}.logit_scale": "attention.log_scale",
    "mlp{n}.project_in.0.": "feed_forward.project_in.first.",
    "mlp{n}.project_in.1.": "feed_forward.project_in.second.",
    "mlp{n}.project_out.0.": "feed_forward.project_out.first.",
    "mlp{n}.project_out.1.": "feed_forward.project_out.second.",
    "mlp{n}.dwconv.0.": "feed_forward.depthwise.k5.",
    "mlp{n}.dwconv.1.": "feed_forward.depthwise.k3.",
    "mlp{n}.dwconv.2.": "feed_forward.depthwise.k1.",
    "mlp{n}.project_in.": "feed_forward.project_in.",
    "mlp{n}.project_out.": "feed_forward.project_out.",
    "mlp{n}.dwconv.": "feed_forward.depthwise.",
    "mlp{n}.fc1.": "feed_forward.project_in.",
    "mlp{n}.fc2.": "feed_forward.project_out.",
}
_REST = {
    "x_embedder.proj.": "embedding.",
    "down1_2.body.0.": "down.0.convolution.",
    "down2_3.body.0.": "down.1.convolution.",
    "up3_2.body.0.": "up.decoder-2.convolution.",
    "up2_1.body.0.": "up.decoder-1.convolution.",
    "reduce_chan_level2.": "skip.decoder-2.",
    "reduce_chan_level1.": "skip.decoder-1.",
    "output.": "out.",
    "final_layer.adaLN_modulation.1.": "out_modulation.",
    "final_layer.out_proj.": "prediction.",
}


def our_name(name: str) -> str | None:
    """Our name of the authors' parameter, None when there is none."""
    embedder = re.fullmatch(r"([ty])_embedder_(\d)\.(?:mlp\.(\d)|embedding_table)\.(weight|bias)", name)
    if embedder:
        kind, level, index, leaf = embedder.groups()
        inner = "labels" if kind == "y" else {"0": "time_in", "2": "time_out"}[index]
        return f"conditions.{int(level) - 1}.{inner}.{leaf}"
    for theirs, ours in _REST.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    layer = re.fullmatch(r"(\w+?)\.(\d+)\.(.*)", name)
    if not layer or layer[1] not in _LEVELS:
        return None
    for half in (1, 2):
        for pattern, ours in _LAYER.items():
            theirs = pattern.format(n=half)
            if layer[3].startswith(theirs):
                # The authors' block holds two layers.
                index = 2 * int(layer[2]) + half - 1
                return f"stages.{_LEVELS[layer[1]]}.{index}.{ours}{layer[3].removeprefix(theirs)}"
    return None


def load_weights(model: Network, state: Mapping[str, Tensor]) -> None:
    """Copy the authors' parameters into a model in training form.

    Raises SpecError, naming a parameter that is missing, extra or of another shape; the model is unchanged then.
    """
    ours = dict(model.named_parameters())
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        target = our_name(name)
        if target not in ours:
            raise SpecError(f"parameter '{name}' {tuple(value.shape)} has no place in this architecture")
        expected = ours[target].shape
        # Their 1×1 convolutions are our linear layers.
        reshaped = value.flatten(1) if value.ndim == 4 and len(expected) == 2 and value.shape[2:] == (1, 1) else value
        if reshaped.shape != expected:
            raise SpecError(f"parameter '{name}' has shape {tuple(value.shape)}, but {tuple(expected)} is needed")
        found[target] = reshaped
    missing = [name for name in ours if name not in found]
    if missing:
        raise SpecError(f"no value for parameter '{missing[0]}' {tuple(ours[missing[0]].shape)} and {len(missing) - 1} more")
    with torch.no_grad():
        for name, value in found.items():
            ours[name].copy_(value)

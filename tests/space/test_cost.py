"""The closed form against the papers' printed digits, the built model, and fvcore's count."""

import math

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis

from space import Domain, ModelSpec, SearchSpace, build, cost, preset
from space.paths import changed

# Tian et al., NeurIPS 2024: Table 8 (GFLOPs, M parameters), Table 10 (vanilla), Tables 1, 7 and 9 (toy).
PRINTED = {
    "u-dit-s": (6.04, 52.05),
    "u-dit-b": (22.22, 204.43),
    "u-dit-l": (85.00, 810.19),
    "u-dit-s-vanilla": (5.91, None),
    "u-dit-b-vanilla": (21.96, None),
    "u-dit-l-vanilla": (84.48, None),
    "dit-unet-slim": (0.92, None),
    "dit-unet": (1.40, None),
    "dit-unet+kv-downsampling": (0.91, None),
    "u-dit-t": (0.91, None),
    "u-dit-t+cosine": (0.91, None),
    "u-dit-t+rope2d": (0.91, None),
    "u-dit-t+dwconv-ffn": (0.95, None),
    "u-dit-t+reparam": (0.95, None),
}

WIDE = {
    "channels": Domain.model_validate([8, 16, 24]),
    "depths": Domain.model_validate({"each": {"int": [1, 2]}}),
    "heads": Domain.model_validate({"each": [1, 2, 4]}),
    "attention.tokens": Domain.model_validate({"each": ["all", "downsampled", "key-value"]}),
    "attention.factor": Domain.model_validate({"each": [1, 2, 4]}),
    "attention.downsampler": Domain.model_validate({"each": ["pixel-shuffle", "dwconv", "dwconv-shortcut", "conv"]}),
    "attention.kernel": Domain.model_validate([3, 5]),
    "attention.similarity": Domain.model_validate(["dot", "cosine"]),
    "attention.position": Domain.model_validate(["none", "rope2d"]),
    "feed_forward.kind": Domain.model_validate({"each": ["mlp", "conv"]}),
    "feed_forward.ratio": Domain.model_validate({"float": [1, 4]}),
    "feed_forward.reparam": Domain.model_validate([False, True]),
    "learned_variance": Domain.model_validate([False, True]),
}
BASE = changed(preset("u-dit-toy"), {"input_size": 16})


def random_specs(count: int) -> list[ModelSpec]:
    space, rng = SearchSpace(BASE, WIDE), np.random.default_rng(7)
    return [space.sample(rng) for _ in range(count)]


@pytest.mark.parametrize("name", PRINTED)
def test_printed_digits_are_reproduced(name):
    gflops, params_m = PRINTED[name]
    assert f"{cost(preset(name)).gflops:.2f}" == f"{gflops:.2f}"
    if params_m is not None:
        assert f"{cost(preset(name)).params_m:.2f}" == f"{params_m:.2f}"


def test_training_form_of_the_papers_models():
    # Recomputed from the authors' code: 58.90, 231.25 and 916.34 M parameters before re-parameterisation.
    found = [f"{cost(preset(f'u-dit-{size}')).params_training / 1e6:.2f}" for size in "sbl"]
    assert found == ["58.90", "231.25", "916.34"]


def test_u_dit_b_at_512():
    spec = changed(preset("u-dit-b"), {"input_size": 64})
    assert f"{cost(spec).gflops:.1f}" == "106.7"


def test_the_parts_add_up():
    found = cost(preset("u-dit-s"))
    assert found.macs == sum(part.macs for part in found.parts)
    assert found.step_macs(8) == 8 * found.train_macs + 3 * found.fold_macs


@pytest.mark.parametrize("spec", random_specs(12), ids=lambda spec: spec.digest)
def test_equal_to_the_built_model(spec):
    """Parameters of both forms exactly; matrix products and convolutions exactly as fvcore counts them."""
    model, found = build(spec), cost(spec)
    assert sum(p.numel() for p in model.parameters()) == found.params_training
    folded = model.folded()
    assert sum(p.numel() for p in folded.parameters()) == found.params
    inputs = torch.randn(1, spec.in_channels, spec.input_size, spec.input_size), torch.tensor([3]), torch.tensor([1])
    counted = FlopCountAnalysis(folded, inputs).set_op_handle("aten::scaled_dot_product_attention", sdpa_macs)
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_operator = counted.by_operator()
    products = sum(n for op, n in by_operator.items() if op in ("conv", "linear", "matmul", "scaled_dot_product_attention"))
    assert products == found.macs - found.elementwise_macs


def sdpa_macs(inputs, outputs):
    """fvcore counts this operator as nothing."""
    query, key = (value.type().sizes() for value in inputs[:2])
    return {"scaled_dot_product_attention": 2 * math.prod(query) * key[-2]}

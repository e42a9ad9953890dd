import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from space import NasError, build, load, official, preset
from space.paths import changed
from space.weights import facts_of, save
from tests.space.test_cost import random_specs

GOLDEN = sorted((Path(__file__).parent.parent / "golden").glob("*dit_*.safetensors"))
"""Inputs, weights, outputs and gradients of the authors' code, one file a set of toggles."""


@pytest.fixture(scope="module", params=GOLDEN, ids=lambda path: path.stem)
def golden(request):
    with safe_open(request.param, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, {k: json.loads(v) for k, v in file.metadata().items()}  # noqa: SIM118


def golden_model(golden):
    tensors, arguments = golden
    model = build(official.spec_from_kwargs(arguments))
    prefix = "weights."
    official.load_weights(model, {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)})
    return model


def test_forward_and_gradients_agree_with_the_authors_code(golden):
    tensors, _ = golden
    if "output.train" not in tensors:
        pytest.skip("DiT's file holds no gradients")
    model = golden_model(golden)
    x = tensors["input.x"].clone().requires_grad_()
    out = model(x, tensors["input.t"], tensors["input.y"])
    torch.testing.assert_close(out, tensors["output.train"], rtol=0, atol=1e-5)
    (out * tensors["loss.weight"]).mean().backward()
    torch.testing.assert_close(x.grad, tensors["grad.x"], rtol=0, atol=1e-5)
    parameters, places = dict(model.named_parameters()), official.names(model.spec)
    names = [name.removeprefix("grad.") for name in tensors if name.startswith("grad.") and name != "grad.x"]
    assert len(names) >= 5
    for name in names:
        found = parameters[places[name].ours].grad.reshape(tensors[f"grad.{name}"].shape)
        torch.testing.assert_close(found, tensors[f"grad.{name}"], rtol=0, atol=1e-5)


def test_folded_form_and_guidance_agree_with_the_authors_code(golden):
    tensors, arguments = golden
    model = golden_model(golden).folded()
    x, t, y = tensors["input.x"], tensors["input.t"], tensors["input.y"]
    torch.testing.assert_close(model(x, t, y), tensors["output.eval"], rtol=0, atol=1e-5)
    labels = torch.cat([y, torch.full_like(y, arguments["num_classes"])])
    # The second half of x is not read.
    guided = model.forward_with_cfg(torch.cat([x, x + 1]), torch.cat([t, t]), labels, 4.0)
    torch.testing.assert_close(guided, tensors["output.cfg4"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec", random_specs(6), ids=lambda spec: spec.digest)
def test_folding_changes_no_output_and_no_parameter(spec):
    torch.manual_seed(0)
    model = build(spec).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, spec.in_channels, spec.input_size, spec.input_size, dtype=torch.float64)
    t, y = torch.tensor([10, 900]), torch.tensor([0, spec.num_classes])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    out = model(x, t, y)
    for _ in range(2):
        model.eval()
        torch.testing.assert_close(model.folded()(x, t, y), out, rtol=1e-9, atol=1e-9)
        model.train()
    assert torch.equal(model(x, t, y), out)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_split_weight_gradient_is_the_convolutions():
    from space.model.layout import depthwise

    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 6, 5, 3), (3, 1, 5, 5), (3,)))
    assert torch.autograd.gradcheck(depthwise, (x, weight, bias))


def test_equal_names_and_shapes_start_equal():
    a = dict(build(preset("u-dit-toy"), seed=3).named_parameters())
    other = changed(preset("u-dit-toy"), {"attention.tokens": "all", "depths.1": 2})
    b = dict(build(other, seed=3).named_parameters())
    shared = [name for name in a if name in b and a[name].shape == b[name].shape]
    assert len(shared) > 50
    assert all(torch.equal(a[name], b[name]) for name in shared)
    assert not torch.equal(a["embedding.weight"], build(preset("u-dit-toy"), seed=4).embedding.weight)


def test_initial_values():
    model = build(preset("u-dit-toy"))
    parameters = dict(model.named_parameters())
    for name in ("out_modulation.weight", "prediction.weight", "stages.bottleneck.0.modulation.weight"):
        assert not parameters[name].any()
    qkv = parameters["stages.bottleneck.0.attention.qkv.weight"]
    bound = np.sqrt(6 / sum(qkv.shape))
    assert bound * 0.98 < qkv.abs().max() <= bound
    assert parameters["conditions.0.labels.weight"].std().item() == pytest.approx(0.02, rel=0.2)
    # A new model predicts nothing.
    assert not model(torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.tensor([1])).any()


def test_saved_models_load_again(tmp_path):
    model = build(preset("u-dit-toy"))
    with torch.no_grad():
        model.prediction.weight.normal_()
    save(model, tmp_path / "model", {"study": "x"})
    loaded = load(tmp_path / "model")
    inputs = torch.randn(2, 4, 16, 16), torch.tensor([1, 2]), torch.tensor([3, 10])
    assert torch.equal(loaded(*inputs), model.folded()(*inputs))
    assert not loaded.training
    assert facts_of(tmp_path / "model") == {"study": "x"}
    with pytest.raises(NasError, match="not a model folder"):
        load(tmp_path)
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(NasError, match="cannot be read"):
        load(tmp_path / "model")

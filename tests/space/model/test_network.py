import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from space import ToolkitError, build, cost, load, official, preset
from space.weights import facts_of, save
from tests.space.strategies import specs

GOLDEN = sorted((Path(__file__).parents[2] / "golden").glob("*dit_*.safetensors"))
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
    parameters, places = dict(model.named_parameters()), official.official_names(model.spec)
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


def perturbed(spec):
    """A model in float64 all of whose parameters count: new ones have many zeros."""
    torch.manual_seed(0)
    model = build(spec).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def inputs_of(spec):
    torch.manual_seed(1)
    x = torch.randn(2, spec.in_channels, spec.input_size, spec.input_size, dtype=torch.float64, requires_grad=True)
    return x, torch.tensor([10, 900]), torch.tensor([0, spec.num_classes - 1])


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(spec=specs())
def test_folding_changes_no_output_and_no_parameter(spec):
    model, inputs = perturbed(spec), inputs_of(spec)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    out = model(*inputs)
    assert out.shape == (2, spec.out_channels, spec.input_size, spec.input_size)
    for _ in range(2):
        model.eval()
        assert torch.equal(model(*inputs), out)
        torch.testing.assert_close(model.folded()(*inputs), out, rtol=1e-9, atol=1e-9)
        model.train()
        assert torch.equal(model(*inputs), out)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("ratio", [2, 3.5])
def test_folding_in_the_step_equals_applying_every_branch(ratio):
    """Outputs and the gradients of every training parameter, in float64."""
    folding = preset("u-dit-toy").replace({"channels": 8, "feed_forward.ratio": ratio, "depths": (1, 1, 1, 1, 1)})
    models = [perturbed(folding.replace({"feed_forward.branches": branches})) for branches in (False, True)]
    outs = []
    for model in models:
        x, t, y = inputs_of(folding)
        out = model(x, t, y)
        out.square().sum().backward()
        outs += [(out, x.grad)]
    for one, other in zip(*outs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    gradients = [{name: p.grad for name, p in model.named_parameters()} for model in models]
    assert gradients[0].keys() == gradients[1].keys()
    assert sum("depthwise" in name for name in gradients[0]) == 10 * 6
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-10, atol=1e-10, msg=name)


def test_the_layers_of_a_level_share_one_modulation():
    spec = preset("u-dit-toy").replace({"modulation": "level"})
    model = build(spec)
    assert len(model.level_modulation) == spec.levels
    offsets = [name for name, _ in model.named_parameters() if name.endswith("modulation.offset")]
    assert len(offsets) == sum(stage.layers for stage in spec.stages)
    # As with a network a layer, every gate starts at 0.
    assert not any(parameter.any() for name, parameter in model.named_parameters() if "modulation" in name)
    full = preset("u-dit-s")
    assert cost(full.replace({"modulation": "level"})).params < 0.75 * cost(full).params


def test_additive_skips_are_concatenation_with_equal_halves():
    spec = preset("u-dit-toy").replace({"skip": "add", "channels": 8})
    added, concatenated = perturbed(spec), perturbed(spec.replace({"skip": "concat"}))
    halves = {f"skip.{name}.weight" for name in ("decoder-1", "decoder-2")}
    state = {name: torch.cat([v, v], dim=1) if name in halves else v for name, v in added.state_dict().items()}
    concatenated.load_state_dict(state)
    inputs = inputs_of(spec)
    torch.testing.assert_close(added(*inputs), concatenated(*inputs), rtol=1e-10, atol=1e-10)


def test_split_weight_gradient_is_the_convolutions():
    from space.model.kernels import depthwise

    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 6, 5, 3), (3, 1, 5, 5), (3,)))
    assert torch.autograd.gradcheck(depthwise, (x, weight, bias))


def test_equal_names_and_shapes_start_equal():
    a = dict(build(preset("u-dit-toy"), seed=3).named_parameters())
    other = preset("u-dit-toy").replace({"attention.tokens": "all", "depths.1": 2})
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
    with pytest.raises(ToolkitError, match="not a model folder"):
        load(tmp_path)
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ToolkitError, match="cannot be read"):
        load(tmp_path / "model")


def test_a_model_folder_with_an_older_name_of_a_field_is_read(tmp_path):
    spec = preset("dit-s/8").replace({"depths": (1,)})
    save(build(spec), tmp_path)
    weights = tmp_path / "model.safetensors"
    with safe_open(weights, framework="pt") as file:
        # An earlier version wrote no checksum.
        metadata = {key: value for key, value in file.metadata().items() if key != "checksum"}
    plain = json.loads(metadata["spec"])
    plain["ends"] = plain.pop("stem")
    save_file(load_file(weights), weights, metadata={**metadata, "spec": json.dumps(plain)})
    assert load(tmp_path).spec == spec

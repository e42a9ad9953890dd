"""The obvious form that the model's speed is measured against, and the hand-written gradients behind the speed."""

import copy

import pytest
import torch

from benchmarks.yardstick import yardstick
from space import build, preset
from space.model import kernels
from space.model.feed_forward import ReparamConvFeedForward
from space.model.position import rotations
from tests.space.model.test_network import golden, golden_model  # noqa: F401  (a fixture)


def test_the_obvious_form_agrees_with_the_authors_code(golden):  # noqa: F811
    tensors, arguments = golden
    if "patch_size" in arguments:
        pytest.skip("the obvious form is a U-DiT")
    model = yardstick(golden_model(golden).spec)
    model.load_state_dict({name.removeprefix("weights."): v for name, v in tensors.items() if name.startswith("weights.")})
    x = tensors["input.x"].clone().requires_grad_()
    out = model(x, tensors["input.t"], tensors["input.y"])
    torch.testing.assert_close(out, tensors["output.train"], rtol=0, atol=1e-5)
    (out * tensors["loss.weight"]).mean().backward()
    torch.testing.assert_close(x.grad, tensors["grad.x"], rtol=0, atol=1e-5)
    gradients = {f"grad.{name}": parameter.grad for name, parameter in model.named_parameters()}
    for name in tensors:
        if name.startswith("grad.") and name != "grad.x":
            torch.testing.assert_close(gradients[name], tensors[name], rtol=0, atol=1e-5)


def random(*shapes, grad=True):
    torch.manual_seed(0)
    return tuple(torch.randn(*shape, dtype=torch.float64, requires_grad=grad) for shape in shapes)


def strided(function):
    """A function whose outputs' gradients arrive without a plain memory order."""

    def apply(*inputs):
        out = function(*inputs)
        return tuple(o.transpose(0, -1) for o in out) if isinstance(out, tuple) else out.transpose(0, -1)

    return apply


HEADS = ((3, 6, 8), (24, 8), (24,), (2, 1, 1))
KERNELS = {
    "linear": (kernels.linear, ((2, 3, 5), (4, 5), (4,))),
    "norm": (kernels.modulated_norm, ((2, 3, 2, 6), (2, 1, 1, 6), (2, 1, 1, 6))),
    "depthwise-5": (kernels.depthwise, ((2, 6, 5, 3), (3, 1, 5, 5), (3,))),
    "depthwise-3": (kernels.depthwise, ((2, 6, 5, 3), (3, 1, 3, 3), (3,))),
    "gelu-depthwise": (lambda *x: kernels.depthwise(*x, gelu=True), ((2, 6, 5, 3), (3, 1, 5, 5), (3,))),
    "heads-dot": (lambda x, w, b: kernels.project_qkv(x, w, b, 2), HEADS[:3]),
    "heads-dot-rope": (lambda x, w, b: kernels.project_qkv(x, w, b, 2, None, rotations(2, 3, 4)), HEADS[:3]),
    "heads-cosine": (lambda x, w, b, s: kernels.project_qkv(x, w, b, 2, s.exp()), HEADS),
    "heads-cosine-rope": (lambda x, w, b, s: kernels.project_qkv(x, w, b, 2, s.exp(), rotations(2, 3, 4)), HEADS),
}


@pytest.mark.parametrize("name", KERNELS)
def test_gradients_written_by_hand(name):
    function, shapes = KERNELS[name]
    inputs = random(*shapes)
    assert torch.autograd.gradcheck(strided(function), inputs)
    for frozen in range(len(inputs)):
        some = [x.detach().requires_grad_(index != frozen) for index, x in enumerate(inputs)]
        assert torch.autograd.gradcheck(function, some)


@pytest.mark.parametrize("name", KERNELS)
def test_plain_operators_compute_the_same(name):
    function, shapes = KERNELS[name]
    inputs = random(*shapes)
    expected = function(*inputs)
    with torch.no_grad():
        torch.testing.assert_close(function(*inputs), expected)


@pytest.mark.parametrize("cached", [kernels.CACHED, 1])
def test_gradients_of_attention_over_few_tokens(cached, monkeypatch):
    monkeypatch.setattr(kernels, "CACHED", cached)
    inputs = random((3, 2, 5, 4), (3, 2, 3, 4), (3, 2, 3, 4))
    assert torch.autograd.gradcheck(strided(lambda *x: kernels.attend(*x, 0.7)), inputs)
    assert torch.autograd.gradcheck(lambda *x: kernels.attend(*x, 0.7), [inputs[0].detach(), *inputs[1:]])


@pytest.mark.parametrize("tokens", [kernels.SHORT, kernels.SHORT + 1])
def test_attention_over_few_tokens_is_the_fused_kernels(tokens):
    q, k, v = random(*[(2, 2, tokens, 4)] * 3)
    out = kernels.attend(q, k, v, 0.7)
    torch.testing.assert_close(out, torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.7))


def test_branches_one_after_the_other_are_the_folded_form():
    torch.manual_seed(0)
    folded = ReparamConvFeedForward(6, 12).double()
    for parameter in folded.parameters():
        torch.nn.init.normal_(parameter)
    literal = ReparamConvFeedForward(6, 12, branches=True).double()
    literal.load_state_dict(folded.state_dict())
    (x,) = random((2, 7, 6, 6), grad=False)
    results = []
    for module in (folded, literal):
        into = x.clone().requires_grad_()
        out = module(into)
        out.square().sum().backward()
        results.append([out, into.grad, *(p.grad for p in module.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_model_trains_under_autocast_and_after_a_copy():
    model = copy.deepcopy(build(preset("u-dit-toy")))
    with torch.no_grad():
        model.prediction.weight.normal_()
    inputs = torch.randn(2, 4, 16, 16), torch.tensor([1, 2]), torch.tensor([3, 10])
    for lower in (False, True):
        with torch.autocast("cpu", enabled=lower):
            out = model(*inputs)
        out.float().square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())

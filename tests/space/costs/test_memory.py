"""The closed form of training memory against what autograd keeps, and against resident memory."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.training_memory import CASES, peak_bytes
from space import build, cost, preset
from space.costs.memory import memory
from tests.space.strategies import specs


def kept_bytes(spec, batch):
    """The storages that the forward pass keeps for the backward pass, parameters and buffers apart."""
    model = build(spec)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    x = torch.randn(batch, spec.in_channels, spec.input_size, spec.input_size)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(x, torch.zeros(batch), torch.zeros(batch, dtype=torch.long))
    assert out.requires_grad
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own and t.dtype.is_floating_point)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(spec=specs())
def test_activations_are_what_autograd_keeps(spec):
    small, large = kept_bytes(spec, 2), kept_bytes(spec, 10)
    predicted = memory(spec, 10).activations - memory(spec, 2).activations
    assert predicted == pytest.approx(large - small, rel=0.1)


@pytest.mark.parametrize("name", ["u-dit-toy", "u-dit-t", "u-dit-t+rope2d", "dit-unet", "dit-unet+kv-downsampling", "dit-s/8"])
def test_activations_of_presets_within_three_per_cent(name):
    assert memory(preset(name), 4).activations == pytest.approx(kept_bytes(preset(name), 4), rel=0.03)


def test_parts_and_their_sums():
    found, spec = memory(preset("u-dit-b"), 16, averages=2), preset("u-dit-b")
    assert [part.name for part in found.parts] == [part.name for part in cost(spec).parts]
    assert found.weights == found.gradients == 4 * cost(spec).params_training
    assert found.optimizer == found.averages == 2 * found.weights
    assert found.activations == sum(part.activations for part in found.parts)
    # Weights, moments and averages stay; on top comes at least a whole set of gradients, or all activations.
    assert found.peak > 5 * found.weights + max(found.gradients, found.activations)
    assert memory(spec, 32).activations > 1.9 * memory(spec, 16).activations


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_peak_is_within_a_fifth_of_a_measurement(name):
    assert memory(preset(name), CASES[name]).peak == pytest.approx(peak_bytes(name, CASES[name]), rel=0.2)

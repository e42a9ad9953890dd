"""Samplers against the closed form: of Gaussian data the exact denoiser is known, so mean and covariance must come back."""

import math
from itertools import pairwise
from typing import get_args

import pytest
import torch

from nas.diffusion.prediction import BINS, Epsilon, Flow, V, prediction
from nas.diffusion.samplers import SAMPLER_FUNCTIONS, Denoiser, sampler_named
from nas.study.choices import DEFAULT_SAMPLERS, SAMPLERS, Sampler
from nas.study.settings import PredictionSettings
from space import ToolkitError

MEAN = torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64)
FACTOR = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.2, 0.8]], dtype=torch.float64)
COVARIANCE = FACTOR @ FACTOR.T


def posterior_mean(x, alpha, sigma):
    """E[x0 | αx0 + σε = x] for x0 of N(MEAN, COVARIANCE)."""
    gain = alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * torch.eye(3, dtype=torch.float64))
    return MEAN + (x - alpha * MEAN) @ gain.T


def exact(kind):
    """The predictions of a perfect model of the Gaussian."""

    def predict(x, t):
        flat = x.reshape(len(x), 3)
        if isinstance(kind, Flow):
            time = float(t[0])
            alpha, sigma = time, 1 - time
            x0 = posterior_mean(flat, alpha, sigma)
            # At t = 1 the noise is invisible; its expectation is 0.
            out = x0 - ((flat - alpha * x0) / sigma if sigma else 0)
            return out.reshape(x.shape)
        product = kind.diffusion.alphas_cumprod[int(t[0])]
        alpha, sigma = product.sqrt(), (1 - product).sqrt()
        x0 = posterior_mean(flat, alpha, sigma)
        noise = (flat - alpha * x0) / sigma
        out = alpha * noise - sigma * x0 if isinstance(kind, V) else noise
        return out.reshape(x.shape)

    return predict


def normal(count, seed):
    x = torch.randn(count, 3, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    # Exactly standard in the sample, so that only the sampler's own error is left.
    flat = x.reshape(count, 3) - x.reshape(count, 3).mean(dim=0)
    return (flat @ torch.linalg.inv(torch.linalg.cholesky(flat.T @ flat / count)).T).reshape(count, 3, 1, 1)


def sampled(kind, sampler, steps, count=4000, bound=None):
    generator = torch.Generator().manual_seed(5)
    denoiser = Denoiser(kind, exact(kind), lambda: torch.randn(count, 3, 1, 1, dtype=torch.float64, generator=generator), bound)
    return sampler(denoiser, normal(count, 1), steps).reshape(count, 3)


def deviation(kind, sampler, steps):
    x = sampled(kind, sampler, steps)
    centred = x - x.mean(dim=0)
    covariance = centred.T @ centred / len(x)
    return max((x.mean(dim=0) - MEAN).abs().max().item(), (covariance - COVARIANCE).abs().max().item())


@pytest.mark.parametrize("kind", [Epsilon(), V()], ids=["epsilon", "v"])
@pytest.mark.parametrize(("name", "steps", "tolerance"), [("ddpm", 1000, 0.06), ("ddim", 1000, 0.02), ("dpm++", 100, 0.01)])
def test_every_sampler_of_steps_recovers_the_gaussian(kind, name, steps, tolerance):
    assert deviation(kind, SAMPLER_FUNCTIONS[name], steps) < tolerance


@pytest.mark.parametrize(("name", "steps", "tolerance"), [("euler", 500, 0.01), ("heun", 50, 0.002)])
def test_every_sampler_of_flows_recovers_the_gaussian(name, steps, tolerance):
    assert deviation(Flow(), SAMPLER_FUNCTIONS[name], steps) < tolerance


ORDERS = [(Flow(), "euler", 1), (Flow(), "heun", 2), (Epsilon(), "ddim", 1)]


@pytest.mark.parametrize(("kind", "name", "order"), ORDERS, ids=[name for _, name, _ in ORDERS])
def test_twice_the_steps_lower_the_error_by_the_order(kind, name, order):
    errors = [deviation(kind, SAMPLER_FUNCTIONS[name], steps) for steps in (40, 80, 160)]
    for more, fewer in pairwise(errors):
        assert 0.85 * 2**order < more / fewer < 1.2 * 2**order


@pytest.mark.parametrize(("steps", "most"), [(10, 0.08), (20, 0.03), (50, 0.008)])
def test_few_steps_of_the_second_order_do_for_diffusion(steps, most):
    # At equal distances in λ the order does not show, since the first and the last training step are fixed ends.
    found = deviation(Epsilon(), SAMPLER_FUNCTIONS["dpm++"], steps)
    assert found < most
    assert found < 0.25 * deviation(Epsilon(), SAMPLER_FUNCTIONS["ddim"], steps)


def test_one_step_would_be_noise():
    for name in SAMPLERS["epsilon"]:
        with pytest.raises(ValueError, match="step"):
            sampled(Epsilon(), SAMPLER_FUNCTIONS[name], 1)


def test_epsilon_and_v_are_the_same_denoiser():
    for name in SAMPLERS["v"]:
        sampler = SAMPLER_FUNCTIONS[name]
        torch.testing.assert_close(sampled(Epsilon(), sampler, 10), sampled(V(), sampler, 10), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(Epsilon(), n) for n in SAMPLERS["epsilon"] if n != "ddpm"] + [(Flow(), n) for n in SAMPLERS["flow"]],
    ids=str,
)
def test_the_bound_holds(kind, name):
    x = sampled(kind, SAMPLER_FUNCTIONS[name], 30, bound=0.4)
    assert x.abs().max() <= (0.4 + 1e-9 if name != "heun" else 0.7)
    assert sampled(kind, SAMPLER_FUNCTIONS[name], 30).abs().max() > 2


def test_every_sampler_has_a_name_for_the_study_and_a_function():
    named = {name for names in SAMPLERS.values() for name in names}
    assert named == set(get_args(Sampler)) == set(SAMPLER_FUNCTIONS)
    assert SAMPLERS.keys() == DEFAULT_SAMPLERS.keys() == {kind.kind for kind in (Epsilon(), V(), Flow())}
    for kind in (Epsilon(), V(), Flow()):
        assert sampler_named(None, kind) == (DEFAULT_SAMPLERS[kind.kind], SAMPLER_FUNCTIONS[DEFAULT_SAMPLERS[kind.kind]])


def test_names_fit_the_prediction():
    assert sampler_named(None, Epsilon())[0] == "ddim"
    assert sampler_named(None, Flow())[0] == "heun"
    with pytest.raises(ToolkitError, match="sampler ddpm does not fit the model, whose prediction takes euler, heun"):
        sampler_named("ddpm", Flow())
    with pytest.raises(ToolkitError, match=r"takes ddpm, ddim, dpm\+\+"):
        sampler_named("heun", V())


X0, NOISE = (torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))


@pytest.mark.parametrize("kind", [Epsilon(), V(), Flow(), Flow(True), Epsilon(5.0), V(5.0)], ids=repr)
def test_the_exact_prediction_has_no_error(kind):
    t = kind.times(6, torch.Generator().manual_seed(0))
    target = {
        Epsilon: lambda: NOISE,
        V: lambda: _v(kind, t),
        Flow: lambda: X0 - NOISE,
    }[type(kind)]()
    x_t = kind.noised(X0, t, NOISE)
    assert kind.error(target, X0, t, NOISE).abs().max() < 1e-10
    assert kind.loss(target, X0, x_t, t, NOISE).abs().max() < 1e-10
    assert (kind.loss(target + 1, X0, x_t, t, NOISE) > 0).all()
    torch.testing.assert_close(kind.error(target + 1, X0, t, NOISE), torch.ones(6))


def _v(kind, t):
    product = kind.diffusion.alphas_cumprod[t].float().view(-1, 1, 1, 1)
    return product.sqrt() * NOISE - (1 - product).sqrt() * X0


def test_min_snr_weights():
    t = torch.tensor([0, 200, 400, 600, 800, 999])
    product = Epsilon().diffusion.alphas_cumprod[t]
    snr = product / (1 - product)
    one = torch.ones(6, 2, 4, 4)
    weights = torch.minimum(snr, torch.tensor(5.0))
    x_t = V().noised(X0, t, NOISE)
    torch.testing.assert_close(Epsilon(5.0).loss(NOISE + one, X0, x_t, t, NOISE), (weights / snr).float())
    torch.testing.assert_close(V(5.0).loss(_v(V(), t) + one, X0, x_t, t, NOISE), (weights / (snr + 1)).float())
    assert weights[0] < snr[0]
    assert weights[-1] == snr[-1]


def test_times_and_grids():
    generator = torch.Generator().manual_seed(0)
    uniform, logit = Flow().times(20_000, generator), Flow(True).times(20_000, generator)
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.01)
    assert uniform.var().item() == pytest.approx(1 / 12, abs=0.002)
    # Half of a normal number's mass lies within 0.6745 of 0.
    inside = (logit.logit().abs() < 0.6745).double().mean().item()
    assert inside == pytest.approx(0.5, abs=0.01)
    for kind in (Epsilon(), Flow()):
        grid = kind.grid(4 * BINS)
        assert kind.bins(grid).bincount().tolist() == [4] * BINS
    assert math.isclose(Flow().grid(10)[0].item(), 0.05, rel_tol=1e-6)


def test_settings_make_predictions():
    assert isinstance(prediction(PredictionSettings.model_validate("v")), V)
    assert prediction(PredictionSettings(kind="flow", times="logit-normal")) == Flow(True)
    assert prediction(PredictionSettings(min_snr=5)).min_snr == 5
    with pytest.raises(ValueError, match="a flow has none, so remove it"):
        PredictionSettings(kind="flow", min_snr=5)
    with pytest.raises(ValueError, match="uniformly for v; remove times"):
        PredictionSettings(kind="v", times="logit-normal")

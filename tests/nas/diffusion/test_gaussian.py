from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nas.diffusion.gaussian import GaussianDiffusion

GOLDEN = load_file(Path(__file__).parents[2] / "golden" / "diffusion.safetensors")
"""Outputs of the authors' diffusion code."""


def close(found, name, tolerance=1e-6):
    torch.testing.assert_close(found, GOLDEN[name], rtol=tolerance, atol=tolerance)


def test_schedule_and_forward_process():
    diffusion = GaussianDiffusion()
    close(diffusion.betas, "betas", 1e-12)
    close(diffusion.alphas_cumprod, "alphas_cumprod", 1e-12)
    close(diffusion.q_sample(GOLDEN["x0"], GOLDEN["t"], GOLDEN["noise"]), "x_t")


def test_loss_terms():
    terms = GaussianDiffusion().loss_terms(GOLDEN["model_output"], GOLDEN["x0"], GOLDEN["x_t"], GOLDEN["t"], GOLDEN["noise"])
    close(terms.mse, "mse")
    close(terms.vb, "vb")
    close(terms.loss, "loss")


def test_the_bound_trains_the_variance_alone():
    output = GOLDEN["model_output"].clone().requires_grad_()
    terms = GaussianDiffusion().loss_terms(output, GOLDEN["x0"], GOLDEN["x_t"], GOLDEN["t"], GOLDEN["noise"])
    terms.vb.sum().backward()
    assert not output.grad[:, :4].any()
    assert output.grad[:, 4:].any()


@pytest.mark.parametrize("steps", [250, 50, "ddim50"])
def test_respaced_steps(steps):
    whole = GaussianDiffusion()
    # The authors' ddim50 keeps every 20th timestep, from 0 on.
    short = whole.shortened(torch.arange(0, 1000, 20)) if steps == "ddim50" else whole.respaced(steps)
    assert torch.equal(short.timestep_map, GOLDEN[f"respace.{steps}.timestep_map"])
    close(short.betas, f"respace.{steps}.betas", 1e-12)
    for i in (0, short.steps // 2, short.steps - 1):
        index = torch.full((6,), i)
        posterior = short.posterior(GOLDEN["model_output"], GOLDEN["x_t"], index)
        close(posterior.mean, f"respace.{steps}.{i}.mean")
        close(posterior.log_variance, f"respace.{steps}.{i}.log_variance")
        close(posterior.x0, f"respace.{steps}.{i}.pred_xstart")
        close(short.ddim(GOLDEN["model_output"], GOLDEN["x_t"], index), f"respace.{steps}.{i}.ddim_eta0")


def test_ddim_ends_at_the_data_when_the_noise_is_known():
    """The exact denoiser of a single image leads every noise to that image."""
    process = GaussianDiffusion().respaced(20)
    image, x = torch.rand(1, 4, 8, 8) * 2 - 1, torch.randn(1, 4, 8, 8)
    for step in reversed(range(20)):
        i = torch.tensor([step])
        product = process.alphas_cumprod[step]
        noise = (x - product.sqrt() * image) / (1 - product).sqrt()
        x = process.ddim(noise.float(), x, i, bound=1.0)
    torch.testing.assert_close(x, image, rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_respacing(steps):
    with pytest.raises(ValueError, match="steps"):
        GaussianDiffusion().respaced(steps)

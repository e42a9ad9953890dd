import pytest
import torch
from PIL import Image

from nas.diffusion.generate import _guided, sample
from nas.evaluation.images import write_grid
from space import ToolkitError, build, preset


@pytest.fixture(scope="module")
def model():
    model = build(preset("u-dit-toy"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modulation" in name or "prediction" in name:
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(name)))
            if "labels" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    return model.folded()


def test_a_sample_depends_only_on_its_number_label_and_seed(model):
    # From pure noise, x0 = (x - √(1-ᾱ)·ε)/√ᾱ enlarges the rounding of ε by about 160: 1e-3 is float32's share of that.
    how = {"steps": 3, "guidance": 2.0, "bound": 1.0}
    many = sample(model, [1, 2, 3], **how)
    assert many.shape == (3, 4, 16, 16)
    torch.testing.assert_close(sample(model, [1, 2, 3], **how, batch_size=2), many, rtol=0, atol=1e-3)
    torch.testing.assert_close(sample(model, [1], **how), many[:1], rtol=0, atol=1e-3)
    assert not torch.allclose(sample(model, [1], **how, seed=1), many[:1], atol=1e-1)
    assert not torch.allclose(sample(model, [2], **how), many[:1], atol=1e-1)


def test_guidance_acts_on_the_named_channels(model):
    x, t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([500, 20])

    def predicted(guidance, channels=None):
        with torch.no_grad():
            return _guided(model, x, t, torch.tensor([1, 2]), guidance, channels)

    plain, three, every = predicted(1.0), predicted(4.0, 3), predicted(4.0)
    torch.testing.assert_close(three[:, 3:], plain[:, 3:])
    assert not torch.allclose(three[:, :3], plain[:, :3], atol=1e-3)
    assert not torch.allclose(every[:, 3], plain[:, 3], atol=1e-3)
    found = [sample(model, [1], steps=3, guidance=4.0, guided_channels=channels) for channels in (3, None)]
    assert not torch.allclose(*found, atol=1e-3)


def test_the_bound_holds(model):
    assert sample(model, [1], steps=4, guidance=2.0, bound=1.0).abs().max() <= 1.0


def test_mistakes(model):
    with pytest.raises(ToolkitError, match="class 11 does not exist; the model has classes 0 to 9"):
        sample(model, [11])
    with pytest.raises(ToolkitError, match="not between 1 and 1000"):
        sample(model, [1], steps=2000)


def test_grid_of_pictures(tmp_path):
    images = torch.linspace(-1, 1, 6).view(6, 1, 1, 1).expand(6, 1, 4, 4).numpy()
    with pytest.raises(ToolkitError, match="4 channels, which is no picture"):
        write_grid(images.repeat(4, axis=1), 3, tmp_path / "none.png")
    write_grid(images, 3, tmp_path / "grid.png")
    picture = Image.open(tmp_path / "grid.png")
    assert picture.size == (36, 24)
    assert picture.getpixel((0, 0)) == 0
    assert picture.getpixel((35, 23)) == 255

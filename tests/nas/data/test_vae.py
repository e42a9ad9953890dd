import json
import pickle
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nas.data.codecs import codec_named
from nas.data.vae import DEFAULT_SCALE, Vae, sample_moments
from space import ToolkitError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The folder of a small autoencoder with random weights, of factor 2."""
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
        )
        # Log-variances that differ and are partly out of range, and images that are partly out of range.
        model.quant_conv.bias.data = torch.tensor([0.5, -0.5, 1, -1, -40, 30, -2, 1])
        model.decoder.conv_out.weight.data *= 5
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vae(weights):
    return Vae(str(weights), batch_size=3)


@pytest.fixture(scope="module")
def theirs(weights):
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(weights, use_safetensors=True, low_cpu_mem_usage=False)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 3, 16, 24), dtype=np.uint8)


@pytest.fixture
def copy(weights, tmp_path):
    """A folder of the autoencoder to damage."""
    for file in weights.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def scaled(images):
    return torch.from_numpy(images.astype(np.float32) / 127.5 - 1)


def posterior(model, images):
    with torch.no_grad():
        return model.encode(scaled(images)).latent_dist


def test_moments_are_those_of_diffusers(vae, theirs, images):
    found = vae.moments(images)
    expected = posterior(theirs, images)
    assert found.dtype == np.float32
    assert found.shape == (7, 8, 8, 12)
    np.testing.assert_allclose(found[:, :4], expected.mean, atol=1e-5)
    np.testing.assert_allclose(found[:, 4:], expected.logvar, atol=1e-5)
    assert found[:, 4:].min() == -30
    assert found[:, 4:].max() == 20
    # Nothing else was cut.
    inside = expected.parameters[:, 6:]
    np.testing.assert_allclose(found[:, 6:], inside, atol=1e-5)
    assert inside.std() > 0.01


def test_images_may_be_float(vae, images):
    np.testing.assert_allclose(vae.moments(scaled(images).numpy()), vae.moments(images), atol=1e-5)
    np.testing.assert_allclose(vae.moments(scaled(images).double().numpy()), vae.moments(images), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_batches_do_not_change_results(vae, weights, images, batch_size):
    other = Vae(str(weights), batch_size=batch_size)
    moments = vae.moments(images)
    np.testing.assert_allclose(other.moments(images), moments, atol=1e-5)
    np.testing.assert_allclose(other.decode(moments[:, :4]), vae.decode(moments[:, :4]), atol=1e-5)


def test_nothing_is_sampled(weights, images):
    state = torch.random.get_rng_state()
    first, second = (Vae(str(weights)).moments(images) for _ in range(2))
    assert np.array_equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_no_images_give_no_latents(vae):
    assert vae.moments(np.empty((0, 3, 16, 16), np.uint8)).shape == (0, 8, 8, 8)
    assert vae.decode(np.empty((0, 4, 8, 8), np.float32)).shape == (0, 3, 16, 16)


def test_a_mirrored_or_write_protected_view_is_encoded_as_its_copy(vae, images):
    view = images[..., ::-1]
    view.flags.writeable = False
    assert np.array_equal(vae.moments(view), vae.moments(view.copy()))


def test_encode_gives_the_scaled_mean(weights, theirs, images):
    expected = posterior(theirs, images).mean
    np.testing.assert_allclose(Vae(str(weights)).encode(images), expected * 0.18215, atol=1e-5)
    np.testing.assert_allclose(Vae(str(weights), scale=0.5).encode(images), expected * 0.5, atol=1e-5)


def test_decode_is_that_of_diffusers(weights, theirs, images):
    for scale in (DEFAULT_SCALE, 0.5):
        vae = Vae(str(weights), scale=scale)
        latents = vae.encode(images)
        with torch.no_grad():
            raw = theirs.decode(torch.from_numpy(latents) / scale).sample
        found = vae.decode(latents)
        assert found.shape == images.shape
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, raw.clamp(-1, 1), atol=1e-5)
        # Both happen: values that are cut and values that are not.
        assert 0.01 < (raw.abs() > 1).float().mean() < 0.9


def test_sample_moments_is_that_of_diffusers(vae, theirs, images):
    moments = torch.from_numpy(vae.moments(images[:2]))
    # The largest log-variance would hide the others.
    moments[:, 5] = 0.3
    expected = posterior(theirs, images[:2]).__class__(moments)
    noise = torch.randn(expected.mean.shape, generator=torch.Generator().manual_seed(5))
    drawn = expected.sample(torch.Generator().manual_seed(5))
    torch.testing.assert_close(sample_moments(moments, noise, 0.18215), drawn * 0.18215)
    assert (drawn - expected.mean).abs().max() > 0.5


def test_sample_moments_without_noise_is_the_scaled_mean():
    moments = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample_moments(moments, torch.zeros(2, 4, 3, 3), 0.5), moments[:, :4] * 0.5)


def test_sample_moments_computes_in_the_type_of_the_noise():
    moments = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0)).half()
    noise = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sample_moments(moments, noise, 0.5), sample_moments(moments.float(), noise, 0.5))


@pytest.mark.parametrize(("precision", "least", "most"), [("bf16", 1e-4, 0.1), ("fp16", 1e-5, 0.02)])
def test_half_precision_is_near(vae, weights, images, precision, least, most):
    other = vae.on("cpu", precision)
    assert other == Vae(str(weights), precision=precision, device="cpu", batch_size=3)
    error = np.abs(other.moments(images)[:, :4] - vae.moments(images)[:, :4]).max()
    assert least < error < most
    latents = vae.encode(images)
    decoded = other.decode(latents)
    assert decoded.dtype == np.float32
    assert least < np.abs(decoded - vae.decode(latents)).mean() < most


def test_numbers_out_of_range_are_refused(copy, images):
    tensors = load_file(copy / WEIGHTS)
    tensors["encoder.conv_in.weight"] *= 1e7
    tensors["decoder.conv_in.weight"] *= 1e7
    save_file(tensors, copy / WEIGHTS)
    wide, narrow = Vae(str(copy)), Vae(str(copy), precision="fp16")
    assert np.isfinite(wide.moments(images)).all()
    latents = wide.encode(images)
    for use in (lambda: narrow.moments(images), lambda: narrow.decode(latents)):
        with pytest.raises(ToolkitError, match=r"not finite in fp16; use bf16 or float32"):
            use()
    # Latents of a diverged model are not the codec's fault.
    assert np.isnan(wide.decode(np.full_like(latents, np.nan))).all()


def test_the_flags_of_cudnn_are_put_back(vae, images):
    def flags():
        cudnn = torch.backends.cudnn
        return cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32

    before, seen = flags(), []
    hook = vae._model.encoder.register_forward_hook(lambda *_: seen.append(flags()))
    vae.moments(images[:1])
    hook.remove()
    assert seen == [(True, False, True, False)]
    assert flags() == before


def test_latent_shape(vae):
    assert vae.latent_shape((3, 16, 24)) == (4, 8, 12)
    assert vae.factor == 2
    with pytest.raises(ToolkitError, match=r"divisible by 2, not 15×24"):
        vae.latent_shape((3, 15, 24))
    with pytest.raises(ToolkitError, match=r"needs images of 3 channels, not 1"):
        vae.latent_shape((1, 16, 16))


def test_latent_shape_needs_no_weights(copy):
    (copy / WEIGHTS).unlink()
    assert Vae(str(copy)).latent_shape((3, 64, 64)) == (4, 32, 32)


def test_it_is_a_codec_that_a_study_names(weights):
    codec = codec_named(f"vae:{weights}")
    assert codec == Vae(str(weights))
    assert codec.name == f"vae:{weights}"
    assert codec.guided_channels == 3
    assert codec.bound is None
    assert codec.mirror_channels(4) is None
    assert Vae().name == "vae:stabilityai/sd-vae-ft-ema"
    assert Vae().scaling == (0.18215, 0)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda vae: vae.moments(np.zeros((2, 3, 16, 15), np.uint8)), r"divisible by 2, not 16×15"),
        (lambda vae: vae.moments(np.zeros((3, 16, 16), np.uint8)), r"type uint8 or float, not uint8 \(3, 16, 16\)"),
        (lambda vae: vae.moments(np.zeros((1, 3, 16, 16), np.int64)), r"type uint8 or float, not int64 \(1, 3, 16, 16\)"),
        (lambda vae: vae.decode(np.zeros((1, 3, 8, 8), np.float32)), r"needs latents \(N, 4, H, W\), not \(1, 3, 8, 8\)"),
        (lambda vae: vae.on("cpu", "fp8"), r"no precision 'fp8'; choose one of float32, bf16, fp16"),
    ],
)
def test_refused_inputs(vae, use, message):
    with pytest.raises(ToolkitError, match=message):
        use(vae)


IMAGES = np.zeros((1, 3, 16, 16), np.uint8)


@pytest.mark.parametrize("source", ["/no/such/folder", "./vae", "../vae", "~/no-such-vae", "a/b/c", "vae-folder"])
def test_a_missing_folder_is_reported_without_asking_the_hub(monkeypatch, source):
    pytest.importorskip("diffusers")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: pytest.fail("the hub was asked"))
    vae = Vae(source)
    for use in (lambda: vae.latent_shape((3, 16, 16)), lambda: vae.moments(IMAGES)):
        with pytest.raises(
            ToolkitError, match=rf"vae:{source}: no folder .*; give a local folder that holds an AutoencoderKL's config.json"
        ):
            use()


def test_a_folder_without_configuration(tmp_path):
    pytest.importorskip("diffusers")
    with pytest.raises(ToolkitError, match=r"cannot be loaded \(.*config\.json.*\); give a local folder"):
        Vae(str(tmp_path)).moments(IMAGES)


def test_a_folder_without_weights(copy):
    (copy / WEIGHTS).unlink()
    with pytest.raises(ToolkitError, match=r"cannot be loaded \(.*safetensors.*\); give a local folder"):
        Vae(str(copy)).moments(IMAGES)


class Trap:
    """Unpickling it runs code."""

    opened = False

    def __reduce__(self):
        return setattr, (Trap, "opened", True)


def test_pickled_weights_are_not_touched(copy):
    (copy / WEIGHTS).unlink()
    (copy / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ToolkitError, match=r"cannot be loaded"):
        Vae(str(copy)).moments(IMAGES)
    assert not Trap.opened


def test_damaged_weights(copy):
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(ToolkitError, match=r"cannot be loaded"):
        Vae(str(copy)).moments(IMAGES)


def test_weights_that_lack_a_tensor_are_refused(copy):
    tensors = load_file(copy / WEIGHTS)
    del tensors["encoder.conv_in.weight"]
    save_file(tensors, copy / WEIGHTS)
    with pytest.raises(ToolkitError, match=r"its weights lack 1 tensors, 'encoder\.conv_in\.weight' among them"):
        Vae(str(copy)).moments(IMAGES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, r"describes a UNet2DConditionModel, no AutoencoderKL"),
        ({"latent_channels": None}, r"its config\.json has no 'latent_channels'"),
        ({"block_out_channels": [16, 16]}, r"cannot be loaded"),
    ],
)
def test_another_configuration(copy, change, message):
    config = {**json.loads((copy / "config.json").read_text()), **change}
    (copy / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(ToolkitError, match=message):
        Vae(str(copy)).moments(IMAGES)


def test_diffusers_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    vae = Vae(str(tmp_path))
    with pytest.raises(ToolkitError, match=r"needs diffusers \(.*\); pip install 'udit-nas\[vae\]'"):
        vae.latent_shape((3, 16, 16))


@pytest.fixture
def asked(monkeypatch, weights):
    """A hub that has the small autoencoder under any name; the list of its requests, True for those to the cache only."""
    from diffusers import AutoencoderKL

    calls = []

    def through(method):
        def call(name, local_files_only=False, **options):
            calls.append(local_files_only)
            if local_files_only:
                raise OSError("not in the cache")
            return method(weights, **options)

        return call

    for name in ("load_config", "from_pretrained"):
        monkeypatch.setattr(AutoencoderKL, name, through(getattr(AutoencoderKL, name)))
    return calls


def test_a_dead_connection_is_given_up_after_one_question(monkeypatch, asked):
    limits = []

    def unreachable(self, name, timeout):
        limits.append((name, timeout))
        raise ConnectionError("no route to host\nand a page of advice")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    with pytest.raises(ToolkitError, match=r"vae:some/vae cannot be loaded \(no route to host\); give a local folder"):
        Vae("some/vae").moments(IMAGES)
    assert limits == [("some/vae", 10)]
    assert asked == [True]


def test_a_name_on_the_hub_is_loaded(monkeypatch, asked, vae, images):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)
    other = Vae("some/vae", batch_size=3)
    assert asked == []
    np.testing.assert_array_equal(other.moments(images), vae.moments(images))
    assert asked[:2] == [True, False]

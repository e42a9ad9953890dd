import importlib.util
import sys
import types
import warnings
from importlib.resources import files
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional

from nas.evaluation import clothes, train_clothes
from nas.evaluation.extractor import Dimensions, digest_of, in_batches
from nas.evaluation.extractors import extractor_named
from nas.evaluation.inception import PREPROCESSING
from space.errors import DataError

SHIPPED = files("nas.evaluation") / "clothes.safetensors"


@pytest.fixture(scope="module")
def wardrobe():
    return extractor_named("clothes")


@pytest.fixture(scope="module")
def test_images():
    """Pixels (2000, 1, 32, 32) and labels (2000,)."""
    pixels, labels = train_clothes.read_pair(files("nas.data") / "fashion_mnist", "t10k")
    return pixels[:2000].numpy(), labels[:2000].numpy()


def noise(count, channels, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), dtype=np.uint8)


def agree(a, b, tolerance=1e-5):
    for left, right in zip(a, b, strict=True):
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


def test_names():
    with pytest.raises(DataError, match=r"no feature extractor 'inceptoin'; did you mean 'inception'\?"):
        extractor_named("inceptoin")
    with pytest.raises(DataError, match="device 'abacus' cannot be used"):
        extractor_named("clothes", device="abacus")


def test_clothes_need_no_optional_package():
    with mock.patch.dict(sys.modules, {"torch_fidelity": None, "torchvision": None}):
        assert extractor_named("clothes").name == "clothes"


def test_shipped_weights_know_their_clothes(wardrobe, test_images):
    pixels, labels = test_images
    accuracy = (wardrobe(pixels).logits.argmax(1) == labels).mean()
    assert accuracy > 0.91
    with safe_open(SHIPPED, framework="pt") as file:
        facts = file.metadata()
    assert set(facts) == {"accuracy", "epochs", "seed", "training_images"}
    assert 0.91 < float(facts["accuracy"]) < 0.95
    assert abs(float(facts["accuracy"]) - accuracy) < 0.015  # 2.5 standard errors of 2,000 images
    assert f"{float(facts['accuracy']):.2%}".replace("%", " %") in " ".join(clothes.__doc__.split())
    assert Path(str(SHIPPED)).stat().st_size < 1_000_000
    assert {tensor.dtype for tensor in load_file(SHIPPED).values()} == {torch.float32}


def test_features_of_clothes(wardrobe, test_images):
    pixels = test_images[0][:60]
    features = wardrobe(pixels)
    assert tuple(array.shape for array in features) == ((60, 64), (60, 128), (60, 10))
    assert wardrobe.dimensions == (64, 128, 10)
    assert all(isinstance(array, np.ndarray) and array.dtype == np.float32 for array in features)
    agree(features, wardrobe(torch.from_numpy(pixels)))
    agree(features, [array[::-1] for array in wardrobe(pixels[::-1])])
    frozen = pixels.copy()
    frozen.flags.writeable = False
    with warnings.catch_warnings(action="error"):
        agree(features, wardrobe(frozen))
    agree(features, wardrobe(np.repeat(pixels, 3, axis=1)))
    agree(features, [np.concatenate(parts) for parts in zip(*(wardrobe(pixels[i : i + 7]) for i in range(0, 60, 7)), strict=True)])
    assert wardrobe(pixels[:0]).pool.shape == (0, 64)


def test_features_of_clothes_step_by_step(wardrobe, test_images):
    """The shipped tensors, applied by hand."""
    weights, x = load_file(SHIPPED), torch.from_numpy(test_images[0][:3]) / 127.5 - 1
    for number, stride in enumerate((2, 2, 1, 2, 1)):
        weight, bias = weights[f"convs.{number}.weight"], weights[f"convs.{number}.bias"]
        x = functional.conv2d(x, weight, bias, stride, padding=1)
        x = x * torch.sigmoid(x)
        if number == 3:
            early = x.numpy()
    features = wardrobe(test_images[0][:3])
    maps = features.spatial.reshape(3, 4, 4, 8)
    for row, column, channel in product(range(4), range(4), range(8)):
        np.testing.assert_allclose(maps[:, row, column, channel], early[:, channel, row, column], rtol=1e-4, atol=1e-5)
    pool = x.mean((2, 3))
    np.testing.assert_allclose(features.pool, pool, rtol=1e-4, atol=1e-5)
    logits = pool @ weights["classifier.weight"].T + weights["classifier.bias"]
    np.testing.assert_allclose(features.logits, logits, rtol=1e-4, atol=1e-4)


def test_no_feature_of_clothes_is_dead_and_few_are_alike(wardrobe, test_images):
    features = wardrobe(test_images[0][:1000])
    for array in (features.pool, features.spatial):
        assert array.std(axis=0).min() > 0.01
        assert np.linalg.matrix_rank(np.cov(array.astype(np.float64), rowvar=False)) == array.shape[1]


def test_features_of_clothes_move_farther_with_more_noise_and_less_contrast(wardrobe, test_images):
    pixels = test_images[0][:500].astype(np.float64)
    grain = np.random.default_rng(0).normal(size=pixels.shape)
    plain = wardrobe(test_images[0][:500]).pool.mean(0)

    def moved(changed):
        return np.linalg.norm(wardrobe(changed.clip(0, 255).astype(np.uint8)).pool.mean(0) - plain)

    noisy = [moved(pixels + strength * grain) for strength in (5, 15, 40)]
    faint = [moved(pixels * share) for share in (0.9, 0.75, 0.5)]
    assert noisy == sorted(noisy)
    assert faint == sorted(faint)
    assert min(noisy + faint) > 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (noise(2, 1, 28), "images of 32×32 pixels, not 28×28"),
        (noise(2, 3, 32), "these have colours"),
        (noise(2, 4, 32), "uint8 .N, 1 or 3, H, W., 0 to 255, not uint8 .2, 4, 32, 32."),
        (noise(2, 1, 32).astype(np.float32), "not float32"),
        (noise(2, 1, 32)[0], "uint8 .1, 32, 32."),
        (torch.zeros(1, 1, 32, 32), "not float32"),
    ],
)
def test_wrong_images(wardrobe, images, message):
    with pytest.raises(DataError, match=message):
        wardrobe(images)


def test_digest_follows_name_preprocessing_and_weights(wardrobe, tmp_path):
    tensors = load_file(SHIPPED)
    copy, other = tmp_path / "copy.safetensors", tmp_path / "other.safetensors"
    save_file(tensors, copy)
    tensors["convs.0.bias"][0] += 1e-3
    save_file(tensors, other)
    assert len(wardrobe.digest) == 64
    assert extractor_named("clothes", copy).digest == wardrobe.digest != extractor_named("clothes", other).digest
    a, b = torch.zeros(2, 3), torch.zeros(3, 2)
    digests = [digest_of("x", 1, {"a": a}), digest_of("y", 1, {"a": a}), digest_of("x", 2, {"a": a}), digest_of("x", 1, {"a": b})]
    digests += [digest_of("x", 1, {"b": a}), digest_of("x", 1, {"a": a.half()}), digest_of("x", 1, {"a": a, "b": b})]
    assert len(set(digests)) == len(digests)
    assert digest_of("x", 1, {"b": b, "a": a}) == digests[-1]


def test_damaged_weights_of_clothes(tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(DataError, match="is not there; give a file that"):
        extractor_named("clothes", path)
    path.write_bytes(b"garbage")
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        extractor_named("clothes", path)
    save_file({**load_file(SHIPPED), "classifier.bias": torch.zeros(9)}, path)
    with pytest.raises(DataError, match=r"classifier.bias is \(9,\), not \(10,\)"):
        extractor_named("clothes", path)
    save_file({"classifier.bias": torch.zeros(10)}, path)
    with pytest.raises(DataError, match=r"classifier.weight is missing, not \(10, 64\)"):
        extractor_named("clothes", path)


def test_reduced_precision_around_does_not_matter(wardrobe, test_images):
    """Neither autocast nor TF32, which only a GPU has, reaches the network; what the caller had set stays."""
    seen = []

    def network(pixels):
        seen.append((torch.backends.cudnn.allow_tf32, torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()))
        return pixels.flatten(1)[:, :1], pixels.flatten(1)[:, :2], pixels.flatten(1)[:, :3]

    before = torch.backends.cudnn.allow_tf32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = in_batches(network, torch.arange(12.0).view(3, 1, 2, 2), 2, torch.device("cpu"), Dimensions(1, 2, 3))
        found = wardrobe(test_images[0][:4])
    assert seen == [(False, False, True)] * 2
    assert rows.spatial.tolist() == [[0, 1], [4, 5], [8, 9]]
    assert torch.backends.cudnn.allow_tf32 == before
    agree(found, wardrobe(test_images[0][:4]))


def test_training_writes_weights_that_the_extractor_takes(tmp_path, capsys):
    for name, array in (("images-idx3", noise(128, 1, 28)[:, 0]), ("labels-idx1", np.arange(128, dtype=np.uint8) % 10)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(header + array.tobytes())
    path = tmp_path / "weights.safetensors"
    with mock.patch.object(train_clothes, "accuracy", return_value=0.25):
        train_clothes.train_clothes([str(tmp_path), "--out", str(path), "--epochs", "1", "--seed", "7"])
    assert "test accuracy 0.2500" in capsys.readouterr().out
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"accuracy": "0.2500", "epochs": "1", "seed": "7", "training_images": "128"}
    assert extractor_named("clothes", path)(noise(2, 1, 32)).pool.shape == (2, 64)
    with pytest.raises(SystemExit):
        train_clothes.train_clothes([str(tmp_path / "nowhere"), "--out", str(path)])
    assert "cannot be read" in capsys.readouterr().err


def test_training_learns_alike_from_one_seed_and_folds_exactly(monkeypatch):
    monkeypatch.setattr(train_clothes, "BATCH_SIZE", 8)
    images, labels = torch.from_numpy(noise(160, 1, 32)), torch.arange(160) % 2
    images[labels == 0] //= 4
    network, again = (train_clothes.trained(images, labels, epochs=3, seed=1) for _ in range(2))
    plain = train_clothes.folded(network)
    with torch.no_grad():
        agree([x.numpy() for x in plain(images)], [x.numpy() for x in network(images)], 1e-3)
        assert torch.equal(network(images)[2], again(images)[2])
    assert not any("norm" in name for name in plain.state_dict())
    assert train_clothes.accuracy(plain, images, labels) == 1
    assert train_clothes.accuracy(plain, images, 1 - labels) == 0


def test_shifts_move_within_the_border():
    image = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    image[:, 0, 10, 20] = 9
    moved = train_clothes.shifted(image, torch.tensor([[2, -1], [-2, 0]]))
    assert moved[:, 0].nonzero().tolist() == [[0, 12, 19], [1, 8, 20]]
    pixels, _ = next(train_clothes.batches(image, torch.zeros(2), epoch=0, seed=0))
    assert pixels.sum() == 18


@pytest.fixture(scope="module")
def fidelity():
    """torch-fidelity's module; empty stand-ins take torchvision's place where it is missing: only other extractors use it."""
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed")
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("torchvision") is None:
            for name in ("", ".datasets", ".transforms", ".transforms.functional"):
                patch.setitem(sys.modules, f"torchvision{name}", types.ModuleType(f"torchvision{name}"))
            for name in ("CIFAR10", "CIFAR100", "STL10"):
                patch.setattr(sys.modules["torchvision.datasets"], name, object, raising=False)
        from torch_fidelity import feature_extractor_inceptionv3

        yield feature_extractor_inceptionv3
        for name in [name for name in sys.modules if name.partition(".")[0] == "torch_fidelity" and name not in before]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def random_weights(fidelity, tmp_path_factory):
    """A file of random weights, scaled so that activations neither vanish nor explode."""
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    nothing = path.with_name("nothing.pth")
    torch.save({}, nothing)
    with mock.patch.object(torch.nn.Module, "load_state_dict"):
        network = fidelity.FeatureExtractorInceptionV3("any", ["2048"], feature_extractor_weights_path=str(nothing))
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for name, value in network.state_dict().items():
        if "num_batches" in name:  # absent from the published file
            continue
        spread = (6 / value[0].numel()) ** 0.5 if value.ndim > 1 else 0.2
        tensors[name] = torch.empty_like(value).uniform_(-spread, spread, generator=draw)
        if name.endswith(("bn.weight", "running_var")):
            tensors[name] += 1
    save_file(tensors, path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def inception(random_weights):
    return extractor_named("inception", random_weights)


def like_tensorflow_1(images, size=299):
    """Bilinear, without half-pixel centres and without smoothing: output i reads from input i·in/out."""
    height, width = images.shape[2:]
    y, x = (np.arange(size, dtype=np.float32) * np.float32(count / size) for count in (height, width))
    top, left = y.astype(int), x.astype(int)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = (y - top)[:, None], x - left
    images = images.astype(np.float32)
    upper = images[:, :, top][..., left] * (1 - across) + images[:, :, top][..., right] * across
    lower = images[:, :, bottom][..., left] * (1 - across) + images[:, :, bottom][..., right] * across
    return torch.from_numpy((upper * (1 - down) + lower * down).astype(np.float32))


@torch.inference_mode()
def test_inception_gives_the_features_of_the_adm_suite(inception):
    images = noise(2, 3, 20)
    features, net = inception(images), inception.network
    assert tuple(array.shape for array in features) == ((2, 2048), (2, 2023), (2, 1008))
    assert inception.dimensions == (2048, 2023, 1008)

    x = (like_tensorflow_1(images) - 128) / 128
    for block in (net.Conv2d_1a_3x3, net.Conv2d_2a_3x3, net.Conv2d_2b_3x3, net.MaxPool_1, net.Conv2d_3b_1x1, net.Conv2d_4a_3x3):
        x = block(x)
    for block in (net.MaxPool_2, net.Mixed_5b, net.Mixed_5c, net.Mixed_5d, net.Mixed_6a, net.Mixed_6b, net.Mixed_6c):
        x = block(x)
    branch = net.Mixed_6d.branch1x1
    maps = functional.relu(branch.bn(branch.conv(x)))
    for block in (net.Mixed_6d, net.Mixed_6e, net.Mixed_7a, net.Mixed_7b, net.Mixed_7c):
        x = block(x)
    pool = x.mean((2, 3))
    assert pool.std() > 0.01  # the comparison says something

    np.testing.assert_allclose(features.pool, pool, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(features.logits, pool @ net.fc.weight.T, rtol=1e-3, atol=1e-3)
    assert not np.allclose(features.logits, net.fc(pool), atol=1e-2)
    assert (features.spatial == 0).mean() > 0.1
    assert (features.spatial > 0.1).mean() > 0.1
    for row, column, channel in product(range(17), range(17), range(7)):
        found = features.spatial[:, (row * 17 + column) * 7 + channel]
        np.testing.assert_allclose(found, maps[:, channel, row, column], rtol=1e-3, atol=1e-3)


def test_inception_of_grey_images_one_at_a_time(inception):
    grey = noise(2, 1, 20, seed=1)
    whole = inception(grey)
    agree(whole, inception(np.repeat(grey, 3, axis=1)), 1e-3)
    agree([array[1:] for array in whole], inception(grey[1:]), 1e-3)
    assert not inception.network.Mixed_6d.branch1x1._forward_hooks


@pytest.mark.parametrize("images", [noise(1, 3, 8).astype(np.float32), noise(1, 2, 8), noise(1, 3, 0)])
def test_inception_refuses_other_images(inception, images):
    with pytest.raises(DataError, match="images to take features of"):
        inception(images)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_file_is_refused_and_not_executed(fidelity, tmp_path, zipped):
    trace, path = tmp_path / "trace", tmp_path / "weights.pth"
    torch.save({"fc.weight": Malicious(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match="cannot be read as tensors and plain data: it holds objects of ") as caught:
        extractor_named("inception", path)
    assert "weights_only" not in str(caught.value)
    assert not trace.exists()
    call, arguments = Malicious(trace).__reduce__()
    call(*arguments)
    assert trace.exists()  # it would have shown


def test_weights_that_do_not_fit_inception(fidelity, tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(DataError, match="is not there; give"):
        extractor_named("inception", path)
    for found in ([torch.zeros(2)], {"fc.bias": torch.zeros(1008), "epoch": 3}):
        torch.save(found, path)
        with pytest.raises(DataError, match=r"holds (list, not|no mapping of names to tensors).*; give torch-fidelity's"):
            extractor_named("inception", path)
    torch.save({"fc.bias": torch.zeros(1008)}, path)
    with pytest.raises(DataError, match="does not fit InceptionV3 .Missing key") as caught:
        extractor_named("inception", path)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_inception_without_its_packages(monkeypatch):
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=r"install the extra: pip install 'udit-nas\[inception\]'"):
        extractor_named("inception")


def test_download_is_checked_and_never_unpickled(inception, random_weights, monkeypatch):
    fetch = mock.Mock(side_effect=OSError("no route to host"))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    with pytest.raises(DataError, match="cannot be had from https://.*6726825d.pth .no route to host.; download the file"):
        extractor_named("inception")
    assert fetch.call_args.kwargs["check_hash"]
    assert fetch.call_args.kwargs["weights_only"]
    fetch.side_effect, fetch.return_value = None, load_file(random_weights)
    assert extractor_named("inception").digest == inception.digest
    fetch.return_value["fc.bias"] = torch.zeros(1000)
    with pytest.raises(DataError, match=r"the downloaded file does not fit InceptionV3 \(size mismatch for fc.bias"):
        extractor_named("inception")


def test_digest_of_inception_is_that_of_its_weights(inception, random_weights):
    tensors = load_file(random_weights)
    assert digest_of("inception", PREPROCESSING, tensors) == inception.digest
    tensors["Mixed_6d.branch1x1.bn.running_mean"][3] += 1e-3
    assert digest_of("inception", PREPROCESSING, tensors) != inception.digest

import hashlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from nas.data.images import ImageFolder, centre_crop
from space import ToolkitError


def noise(height, width, seed=0):
    """Away from black and white, where a filter's overshoot would be cut off."""
    return np.random.default_rng(seed).integers(64, 192, (height, width, 3), dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def plain(value):
    """An image of one colour, which identifies it."""
    return np.full((8, 8, 3), value, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Two classes; the second has images in subfolders."""
    for value, name in enumerate(("b/e.png", "b/deep/er/0.png", "b/deep/9.PNG", "b/10.png", "a/x.png")):
        save(tmp_path / name, plain(10 * value))
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / "._x.png").write_bytes(b"what a Mac leaves in an archive")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "loose.png").write_bytes(b"of no class")
    return tmp_path


ORDER = ("a/x.png", "b/10.png", "b/e.png", "b/deep/9.PNG", "b/deep/er/0.png")


def test_classes_and_files_are_sorted(folder):
    images = ImageFolder(folder, 8)
    assert images.class_names == ("a", "b")
    assert images.files == ORDER
    assert images.labels.tolist() == [0, 1, 1, 1, 1]
    assert images.labels.dtype == np.int64
    assert len(images) == 5
    assert images.read(0, 5)[:, 0, 0, 0].tolist() == [40, 30, 0, 20, 10]


def test_read_has_the_bounds_of_a_slice(folder):
    images = ImageFolder(folder, 8)
    whole = images.read(0, 5)
    assert whole.dtype == np.uint8
    assert whole.shape == (5, 3, 8, 8)
    assert np.array_equal(images.read(1, 3), whole[1:3])
    assert np.array_equal(images.read(3, 99), whole[3:])
    assert images.read(2, 2).shape == (0, 3, 8, 8)


def test_channels_come_first(tmp_path):
    pixels = noise(8, 8)
    save(tmp_path / "a" / "0.png", pixels)
    assert np.array_equal(ImageFolder(tmp_path, 8).read(0, 1)[0], pixels.transpose(2, 0, 1))


def test_digest_covers_names_and_sizes(folder):
    def digest():
        return ImageFolder(folder, 8).digest

    first = digest()
    expected = "".join(f"{name}\0{(folder / name).stat().st_size}\0" for name in ORDER)
    assert first == hashlib.sha256(expected.encode()).hexdigest()
    with (folder / "b" / "e.png").open("ab") as file:
        file.write(b"\0")
    second = digest()
    (folder / "b" / "e.png").rename(folder / "b" / "f.png")
    assert len({first, second, digest()}) == 3


def reference_crop(pixels, size):
    """The same crop from means over 2×2 pixels and torch's bicubic filter; all sides that are halved must be even."""
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    while min(x.shape[2:]) >= 2 * size:
        assert not x.shape[2] % 2
        assert not x.shape[3] % 2
        # Pillow rounds after each of the two directions.
        for window in ((1, 2), (2, 1)):
            x = torch.nn.functional.avg_pool2d(x, window).add(0.5).floor()
    height, width = x.shape[2:]
    sides = (round(height * size / min(height, width)), round(width * size / min(height, width)))
    x = torch.nn.functional.interpolate(x, sides, mode="bicubic", antialias=True, align_corners=False)
    top, left = (sides[0] - size) // 2, (sides[1] - size) // 2
    return x[0, :, top : top + size, left : left + size].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        pytest.param(40, 70, 32, id="wide"),
        pytest.param(75, 41, 32, id="tall"),
        pytest.param(7, 10, 32, id="tiny: enlarged"),
        pytest.param(32, 32, 32, id="as it is"),
        pytest.param(140, 180, 32, id="big: halved twice"),
        pytest.param(64, 64, 32, id="exactly twice: halved once"),
        pytest.param(63, 90, 32, id="just below twice: not halved"),
    ],
)
def test_centre_crop(height, width, size):
    pixels = noise(height, width)
    found = np.asarray(centre_crop(Image.fromarray(pixels), size)).astype(float)
    assert found.shape == (size, size, 3)
    difference = np.abs(found - reference_crop(pixels, size))
    # Here, too, Pillow rounds twice.
    assert difference.max() < 2
    assert difference.mean() < 0.5


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(noise(8, 8)).convert(mode)
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / "0.tif")
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(ImageFolder(tmp_path, 8).read(0, 1)[0], expected)


def test_an_unreadable_image_is_named_with_its_index(folder):
    path = save(folder / "b" / "f.jpg", noise(64, 64), quality=95)
    path.write_bytes(path.read_bytes()[:1500])
    (folder / "b" / "deep" / "er" / "0.png").write_bytes(b"not an image")
    images = ImageFolder(folder, 8)
    with pytest.raises(ToolkitError, match=r"b/f\.jpg: image 3 cannot be read \(.*truncated.*\); restore or remove the file$"):
        images.read(0, 6)
    with pytest.raises(ToolkitError, match=r"deep/er/0\.png: image 5 cannot be read \(cannot identify"):
        images.read(4, 6)
    assert len(images.read(0, 3)) == 3


def test_an_image_that_is_gone_is_named(folder):
    images = ImageFolder(folder, 8)
    (folder / "b" / "10.png").unlink()
    for use in (lambda: images.read(0, 5), lambda: images.digest):
        with pytest.raises(ToolkitError, match=r"b/10\.png: image 1 cannot be read"):
            use()


def test_folders_that_cannot_be_used(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ToolkitError, match=r"missing: no such folder"):
        ImageFolder(empty / "missing", 8)
    save(empty / "0.png", plain(0))
    (empty / "a").mkdir()
    with pytest.raises(ToolkitError, match=r"empty\d+: no subfolders with images \(\.bmp.*\); put those of each class into"):
        ImageFolder(empty, 8)
    (folder / "aa").mkdir()
    with pytest.raises(ToolkitError, match=r"/aa: a class without images"):
        ImageFolder(folder, 8)
    with pytest.raises(ToolkitError, match=r"at least 1"):
        ImageFolder(folder, 0)


def test_many_images_keep_their_order(tmp_path):
    """Large and small files in turn, so that threads overtake each other."""
    for index in range(24):
        save(tmp_path / "a" / f"{index:02}.png", np.full((8, 8, 3) if index % 2 else (600, 600, 3), 10 * index, dtype=np.uint8))
    levels = ImageFolder(tmp_path, 8).read(0, 24)[:, 0, 0, 0].tolist()
    assert all(after - before == 10 for before, after in pairwise(levels))

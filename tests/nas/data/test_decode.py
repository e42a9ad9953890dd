import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from nas.data.decode import centre_crop
from space import ToolkitError
from tests.nas.data.pictures import noise, one, save


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


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "YCbCr", "LAB", "RGBX"])
def test_modes_of_8_bits_become_rgb(tmp_path, mode):
    image = Image.fromarray(noise(8, 8)).convert(mode)
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / "0.tif")
    assert np.array_equal(one(tmp_path), np.asarray(image.convert("RGB")))


RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def pgm(highest):
    return b"P5 8 8 %d\n" % highest + (RAMP * highest).astype(">u2").tobytes()


def tiff(values, bits, photometric, order="<"):
    """An uncompressed grey TIFF of 8×8 samples; Pillow writes neither 12 bits nor white as zero."""
    data = values.astype(f"{order}u2").tobytes()
    if bits == 12:
        pairs = values.reshape(-1, 2)
        data = bytes(
            np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1).astype(np.uint8)
        )
    tags = (
        (256, 8),
        (257, 8),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8 + 2 + 9 * 12 + 4),
        (277, 1),
        (278, 8),
        (279, len(data)),
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
    fields = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags)
    return head + fields + struct.pack(order + "I", 0) + data


def sixteen(form):
    file = io.BytesIO()
    Image.fromarray((RAMP * 65535).astype(np.uint16)).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("0.png", sixteen("PNG"), id="PNG of 16 bits"),
        pytest.param("0.tif", sixteen("TIFF"), id="TIFF of 16 bits"),
        pytest.param("0.pgm", pgm(65535), id="PGM of 16 bits"),
        pytest.param("0.pgm", pgm(4095), id="PGM of 12 bits"),
        pytest.param("0.tif", tiff((RAMP * 4095).astype(int), 12, 1), id="TIFF of 12 bits"),
        pytest.param("0.tif", tiff((RAMP * 65535).astype(int), 16, 1, ">"), id="TIFF of 16 bits, big-endian"),
        pytest.param("0.tif", tiff(65535 - (RAMP * 65535).astype(int), 16, 0), id="TIFF of 16 bits, white is zero"),
    ],
)
def test_more_than_8_bits_are_scaled(tmp_path, name, content):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_bytes(content)
    assert np.abs(one(tmp_path) - RAMP[..., None] * 255).max() < 1


@pytest.mark.parametrize("mode", ["I", "F"])
def test_values_without_a_defined_range_are_refused(tmp_path, mode):
    (tmp_path / "a").mkdir()
    Image.new(mode, (8, 8), 1).save(tmp_path / "a" / "0.tif")
    with pytest.raises(ToolkitError, match=r"a/0\.tif \(its pixels are .*, whose black and white are not defined"):
        one(tmp_path)


def test_transparency_is_composed_on_white(tmp_path):
    grey, opacity = np.full((8, 8), 100, np.uint8), np.repeat(np.array([0, 51, 255, 255], np.uint8), 16).reshape(8, 8)
    expected = np.repeat([255, 224, 100, 100], 16).reshape(8, 8)
    alpha, key = Image.merge("LA", (Image.fromarray(grey), Image.fromarray(opacity))), Image.fromarray(grey)
    indexed = Image.fromarray(np.where(opacity == 0, 1, 0).astype(np.uint8), "P")
    indexed.putpalette([100, 100, 100, 0, 0, 0])
    wide = Image.fromarray(np.where(opacity == 0, 7, 100 * 257).astype(np.uint16))
    for number, (image, options, right) in enumerate(
        (
            (alpha, {}, expected),
            (alpha.convert("RGBA"), {}, expected),
            (indexed, {"transparency": 1}, np.where(opacity == 0, 255, 100)),
            (key, {"transparency": 100}, np.full((8, 8), 255)),
            (key.convert("RGB"), {"transparency": (100, 100, 100)}, np.full((8, 8), 255)),
            (wide, {"transparency": 7}, np.where(opacity == 0, 255, 100)),
        )
    ):
        (tmp_path / str(number) / "a").mkdir(parents=True)
        image.save(tmp_path / str(number) / "a" / "0.png", **options)
        found = one(tmp_path / str(number)).astype(int)
        assert np.abs(found - right[..., None]).max() <= 1, number


@pytest.mark.parametrize("name", ["0.jpg", "0.png", "0.tif", "0.webp"])
def test_images_are_turned_upright(tmp_path, name):
    exif = Image.Exif()
    exif[274] = 6
    lying = np.zeros((8, 8, 3), np.uint8)
    lying[:4] = 255
    save(tmp_path / "a" / name, lying, exif=exif)
    found = one(tmp_path).mean(axis=(0, 2))
    assert found[:4].max() < 10
    assert found[4:].min() > 245

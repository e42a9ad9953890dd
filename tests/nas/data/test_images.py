import hashlib
import io
import re
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, features

from nas.data.images import ImageFolder
from space import ToolkitError
from tests.nas.data.pictures import noise, one, plain, save


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


def test_what_images_are_made_of_covers_names_and_sizes(folder):
    def digest():
        return ImageFolder(folder, 8).made_of(5)

    first = digest()
    expected = "".join(f"{name}\0{(folder / name).stat().st_size}\0" for name in ORDER)
    assert first == hashlib.sha256(expected.encode()).hexdigest()
    with (folder / "b" / "e.png").open("ab") as file:
        file.write(b"\0")
    second = digest()
    (folder / "b" / "e.png").rename(folder / "b" / "f.png")
    assert len({first, second, digest()}) == 3


def test_all_unreadable_images_are_told_at_once(folder):
    path = save(folder / "b" / "f.jpg", noise(64, 64), quality=95)
    path.write_bytes(path.read_bytes()[:1500])
    (folder / "b" / "deep" / "9.PNG").write_bytes(b"")
    (folder / "b" / "deep" / "er" / "0.png").write_bytes(b"not an image")
    images = ImageFolder(folder, 8)
    told = (
        r"3 of 6 images cannot be read: b/f\.jpg \(.*truncated.*\), b/deep/9\.PNG \(an empty file\), b/deep/er/0\.png "
        r"\(not an image.*\); restore or remove them, or leave them out with --skip-damaged$"
    )
    with pytest.raises(ToolkitError, match=told):
        images.read(0, 4)
    assert len(images.read(0, 3)) == 3


@pytest.mark.parametrize("error", [RuntimeError, TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError])
def test_whatever_a_decoder_raises_names_the_file(folder, monkeypatch, error):
    def damaged(_):
        raise error("odd")

    monkeypatch.setattr("nas.data.pictures.upright_rgb", damaged)
    monkeypatch.setattr("nas.data.decode.upright_rgb", damaged)
    with pytest.raises(ToolkitError, match=r"5 of 5 images cannot be read: a/x\.png \('?odd'?\), "):
        ImageFolder(folder, 8).read(0, 1)


def test_a_damaged_avif_is_named(tmp_path):
    if not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    path = save(tmp_path / "a" / "0.png", noise(64, 64), format="AVIF")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ToolkitError, match=r"1 of 1 images cannot be read: a/0\.png \("):
        one(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_random_damage_is_one_sentence_that_names_the_file(tmp_path):
    rng, wholes = np.random.default_rng(0), []
    picture = Image.fromarray(np.kron(noise(6, 6), np.ones((8, 8, 1), np.uint8)))
    for form, options in (
        ("JPEG", {}),
        ("PNG", {}),
        ("TIFF", {"compression": "packbits"}),
        ("WEBP", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("GIF", {}),
    ):
        file = io.BytesIO()
        picture.save(file, form, **options)
        wholes.append(file.getvalue())
    (tmp_path / "a").mkdir()
    told = []
    for number in range(140):
        damaged = bytearray(wholes[number % len(wholes)])
        for _ in range(rng.integers(1, 12)):
            damaged[rng.integers(min(len(damaged), 200))] = rng.integers(256)
        (tmp_path / "a" / "0.png").write_bytes(damaged[: len(damaged) if number % 2 else rng.integers(len(damaged))])
        try:
            assert one(tmp_path).shape == (8, 8, 3)
        except ToolkitError as error:
            told.append(str(error))
    assert len(told) > 70
    # One line each, without the addresses of objects.
    form = re.compile(r".*: 1 of 1 images cannot be read: a/0\.png \((?!.* at 0x).+\); restore .*")
    assert [text for text in told if not form.fullmatch(text)] == []


def test_damaged_images_are_left_out(folder):
    (folder / "b" / "e.png").write_bytes(b"damaged")
    images = ImageFolder(folder, 8, skip_damaged=True)
    # The later ones move up, also into this batch.
    assert images.read(1, 4)[:, 0, 0, 0].tolist() == [30, 20, 10]
    assert images.left_out == ("b/e.png",)
    assert images.files == ("a/x.png", "b/10.png", "b/deep/9.PNG", "b/deep/er/0.png")
    assert images.labels.tolist() == [0, 1, 1, 1]
    assert len(images) == 4
    (folder / "b" / "deep" / "9.PNG").unlink()
    with pytest.raises(ToolkitError, match=r"--skip-damaged leaves out damaged images alone, not those that cannot be reached"):
        images.read(0, 4)
    (folder / "a" / "x.png").write_bytes(b"damaged")
    with pytest.raises(ToolkitError, match=r"no image of the class a can be read; restore its images, or remove the class"):
        images.read(0, 1)


def test_an_image_that_is_gone_is_named(folder):
    images = ImageFolder(folder, 8)
    (folder / "b" / "10.png").unlink()
    with pytest.raises(ToolkitError, match=r"b/10\.png \(No such file or directory\); restore"):
        images.read(0, 5)
    with pytest.raises(ToolkitError, match=r"b/10\.png: the image cannot be read \(No such file"):
        images.made_of(5)


def test_each_file_is_listed_once_whatever_the_links(folder, tmp_path_factory):
    away = tmp_path_factory.mktemp("away")
    for name in ("more/1.png", "2.png"):
        save(away / name, plain(200))
    links = {
        "b/up": folder,  # all of it again
        "b/around": folder.parent,
        "b/loop": folder / "b",
        "b/other": folder / "a",
        "b/x.png": folder / "a" / "x.png",
        "b/loose.png": folder / "loose.png",  # of no class itself: taken
        "b/zz": away / "more",  # taken, with what is below
        "b/zzz": away,  # the rest of it
        "b/zzzz.png": away / "2.png",  # which that has already
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (away / "more" / "back").symlink_to(folder)
    images = ImageFolder(folder, 8)
    assert sorted(images.files) == sorted((*ORDER, "b/loose.png", "b/zz/1.png", "b/zzz/2.png"))
    assert images.passed_over["links to what is listed elsewhere"] > 5


def test_a_class_may_be_a_link_but_not_to_another_class(folder, tmp_path_factory):
    away = tmp_path_factory.mktemp("away")
    save(away / "0.png", plain(200))
    (folder / ".hidden").mkdir()
    save(folder / ".hidden" / "1.png", plain(210))
    (folder / "c").symlink_to(away)
    (folder / "d").symlink_to(folder / ".hidden")
    assert ImageFolder(folder, 8).files == (*ORDER, "c/0.png", "d/1.png")
    (folder / "e").symlink_to(folder / "a")
    with pytest.raises(ToolkitError, match=r"/e: what it links to is listed in another place too; remove this link"):
        ImageFolder(folder, 8)


def test_files_that_are_passed_over_are_counted(folder):
    for name in ("a/1.gif", "b/2.GIF", "b/deep/README"):
        (folder / name).write_bytes(b"")
    assert ImageFolder(folder, 8).passed_over == {".gif": 2, ".png of no class": 1, ".txt": 1, "without an ending": 1}


def test_parts_of_a_data_set_are_no_classes(tmp_path):
    for name in ("train/ant/0.png", "val/ant/0.png"):
        save(tmp_path / name, plain(0))
    with pytest.raises(ToolkitError, match=r"holds train, val, which are parts of a data set .* such as .*/train$"):
        ImageFolder(tmp_path, 8)
    assert ImageFolder(tmp_path / "train", 8).class_names == ("ant",)
    (tmp_path / "val").rename(tmp_path / ".val")
    with pytest.raises(ToolkitError, match="holds train, which"):
        ImageFolder(tmp_path, 8)
    # The only class of a data set may have such a name.
    (tmp_path / "train" / "ant" / "0.png").rename(tmp_path / "train" / "0.png")
    assert ImageFolder(tmp_path, 8).class_names == ("train",)


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

"""Labels and columns of data sets of the datasets library."""

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from nas.cli.app import main
from nas.data.hub import Columns, HubImages
from nas.data.labels import classes_of
from nas.data.store import open_store
from space import ToolkitError

datasets = pytest.importorskip("datasets")

PICTURES = [np.full((8, 8, 3), 20 * number, np.uint8) for number in range(6)]
NAMES = datasets.ClassLabel(names=["ant", "bee", "cow", "dog"])
WHOLE, TEXT = datasets.Value("int64"), datasets.Value("string")


def saved(folder, **columns):
    """A data set of six pictures and more columns, each as (feature, values)."""
    features = datasets.Features({"image": datasets.Image(), **{name: feature for name, (feature, _) in columns.items()}})
    content = {"image": [Image.fromarray(picture) for picture in PICTURES]}
    content |= {name: values for name, (_, values) in columns.items()}
    datasets.Dataset.from_dict(content, features=features).save_to_disk(folder)
    return str(folder)


def classes(folder, **columns):
    images = HubImages(folder, "train", 8, Columns(**columns))
    return images.class_names, images.labels.tolist()


@pytest.mark.parametrize(
    ("feature", "values", "names", "labels"),
    [
        (WHOLE, [1, 2, 1, 4, 4, 4], ("1", "2", "4"), [0, 1, 0, 2, 2, 2]),
        (datasets.Value("uint8"), [0, 1, 0, 1, 0, 1], ("0", "1"), [0, 1, 0, 1, 0, 1]),
        (TEXT, ["dog", "ant", "dog", "bee", "bee", "bee"], ("ant", "bee", "dog"), [2, 0, 2, 1, 1, 1]),
        (NAMES, [3, 1, 1, 1, 3, 3], ("bee", "dog"), [1, 0, 0, 0, 1, 1]),
    ],
)
def test_labels_of_every_type_become_classes_with_samples(tmp_path, feature, values, names, labels):
    assert classes(saved(tmp_path / "a", label=(feature, values))) == (names, labels)
    # By another name it is taken when it is named, or where it is the only one of class labels.
    other = saved(tmp_path / "b", kind=(feature, values))
    assert classes(other, label="kind") == (names, labels)
    assert classes(other, one_class=True) == (("all",), [0] * 6)
    if feature is not NAMES:
        with pytest.raises(ToolkitError, match="may have its labels in kind; name one with --label-column, or ignore them with"):
            classes(other)


@pytest.mark.parametrize(
    ("feature", "values", "message"),
    [
        (WHOLE, [1, 2, None, 4, 4, None], r"column label: sample 2 has no label \(2 in all\); label it or remove it"),
        (TEXT, ["a", None, "b", "b", "b", "b"], "column label: sample 1 has no label"),
        (NAMES, [0, 1, 2, None, 0, 1], "column label: sample 3 has no label"),
        (NAMES, [0, 1, 2, -1, 0, 1], "sample 3 has -1; label or remove it"),
        (
            datasets.Value("float64"),
            [0.5] * 6,
            "column label holds float64, not class labels, whole numbers or text; use --one-class",
        ),
    ],
)
def test_samples_without_a_label_are_named(tmp_path, feature, values, message):
    with pytest.raises(ToolkitError, match=message):
        classes(saved(tmp_path / "a", label=(feature, values)), label="label")


def test_no_samples_are_told_as_that():
    with pytest.raises(ToolkitError, match="the split has no samples; give a split or files that have some"):
        classes_of([], "the split")


def test_columns_that_leave_a_choice_are_a_question(tmp_path):
    half, numbers = datasets.Image(), [0, 1, 2, 3, 0, 1]
    mask = (half, [Image.fromarray(255 - picture) for picture in PICTURES])
    folder = saved(tmp_path / "a", mask=mask, fine=(NAMES, numbers), coarse=(NAMES, [0, 1] * 3))
    with pytest.raises(ToolkitError, match=r"has 2 columns of images \(image, mask\); name one with --image-column"):
        classes(folder, label="fine")
    with pytest.raises(ToolkitError, match="may have its labels in fine, coarse; name one with --label-column"):
        classes(folder, image="mask")
    assert classes(folder, image="mask", label="coarse") == (("ant", "bee"), [0, 1] * 3)
    assert HubImages(folder, "train", 8, Columns("mask", "fine")).read(1, 2)[0, 0, 0, 0] == 235
    with pytest.raises(ToolkitError, match="no column of images 'fine'; name image or mask with --image-column"):
        classes(folder, image="fine")
    with pytest.raises(ToolkitError, match="column none does not exist, not class labels, .*; name fine or coarse"):
        classes(folder, image="mask", label="none")
    with pytest.raises(ToolkitError, match="leave one of them out"):
        classes(folder, image="mask", label="fine", one_class=True)


def test_a_folder_with_a_metadata_file(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    for number, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(tmp_path / "set" / f"{number}.png")
    kinds = ["cat", "dog", "cat", "dog", "dog", "dog"]
    lines = [f"{number}.png,{kind},{number}" for number, kind in enumerate(kinds)]
    (tmp_path / "set" / "metadata.csv").write_text("\n".join(["file_name,kind,weight", *lines, ""]))

    def prepared(*more):
        how = ["data", "prepare", "dataset", tmp_path / "set", "--size", 8, "--codec", "pixel-unshuffle-1", *more]
        return CliRunner().invoke(main, [str(argument) for argument in [*how, "--out", tmp_path / "store"]])

    asked = prepared()
    assert "may have its labels in kind, weight; name one with --label-column" in asked.output
    assert "gives 4 names, but the samples are of 2 classes (cat, dog)" in (
        prepared("--label-column", "kind", "--class-names", "a,b,c,d").output
    )
    assert not (tmp_path / "store").exists()
    done = prepared("--label-column", "kind")
    assert done.exit_code == 0, done.output
    assert "classes   2, 2 to 4 samples each: cat (2), dog (4)\n" in done.output
    store = open_store(tmp_path / "store")
    assert [store.header.class_names[label] for label in store.labels] == kinds


def test_classes_that_are_left_out_are_told(tmp_path):
    folder = saved(tmp_path / "a", label=(NAMES, [3, 1, 1, 1, 3, 3]))
    how = ["data", "prepare", "dataset", folder, "--size", "8", "--codec", "pixel-unshuffle-1", "--out", str(tmp_path / "store")]
    assert "left out, since they have no samples: ant, cow\n" in CliRunner().invoke(main, how).output


def test_a_class_that_loses_all_its_images_is_refused_by_its_name(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": NAMES})
    Image.fromarray(PICTURES[1]).save(tmp_path / "good.png")
    content = ((tmp_path / "good.png").read_bytes(), b"damaged")
    rows = {"image": [{"bytes": each, "path": None} for each in content], "label": [1, 3]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "a")
    how = ["data", "prepare", "dataset", tmp_path / "a", "--size", 8, "--codec", "pixel-unshuffle-1", "--skip-damaged"]
    done = CliRunner().invoke(main, [str(argument) for argument in [*how, "--out", tmp_path / "store"]])
    assert "no image of the class dog can be read; restore its images, or remove the class" in done.output
    assert not (tmp_path / "store" / "header.json").exists()

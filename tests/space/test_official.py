import argparse
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from nas.cli.app import main
from space import ToolkitError, build, cost, load, official, preset
from space.weights import load_as_saved, save

GOLDEN = Path(__file__).parent.parent / "golden"
SHAPES = json.loads((GOLDEN / "official_state_dicts.json").read_text())
"""Names and shapes of the authors' state dicts."""

UDIT = {"hidden_size": 16, "depth": [1, 1, 1, 1, 1], "num_heads": 2, "mlp_ratio": 2, "input_size": 16, "num_classes": 10}
UDIT |= {"down_factor": 2, "downsampler": "dwconv5", "down_shortcut": 1, "ffn_type": "rep", "rep": 1, "attn_type": "v2"}
UDIT |= {"posemb_type": "rope2d", "in_channels": 4}
DIT = {"hidden_size": 24, "depth": 3, "num_heads": 2, "patch_size": 2, "input_size": 8, "num_classes": 5}


def random_model(spec):
    torch.manual_seed(0)
    model = build(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    return model


def prediction(model, spec):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, spec.in_channels, spec.input_size, spec.input_size, generator=generator)
    return model(x, torch.tensor([3, 500]), torch.tensor([0, 2]))


@pytest.mark.parametrize("name", SHAPES)
def test_names_and_shapes_are_the_authors(name):
    spec = preset(name.lower())
    ours = {theirs: list(place.shape) for theirs, place in official.official_names(spec).items()}
    theirs = dict(SHAPES[name])
    if "pos_embed" in theirs:
        assert theirs.pop("pos_embed") == [1, spec.grid**2, spec.channels]
    assert ours == theirs
    assert cost(spec).params_training == sum(torch.Size(shape).numel() for shape in theirs.values())


def test_arguments_of_the_papers_models_give_the_presets():
    paper = {**UDIT, "hidden_size": 192, "num_heads": 8, "depth": [2, 5, 8, 5, 2], "input_size": 32, "num_classes": 1000}
    assert official.spec_from_kwargs(paper).digest == preset("u-dit-b").digest
    vanilla = {**paper, "attn_type": None, "posemb_type": None, "ffn_type": "basic"}
    assert official.spec_from_kwargs(vanilla).digest == preset("u-dit-b-vanilla").digest
    assert official.spec_from_kwargs({"depth": 28, "patch_size": 4}).digest == preset("dit-xl/4").digest


@pytest.mark.parametrize(
    "kwargs",
    [
        UDIT,
        {**UDIT, "rep": 0, "down_factor": [1, 2, 1, 2, 4], "down_shortcut": 0, "downsampler": "dwconv3"},
        {**UDIT, "ffn_type": "basic", "attn_type": None, "posemb_type": None, "learn_sigma": False, "class_dropout_prob": 0},
        DIT,
        {**DIT, "patch_size": 4, "mlp_ratio": 2.5, "learn_sigma": False},
    ],
)
def test_arguments_go_there_and_back(kwargs):
    spec = official.spec_from_kwargs(kwargs)
    assert official.spec_from_kwargs(official.kwargs_from_spec(spec)).digest == spec.digest


def test_every_argument_has_its_place():
    changes = {"rep": 0, "down_factor": [1, 2, 1, 2, 4], "down_shortcut": 0, "downsampler": "dwconv3", "learn_sigma": False}
    spec = official.spec_from_kwargs({**UDIT, **changes, "class_dropout_prob": 0, "in_channels": 3, "params": 1})
    assert [stage.factor for stage in spec.stages] == [1, 2, 1, 2, 4]
    first = spec.stages[0]
    assert (first.downsampler, first.kernel, first.reparam, first.similarity, first.position) == (
        "dwconv",
        3,
        False,
        "cosine",
        "rope2d",
    )
    assert (spec.null_class, spec.learned_variance, spec.in_channels, spec.num_classes) == (False, False, 3, 10)
    assert official.spec_from_kwargs({}).channels == 1152


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"atn_type": "v2"}, "unknown key 'atn_type'; did you mean 'attn_type'"),
        ({"attn_type": "v3"}, "attn_type: 'v3' is not 'v2'"),
        ({"downsampler": "avgpool"}, "downsampler: 'avgpool' is not one of 'dwconv1'"),
        ({"depth": [1, 1, 1]}, "depth: the authors' U-DiT has five stages, not 3"),
        ({"down_factor": 3}, "down_factor: 3 is not one of 1, 2 or 4; the nearest is 2$"),
        ({"down_factor": [2, 2]}, "factor lists 2 values, but depths lists 5 stages"),
        ({"input_size": None}, "input_size: input should be a valid integer, not None"),
        ({"hidden_size": 28.5}, "hidden_size: input should be a valid integer"),
        ({"mlp_ratio": 1e308}, "ratio: input should be less than or equal to 1024"),
        ({"num_heads": 3}, "3 heads do not fit"),
    ],
)
def test_arguments_nobody_knows_are_named(changes, message):
    with pytest.raises(ToolkitError, match=message):
        official.spec_from_kwargs({**UDIT, **changes})


@pytest.mark.parametrize(
    "changes",
    [{"attention.tokens": "all"}, {"attention.downsampler": "conv"}, {"skip": "add"}, {"depths": (1, 1, 1)}, {"patch": 2}],
)
def test_what_the_authors_cannot_build_is_refused(changes):
    spec = official.spec_from_kwargs(UDIT).replace(changes)
    with pytest.raises(ToolkitError, match="the authors' code cannot build"):
        official.official_names(spec)


@pytest.mark.parametrize("kwargs", [UDIT, {**UDIT, "ffn_type": "basic"}, DIT])
def test_weights_go_there_and_back(kwargs):
    spec = official.spec_from_kwargs(kwargs)
    model, other = random_model(spec), build(spec)
    state = official.state_dict(model)
    official.load_weights(other, state)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    # Also out of a checkpoint: the averaged weights where nothing else is asked for.
    older = {name: value + 1 if name != "pos_embed" else value for name, value in state.items()}
    official.load_weights(other, {"model": older, "ema": state, "opt": {}})
    assert torch.equal(prediction(other, spec), prediction(model, spec))
    official.load_weights(other, {"model": older, "ema": state}, entry="model")
    assert not torch.equal(prediction(other, spec), prediction(model, spec))


def test_what_does_not_fit_is_named_with_both_shapes():
    spec = official.spec_from_kwargs(DIT)
    model = build(spec)
    before = model.embedding.weight.clone()
    state = official.state_dict(random_model(spec))

    def loading(changes, without=()):
        with pytest.raises(ToolkitError) as caught:
            official.load_weights(model, {n: v for n, v in {**state, **changes}.items() if n not in without})
        return str(caught.value)

    assert "'x_embedder.proj.weight' has shape (24, 4, 3, 3), but (24, 4, 2, 2)" in loading(
        {"x_embedder.proj.weight": torch.zeros(24, 4, 3, 3)}
    )
    assert "'extra.weight' (2,) has no place" in loading({"extra.weight": torch.zeros(2)})
    assert "no value for parameter 'final_layer.linear.bias', which needs (32,)" in loading({}, without=["final_layer.linear.bias"])
    assert "'pos_embed' has shape (1, 4, 24), but (1, 16, 24)" in loading({"pos_embed": torch.zeros(1, 4, 24)})
    assert "'pos_embed' is not the fixed" in loading({"pos_embed": torch.zeros(1, 16, 24)})
    assert "'epoch' is no tensor but int" in loading({"epoch": 3})
    assert torch.equal(model.embedding.weight, before)


def nas(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.mark.parametrize(("kwargs", "suffix"), [(UDIT, "pt"), (DIT, "pt"), (UDIT, "safetensors")])
def test_import_and_back_on_the_command_line(tmp_path, kwargs, suffix):
    spec = official.spec_from_kwargs(kwargs)
    model = random_model(spec)
    state = official.state_dict(model)
    checkpoint = tmp_path / f"theirs.{suffix}"
    if suffix == "pt":
        # As DiT's training script saves it.
        torch.save({"model": state, "ema": state, "opt": {"state": {}}, "args": argparse.Namespace(model="x", lr=1e-4)}, checkpoint)
    else:
        official.write_state_dict(model, checkpoint)
    done = nas("import-official", checkpoint, "--kwargs", json.dumps(kwargs), "--out", tmp_path / "ours")
    assert done.exit_code == 0, done.output
    assert torch.equal(prediction(load(tmp_path / "ours"), spec), prediction(model.folded(), spec))
    assert all(torch.equal(a, b) for a, b in zip(load_as_saved(tmp_path / "ours").parameters(), model.parameters(), strict=True))
    done = nas("import-official", tmp_path / "ours", "--to-official", "--out", tmp_path / "back.safetensors")
    assert done.exit_code == 0, done.output
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_a_folded_model_goes_back_as_one_that_is_not_reparameterised():
    model = random_model(official.spec_from_kwargs(UDIT)).folded()
    other = build(official.spec_from_kwargs({**UDIT, "rep": 0}))
    official.load_weights(other, official.state_dict(model))
    assert torch.equal(prediction(other.folded(), model.spec), prediction(model, model.spec))


def test_a_folded_model_takes_no_weights_of_branches():
    spec = official.spec_from_kwargs(UDIT)
    model = random_model(spec).folded()
    before = model.state_dict()
    with pytest.raises(ToolkitError, match="the model is folded; load the weights into one that space.build made"):
        official.load_weights(model, official.state_dict(build(spec)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_folder_is_not_written_into(tmp_path):
    save(random_model(official.spec_from_kwargs(DIT)), tmp_path / "ours", {})
    before = {path: path.read_bytes() for path in (tmp_path / "ours").iterdir()}
    done = nas("import-official", tmp_path / "ours", "--to-official", "--out", tmp_path / "ours" / "model.safetensors")
    assert done.exit_code == 2
    assert "lies in the model folder itself; name another place" in done.output
    assert {path: path.read_bytes() for path in (tmp_path / "ours").iterdir()} == before


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "it is empty"),
        (b"Not Found", "it is damaged, or no checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n", "it is a pointer of Git LFS .* `git lfs pull`"),
        (b"\n<!DOCTYPE html><html>", "it is a web page"),
        (b"PK\x03\x04 torn", "it is cut off"),
        (b"\x40" + bytes(7) + b'{"a":{"dtype":"F32"', "it is cut off or damaged"),
        (b"\x80\x02}q\x00.", "(it is|holds)"),
        (b"a: 1\n" * 100, "it is damaged, or no checkpoint"),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_damaged_files_are_told_in_our_words(tmp_path, content, what, suffix):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ToolkitError, match=rf"weights\.{suffix} (cannot be read as tensors and plain data: )?{what}") as caught:
        official.load_weights(build(official.spec_from_kwargs(DIT)), path)
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_that_is_cut_off_says_so(tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    official.write_state_dict(random_model(official.spec_from_kwargs(DIT)), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ToolkitError, match="it is cut off"):
        official.load_weights(build(official.spec_from_kwargs(DIT)), path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_is_refused_by_the_name_of_its_class(tmp_path, zipped):
    path = tmp_path / "module.pt"
    torch.save(random_model(official.spec_from_kwargs(DIT)), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ToolkitError, match=r"it holds objects of space\.model\..*; save the module's state_dict"):
        official.load_weights(build(official.spec_from_kwargs(DIT)), path)


def test_a_file_is_read_by_its_content_and_not_its_ending(tmp_path):
    spec = official.spec_from_kwargs(DIT)
    model, other = random_model(spec), build(spec)
    official.write_state_dict(model, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").rename(tmp_path / "w.pt")
    official.load_weights(other, tmp_path / "w.pt")
    assert torch.equal(prediction(other, spec), prediction(model, spec))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kwargs", [UDIT, DIT])
def test_other_precisions_become_float32(kwargs, dtype):
    model = build(official.spec_from_kwargs(kwargs))
    state = {name: value.to(dtype) for name, value in official.state_dict(random_model(model.spec)).items()}
    official.load_weights(model, state)
    back = official.state_dict(model)
    assert all(value.dtype == torch.float32 for value in back.values())
    assert all(torch.equal(value.to(dtype), state[name]) for name, value in back.items() if name != "pos_embed")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "_fsdp_wrapped_module."])
def test_names_of_wrapped_modules_are_known(prefix):
    spec = official.spec_from_kwargs(DIT)
    model, other = random_model(spec), build(spec)
    state = official.state_dict(model)
    official.load_weights(other, {prefix + name: value for name, value in state.items()})
    assert torch.equal(prediction(other, spec), prediction(model, spec))
    # A part that was compiled or wrapped by itself.
    inner = {name.replace("blocks.0.", f"blocks.0.{prefix}"): value for name, value in state.items()}
    official.load_weights(other, inner)
    both = {**state, f"{prefix}x_embedder.proj.bias": torch.zeros(24)}
    with pytest.raises(ToolkitError, match=rf"has 'x_embedder.proj.bias' twice, once as '{prefix}x_embedder.proj.bias'"):
        official.load_weights(other, both)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            torch.full((24,), torch.nan),
            "proj.bias' holds values that are not finite, as after a training that diverged",
        ),
        (torch.full((24,), 1e300, dtype=torch.float64), "holds values that are not finite"),
        (torch.ones(24, dtype=torch.int8), "is int8, perhaps quantised; give one of float32, float16, bfloat16, float64"),
    ],
)
def test_values_that_cannot_be_weights_are_refused(value, message):
    model = build(official.spec_from_kwargs(DIT))
    before = model.embedding.weight.clone()
    state = official.state_dict(random_model(model.spec)) | {"x_embedder.proj.bias": value}
    with pytest.raises(ToolkitError, match=message):
        official.load_weights(model, state)
    assert torch.equal(model.embedding.weight, before)


def test_files_have_ordinary_permissions_and_are_replaced_as_a_whole(tmp_path, monkeypatch):
    model = random_model(official.spec_from_kwargs(DIT))
    before = os.umask(0o022)
    try:
        save(model, tmp_path / "ours")
        official.write_state_dict(model, tmp_path / "ours" / "w.safetensors")
        official.write_state_dict(model, tmp_path / "ours" / "w.pt")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "ours").iterdir()}
    assert modes == dict.fromkeys(("model.safetensors", "spec.yaml", "w.safetensors", "w.pt"), 0o644)
    content = {path: path.read_bytes() for path in (tmp_path / "ours").iterdir()}

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for write in (
        lambda: save(build(model.spec), tmp_path / "ours"),
        lambda: official.write_state_dict(model, tmp_path / "ours/w.pt"),
    ):
        with pytest.raises(ToolkitError, match="cannot be written: .*No space left"):
            write()
    assert {path: path.read_bytes() for path in (tmp_path / "ours").iterdir()} == content


def test_a_model_folder_that_cannot_be_read_says_what_is_there(tmp_path):
    save(random_model(official.spec_from_kwargs(DIT)), tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    contents = {b"version https://git-lfs.github.com/spec/v1\n": "Git LFS", whole[:-100]: "cut off", b"<html>": "a web page"}
    for content, what in contents.items():
        path.write_bytes(content)
        with pytest.raises(ToolkitError, match=f"cannot be read as a model's weights: it is .*{what}"):
            load(tmp_path)


def test_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.write_text, (tmp_path / "evil", "executed")

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    done = nas("import-official", tmp_path / "evil.pt", "--preset", "dit-s/2", "--out", tmp_path / "ours")
    assert done.exit_code == 2
    assert "cannot be read as tensors and plain data: it holds objects of pathlib." in done.output
    assert not (tmp_path / "evil").exists()
    (tmp_path / "noise.pt").write_bytes(b"noise")
    for arguments, message in (
        (["--preset", "dit-s/2"], "noise.pt cannot be read"),
        ([], "either --preset or --kwargs"),
        (["--kwargs", "{"], "not valid JSON"),
        (["--preset", "dit-s/3"], "no preset 'dit-s/3'"),
    ):
        done = nas("import-official", tmp_path / "noise.pt", *arguments, "--out", tmp_path / "ours")
        assert done.exit_code == 2
        assert message in done.output
    assert "no such file" in nas("import-official", tmp_path / "none.pt", "--preset", "dit-s/2", "--out", tmp_path / "x").output
    assert not (tmp_path / "ours").exists()

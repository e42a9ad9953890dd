"""A VAE's scale, shift and identity on their way from the store through the export to samples and evaluations."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from nas.cli.app import main
from nas.data.codecs import codec_named, codec_of, record_of
from nas.data.feed import Feed
from nas.data.header import CodecRecord, Header
from nas.data.settings import DataSettings
from nas.data.sources import header_of, load_data
from nas.data.store import Split, open_store
from nas.evaluation.adm import write_samples_npz
from nas.evaluation.decoding import decoder_of, decoding_of
from nas.evaluation.images import to_pixels
from nas.evaluation.reference import images_of
from nas.study.settings import SampleSettings, TrainingSettings
from nas.training.export import _facts, trained_for, write_samples
from space import ToolkitError, build, official
from space.weights import facts_of, save

diffusers = pytest.importorskip("diffusers")

DIT = {"hidden_size": 24, "depth": 1, "num_heads": 2, "patch_size": 2, "input_size": 8, "num_classes": 2}
CPU = torch.device("cpu")


def nas(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A small autoencoder whose configuration has a scale and a shift of its own."""
    folder = tmp_path_factory.mktemp("vae") / "vae"
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    small = {"block_out_channels": (8, 8), "latent_channels": 4, "norm_num_groups": 4, "sample_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = diffusers.AutoencoderKL(**blocks, **small, scaling_factor=0.5, shift_factor=0.25)
        model.decoder.conv_out.weight.data *= 5
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory, vae):
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in ("ant", "bee"):
        (root / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(root / "images" / name / f"{i}.png")
    done = nas("data", "prepare", "images", root / "images", "--size", 16, "--codec", f"vae:{vae}", "--out", root / "store")
    assert done.exit_code == 0, done.output
    return root / "store"


@pytest.fixture
def elsewhere(vae, tmp_path):
    """The same autoencoder in another place, with the configuration of another program's version."""
    folder = shutil.copytree(vae, tmp_path / "elsewhere")
    config = json.loads((folder / "config.json").read_text())
    changed = {**config, "_diffusers_version": "0.1", "_name_or_path": "x", "force_upcast": False, "scaling_factor": 9.0}
    (folder / "config.json").write_text(json.dumps(changed))
    return folder


@pytest.fixture
def other(vae, tmp_path):
    """Another autoencoder of the same shape."""
    folder = shutil.copytree(vae, tmp_path / "other")
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "decoder.conv_out.bias": tensors["decoder.conv_out.bias"] + 1}, file)
    return folder


def model_folder(folder, facts):
    torch.manual_seed(0)
    model = build(official.spec_from_kwargs(DIT))
    save(model, folder, facts)
    return folder


def facts_of_export(store):
    """The facts that `nas export` writes for a study on the store."""
    study = SimpleNamespace(name="s", data=DataSettings(source=str(store)), header=open_store(store).header)
    study.training_of = lambda trial: TrainingSettings(ema=0.9)
    report = SimpleNamespace(images=1, macs=1, val_loss=1.0)
    return _facts(study, SimpleNamespace(number=0, reports=[report]), 1, 0.9)


def test_a_store_records_all_that_decodes_it(store, vae):
    header = open_store(store).header
    codec = codec_named(f"vae:{vae}")
    assert header.decoding == CodecRecord(name=f"vae:{vae}", scale=0.5, shift=0.25, digest=codec.digest)
    assert "scale 0.5, shift 0.25, digest " + codec.digest[:8] in nas("data", "info", store, "--verify").output
    images = np.stack([np.asarray(Image.open(store.parent / "images" / "ant" / f"{i}.png")).transpose(2, 0, 1) for i in range(4)])
    mean = codec.moments(images)[:, :4]
    latents = Feed(Split(open_store(store), np.arange(4)), CPU).latents(torch.arange(4))
    np.testing.assert_allclose(latents, (mean - 0.25) * 0.5, atol=1e-5)
    np.testing.assert_allclose(codec.encode(images), latents, atol=1e-5)
    with torch.no_grad():
        theirs = diffusers.AutoencoderKL.from_pretrained(vae).decode(torch.from_numpy(mean)).sample.clamp(-1, 1)
    np.testing.assert_allclose(open_store(store).codec.decode(latents.numpy()), theirs, atol=1e-4)


def test_real_latents_through_the_grid_of_an_export_are_the_real_images(store, tmp_path, monkeypatch):
    split = Split(open_store(store), np.arange(4))
    latents = Feed(split, CPU).latents(torch.arange(4))
    monkeypatch.setattr("nas.training.export.sample", lambda *_, **__: latents)
    facts = json.loads(json.dumps(facts_of_export(store)))
    write_samples(build(official.spec_from_kwargs(DIT)), facts, SampleSettings(per_class=4), tmp_path / "grid.png", [0])
    grid = np.asarray(Image.open(tmp_path / "grid.png"))[::3, ::3]
    real = next(images_of(split, CPU))
    assert np.array_equal(grid, np.concatenate(list(real.transpose(0, 2, 3, 1)), axis=1))
    # At the scale of another VAE they are not.
    wrong = decoding_of(facts).model_copy(update={"scale": 0.18215})
    assert np.abs(to_pixels(codec_of(wrong).decode(latents.numpy())).astype(int) - real).mean() > 3


def test_the_same_vae_in_another_place_is_taken_and_another_one_refused(store, tmp_path, elsewhere, other, vae):
    facts = facts_of_export(store)
    latents = np.random.default_rng(0).normal(size=(1, 4, 8, 8)).astype(np.float32)
    here = decoder_of(decoding_of(facts), 4)
    moved = decoding_of(facts, f"vae:{elsewhere}")
    assert (moved.name, moved.scale, moved.shift) == (f"vae:{elsewhere}", 0.5, 0.25)
    assert np.array_equal(decoder_of(moved, 4).decode(latents), here.decode(latents))
    folder = model_folder(tmp_path / "model", {**facts, "codec": {**facts["codec"], "name": "vae:/gone/vae"}})
    drawn = ["--steps", 2, "--per-class", 1, "--out", tmp_path / "x.png"]
    gone = nas("sample", folder, *drawn)
    assert gone.exit_code == 2
    assert "no folder /gone/vae" in gone.output
    assert nas("sample", folder, *drawn, "--codec", f"vae:{elsewhere}").exit_code == 0
    refused = nas("sample", folder, *drawn, "--codec", f"vae:{other}")
    assert refused.exit_code == 2
    assert f"vae:{other} is not the VAE that the latents came from: its digest is" in refused.output
    # So is one that was put in the place of the store's.
    record = open_store(store).header.decoding.model_copy(update={"name": f"vae:{other}"})
    with pytest.raises(ToolkitError, match="is not the VAE that the latents came from"):
        codec_of(record).moments(np.zeros((1, 3, 16, 16), np.uint8))


def test_a_study_may_name_the_place_of_its_stores_vae(store, elsewhere, other):
    settings = DataSettings(source=str(store), codec=f"vae:{elsewhere}")
    assert header_of(settings).codec == f"vae:{elsewhere}"
    split = load_data(settings.source, settings.codec).train
    plain = load_data(settings.source, None).train
    assert np.array_equal(next(images_of(split, CPU)), next(images_of(plain, CPU)))
    with pytest.raises(ToolkitError, match="is not the VAE that the latents came from"):
        next(images_of(load_data(settings.source, f"vae:{other}").train, CPU))
    with pytest.raises(ToolkitError, match="but the store .* holds vae:"):
        header_of(DataSettings(source=str(store), codec="pixel-unshuffle-1"))


def test_folders_of_earlier_versions_take_the_scale_of_their_data_or_a_stated_default(store, vae, tmp_path):
    older = {"codec": f"vae:{vae}", "data": {"source": str(store)}}
    assert decoding_of(older) == open_store(store).header.decoding
    assert decoding_of({**older, "data": {"source": "/gone"}}) == CodecRecord(name=f"vae:{vae}")
    assert decoder_of(CodecRecord(name=f"vae:{vae}"), 4).scaling == (0.5, 0.25)
    folder = model_folder(tmp_path / "model", {"codec": f"vae:{vae}"})
    told = nas("sample", folder, "--steps", 2, "--per-class", 1, "--out", tmp_path / "x.png")
    assert told.exit_code == 0
    assert "does not record the scale of its latents; that of vae:" in told.output
    assert decoding_of({"codec": "pixel-unshuffle-2"}).name == "pixel-unshuffle-2"


def test_arrays_that_earlier_versions_stored_take_the_scale_of_their_vae(vae):
    facts = {"samples": 4, "shape": (4, 8, 8), "content": "latents", "dtype": "float32", "class_names": ("a",), "source": "x"}
    header = Header.model_validate({**facts, "codec": f"vae:{vae}", "scale": 1.0})
    assert codec_of(header.decoding).scaling == (0.5, 0.25)
    for known in ({"scale": 0.2}, {"scale": 1.0, "shift": 0.0}):
        assert Header.model_validate({**facts, "codec": f"vae:{vae}", **known}).decoding.scale == known["scale"]
    assert Header.model_validate({**facts, "codec": "pixel-unshuffle-1"}).decoding.scale == 1


@pytest.mark.parametrize("codec", [3, {"name": "vae:x", "scale": -1}, {"scale": 1.0}, ["vae:x"]])
def test_damaged_records_are_told(codec):
    with pytest.raises(ToolkitError, match=r"name|scale"):
        decoding_of({"codec": codec})


def test_arrays_of_latents_have_the_scale_of_their_vae(vae, tmp_path):
    np.savez(tmp_path / "set.npz", latents=np.full((4, 4, 8, 8), 2.0, np.float32), labels=np.arange(4) % 2)
    command = ["data", "prepare", "arrays", tmp_path / "set.npz", "--out"]
    assert nas(*command, tmp_path / "a", "--codec", f"vae:{vae}").exit_code == 0
    assert open_store(tmp_path / "a").header.decoding == record_of(codec_named(f"vae:{vae}"))
    assert nas(*command, tmp_path / "b", "--codec", f"vae:{vae}", "--scale", 0.2).exit_code == 0
    assert open_store(tmp_path / "b").header.decoding == record_of(codec_named(f"vae:{vae}", 0.2))
    unknown = nas(*command, tmp_path / "c", "--codec", f"vae:{tmp_path / 'none'}")
    assert unknown.exit_code == 2
    assert "the scale of its latents is not known" in unknown.output
    assert "or give the scale with --scale" in unknown.output
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(("key", "value"), [("scaling_factor", 0), ("scaling_factor", "0.5"), ("shift_factor", "x")])
def test_a_scale_that_is_none_is_refused(elsewhere, key, value):
    config = json.loads((elsewhere / "config.json").read_text())
    (elsewhere / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.5, key: value}))
    with pytest.raises(ToolkitError, match=f"{key} of its config.json is {value!r}; mend it, or give --scale and --shift"):
        _ = codec_named(f"vae:{elsewhere}").scaling


def test_an_imported_checkpoint_is_sampled(vae, store, tmp_path):
    official.write_state_dict(build(official.spec_from_kwargs(DIT)), tmp_path / "theirs.pt")
    command = ["import-official", tmp_path / "theirs.pt", "--kwargs", json.dumps(DIT), "--out"]
    drawn = ["--steps", 2, "--per-class", 1, "--out", tmp_path / "x.png"]
    plain = nas(*command, tmp_path / "plain")
    assert plain.exit_code == 0
    assert "names no codec" in plain.output
    assert "name it with --codec, or its data with --data" in nas("sample", tmp_path / "plain", *drawn).output
    for how in (["--codec", f"vae:{vae}"], ["--data", store], ["--data", store, "--codec", f"vae:{vae}"]):
        done = nas("sample", tmp_path / "plain", *drawn, *how)
        assert done.exit_code == 0, done.output
    for place, how in (("codec", ["--codec", f"vae:{vae}"]), ("data", ["--data", store])):
        assert nas(*command, tmp_path / place, *how, "--prediction", "flow").exit_code == 0
        facts = facts_of(tmp_path / place)
        assert CodecRecord.model_validate(facts["codec"]) == open_store(store).header.decoding
        assert trained_for(facts).kind == "flow"
        assert nas("sample", tmp_path / place, *drawn, "--sampler", "heun").exit_code == 0
        assert "does not fit the model" in nas("sample", tmp_path / place, *drawn, "--sampler", "ddim").output
    wrong = nas(*command, tmp_path / "wrong", "--data", "fashion-mnist-10k", "--codec", "pixel-unshuffle-4")
    assert "takes latents (4, 8, 8) of 2 classes, but fashion-mnist-10k holds (16, 8, 8) of 10" in wrong.output
    misfit = nas("sample", tmp_path / "plain", *drawn, "--codec", "pixel-unshuffle-4")
    assert "needs latents of a multiple of 16 channels, not 4" in misfit.output
    assert not (tmp_path / "wrong").exists()


def test_an_imported_checkpoint_is_evaluated(tmp_path, monkeypatch):
    """The first example of docs/metrics.md."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    how = {**DIT, "in_channels": 16, "num_classes": 10}
    official.write_state_dict(build(official.spec_from_kwargs(how)), tmp_path / "theirs.pt")
    command = ["import-official", tmp_path / "theirs.pt", "--kwargs", json.dumps(how), "--out", tmp_path / "model"]
    assert nas(*command).exit_code == 0
    images = next(images_of(load_data("fashion-mnist-10k", "pixel-unshuffle-4").validation, CPU))[:200]
    write_samples_npz([images.transpose(0, 2, 3, 1)], tmp_path / "real.npz")
    few = ["--samples", 130, "--seeds", 1, "--steps", 2, "--reference", tmp_path / "real.npz"]
    assert "name it with --codec" in nas("evaluate", tmp_path / "model", *few).output
    for real in ([], ["--data", "fashion-mnist-10k"]):
        done = nas("evaluate", tmp_path / "model", *few, *real, "--codec", "pixel-unshuffle-4")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["codec"]["name"] == "pixel-unshuffle-4"

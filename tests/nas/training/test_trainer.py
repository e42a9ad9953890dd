import math

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import width_rule
from nas.data.codecs import codec_named
from nas.data.feed import Feed
from nas.data.header import Header
from nas.data.settings import DataSettings
from nas.data.sources import open_data
from nas.data.store import Split, Store, pixel_store
from nas.diffusion.prediction import BINS, Epsilon
from nas.evaluation.validation import ValidationGrid
from nas.rng import TrainingStream, stream
from nas.study.settings import PredictionSettings, TrainingSettings, ValLossSettings
from nas.training.trainer import Decay, DivergedError, Trainer, is_hidden_matrix
from space import ToolkitError, preset
from space.model.network import build

CPU = torch.device("cpu")
SPEC = preset("u-dit-toy").replace({"channels": 8, "depths": (1, 1, 1, 1, 1), "input_size": 8})
OTHER = SPEC.replace({"attention.tokens": "all", "depths.2": 2, "feed_forward.kind": "mlp"})
SETTINGS = TrainingSettings(batch_size=4, learning_rate=1e-3, label_dropout=0.5)


def feed(count=10, mirrored=False, plain=False):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 1, 16, 16)).astype(np.uint8)
    if plain:
        # Of one brightness each, so that there is something to learn.
        images[:] = images[:, :, :1, :1]
    store = pixel_store("noise", images, rng.integers(0, 10, count), codec_named("pixel-unshuffle-2"), tuple("0123456789"), "noise")
    return Feed(Split(store, np.arange(count)), CPU, mirrored)


def moments():
    """A VAE's moments, with mirror images."""
    facts = {"samples": 10, "shape": (4, 8, 8), "content": "moments", "dtype": "float32", "codec": "vae:x", "views": 2}
    header = Header(**facts, class_names=tuple("0123456789"), source="noise")
    rows = np.random.default_rng(0).normal(size=header.rows_shape).astype(np.float32)
    return Feed(Split(Store("noise", header, rows, np.arange(10)), np.arange(10)), CPU, mirrored=True)


def training(spec=SPEC, seed=0, settings=SETTINGS):
    return Trainer(spec, seed, settings, feed())


@pytest.mark.parametrize("make_feed", [feed, moments])
def test_two_architectures_with_one_seed_see_identical_batches(make_feed):
    seen = []
    for spec in (SPEC, OTHER):
        run = Trainer(spec, 0, SETTINGS, make_feed())
        batches = []
        run.model.register_forward_pre_hook(lambda _, inputs, kept=batches: kept.append([value.clone() for value in inputs]))
        torch.manual_seed(len(seen))  # What else is drawn in the process must not matter.
        run.train_to(3)
        seen.append(batches)
    for first, second in zip(*seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert any((y == SPEC.num_classes).any() for _, _, y in seen[0])


def test_seeds_and_steps_draw_differently():
    draws = [TrainingStream(seed, 10, 4, (4, 8, 8), Epsilon().times, 0.1).draw(step) for seed, step in ((0, 0), (0, 1), (1, 0))]
    assert len({draw.noise.sum().item() for draw in draws}) == 3
    assert stream(0, "a").initial_seed() != stream(0, "b").initial_seed()


def test_every_epoch_shows_every_sample_once():
    rows = torch.cat([TrainingStream(0, 10, 4, (1,), Epsilon().times, 0).draw(step).samples for step in range(5)])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()


def test_continuation_is_bit_exact():
    whole = training()
    whole.train_to(6)
    first = training()
    first.train_to(3)
    second = training(seed=0)
    second.load(first.tensors(), first.step)
    second.train_to(6)
    expected, found = whole.tensors(), second.tensors()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_checkpoint_of_another_architecture_is_refused():
    with pytest.raises(ToolkitError, match="another architecture"):
        training(OTHER).load(training().tensors(), 1)


def test_training_lowers_the_loss_and_moves_the_average():
    run = training()
    before = run.tensors()
    early = run.train_to(10)
    assert run.train_to(120) < 0.8 * early
    assert any(not torch.equal(value, before[name]) for name, value in run.tensors().items() if name.startswith("ema-0.9999."))


def test_average_starts_equal_and_warms_up():
    run = training()
    pairs = list(zip(run.ema.parameters(), run.model.parameters(), strict=True))
    assert all(torch.equal(a, p) for a, p in pairs)
    start = run.model.embedding.bias.detach().clone()
    run.train_to(1)
    # The first decay is (1 + 0) / (10 + 0).
    expected = 0.1 * start + 0.9 * run.model.embedding.bias.detach()
    torch.testing.assert_close(run.ema.embedding.bias, expected)


def with_settings(**changes):
    return SETTINGS.model_copy(update=changes)


def test_several_averages_at_once_are_those_of_one():
    several = training(settings=with_settings(ema=(0.9999, 0.5)))
    several.train_to(20)
    for decay in (0.9999, 0.5):
        alone = training(settings=with_settings(ema=(decay,)))
        alone.train_to(20)
        expected = {name: value for name, value in alone.tensors().items() if name.startswith(f"ema-{decay:g}.")}
        assert all(torch.equal(several.tensors()[name], value) for name, value in expected.items())
    assert not torch.equal(several.ema_models[0.5].embedding.bias, several.ema.embedding.bias)
    assert several.ema is several.ema_models[0.9999]


def rates(run, steps):
    seen = []
    for step in range(steps):
        run.train_to(step + 1)
        seen.append(run.optimizer.param_groups[0]["lr"] / SETTINGS.learning_rate)
    return seen


def test_the_rate_warms_up_is_stable_and_decays():
    run = Trainer(SPEC, 0, with_settings(warmup_steps=4), feed(), Decay(6, 10))
    assert rates(run, 10) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert rates(training(), 3) == [1, 1, 1]


def test_moments_are_sampled_anew_in_every_epoch():
    run, seen = Trainer(SPEC, 0, with_settings(batch_size=10), moments()), []
    gathered = run.feed.latents
    run.feed.latents = lambda index, *how: seen.append(gathered(index, *how)[index.argsort()]) or seen[-1]
    run.train_to(3)
    assert not torch.allclose(seen[0], seen[1], atol=0.1)
    assert not torch.allclose(seen[1], seen[2], atol=0.1)


@pytest.mark.parametrize("make_feed", [lambda: feed(mirrored=True), moments], ids=["pixels", "moments"])
def test_a_continued_training_is_bit_exact_with_everything_switched_on(make_feed):
    def run():
        settings = with_settings(warmup_steps=4, clip_norm=0.1, ema=(0.9, 0.5), weight_decay=0.1)
        return Trainer(SPEC, 0, settings, make_feed(), Decay(5, 8), hidden_rate=0.5)

    whole, first, second = run(), run(), run()
    whole.train_to(8)
    first.train_to(6)
    second.load(first.tensors(), 6)
    second.train_to(8)
    assert all(torch.equal(second.tensors()[name], value) for name, value in whole.tensors().items())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"feed_forward.kind": "conv", "feed_forward.reparam": True, "attention.downsampler": "dwconv", "modulation": "level"},
        {"stem": "linear", "feed_forward.kind": "mlp", "attention.tokens": "all", "absolute_position": "sincos", "skip": "add"},
        {"depths": (1,), "attention.similarity": "cosine"},
    ],
)
def test_hidden_matrices_are_those_whose_inputs_grow_with_the_width(changes):
    narrow, wide = (build(SPEC.replace({**changes, "channels": width})) for width in (8, 16))
    tables = {f"{name}.weight" for name, module in narrow.named_modules() if isinstance(module, nn.Embedding)}
    found = set()
    for (name, one), (_, two) in zip(narrow.named_parameters(), wide.named_parameters(), strict=True):
        grows = one.ndim > 1 and two[0].numel() == 2 * one[0].numel() and name not in tables
        assert is_hidden_matrix(name, one) == grows, name
        found.add(grows)
    assert found == {False, True}


def test_the_width_rule_slows_hidden_matrices_and_leaves_the_schedule_alone():
    settings = with_settings(warmup_steps=4, weight_decay=0.1, clip_norm=1.0)
    run = Trainer(SPEC, 0, settings, feed(), Decay(6, 10), hidden_rate=0.25)
    others, hidden = run.optimizer.param_groups
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    assert {names[id(one)] for one in hidden["params"]} == {n for n, p in run.model.named_parameters() if is_hidden_matrix(n, p)}
    assert len(hidden["params"]) + len(others["params"]) == len(names)
    for step, share in enumerate([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25]):
        run.train_to(step + 1)
        assert others["lr"] == pytest.approx(share * 1e-3)
        assert hidden["lr"] == pytest.approx(share * 0.25e-3)
        assert hidden["lr"] * hidden["weight_decay"] == pytest.approx(others["lr"] * others["weight_decay"])


@pytest.mark.slow
def test_under_the_width_rule_a_rate_that_suits_a_narrow_model_does_not_spoil_a_wide_one():
    data = open_data(DataSettings(source="fashion-mnist-10k", codec="pixel-unshuffle-4"))
    feeds = Feed(data.train, CPU, False), Feed(data.validation, CPU, resident=False)
    rate = 2.0**-5
    assert width_rule.loss(width_rule.WIDTHS[0], rate, False, *feeds) < width_rule.LEARNS
    assert width_rule.loss(256, rate, False, *feeds) > 1
    assert width_rule.loss(256, rate, True, *feeds) < 0.5


def test_the_width_rule_changes_nothing_at_the_reference_width():
    runs = [training(), Trainer(SPEC, 0, with_settings(width_rule="inverse"), feed(), None, 1.0)]
    for run in runs:
        run.train_to(3)
    assert [len(run.optimizer.param_groups) for run in runs] == [1, 1]
    one, two = (run.tensors() for run in runs)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_gradients_are_clipped_by_their_norm():
    run = training(settings=with_settings(clip_norm=1e-3))
    run.train_to(1)
    norm = torch.stack([p.grad.norm() for p in run.model.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)
    free = training()
    free.train_to(1)
    assert torch.stack([p.grad.norm() for p in free.model.parameters()]).norm() > 1e-2


def test_half_of_the_samples_are_mirrored_where_it_is_asked():
    seen = {}
    for mirrored in (False, True):
        run = Trainer(SPEC, 0, SETTINGS, feed(mirrored=mirrored))
        gathered = run.feed.latents
        seen[mirrored] = []
        run.feed.latents = lambda *how, gathered=gathered, kept=seen[mirrored]: kept.append(gathered(*how)) or kept[-1]
        run.train_to(20)
    plain, mirrored = torch.cat(seen[False]), torch.cat(seen[True])
    flipped = plain[:, [1, 0, 3, 2]].flip(-1)
    as_is, turned = ((mirrored == other).flatten(1).all(dim=1) for other in (plain, flipped))
    assert (as_is | turned).all()
    assert 20 < turned.sum() < 60


@pytest.mark.parametrize("kind", [{"kind": "v"}, {"kind": "v", "min_snr": 5}, {"kind": "flow", "times": "logit-normal"}])
def test_every_objective_is_learned(kind):
    spec = SPEC.replace({"learned_variance": False})
    settings = with_settings(prediction=PredictionSettings(**kind), learning_rate=5e-3, batch_size=16, ema=(0.9,))
    run = Trainer(spec, 0, settings, feed(40, plain=True))
    grid = ValidationGrid(feed(40, plain=True), ValLossSettings(images=40), run.prediction)
    before = grid.loss(run.ema.folded(), 80)
    run.train_to(40)
    assert grid.loss(run.ema.folded(), 80).mean < 0.9 * before.mean
    assert len(before.bins) == BINS


def test_divergence_is_told():
    run = training(settings=SETTINGS.model_copy(update={"learning_rate": 1e30}))
    with pytest.raises(DivergedError, match="the training loss is (nan|inf) by step"):
        run.train_to(50)


def test_validation_grid_is_stratified_antithetic_and_fixed():
    grid = ValidationGrid(feed(40), ValLossSettings(images=16), Epsilon())
    assert grid.t[:16].tolist() == [31, 93, 156, 218, 281, 343, 406, 468, 531, 593, 656, 718, 781, 843, 906, 968]
    assert torch.equal(grid.noise[:16], -grid.noise[16:])
    again = ValidationGrid(feed(40), ValLossSettings(images=16), Epsilon())
    assert torch.equal(grid.noise, again.noise)
    model = training().ema.folded()
    loss = grid.loss(model, batch_size=5)
    # A new model predicts no noise, so its error is the noise's mean square.
    assert loss.mean == pytest.approx(grid.noise.square().mean().item(), rel=1e-6)
    assert np.mean(loss.bins) == pytest.approx(loss.mean)
    assert grid.loss(model, batch_size=32).mean == pytest.approx(loss.mean, rel=1e-9)
    with pytest.raises(ToolkitError, match="only 40 images are held out"):
        ValidationGrid(feed(40), ValLossSettings(images=41), Epsilon())
    assert math.isfinite(loss.mean)
    # Images after those that another grid has: the same times and noise.
    held_out = feed(40)
    first, rest = (ValidationGrid(held_out, ValLossSettings(images=16, skip=skip), Epsilon()) for skip in (0, 16))
    assert torch.equal(rest.noise, first.noise)
    assert torch.equal(rest.t, first.t)
    assert not any(torch.equal(one, other) for one in first.x0[:16] for other in rest.x0[:16])
    with pytest.raises(ToolkitError, match="images is 16 after the 30 that are skipped, but only 40"):
        ValidationGrid(feed(40), ValLossSettings(images=16, skip=30), Epsilon())

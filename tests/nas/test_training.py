import math

import numpy as np
import pytest
import torch

from nas.data.sources import Split
from nas.diffusion import GaussianDiffusion
from nas.evaluation.validation import ValidationGrid
from nas.streams import TrainingStream, stream
from nas.study import TrainingSettings
from nas.training import DivergedError, Training
from space import NasError, preset
from space.paths import changed

CPU = torch.device("cpu")
SPEC = changed(preset("u-dit-toy"), {"channels": 8, "depths": (1, 1, 1, 1, 1), "input_size": 8})
OTHER = changed(SPEC, {"attention.tokens": "all", "depths.2": 2, "feed_forward.kind": "mlp"})
SETTINGS = TrainingSettings(batch_size=4, learning_rate=1e-3, label_dropout=0.5)


def split(count=10):
    rng = np.random.default_rng(0)
    return Split(rng.uniform(-1, 1, (count, 4, 8, 8)).astype(np.float32), rng.integers(0, 10, count))


def training(spec=SPEC, seed=0, settings=SETTINGS):
    return Training(spec, seed, settings, split(), CPU)


def test_two_architectures_with_one_seed_see_identical_batches():
    seen = []
    for spec in (SPEC, OTHER):
        run = training(spec)
        batches = []
        run.model.register_forward_pre_hook(lambda _, inputs, kept=batches: kept.append([value.clone() for value in inputs]))
        torch.manual_seed(len(seen))  # What else is drawn in the process must not matter.
        run.train_to(3)
        seen.append(batches)
    for first, second in zip(*seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert any((y == SPEC.num_classes).any() for _, _, y in seen[0])


def test_seeds_and_steps_draw_differently():
    draws = [TrainingStream(seed, 10, 4, (4, 8, 8), 1000, 0.1).draw(step) for seed, step in ((0, 0), (0, 1), (1, 0))]
    assert len({draw.noise.sum().item() for draw in draws}) == 3
    assert stream(0, "a").initial_seed() != stream(0, "b").initial_seed()


def test_every_epoch_shows_every_sample_once():
    rows = torch.cat([TrainingStream(0, 10, 4, (1,), 1000, 0).draw(step).rows for step in range(5)])
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
    with pytest.raises(NasError, match="another architecture"):
        training(OTHER).load(training().tensors(), 1)


def test_training_lowers_the_loss_and_moves_the_average():
    run = training()
    before = run.tensors()
    early = run.train_to(10)
    assert run.train_to(120) < 0.8 * early
    assert any(not torch.equal(value, before[name]) for name, value in run.tensors().items() if name.startswith("average."))


def test_average_starts_equal_and_warms_up():
    run = training()
    pairs = list(zip(run.average.parameters(), run.model.parameters(), strict=True))
    assert all(torch.equal(a, p) for a, p in pairs)
    start = run.model.embedding.bias.detach().clone()
    run.train_to(1)
    # The first decay is (1 + 0) / (10 + 0).
    expected = 0.1 * start + 0.9 * run.model.embedding.bias.detach()
    torch.testing.assert_close(run.average.embedding.bias, expected)


def test_divergence_is_told():
    run = training(settings=SETTINGS.model_copy(update={"learning_rate": 1e30}))
    with pytest.raises(DivergedError, match="the training loss is (nan|inf) by step"):
        run.train_to(50)


def test_validation_grid_is_stratified_antithetic_and_fixed():
    grid = ValidationGrid(split(40), 16, GaussianDiffusion(), CPU)
    assert grid.t[:16].tolist() == [31, 93, 156, 218, 281, 343, 406, 468, 531, 593, 656, 718, 781, 843, 906, 968]
    assert torch.equal(grid.noise[:16], -grid.noise[16:])
    again = ValidationGrid(split(40), 16, GaussianDiffusion(), CPU)
    assert torch.equal(grid.noise, again.noise)
    model = training().average.folded()
    loss = grid.loss(model, batch_size=5)
    # A new model predicts no noise, so its error is the noise's mean square.
    assert loss.mean == pytest.approx(grid.noise.square().mean().item(), rel=1e-6)
    assert np.mean(loss.bins) == pytest.approx(loss.mean)
    assert grid.loss(model, batch_size=32).mean == pytest.approx(loss.mean, rel=1e-9)
    with pytest.raises(NasError, match="only 40 images are held out"):
        ValidationGrid(split(40), 41, GaussianDiffusion(), CPU)
    assert math.isfinite(loss.mean)

"""The smoke step, taken for real."""

import subprocess
import sys

import pytest
import torch

from nas.execution.smoke import Smoke, Step, read_smoke, smoke, smoke_lines, smoke_step
from nas.runs.records import TrialPlan
from nas.study.load import load_study
from nas.training.trial import Trial
from space import ToolkitError, cost
from space.costs.memory import memory
from space.errors import RunError

SPREAD = ["search.space={channels: [8, 32], feed_forward.kind: [mlp, conv]}", "search.constraints={gflops: {max: 0.1}}"]
ROOMY = [*SPREAD, "budget.max=1000 TFLOPs", "finish=null"]


def a_step(what, step_macs, seconds, **changes):
    facts = {"gflops": step_macs / 1e11, "memory_bytes": 61 * 2**20, "predicted_memory_bytes": 55 * 2**20}
    return Step(what=what, step_macs=step_macs, seconds=seconds, **{**facts, **changes})


def test_the_cheapest_and_the_dearest_take_a_step_and_nothing_is_written(tiny_file, tmp_path, monkeypatch):
    study = load_study(tiny_file, [*ROOMY, "training.batch_size=32", "training.ema=[0.99, 0.999]"])
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    steps = []
    original = Trial.__init__
    monkeypatch.setattr(Trial, "__init__", lambda self, plan, *rest: steps.append((plan, self)) or original(self, plan, *rest))
    found = smoke(study)
    assert not list((tmp_path / "empty").iterdir())
    assert [step.what for step in found.steps] == ["cheapest", "dearest"]
    # The first time is for the libraries; each trains two steps in all.
    cheapest, dearest = study.census.cheapest, study.census.dearest
    assert [plan.spec for plan, _ in steps] == [cheapest, cheapest, dearest]
    assert [trial.training.step for _, trial in steps] == [2, 2, 2]
    assert (found.device, found.batch_size) == (str(steps[0][1].device.type), 32)
    for step, spec in zip(found.steps, (cheapest, dearest), strict=True):
        assert step.gflops == cost(spec).gflops
        assert step.step_macs == cost(spec).step_macs(32)
        assert step.seconds > 0
        assert step.predicted_memory_bytes == memory(spec, 32, 2).peak
    # Resident memory grows by what is predicted, but for what libraries keep beside it.
    assert 0.5 < found.steps[1].memory_bytes / found.steps[1].predicted_memory_bytes < 2
    assert found.steps[1].memory_bytes > 1.5 * found.steps[0].memory_bytes
    assert read_smoke(found.model_dump_json()) == found


def test_a_step_leaves_training_as_it_was(tiny_file):
    study = load_study(tiny_file, [*ROOMY, "resources.cpu=2"])
    torch.set_num_threads(1)

    def losses():
        trial = Trial(TrialPlan(number=0, spec=study.census.cheapest, seed=1, milestones=()), study)
        return [trial.training.train_to(step) for step in (1, 2, 3)]

    before = losses()
    smoke(study)
    assert losses() == before
    assert torch.get_num_threads() == 1


def test_each_time_is_predicted_from_the_other():
    found = Smoke(device="cpu", batch_size=16, steps=(a_step("cheapest", 10**9, 0.01), a_step("dearest", 3 * 10**9, 0.06)))
    assert [found.predicted_seconds(step) for step in found.steps] == pytest.approx([0.02, 0.03])
    lines = smoke_lines(found)
    assert lines == [
        "smoke: cheapest 0.0100 GFLOPs: 10 ms a step (predicted 20), 61 MiB (predicted 55)",
        "smoke: dearest 0.0300 GFLOPs: 60 ms a step (predicted 30), 61 MiB (predicted 55)",
        "smoke: cpu, batch size 16, 100 and 50 training GFLOPs a second; times are predicted from each other",
    ]
    assert max(map(len, lines)) <= 100
    # The time of equal compute on either: 1 / (½/100 + ½/50).
    assert found.throughput(4).macs_per_s == pytest.approx(1e11 / 1.5)
    assert (found.throughput(4).concurrency, found.throughput(4).source) == (4, "from the smoke step")


def test_a_space_of_one_architecture_has_nothing_to_predict_from(tiny_file):
    found = smoke(load_study(tiny_file, ["search.space={heads: [2]}"]))
    (line, where) = smoke_lines(found)
    assert line.startswith("smoke: only 0.0")
    assert line.count("predicted") == 1, "the memory alone"
    assert "predicted" not in where
    assert found.throughput(1).macs_per_s == pytest.approx(found.steps[0].macs_per_s)
    unknown = found.model_copy(update={"steps": (found.steps[0].model_copy(update={"memory_bytes": None}),)})
    assert "memory not told here (predicted" in smoke_lines(unknown)[0]
    assert smoke_lines(Smoke(device="cpu", batch_size=1, steps=(a_step("only", 1, 14.77),)))[0].count("14.8 s a step") == 1


def test_a_loss_that_is_not_finite_is_told(tiny_file):
    study = load_study(tiny_file, ["training.learning_rate=1.0e+30"])
    with pytest.raises(RunError, match=r"smoke step: the cheapest architecture \(0.00\d+ GFLOPs, .* is not finite after two steps"):
        smoke(study)
    with pytest.raises(RunError, match="lower training.learning_rate"):
        read_smoke(smoke_step(study.packed()))


def test_a_step_without_enough_memory_is_told_with_its_size_and_the_mend(tiny_file):
    """In a process of its own, which is allowed little more memory than it has."""
    study = load_study(tiny_file, [*ROOMY, "training.batch_size=4096"])
    code = """
import resource, sys
from pathlib import Path
import torch
from nas.training import trial
from nas.execution.smoke import smoke_step
torch.set_num_threads(1)
address_space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (address_space + 600 * 2**20,) * 2)
print(smoke_step(sys.stdin.read()))
"""
    done = subprocess.run([sys.executable, "-c", code], input=study.packed(), capture_output=True, text=True, check=True)
    spec = study.census.cheapest
    with pytest.raises(RunError) as told:
        read_smoke(done.stdout)
    assert str(told.value) == (
        f"smoke step: the cheapest architecture ({cost(spec).gflops:.4g} GFLOPs, {cost(spec).params_m:.4g} M parameters) runs "
        "out of memory at batch size 4096; take a smaller training.batch_size or tighter search.constraints"
    )


def test_what_is_enqueued_outside_the_space_counts_too(tiny_file):
    study = load_study(tiny_file, ["search.enqueue=[{channels: 4, heads: 1}, {depths: [1, 1, 2, 1, 1], heads: 1}]"])
    first, last = (candidate.spec for candidate in study.enqueued)
    assert [step.step_macs for step in smoke(study).steps] == [cost(spec).step_macs(4) for spec in (first, last)]


def test_where_the_batch_size_is_tuned_the_largest_takes_the_step(tiny_file, monkeypatch):
    study = load_study(tiny_file, [*ROOMY, "search.space.training.batch_size=[2, 16]"])
    sizes = []
    original = Trial.__init__
    monkeypatch.setattr(
        Trial, "__init__", lambda self, *given: original(self, *given) or sizes.append(self.training.stream.draw(0).samples.numel())
    )
    found = smoke(study)
    assert sizes == [16, 16, 16]
    assert found.batch_size == 16
    assert found.steps[1].step_macs == cost(study.census.dearest).step_macs(16)
    assert found.steps[1].predicted_memory_bytes == memory(study.census.dearest, 16, 1).peak


def test_another_error_is_not_taken_for_one_of_memory(tiny, monkeypatch):
    def broken(*_):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("nas.training.trainer.Trainer.train_to", broken)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        smoke(tiny)


def test_a_study_that_cannot_be_run_takes_no_step(tiny_file):
    study = load_study(tiny_file, ["search.constraints={gflops: {min: 2}}"])
    with pytest.raises(ToolkitError, match="the nearest has gflops"):
        smoke(study)
    with pytest.raises(RunError, match="the nearest has gflops"):
        read_smoke(smoke_step(study.packed()))


@pytest.mark.slow
def test_a_worker_of_a_cluster_takes_the_step(tiny_file):
    """On a cluster of its own, on loopback, as `nas run` starts one."""
    import ray

    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=128 * 2**20, log_to_driver=False)
        try:
            remote = ray.remote(max_calls=1)(smoke_step)
            fine, broken = (load_study(tiny_file, changes) for changes in ([], ["training.learning_rate=1.0e+30"]))
            found = read_smoke(ray.get(remote.remote(fine.packed())))
            assert [step.what for step in found.steps] == ["cheapest", "dearest"]
            with pytest.raises(RunError, match="is not finite after two steps"):
                read_smoke(ray.get(remote.remote(broken.packed())))
        finally:
            ray.shutdown()

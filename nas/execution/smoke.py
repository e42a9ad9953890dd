"""The smoke step: before a run begins, the cheapest and the dearest architecture each take a real training step.

Only `smoke` and `smoke_step` import torch; results and their lines do not need it.
"""

from __future__ import annotations

import ctypes
import gc
import json
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from nas.execution.threads import threads
from nas.runs.calibrations import known_spread
from nas.runs.records import TrialPlan
from nas.runs.throughput import Throughput
from nas.study.nuisance import own_training
from nas.study.study import Study
from space.costs.cost import cost
from space.costs.memory import memory
from space.errors import RunError, ToolkitError
from space.frozen import Frozen
from space.spec import ModelSpec

if TYPE_CHECKING:
    import torch

MIB = 2**20


class Step(Frozen):
    """Measurements of one architecture's training step: seconds, and growth of the process in bytes (None: not measurable)."""

    what: str
    """`cheapest` or `dearest`."""
    gflops: float
    """Inference, folded form, one image; multiply-accumulates / 1e9."""
    step_macs: int
    seconds: float
    memory_bytes: int | None
    predicted_memory_bytes: int

    @property
    def macs_per_s(self) -> float:
        """Training multiply-accumulates per second."""
        return self.step_macs / self.seconds


class Smoke(Frozen):
    """The measured steps of the cheapest and the dearest architecture, or of the only one.

    The time of a step depends on more than its compute: small layers are bound by overhead and by memory. So each step's time is
    predicted from the throughput of the other step. If compute decides, prediction and measurement agree. The larger their
    difference, the less a single throughput can be trusted over the whole space.
    """

    device: str
    batch_size: int
    steps: tuple[Step, ...]

    def predicted_seconds(self, step: Step) -> float | None:
        """The time of a step at the throughput of the other step; None when there is no other."""
        return next((step.step_macs / other.macs_per_s for other in self.steps if other is not step), None)

    def throughput(self, concurrency: int) -> Throughput:
        """The throughput for a forecast that spends equal compute on both steps: their harmonic mean."""
        return Throughput(len(self.steps) / sum(1 / step.macs_per_s for step in self.steps), concurrency, "from the smoke step")


def smoke(study: Study) -> Smoke:
    """Train two steps of the cheapest and the dearest known architecture, as a trial does; nothing is written.

    Known architectures are those of the study's census and its enqueued ones, or the rows of an ablation. The first step warms up,
    the second is timed. Data, device and threads are the study's, and so is the batch size: the largest, where it is tuned.

    Raises:
        RunError: If an architecture runs out of memory or its loss is not finite.
        StudyError: If no architecture is feasible.
        DataError: If data are missing.
    """
    study.check_runs()
    batch_size = study.batch_sizes[-1]
    by_cost = sorted(study.architectures, key=lambda spec: cost(spec).step_macs(batch_size))
    cheapest, dearest = by_cost[0], by_cost[-1]
    specs = {"only": cheapest} if cheapest == dearest else {"cheapest": cheapest, "dearest": dearest}
    with threads(study.resources.cpu):
        # An unmeasured run first: it loads the data, and the kernels and buffers of libraries.
        device, _ = _two_steps(study, next(iter(specs)), cheapest)
        steps = tuple(_measured(study, what, spec, device) for what, spec in specs.items())
        _release(device)
    return Smoke(device=device.type, batch_size=batch_size, steps=steps)


def smoke_step(study_json: str) -> str:
    """Run `smoke` in another process: takes `Study.packed`, returns JSON for `read_smoke`; a ToolkitError is returned as data."""
    try:
        return smoke(Study.unpacked(study_json)).model_dump_json()
    except ToolkitError as error:
        return json.dumps({"error": str(error)})


def read_smoke(text: str) -> Smoke:
    """The result of `smoke_step`; raises RunError when the step failed."""
    answer = json.loads(text)
    if "error" in answer:
        raise RunError(answer["error"])
    return Smoke.model_validate(answer)


def smoke_lines(result: Smoke) -> list[str]:
    """One line per step, with measured and predicted values, and one with device, batch size and throughput."""
    lines = []
    for step in result.steps:
        expected = result.predicted_seconds(step)
        timed = f"{_time(step.seconds)} a step" + (f" (predicted {_time(expected).removesuffix(' ms')})" if expected else "")
        grown = f"{step.memory_bytes / MIB:.0f} MiB" if step.memory_bytes is not None else "memory not told here"
        lines.append(
            f"smoke: {step.what} {step.gflops:.4f} GFLOPs: {timed}, {grown} (predicted {step.predicted_memory_bytes / MIB:.0f})"
        )
    rates = " and ".join(f"{step.macs_per_s / 1e9:.3g}" for step in result.steps)
    how = "; times are predicted from each other" if len(result.steps) == 2 else ""
    return [*lines, f"smoke: {result.device}, batch size {result.batch_size}, {rates} training GFLOPs a second{how}"]


def calibration_line(study: Study, root: Path) -> str:
    """A line on the calibration of a search's protocol under a run root: what it found, or that there is none."""
    unknown = "no calibration of this protocol is known (nas calibrate), nor how much of a difference between trials is a seed's"
    return f"smoke: {known_spread(study, root) or unknown}"


def _measured(study: Study, what: str, spec: ModelSpec, device: torch.device) -> Step:
    from nas.training.peak_memory import peak_bytes, reset_peak

    _release(device)
    before = reset_peak(device)
    _, seconds = _two_steps(study, what, spec)
    peak = peak_bytes(device)
    return Step(
        what=what,
        gflops=cost(spec).gflops,
        step_macs=cost(spec).step_macs(study.batch_sizes[-1]),
        seconds=seconds,
        memory_bytes=None if before is None else peak - before,
        predicted_memory_bytes=memory(spec, study.batch_sizes[-1], len(study.training.ema)).peak,
    )


def _two_steps(study: Study, what: str, spec: ModelSpec) -> tuple[torch.device, float]:
    """Train two steps of a trial without a folder; return the device and the seconds of the second step."""
    from nas.training.trainer import DivergedError
    from nas.training.trial import Trial, as_failure

    which = f"smoke step: the {what} architecture ({cost(spec).gflops:.4g} GFLOPs, {cost(spec).params_m:.4g} M parameters)"
    batch_size = study.batch_sizes[-1]
    batch, own = f"at batch size {batch_size}", own_training(study.training, {"training.batch_size": batch_size})
    try:
        trial = Trial(TrialPlan(number=0, spec=spec, seed=study.training.seed, milestones=(), training=own), study)
        trial.training.train_to(1)
        # `train_to` reads the loss at its end, which waits for the device.
        start = perf_counter()
        trial.training.train_to(2)
        return trial.device, perf_counter() - start
    except DivergedError:
        raise RunError(
            f"{which} has a training loss that is not finite after two steps {batch}; lower training.learning_rate, take precision "
            "float32, or exclude it with tighter search.constraints"
        ) from None
    except Exception as error:
        if not as_failure(0, error).out_of_memory:
            raise
        raise RunError(
            f"{which} runs out of memory {batch}; take a smaller training.batch_size or tighter search.constraints"
        ) from None


def _release(device: torch.device) -> None:
    """Release unused memory, so that the next measurement shows the growth of its own trial only."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        # glibc keeps freed memory; other C libraries have no such call.
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 10 else f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{1000 * seconds:.0f} ms"

"""The smoke step: before anything is launched, the cheapest and the dearest architecture each take a real training step.

Results and their lines need no torch; `smoke` and `smoke_step` import it.
"""

from __future__ import annotations

import ctypes
import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import TYPE_CHECKING

from nas.runs.records import TrialPlan
from nas.runs.throughput import Throughput
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
    """What one architecture's training step took: seconds, and the memory by which the process grew; None where it is not told."""

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
        """Training multiply-accumulates a second."""
        return self.step_macs / self.seconds


class Smoke(Frozen):
    """The steps of the cheapest and the dearest architecture, or of the only one, on a device and at a batch size.

    How long a step takes does not follow from its compute alone: small layers are bound by overhead and by memory, and what a
    device reaches is known only when it was tried. So each step's time is predicted from the rate that the other one reached.
    Where compute decides, the two agree; how far they are apart says how far a single rate can be trusted over the space.
    """

    device: str
    batch_size: int
    steps: tuple[Step, ...]

    def predicted_seconds(self, step: Step) -> float | None:
        """The time of a step at the rate of the other one; None when there is no other."""
        return next((step.step_macs / other.macs_per_s for other in self.steps if other is not step), None)

    def rate(self, concurrency: int) -> Throughput:
        """The rate for a forecast: of equal compute spent on either, so the harmonic mean."""
        return Throughput(len(self.steps) / sum(1 / step.macs_per_s for step in self.steps), concurrency, "from the smoke step")


def smoke(study: Study) -> Smoke:
    """Let the cheapest and the dearest architecture train as trials do, of the feasible ones known; nothing is written.

    Known are those of the study's census and those it enqueues, or an ablation's rows. Each takes a step to warm up and one that is
    timed, with the study's data, batch size, device and threads. Raises RunError when one runs out of memory or its loss is not
    finite, StudyError when nothing is feasible, DataError when data are missing.
    """
    study.check_runs()
    by_cost = sorted(study.architectures, key=lambda spec: cost(spec).step_macs(study.training.batch_size))
    cheapest, dearest = by_cost[0], by_cost[-1]
    specs = {"only": cheapest} if cheapest == dearest else {"cheapest": cheapest, "dearest": dearest}
    with _threads(study.resources.cpu):
        # Once for nothing: it loads the data, and the kernels and buffers of libraries, which are not the architecture's.
        device, _ = _two_steps(study, next(iter(specs)), cheapest)
        steps = tuple(_measured(study, what, spec, device) for what, spec in specs.items())
        _release(device)
    return Smoke(device=device.type, batch_size=study.training.batch_size, steps=steps)


def smoke_step(study_json: str) -> str:
    """`smoke` for a process elsewhere: a study as JSON in, for `read_smoke` out; a mistake of the user's is data too."""
    try:
        return smoke(Study.unpacked(study_json)).model_dump_json()
    except ToolkitError as error:
        return json.dumps({"error": str(error)})


def read_smoke(text: str) -> Smoke:
    """What `smoke_step` returned; raises RunError when the step could not be taken."""
    found = json.loads(text)
    if "error" in found:
        raise RunError(found["error"])
    return Smoke.model_validate(found)


def smoke_lines(found: Smoke) -> list[str]:
    """A line a step, measured beside predicted, and one on where and how fast."""
    lines = []
    for step in found.steps:
        expected = found.predicted_seconds(step)
        timed = f"{_time(step.seconds)} a step" + (f" (predicted {_time(expected).removesuffix(' ms')})" if expected else "")
        grown = f"{step.memory_bytes / MIB:.0f} MiB" if step.memory_bytes is not None else "memory not told here"
        lines.append(
            f"smoke: {step.what} {step.gflops:.4f} GFLOPs: {timed}, {grown} (predicted {step.predicted_memory_bytes / MIB:.0f})"
        )
    rates = " and ".join(f"{step.macs_per_s / 1e9:.3g}" for step in found.steps)
    how = "; times are predicted from each other" if len(found.steps) == 2 else ""
    return [*lines, f"smoke: {found.device}, batch size {found.batch_size}, {rates} training GFLOPs a second{how}"]


def _measured(study: Study, what: str, spec: ModelSpec, device: torch.device) -> Step:
    from nas.training.peak_memory import peak_bytes, reset_peak

    _release(device)
    before = reset_peak(device)
    _, seconds = _two_steps(study, what, spec)
    peak = peak_bytes(device)
    return Step(
        what=what,
        gflops=cost(spec).gflops,
        step_macs=cost(spec).step_macs(study.training.batch_size),
        seconds=seconds,
        memory_bytes=None if before is None else peak - before,
        predicted_memory_bytes=memory(spec, study.training.batch_size, len(study.training.ema)).peak,
    )


def _two_steps(study: Study, what: str, spec: ModelSpec) -> tuple[torch.device, float]:
    """Train two steps of a trial that is kept nowhere; the device, and the seconds of the second step."""
    from nas.training.trainer import DivergedError
    from nas.training.trial import Trial, as_failure

    which = f"smoke step: the {what} architecture ({cost(spec).gflops:.4g} GFLOPs, {cost(spec).params_m:.4g} M parameters)"
    batch = f"at batch size {study.training.batch_size}"
    try:
        trial = Trial(TrialPlan(number=0, spec=spec, seed=study.training.seed, milestones=()), study)
        trial.training.train_to(1)
        # Reading the loss at its end waits for the device.
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


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Within it, so many threads, as a trial has."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _release(device: torch.device) -> None:
    """Give back what is no longer used, so that a trial's growth is its own."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        # glibc keeps freed memory for later; other systems' libraries have no such call.
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 10 else f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{1000 * seconds:.0f} ms"

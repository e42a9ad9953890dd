"""The Ray executor: carries out plans on a running cluster, or on a cluster that it starts on this machine."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune

from nas.execution.cluster import Node, check_nodes, living_nodes, smallest_gpu
from nas.execution.ending import TERMINATED, Ended, Ending
from nas.execution.packing import share_of_gpu, training_bytes
from nas.execution.ray_adapters import (
    CPU,
    GPU,
    RUN,
    URI,
    Listens,
    PlanSearcher,
    PlanTrainable,
    RungScheduler,
    Share,
    ShortMemory,
    data_bytes,
)
from nas.execution.ray_place import check_address, check_folder, give_token
from nas.execution.smoke import Smoke, read_smoke, smoke_step
from nas.runs.layout import RAY, STUDY, TRIALS
from nas.runs.ledger import run_identity
from nas.runs.records import TrialPlan
from nas.runs.remote import remote_at
from nas.search.controller import Search
from nas.study.settings import ResourceSettings
from nas.study.study import Study
from space.errors import RunError, ToolkitError
from space.files import first_line

OBJECT_STORE_BYTES = 128 * 2**20
"""Size of Ray's object store. Trials exchange few numbers, so most of Ray's default share of memory is left to training."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C ends the run at once: the ledger has every report up to the last rungs.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # Seconds between two saves of Ray's experiment state, which is never read.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class RayExecutor:
    """Carries out plans on Ray; a context manager that connects on entry and shuts down on exit.

    Entering raises ToolkitError when the cluster cannot be reached, one of its nodes cannot be used, or no node has enough
    resources for a trial.

    Args:
        folder: The run directory on this machine.
        resources: The resources of a trial.
        address: A running cluster; None starts one on this machine that listens on loopback only.
        uri: The URI that `folder` mirrors; None when it mirrors none.
        ending: Says when the run ends before it is done.
        callbacks: Ray Tune callbacks, which get the metrics of every report (`ray_adapters.step_result`).
        trainable: The class of the workers.
        gpu_bytes: Memory of a GPU; None reads that of the cluster's smallest GPU.
    """

    def __init__(
        self,
        folder: Path,
        resources: ResourceSettings,
        address: str | None = None,
        *,
        uri: str | None = None,
        ending: Ending | None = None,
        callbacks: Sequence[tune.Callback] = (),
        trainable: type[tune.Trainable] = PlanTrainable,
        gpu_bytes: int | None = None,
    ) -> None:
        # An absolute path: workers have other working directories.
        self.folder, self.resources, self.address, self.uri = folder.resolve(), resources, address, uri
        self.ending, self.callbacks, self.trainable, self.gpu_bytes = ending or Ending(), callbacks, trainable, gpu_bytes

    def __enter__(self) -> RayExecutor:
        if self.address:
            check_address(self.address)
        else:
            check_folder()
            give_token()
        os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        # "local" starts a new cluster even when another runs on this machine.
        local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        try:
            ray.init(address=self.address or "local", **({} if self.address else local), **common)
        except SystemExit:
            # What Ray does on SIGTERM while it starts.
            raise Ended("ended by SIGTERM", TERMINATED) from None
        except (OSError, RuntimeError, ValueError) as error:
            reason = first_line(error)
            # As with Ray itself, only the address `auto` finds the token of a cluster that requires one.
            hint = "; a cluster with tokens needs RAY_AUTH_MODE=token" if self.address else ""
            raise ToolkitError(f"no Ray cluster at {self.address or 'this machine'}: {reason}{hint}") from None
        # Ray's own handler of SIGTERM kills its processes under this one.
        self.ending.listen()
        try:
            self._check(living_nodes())
        except BaseException:
            ray.shutdown()
            raise
        # The run itself reports failed trials, from the ledger.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        return self

    def _check(self, nodes: list[Node]) -> None:
        """Check resources and nodes, and read the GPUs' memory; raises ToolkitError when a trial could not run."""
        _check_share(self._usual(self.resources.cpu, nodes), nodes)
        if self.address:
            check_nodes(self.folder, nodes, self.uri)
        if self.gpu_bytes is None and self.resources.gpu == "auto" and any(node.gpu for node in nodes):
            self.gpu_bytes = smallest_gpu(nodes)

    def __exit__(self, *_: object) -> None:
        ray.shutdown()
        shutil.rmtree(self._state, ignore_errors=True)

    @property
    def _state(self) -> Path:
        """The folder of Ray's experiment state, which is never read."""
        return self.folder / RAY

    def smoke(self, study: Study) -> Smoke:
        """Train a step of the cheapest and the dearest architecture in a worker; raises ToolkitError when one fails."""
        share = self._usual(self.resources.cpu, living_nodes())
        step = ray.remote(num_cpus=share[CPU], num_gpus=share[GPU], max_retries=0)(smoke_step)
        try:
            return read_smoke(ray.get(step.remote(study.packed())))
        except ray.exceptions.RayError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise ToolkitError(
                f"the smoke step's worker died ({reason}); lower training.batch_size or look at Ray's logs"
            ) from None

    def search(self, search: Search) -> None:
        """Train the search's plans until it has no more."""
        self._fit(search, None)

    def finish(self, search: Search, plans: list[TrialPlan]) -> None:
        """Train the trials of the finish to their larger budget, each with the resources of a trial."""
        if plans:
            self._fit(search, plans)

    def _usual(self, cpu: int, nodes: list[Node]) -> Share:
        """The resources of a trial before its memory is considered."""
        gpu = self.resources.gpu
        return {CPU: float(cpu), GPU: min(1.0, max(node.gpu for node in nodes)) if gpu == "auto" else gpu}

    def _shares(self, search: Search) -> Callable[[TrialPlan], Share]:
        """A function from a plan to the resources of its trial."""
        nodes, study = living_nodes(), search.study
        usual, own_cluster = self._usual(self.resources.cpu, nodes), self.address is None
        _check_share(usual, nodes)
        cores, samples = max(node.cpu for node in nodes), data_bytes(study)

        def share(plan: TrialPlan) -> Share:
            if plan.alone and usual[GPU]:
                return usual | {GPU: max(1.0, usual[GPU])}
            if plan.alone and own_cluster:
                # Without a GPU this machine's memory ran out. On a shared cluster a whole node may never become free.
                return usual | {CPU: cores}
            if self.resources.gpu != "auto" or self.gpu_bytes is None or not usual[GPU]:
                return usual
            training = study.training_of(plan)
            needed = training_bytes(plan.spec, training.batch_size, len(training.ema))
            return usual | {GPU: share_of_gpu(needed, samples, self.gpu_bytes)}

        return share

    def _fit(self, search: Search, plans: list[TrialPlan] | None) -> None:
        scheduler, study = RungScheduler(search, plans, self.ending), self._state / STUDY
        _write(study, search.study.packed())
        elsewhere: dict[str, str] = {}
        if self.uri is not None:
            remote_at(self.uri).upload(study, STUDY)
            study, elsewhere = Path(STUDY), {URI: self.uri, RUN: run_identity(search.ledger.folder)}
        tuner = tune.Tuner(
            tune.with_resources(self.trainable, _request),
            tune_config=tune.TuneConfig(
                search_alg=PlanSearcher(scheduler, study, self.folder / TRIALS, self._shares(search), **elsewhere),
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=self.resources.concurrent,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="search" if plans is None else "finish",
                storage_path=str(self._state),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=0),
                callbacks=[*self.callbacks, Listens(self.ending), ShortMemory()],
                verbose=0,
            ),
        )
        tuner.fit()
        if scheduler.broken is not None:
            raise scheduler.broken


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}; free some space and run the same command again") from None


def _check_share(wanted: Share, nodes: list[Node]) -> None:
    """Raises ToolkitError when no node has the wanted cores or GPUs."""
    for name, amount in wanted.items():
        largest = max(getattr(node, name) for node in nodes)
        if amount > largest:
            raise ToolkitError(f"resources.{name} is {amount:g}, but no node has more than {largest:g}; lower it or add a node")


def _request(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """The resources that Ray reserves for a trial, from its configuration."""
    return tune.PlacementGroupFactory([{name.upper(): config[name] for name in (CPU, GPU) if config[name]}])

"""The Ray executor: carries out plans on a cluster, or on this machine in a cluster of its own."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import ray
from ray import tune

from nas.ray_adapters import PlanSearcher, PlanTrainable, RungScheduler
from nas.records import TrialPlan
from nas.search import Search
from nas.settings import ResourceSettings
from space.errors import NasError

OBJECT_STORE_BYTES = 128 * 2**20
"""Trials exchange a few numbers; Ray's default share of memory is left to training."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C ends the run at once: the ledger has everything since the last rung.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class OnRay:
    """Carries out plans on Ray; a context manager that stops what it started.

    `address` is a running cluster's; None starts one on this machine that listens on loopback only. Raises NasError
    when the cluster cannot be reached or has too little for one trial.
    """

    def __init__(self, folder: Path, resources: ResourceSettings, address: str | None = None) -> None:
        # Workers run in directories of their own.
        self.folder, self.resources, self.address = folder.resolve(), resources, address

    def __enter__(self) -> OnRay:
        if self.address and self.address.startswith("ray://"):
            raise NasError(f"{self.address}: a Ray Client address cannot be used; run on a node of the cluster with --address auto")
        os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        # "local" starts a cluster of our own even when another runs on this machine.
        own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        try:
            ray.init(address=self.address or "local", **({} if self.address else own), **common)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            # As with Ray itself, only the address `auto` finds the token of a cluster that wants one.
            hint = "; a cluster with tokens needs RAY_AUTH_MODE=token" if self.address else ""
            raise NasError(f"no Ray cluster at {self.address or 'this machine'}: {reason}{hint}") from None
        try:
            self._share(self.resources.cpu)
        except NasError:
            ray.shutdown()
            raise
        # What goes wrong with a trial is told by the run, from the ledger.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()
        shutil.rmtree(self._state, ignore_errors=True)

    @property
    def _state(self) -> Path:
        """Ray's own experiment state, which nothing reads."""
        return self.folder / ".ray"

    def search(self, search: Search) -> None:
        """Train until the search hands out nothing more."""
        self._fit(search, None, self._share(self.resources.cpu), self.resources.concurrent)

    def finish(self, search: Search, plans: list[TrialPlan]) -> None:
        """Train the chosen trials on, with all of the cluster's cores shared among them."""
        if plans:
            cores = [int(node.get("CPU", 0)) for node in _nodes()]
            # A trial runs on one machine.
            share = max(self.resources.cpu, min(sum(cores) // len(plans), max(cores)))
            self._fit(search, plans, self._share(share), None)

    def _share(self, cpu: int) -> dict[str, float]:
        """What one trial occupies; raises NasError when no node has as much."""
        nodes, gpu = _nodes(), self.resources.gpu
        largest = {name: max((node.get(name.upper(), 0.0) for node in nodes), default=0.0) for name in ("cpu", "gpu")}
        wanted = {"cpu": float(cpu), "gpu": min(1.0, largest["gpu"]) if gpu == "auto" else gpu}
        for name, amount in wanted.items():
            if amount > largest[name]:
                raise NasError(
                    f"resources.{name} is {amount:g}, but no node has more than {largest[name]:g}; lower it or add a node"
                )
        return wanted

    def _fit(self, search: Search, plans: list[TrialPlan] | None, share: dict[str, float], concurrent: int | None) -> None:
        scheduler = RungScheduler(search)
        tuner = tune.Tuner(
            tune.with_resources(PlanTrainable, share),
            tune_config=tune.TuneConfig(
                search_alg=PlanSearcher(scheduler, self.folder / "trials", plans),
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=concurrent,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="search" if plans is None else "finish",
                storage_path=str(self._state),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=0),
                verbose=0,
            ),
        )
        tuner.fit()
        if scheduler.broken is not None:
            raise scheduler.broken


def _nodes() -> list[dict[str, float]]:
    """The resources of every living node."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]

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
from space.errors import NasError

LOOPBACK = "127.0.0.1"
OBJECT_STORE_BYTES = 128 * 2**20
"""Trials exchange a few numbers; Ray's default share of memory is left to training."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
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

    def __init__(self, folder: Path, address: str | None = None) -> None:
        # Workers run in directories of their own.
        self.folder, self.address = folder.resolve(), address

    def __enter__(self) -> OnRay:
        os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        try:
            if self.address:
                ray.init(address=self.address, **common)
            else:
                ray.init(
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _node_ip_address=LOOPBACK,
                    num_cpus=os.cpu_count(),
                    **common,
                )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise NasError(f"no Ray cluster at {self.address or 'this machine'}: {str(error).splitlines()[0]}") from None
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()
        shutil.rmtree(self._state, ignore_errors=True)

    @property
    def _state(self) -> Path:
        """Ray's own experiment state, which nothing reads."""
        return self.folder / ".ray"

    def _cluster(self) -> dict[str, float]:
        """What the cluster has: CPU, GPU, …"""
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return resources

    def search(self, search: Search) -> None:
        """Train until the search hands out nothing more."""
        resources = search.study.resources
        self._fit(search, None, self._share(search, resources.cpu), resources.concurrent)

    def finish(self, search: Search, plans: list[TrialPlan]) -> None:
        """Train the chosen trials on, with all of the cluster's cores shared among them."""
        if plans:
            share = int(self._cluster().get("CPU", 1)) // len(plans)
            nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
            # A trial runs on one machine.
            largest = int(max(node["Resources"].get("CPU", 1) for node in nodes))
            cores = max(search.study.resources.cpu, min(share, largest))
            self._fit(search, plans, self._share(search, cores), None)

    def _share(self, search: Search, cpu: int) -> dict[str, float]:
        cluster = self._cluster()
        gpu = search.study.resources.gpu
        wanted = {"cpu": cpu, "gpu": min(1.0, cluster.get("GPU", 0)) if gpu == "auto" else gpu}
        for name, amount in wanted.items():
            if amount > cluster.get(name.upper(), 0):
                raise NasError(
                    f"resources.{name} is {amount:g}, but the cluster has {cluster.get(name.upper(), 0):g}; lower it or add a node"
                )
        return wanted

    def _fit(self, search: Search, plans: list[TrialPlan] | None, share: dict[str, float], concurrent: int | None) -> None:
        tuner = tune.Tuner(
            tune.with_resources(PlanTrainable, share),
            tune_config=tune.TuneConfig(
                search_alg=PlanSearcher(search, self.folder / "trials", plans),
                scheduler=RungScheduler(search),
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

"""Real Ray clusters of several raylets on this machine's loopback: what is checked before launch, and what dies in mid-study."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest

# Read when Ray is imported: it then takes 127.0.0.1 for this machine's address, and listens nowhere else.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import ray
import torch
from ray import tune
from ray.cluster_utils import Cluster

from nas.execution.cluster import check_nodes, living_nodes
from nas.execution.packing import CONTEXT_BYTES, training_bytes
from nas.execution.ray_adapters import GPU, PLAN, PlanSearcher, PlanTrainable, RungScheduler, step_result
from nas.execution.ray_executor import RayExecutor
from nas.runs.events import HandedOutAgain, Reported
from nas.runs.ledger import Ledger, read_events
from nas.runs.records import State, TrialPlan
from nas.runs.run import read_run
from nas.search.controller import Search
from nas.study.load import load_study
from nas.study.settings import ResourceSettings
from nas.training.trainer import Trainer
from space.errors import ToolkitError
from tests.nas.scripted import report as scripted_report

LOOPBACK = "127.0.0.1"
FAST_HEALTH_CHECKS = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}


@pytest.fixture(scope="module")
def cluster():
    """A head with six cores and a GPU that it only says it has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        assert ray.util.get_node_ip_address() == LOOPBACK, "Ray was imported before this module said where to listen"
        started = Cluster()
        started.add_node(
            node_ip_address=LOOPBACK, num_cpus=6, num_gpus=1, include_dashboard=False, _system_config=FAST_HEALTH_CHECKS
        )
        yield started
        ray.shutdown()
        started.shutdown()


class ScriptedSearch:
    """Hands out plans in a row, the `alone` ones among them; each ends at its first report."""

    def __init__(self, study, count, alone=()):
        self.study, self.running, self.failures, self.reports = study, set(), [], []
        self.run = SimpleNamespace(trials=defaultdict(lambda: SimpleNamespace(reports=[])))
        self.plans = [
            TrialPlan(number=number, spec=study.base, seed=0, milestones=(1,), alone=number in alone) for number in range(count)
        ]

    @property
    def may_come(self):
        return bool(self.plans or self.running)

    def next_plan(self):
        if not self.plans:
            return None
        plan = self.plans.pop(0)
        self.running.add(plan.number)
        return plan

    def report(self, report):
        self.running.discard(report.trial)
        self.reports.append(report)
        return False

    def fail(self, failure):
        self.running.discard(failure.trial)
        self.failures.append(failure)

    def lost(self, number, reason):
        raise AssertionError(f"trial {number} lost its worker: {reason}")


def note(config, line):
    """One line in the log of all workers; a short appended line is written as a whole."""
    folder = Path(config["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("a") as file:
        file.write(line + "\n")


def notes(folder):
    path = folder / "trials" / "log"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


class Pairs(tune.Trainable):
    """Trains nothing: two neighbours wait for one another, so that they must be there at once."""

    PARTNERS = {0: 1, 1: 0, 2: 3, 3: 2, 5: 6, 6: 5}  # noqa: RUF012

    def setup(self, config):
        self.given = config

    def reset_config(self, new_config):
        self.given = new_config
        return True

    def step(self):
        plan = TrialPlan.model_validate_json(self.given[PLAN])
        gpu = ray.get_runtime_context().get_assigned_resources().get("GPU", 0)
        note(self.given, f"+ {plan.number} {gpu:g} {os.getpid()}")
        partner, waited = self.PARTNERS.get(plan.number), threading.Event()
        for _ in range(600):
            begun = [line.split()[1] for line in (Path(self.given["folder"]) / "log").read_text().splitlines() if line[0] == "+"]
            if partner is None or str(partner) in begun:
                break
            waited.wait(0.1)
        else:
            raise RuntimeError(f"{plan.number} never saw {partner}")
        note(self.given, f"- {plan.number} {gpu:g} {os.getpid()}")
        return step_result(scripted_report(plan, 0))


@pytest.mark.slow
def test_as_many_trials_share_a_gpu_as_fit_and_one_alone_has_all_of_it(cluster, tiny, tmp_path):
    search = ScriptedSearch(tiny, 7, alone={4})
    trial = CONTEXT_BYTES + training_bytes(tiny.base, tiny.training.batch_size, len(tiny.training.ema))
    # Two fit into 90 % of it, three do not.
    with RayExecutor(tmp_path, ResourceSettings(), cluster.address, trainable=Pairs, gpu_bytes=trial * 5 // 2) as executor:
        executor.search(search)
    assert not search.failures
    assert sorted(report.trial for report in search.reports) == list(range(7))
    here, most = set(), 0
    for sign, number, gpu, _ in notes(tmp_path):
        assert float(gpu) == (1 if number == "4" else 0.5)
        (here.add if sign == "+" else here.discard)(number)
        most = max(most, len(here))
        assert "4" not in here or len(here) == 1
    assert most == 2
    workers = {number: pid for _, number, _, pid in notes(tmp_path)}
    assert len({workers[number] for number in "0123"}) <= 2, "trials with equal shares take over one another's workers"


def test_a_plan_says_what_it_occupies(tiny, tmp_path):
    """The search goes on while there may be a plan, and ends when there cannot be one."""
    search = ScriptedSearch(tiny, 2)
    searcher = PlanSearcher(RungScheduler(search), tmp_path / "study.json", tmp_path, lambda plan: {GPU: 0.25, "cpu": 1.0})
    first = searcher.suggest("a")
    assert TrialPlan.model_validate_json(first[PLAN]).number == 0
    assert first[GPU] == 0.25
    searcher.suggest("b")
    assert searcher.suggest("c") is None, "a running trial may still bring one"
    searcher.on_trial_complete("a")
    search.report(scripted_report(TrialPlan(number=0, spec=tiny.base, seed=0, milestones=(1,)), 0))
    assert searcher.suggest("c") is None
    search.plans.append(TrialPlan(number=1, spec=tiny.base, seed=0, milestones=(1,), reported=1))
    again = searcher.suggest("d")
    assert TrialPlan.model_validate_json(again[PLAN]).reported == 1, "a trial that waited comes again as another trial of Ray's"
    for trial in "bd":
        searcher.on_trial_complete(trial)
    assert searcher.suggest("e") == "FINISHED", "with nothing running Ray must not go on asking"


def test_numbers_stand_beside_the_report(tiny):
    plan = TrialPlan(number=3, spec=tiny.base, seed=0, milestones=(5 * 10**11,))
    numbers = {key: value for key, value in step_result(scripted_report(plan, 0)).items() if key != "report_json"}
    assert all(isinstance(value, (int, float)) for value in numbers.values())
    assert (numbers["trial"], numbers["rung"], numbers["train_tflops"]) == (3, 0, 0.5)


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "http://127.0.0.1:8265"])
def test_an_address_of_another_service_is_told(address, tmp_path):
    with pytest.raises(ToolkitError, match="cannot be used; run on a node of the cluster with --address auto"):
        RayExecutor(tmp_path, ResourceSettings(), address).__enter__()


@pytest.fixture
def connected(cluster):
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()


@pytest.mark.slow
def test_nodes_that_share_the_directory_pass_and_nothing_is_left_behind(connected, tmp_path):
    folder = tmp_path / "new" / "run"
    check_nodes(folder, living_nodes())
    assert not (tmp_path / "new").exists()
    folder.mkdir(parents=True)
    check_nodes(folder, living_nodes())
    assert not list(folder.iterdir())


def may_mount():
    return shutil.which("unshare") and subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="needs a mount namespace of its own")
def test_a_node_that_does_not_share_the_directory_is_named(cluster, tmp_path):
    # This process sees another file system there than the cluster's node does.
    code = """
import sys
from pathlib import Path
from nas.execution.ray_executor import RayExecutor
from nas.study.settings import ResourceSettings
from space.errors import ToolkitError
try:
    RayExecutor(Path(sys.argv[1]) / "run", ResourceSettings(gpu=0), sys.argv[2]).__enter__()
except ToolkitError as error:
    print(error)
print(list(Path(sys.argv[1]).iterdir()))
"""
    mount = 'mount -t tmpfs none "$1" && exec "$0" -c "$3" "$1" "$2"'
    command = ["unshare", "-rm", "sh", "-c", mount, sys.executable, str(tmp_path), cluster.address, code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    told, left = done.stdout.splitlines()
    assert told.startswith(f"node {LOOPBACK} does not see the run directory {tmp_path}/run; put it on a file system"), done.stderr
    assert left == "[]"


@pytest.mark.slow
def test_a_node_without_the_package_is_named(connected, tmp_path):
    # What Python imports at its start; the directories that this process imports from would come before one with another `nas`.
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['nas'] = None\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        node = connected.add_node(node_ip_address=LOOPBACK)
    try:
        with pytest.raises(
            ToolkitError, match=rf"node {LOOPBACK} cannot import the nas package \(No module named 'nas.*; install it"
        ):
            check_nodes(tmp_path / "run", living_nodes())
    finally:
        connected.remove_node(node)


@pytest.fixture
def folder(tmp_path):
    """A run directory in a root of its own: runs beside one another take over each other's trials."""
    return tmp_path / "run"


class Logged(PlanTrainable):
    """The real worker, which also notes where each plan begins."""

    def _begin(self, study):
        trial = super()._begin(study)
        # There are more workers here than cores.
        torch.set_num_threads(1)
        node = ray.get_runtime_context().get_node_id()
        note(self._config, f"{self._plan.number} {self._plan.reported} {trial.training.step} {node} {os.getpid()}")
        return trial


def check_all_ended(folder):
    """Every trial has ended, with consecutive rungs, and no report is in the ledger twice."""
    run = read_run(folder)
    assert not run.in_state(State.RUNNING)
    assert not run.in_state(State.FAILED)
    reports = [(event.trial, event.rung) for event in read_events(folder) if isinstance(event, Reported)]
    assert max(Counter(reports).values()) == 1
    for trial in run.trials.values():
        assert [report.rung for report in trial.reports] == list(range(len(trial.reports)))
    return run


def check_lost_little(run, folder):
    """Every plan began where the trial had last reported, or later, so at most what came after that was trained twice."""
    begun = [tuple(map(int, line[:3])) for line in notes(folder)]
    for number, reported, step in begun:
        assert step >= (run.trials[number].reports[reported - 1].step if reported else 0)
    return begun


def raylets():
    """The raylets that this process started, by process id."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            name = (folder / "cmdline").read_bytes().split(b"\0")[0]
        except OSError:  # It ended meanwhile.
            continue
        if parent == os.getpid() and name.endswith(b"/raylet"):
            found.add(int(folder.name))
    return found


LONGER = ["budget.max=1.2 GFLOPs", "budget.rungs=5", "budget.mode=none", "finish.budget=1.3 GFLOPs", "resources.gpu=0"]


@pytest.mark.slow
def test_a_killed_node_costs_what_came_after_the_last_rung(cluster, tiny_file, folder):
    pids = {}
    for _ in range(2):
        before = raylets()
        # Larger than the head, on which no trial fits then.
        node = cluster.add_node(node_ip_address=LOOPBACK, num_cpus=7)
        (pids[node.node_id],) = raylets() - before
    study = load_study(tiny_file, [*LONGER, "search.trials=5", "resources.cpu=7"])
    killed = []

    def kill(event, run):
        """Kill the node of a trial that has just reported for the second time and goes on."""
        if isinstance(event, Reported) and event.rung == 1 and not killed:
            (node,) = {line[3] for line in notes(folder) if int(line[0]) == event.trial}
            os.kill(pids[node], signal.SIGKILL)
            killed.append((event.trial, node, 2))

    with RayExecutor(folder, study.resources, cluster.address, trainable=Logged) as executor:
        carry_out(executor, study, folder, kill)
    run = check_all_ended(folder)
    again = [event for event in read_events(folder) if isinstance(event, HandedOutAgain)]
    # With its node it was lost, and at most the other that ran there.
    assert killed[0][0] in [event.trial for event in again]
    assert len(again) <= 2
    number, node, reported = killed[0]
    # A report may still have come in while the node was dying. Of all that it trained the finish begins after the last rung.
    rungs = range(reported, study.budget.rungs)
    begun = [before for trial, before, _ in check_lost_little(run, folder) if trial == number and before in rungs]
    assert len(begun) == 1, "it went on from its last rung"
    assert next(line[3] for line in reversed(notes(folder)) if int(line[0]) == number) != node


def carry_out(executor, study, folder, listener):
    ledger = Ledger(folder)
    try:
        search = Search(study, ledger, (listener,))
        executor.search(search)
        executor.finish(search, search.finish_plans())
    finally:
        ledger.close()


@pytest.mark.slow
def test_a_killed_worker_costs_what_came_after_the_last_rung(cluster, tiny_file, folder):
    study = load_study(tiny_file, [*LONGER, "search.trials=2", "resources.concurrent=2"])
    killed = []

    def kill(event, run):
        if isinstance(event, Reported) and event.rung == 1 and not killed:
            (pid,) = {int(line[4]) for line in notes(folder) if int(line[0]) == event.trial}
            os.kill(pid, signal.SIGKILL)
            killed.append(event.trial)

    with RayExecutor(folder, study.resources, cluster.address, trainable=Logged) as executor:
        carry_out(executor, study, folder, kill)
    run = check_all_ended(folder)
    (again,) = [event for event in read_events(folder) if isinstance(event, HandedOutAgain)]
    assert again.trial == killed[0]
    assert again.reason.startswith("the worker died: ")
    assert (killed[0], 2) in {begun[:2] for begun in check_lost_little(run, folder)}


class Hangs(PlanTrainable):
    """The real worker, whose second trial never ends its first step."""

    def _begin(self, study):
        note(self._config, f"{self._plan.number}")
        if self._plan.number == 1:
            Trainer._train_step = lambda self: threading.Event().wait()
        return super()._begin(study)


@pytest.mark.slow
def test_a_trial_that_hangs_is_failed_and_not_tried_again(cluster, tiny_file, folder):
    study = load_study(tiny_file, ["resources.gpu=0", "resources.concurrent=1", "resources.step_limit_s=3"])
    with RayExecutor(folder, study.resources, cluster.address, trainable=Hangs) as executor:
        carry_out(executor, study, folder, lambda event, search: None)
    run = read_run(folder)
    (failed,) = run.in_state(State.FAILED)
    assert failed.number == 1
    assert failed.reason.startswith("no progress for 3 s while training")
    assert not run.in_state(State.RUNNING)
    assert len(run.trials) == 4
    assert [line[0] for line in notes(folder)].count("1") == 1

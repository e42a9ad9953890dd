"""The nodes of a Ray cluster: their resources, and checks that a study can run on each of them."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nas.runs.remote import Remote
from space.errors import RunError, ToolkitError

ANSWER_LIMIT_S = 120.0
"""Time limit for a node's answer: it starts a worker and imports the package, which is slow on a cold shared file system."""

TOKEN = "token"


@dataclass(frozen=True)
class Node:
    """A living node: its id in the cluster, its address, and the CPU cores and GPUs that it offers."""

    id: str
    address: str
    cpu: float
    gpu: float


def living_nodes() -> list[Node]:
    """The living nodes of the cluster that this process is connected to."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [
        Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in nodes
        if node["Alive"]
    ]


def check_nodes(folder: Path, nodes: list[Node], uri: str | None = None) -> None:
    """Check that every node shares the run directory and has the same nas package as this machine.

    A worker on each node reads a token that this process wrote, and writes a file that this process reads. All of it is removed
    afterwards.

    Args:
        folder: The run directory on this machine.
        nodes: The nodes to check.
        uri: The URI that `folder` mirrors; None when it mirrors none. With a URI, the files are exchanged there.

    Raises:
        RunError: If the directory cannot be written on this machine.
        ToolkitError: If a node fails; the message names the first one.
    """
    if uri is not None:
        _check_at(uri, nodes)
        return
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    meeting = folder / f".check-{secrets.token_hex(4)}"
    try:
        try:
            meeting.mkdir(parents=True)
            (meeting / TOKEN).write_text(secrets.token_hex(16))
        except OSError as error:
            raise RunError(f"{folder} cannot be written: {error.strerror}; choose another place with --out") from None
        _check(folder, meeting, nodes)
    finally:
        shutil.rmtree(meeting, ignore_errors=True)
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def _check_at(uri: str, nodes: list[Node]) -> None:
    remote, meeting = Remote(uri), f".check-{secrets.token_hex(4)}"
    token = secrets.token_hex(16)
    try:
        remote.write(f"{meeting}/{TOKEN}", token.encode())
        mend = "give it the same access to the store as this machine has"
        for node, view in _views(nodes, uri, meeting):
            if view["write"] or view["token"] != token:
                reason = view["write"] or "it finds another content"
                raise ToolkitError(f"node {node.address} cannot use {remote.uri} ({reason}); {mend}")
            if remote.read(f"{meeting}/{node.id}") != node.id.encode():
                raise ToolkitError(f"what node {node.address} writes to {remote.uri} is not seen on this machine; {mend}")
    finally:
        remote.delete_folder(meeting)


def _views(nodes: list[Node], run: str, meeting: str) -> Iterator[tuple[Node, dict[str, str]]]:
    """The run directory as each node sees it; raises ToolkitError for a node whose nas package differs from this machine's."""
    look = _looker()
    here = look(run, meeting, "driver")["package"]
    for node, view in zip(nodes, _on_each(nodes, look, run, meeting), strict=True):
        if view["import"]:
            raise ToolkitError(
                f"node {node.address} cannot import the nas package ({view['import']}); install it there as it is on this machine"
            )
        if view["package"] != here:
            raise ToolkitError(
                f"node {node.address} has another nas package ({view['package']}) than this machine ({here}); install this there"
            )
        yield node, view


def _check(folder: Path, meeting: Path, nodes: list[Node]) -> None:
    token = (meeting / TOKEN).read_text()
    for node, view in _views(nodes, str(folder), meeting.name):
        share = "put it on a file system that all nodes mount at the same path, with --out"
        if view["token"] != token:
            raise ToolkitError(f"node {node.address} does not see the run directory {folder}; {share}")
        if view["write"]:
            raise ToolkitError(f"node {node.address} cannot write to the run directory {folder} ({view['write']}); {share}")
        if not (meeting / node.id).exists():
            raise ToolkitError(f"what node {node.address} writes to {folder} is not seen on this machine; {share}")


def smallest_gpu(nodes: list[Node]) -> int:
    """Bytes of memory of the cluster's smallest GPU; raises ToolkitError when torch finds no GPU on a node that has some."""
    gpu_nodes = [node for node in nodes if node.gpu]
    sizes: list[int] = []
    for node, (size, reason) in zip(gpu_nodes, _on_each(gpu_nodes, _sizer()), strict=True):
        if not size:
            raise ToolkitError(
                f"node {node.address} offers GPUs, but torch finds none there ({reason}); install torch for its CUDA version, or "
                "set resources.gpu to 0"
            )
        sizes.append(size)
    return min(sizes)


def _on_each(nodes: list[Node], function: Callable[..., Any], *arguments: str) -> list[Any]:
    """Call a function on every node and return its results; if there are arguments, the node's id follows them."""
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    given = {node: (*arguments, node.id) if arguments else () for node in nodes}
    pending = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(*given[node]) for node in nodes
    ]
    results, mend = [], "look at its Ray logs, or take it out of the cluster"
    for node, reference in zip(nodes, pending, strict=True):
        try:
            results.append(ray.get(reference, timeout=ANSWER_LIMIT_S))
        except ray.exceptions.GetTimeoutError:
            raise ToolkitError(f"node {node.address} did not answer within {ANSWER_LIMIT_S:g} s; {mend}") from None
        except ray.exceptions.RayError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise ToolkitError(f"node {node.address} cannot run a task ({reason}); {mend}") from None
    return results


def _looker() -> Callable[[str, str, str], dict[str, str]]:
    """The check that runs on a node. It is a nested function, so Ray sends its code, and the node may lack this module."""

    def look(run: str, meeting: str, node: str) -> dict[str, str]:
        import hashlib
        from importlib import metadata
        from pathlib import Path

        view = {"import": "", "package": "", "token": "", "write": ""}
        try:
            import nas.training.trial
            import space

            digest = hashlib.sha256()
            for package in (nas, space):
                root = Path(str(package.__file__)).parent
                for path in sorted(root.rglob("*.py")):
                    digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
            try:
                version = metadata.version("udit-nas")
            except metadata.PackageNotFoundError:
                version = "not installed"
            view["package"] = f"{version}, sources {digest.hexdigest()[:8]}"
        except Exception as error:
            view["import"] = (str(error) or type(error).__name__).splitlines()[0]
        try:
            if "://" in run:
                from nas.runs.remote import Remote

                remote = Remote(run)
                view["token"] = (remote.read(f"{meeting}/token") or b"").decode()
                remote.write(f"{meeting}/{node}", node.encode())
            else:
                view["token"] = (Path(run) / meeting / "token").read_text()
                (Path(run) / meeting / node).write_text(node)
        except OSError as error:
            view["write"] = str(error.strerror)
        except Exception as error:
            view["write"] = str(error)
        return view

    return look


def _sizer() -> Callable[[], tuple[int, str]]:
    """The reading of a node's smallest GPU memory, nested for the same reason as in `_looker`."""

    def size() -> tuple[int, str]:
        import os
        import subprocess
        import sys

        # A separate process, for two reasons: a CUDA context would stay on the GPU as long as this worker, and Ray hides the GPUs
        # from a task that requests none.
        code = (
            "import torch; n = torch.cuda.device_count(); assert n, 'torch.cuda finds no device'; "
            "print(min(torch.cuda.get_device_properties(i).total_memory for i in range(n)))"
        )
        environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            return 0, (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return int(done.stdout), ""

    return size

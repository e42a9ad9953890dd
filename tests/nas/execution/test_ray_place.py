"""What is wrong with a cluster's address or with Ray's folder is told at once, with the hint that mends it."""

import os
import socket
from pathlib import Path

import pytest

from nas.execution import ray_place
from nas.execution.ray_place import check_address, check_folder, give_token
from space import ToolkitError


@pytest.fixture
def free_address():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        # Nothing listens there.
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(autouse=True)
def no_wait(monkeypatch):
    monkeypatch.setattr(ray_place, "CONNECT_S", 0.0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize("given", ["auto", "itself"])
def test_a_cluster_that_is_gone_is_told_with_where_its_address_came_from(free_address, given, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", free_address)
    expected = rf"no Ray cluster answers at {free_address} \(RAY_ADDRESS\) within 0 s: Connection refused; .* or unset RAY_ADDRESS"
    with pytest.raises(ToolkitError, match=expected):
        check_address("auto" if given == "auto" else free_address)
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(ToolkitError, match=rf"answers at {free_address} \(--address\) .*, or leave --address out"):
        check_address(free_address)


def test_the_last_cluster_of_this_machine_may_be_gone_too(free_address, monkeypatch):
    monkeypatch.setattr(ray_place, "get_ray_address_from_environment", lambda *_: free_address)
    with pytest.raises(ToolkitError, match=r"\(the last cluster that was started on this machine\)"):
        check_address("auto")


def test_a_cluster_that_starts_meanwhile_is_reached(monkeypatch):
    monkeypatch.setattr(ray_place, "CONNECT_S", 20.0)
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        monkeypatch.setattr(ray_place.time, "sleep", lambda _: head.listen())
        check_address(f"127.0.0.1:{head.getsockname()[1]}")


def test_a_temporary_folder_that_is_too_long_for_sockets(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 60)
    with pytest.raises(ToolkitError, match=r"\(TMPDIR\) is too long for Ray's sockets by \d+ characters; set RAY_TMPDIR to"):
        check_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_folder()


def test_a_folder_of_another_user(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(ray_place, "_owner", lambda _: "somebody")
    with pytest.raises(ToolkitError, match=r"Ray cannot write to /tmp.* \(RAY_TMPDIR\), which belongs to somebody; set RAY_TMPDIR"):
        check_folder()


def test_ray_has_a_token_where_there_is_no_home_to_keep_one(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        # Set first, so that whatever is set below is taken back.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    give_token()
    assert "RAY_AUTH_TOKEN" not in os.environ, "Ray keeps its own in the home directory"
    (tmp_path / "file").touch()
    for home in (str(tmp_path / "file"), None):
        monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
        if home:
            monkeypatch.setenv("HOME", home)
        else:
            monkeypatch.setattr(Path, "home", no_home)
        give_token()
        token = os.environ["RAY_AUTH_TOKEN"]
        assert len(token) == 64
        give_token()
        assert os.environ["RAY_AUTH_TOKEN"] == token, "what is there is kept"


def no_home():
    raise RuntimeError("Could not determine home directory.")

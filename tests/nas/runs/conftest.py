"""What the tests of run directories at URIs share: places on real file systems, and machines with mirrors of their own."""

import secrets

import pytest


@pytest.fixture(autouse=True)
def first_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "machine-1"))


@pytest.fixture
def another_machine(tmp_path, monkeypatch):
    """Called, makes this process work in mirrors of its own, which are empty."""
    return lambda: monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"machine-{secrets.token_hex(2)}"))


@pytest.fixture
def uri(tmp_path):
    return f"file://{tmp_path}/store/runs/x"


@pytest.fixture(params=["file", "fsspec+memory"])
def anywhere(request, tmp_path):
    """A place on the disk, and one in memory."""
    return f"file://{tmp_path}/store/runs/x" if request.param == "file" else f"fsspec+memory://{secrets.token_hex(4)}/runs/x"

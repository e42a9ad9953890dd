"""What is really at a URI."""

from pathlib import Path

from nas.runs.remote import Remote


def store(uri):
    """The folder that a file:// URI is."""
    return Path(uri.removeprefix("file://"))


def ledger_at(uri):
    remote = Remote(uri)
    return b"".join(remote.read(name) for name in remote.names() if name.startswith("ledger-"))

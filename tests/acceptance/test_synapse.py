import os
import socket
from pathlib import Path
from typing import Any

import pytest

from rtc_appservice.demo.synapse import Synapse, SynapseFailed, free_port, running_synapse

REGISTRATION: dict[str, Any] = {
    "id": "test",
    "url": None,
    "as_token": "as",
    "hs_token": "hs",
    "sender_localpart": "auditor",
    "namespaces": {"users": [], "aliases": [], "rooms": []},
}


def test_free_port_is_free() -> None:
    """The port can be bound."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))


async def test_leaves_nothing_behind() -> None:
    """A Synapse that ran and stopped has no process and no file left, also when its user failed."""
    seen: list[Synapse] = []
    with pytest.raises(ZeroDivisionError):
        await fail_beside_synapse(seen)

    (synapse,) = seen
    assert not process_is_there(synapse.pid)
    assert not synapse.folder.exists()


async def fail_beside_synapse(seen: list[Synapse]) -> None:
    """Start a Synapse, note it, and raise `ZeroDivisionError`."""
    async with running_synapse(REGISTRATION) as synapse:
        seen.append(synapse)
        assert process_is_there(synapse.pid)
        assert synapse.folder.is_dir()
        raise ZeroDivisionError


async def test_says_why_it_did_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Synapse that ends while starting is an error with its last lines, and leaves nothing behind."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SynapseFailed, match=f"(?s)ended while starting.*{port}"):
            async with running_synapse(REGISTRATION, port=port):
                pass

    assert [] == files_in(tmp_path)


def files_in(folder: Path) -> list[Path]:
    """Give what is in a folder."""
    return list(folder.iterdir())


def process_is_there(pid: int) -> bool:
    """Tell whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

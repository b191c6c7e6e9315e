import os
import socket
from pathlib import Path

import pytest

from rtc_appservice.demo.process import ProcessFailed
from rtc_appservice.demo.synapse import Synapse, free_port, running_synapse


def registration_file(folder: Path) -> Path:
    """Write the least Synapse takes as a registration."""
    path = folder / "registration.yaml"
    path.write_text(
        "{id: test, url: null, as_token: as, hs_token: hs, sender_localpart: auditor,"
        " namespaces: {users: [], aliases: [], rooms: []}}"
    )
    return path


def test_free_port_is_free() -> None:
    """The port can be bound."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))


async def test_leaves_nothing_behind(tmp_path: Path) -> None:
    """A Synapse that ran and stopped has no process and no file left, also when its user failed."""
    seen: list[Synapse] = []
    with pytest.raises(ZeroDivisionError):
        await fail_beside_synapse(registration_file(tmp_path), seen)

    (synapse,) = seen
    assert not process_is_there(synapse.process.pid)
    assert not synapse.folder.exists()


async def fail_beside_synapse(registration: Path, seen: list[Synapse]) -> None:
    """Start a Synapse, note it, and raise `ZeroDivisionError`."""
    async with running_synapse(registration) as synapse:
        seen.append(synapse)
        assert process_is_there(synapse.process.pid)
        assert synapse.folder.is_dir()
        raise ZeroDivisionError


async def test_says_why_it_did_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Synapse that ends while starting is an error with its last lines, and leaves nothing behind."""
    registration = registration_file(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ProcessFailed, match=f"(?s)Synapse ended.*{port}"):
            async with running_synapse(registration, port=port):
                pass

    assert [registration] == files_in(tmp_path)


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

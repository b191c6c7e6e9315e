import os
import socket

import pytest

from rtc_appservice.errors import PortUnavailable
from rtc_appservice.ports import find_owner, listening, require_port


def test_a_port_in_use_names_itself_and_its_owner() -> None:
    """The operator need not look for the process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with (
            pytest.raises(
                PortUnavailable, match=rf"Port {port} on 127.0.0.1 is in use by .*process {os.getpid()}.*a.b"
            ),
            listening("127.0.0.1", port, keys="a.b"),
        ):
            socket.create_server(("127.0.0.1", port))


def test_another_reason_is_said() -> None:
    """An address that is not this machine's is another fault than a taken port."""
    with (
        pytest.raises(PortUnavailable, match="cannot be listened on: Cannot assign requested address"),
        listening("192.0.2.1", 0, keys="a.b"),
    ):
        socket.create_server(("192.0.2.1", 0))


async def test_a_port_is_tried_beforehand() -> None:
    """A free one stays free, and one in use is said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortUnavailable, match="is in use"):
            await require_port("127.0.0.1", port, keys="a.b")

    await require_port("127.0.0.1", port, keys="a.b")
    socket.create_server(("127.0.0.1", port)).close()


def test_a_free_port_has_no_owner() -> None:
    """Nobody is accused."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    assert find_owner(port) is None

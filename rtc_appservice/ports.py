"""Ports: the error that says which one is taken, and by whom where the system tells."""

import asyncio
import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rtc_appservice.errors import PortUnavailable

#: The state of a listening socket in /proc/net/tcp.
_LISTENING = "0A"


@contextmanager
def listening(host: str, port: int, *, keys: str) -> Iterator[None]:
    """Turn a failure to listen inside into `PortUnavailable`; `keys` says what configures the address."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            owner = find_owner(port)
            reason = f"is in use{f' by {owner}' if owner else ''}"
        else:
            reason = f"cannot be listened on: {error.strerror or type(error).__name__}"
        raise PortUnavailable(f"Port {port} on {host} {reason}; choose another one with {keys}.") from error


async def require_port(host: str, port: int, *, keys: str) -> None:
    """Listen on an address for a moment; raises `PortUnavailable` where that cannot be, as `listening` does."""
    with listening(host, port, keys=keys):
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port)
        server.close()
        await server.wait_closed()


def find_owner(port: int, proc: Path = Path("/proc")) -> str | None:
    """Give the process that listens on a TCP port as `name (process 123)`; None if the system does not tell."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port, proc)}
    for process in proc.glob("[0-9]*") if sockets else ():
        with suppress(OSError):  # it ended meanwhile, or it is another user's
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    if str(descriptor.readlink()) in sockets:
                        return f"{(process / 'comm').read_text().strip()} (process {process.name})"
    return None


def _listening_inodes(port: int, proc: Path) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (proc / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]

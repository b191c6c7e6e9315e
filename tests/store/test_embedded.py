"""The embedded PostgreSQL starts, is joined, and is gone when its last user is."""

from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import psutil  # type: ignore[import-untyped]

from rtc_appservice.store.embedded import EmbeddedPostgres


def servers_in(folder: Path) -> list[int]:
    """Give the processes that run a server there."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if str(folder) in (p.info["cmdline"] or [])]


async def test_start_stop_and_start_again() -> None:
    """Data stays over a stop; no process does. A path too long for a socket, and a stop before a start, are fine."""
    with TemporaryDirectory(prefix="rtc-appservice-test-") as name:
        folder = Path(name) / ("long" * 25) / "postgres"
        server = EmbeddedPostgres(folder)
        server.stop()
        connection = await asyncpg.connect(server.start())
        await connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
        await connection.close()
        assert servers_in(folder)
        server.stop()
        assert servers_in(folder) == []

        again = EmbeddedPostgres(folder)
        connection = await asyncpg.connect(again.start())
        assert await connection.fetchval("SELECT one FROM kept") == 1
        await connection.close()
        again.stop()
        assert servers_in(folder) == []


async def test_a_killed_user_does_not_keep_the_server() -> None:
    """A user that was killed stands in the list of users for ever; the server stops with the last one alive."""
    with TemporaryDirectory(prefix="rtc-appservice-test-") as name:
        folder = Path(name) / "postgres"
        first = EmbeddedPostgres(folder)
        first.start()
        users = folder / ".handle_pids.json"
        users.write_text("[999999999]")

        second = EmbeddedPostgres(folder)
        second.start()
        second.stop()
        first.stop()

        assert servers_in(folder) == []

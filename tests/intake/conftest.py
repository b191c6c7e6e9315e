"""The real intake on real PostgreSQL, with a clock the test holds."""

from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest

from rtc_appservice.core.wire import TransactionReader
from rtc_appservice.intake.keyring import Keyring
from rtc_appservice.intake.server import Credentials, IntakeServer
from rtc_appservice.intake.transaction import TransactionIntake
from rtc_appservice.store.pool import Pool

from .olm_peer import Peer, our_keyring
from .serving import HOMESERVER, TOKEN, Clock, Events, Served


@pytest.fixture
def ours() -> Keyring:
    """Give our device."""
    return our_keyring()


@pytest.fixture
def alice(ours: Keyring) -> Peer:
    """Give another device."""
    return Peer(ours)


@pytest.fixture
def clock() -> Clock:
    """Give a clock that stands still."""
    return Clock()


@pytest.fixture
def make_intake(pool: Pool, clock: Clock) -> Callable[[], TransactionIntake]:
    """Give a function that makes a new intake, as a restart of the service would."""
    return lambda: TransactionIntake(
        pool, HOMESERVER, TransactionReader(HOMESERVER, b"a secret of the test"), clock=clock
    )


@pytest.fixture
async def intake(make_intake: Callable[[], TransactionIntake]) -> TransactionIntake:
    """Give an opened intake."""
    intake = make_intake()
    await intake.open()
    return intake


@pytest.fixture
async def served(intake: TransactionIntake) -> AsyncIterator[Served]:
    """Give the intake behind its HTTP server."""
    session = aiohttp.ClientSession()
    server = IntakeServer(
        Credentials(appservice_id="rtc", as_token="as-token", hs_token=TOKEN, sender_localpart="rtc-auditor"),
        address="http://127.0.0.1:1",
        homeserver=HOMESERVER,
        take=intake.take,
        max_body_bytes=100_000,
        observe=lambda result, seconds, taken: given.observed.append((result, taken)),
    )
    given = Served(server, session)
    await server.start("127.0.0.1", 0)
    yield given
    await server.stop()
    await session.close()


@pytest.fixture
def events(clock: Clock) -> Events:
    """Give a maker of events."""
    return Events(clock)

"""What the database refuses does not stop what it takes; a database that does not answer is given up on in time."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from rtc_appservice.core.observed import RoomState
from rtc_appservice.core.wire import Intake, TransactionReader
from rtc_appservice.core.words import GapReason, UserId
from rtc_appservice.errors import StoreUnavailable
from rtc_appservice.intake.decrypt import Reading
from rtc_appservice.intake.device_keys import Identity
from rtc_appservice.intake.keyring import Keyring
from rtc_appservice.intake.own_device import OwnDevice
from rtc_appservice.intake.sealed import Invitations, SealedIntake
from rtc_appservice.intake.storing import record_what_can_be
from rtc_appservice.intake.transaction import Read, TransactionIntake
from rtc_appservice.store.gaps import load_gaps
from rtc_appservice.store.pool import Connection, open_pool
from rtc_appservice.store.rooms import RoomCache

from .olm_peer import OURS
from .reading_device import nothing_known
from .serving import HOMESERVER, Events, Served, transaction


class Leaky(TransactionReader):
    """A reader with a fault: it lets the NUL through that it is given for `#`."""

    def read(self, body: dict[str, Any], **options: Any) -> Intake:
        """Read, and put NUL into identities and state."""
        intake = super().read(body, **options)
        for index, observation in enumerate(intake.observations):
            read = observation.body
            if isinstance(read, RoomState):
                read = replace(read, value=read.value.replace("#", "\0"))
            intake.observations[index] = replace(
                observation, identity=observation.identity.replace("#", "\0"), body=read
            )
        return intake


@pytest.fixture
def leaky(intake: TransactionIntake) -> TransactionIntake:
    """Give an intake whose reader lets NUL through."""
    intake._reader = Leaky(intake._homeserver, b"a secret of the test")
    return intake


def state(events: Events, algorithm: str) -> dict[str, Any]:
    """Give a state event whose content is stored."""
    return events.join(type="m.room.encryption", state_key="", content={"algorithm": algorithm})


async def test_what_the_database_refuses_is_rejected_or_dropped_alone(
    leaky: TransactionIntake, served: Served, events: Events, conn: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """The transaction is acknowledged, its other events are there, and nobody says that the database is down."""
    join, key = events.join(), events.key()
    bad, nameless = state(events, "m.#bad"), events.key(event_id="$#")
    body = transaction(join, bad, nameless, key, to_device=[events.olm()])

    with caplog.at_level(logging.DEBUG):
        assert (200, {}) == await served.put(body)
    await leaky.beat()

    assert {join["event_id"]: "membership", key["event_id"]: "room_key", bad["event_id"]: "rejected"} == {
        row["identity"]: row["kind"] for row in await conn.fetch("SELECT identity, kind FROM observation")
    }
    assert "m.room.encryption" == await conn.fetchval(
        "SELECT body ->> 'event_type' FROM observation WHERE late OR kind = 'rejected'"
    )
    assert await conn.fetchval("SELECT count(*) FROM held_envelope") == 1
    assert [] == await load_gaps(conn, None, None)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert {"22P05", "22021"} >= {record.__dict__["sqlstate"] for record in errors}
    assert 2 == len(errors)
    assert "!room" not in "".join(str(record.__dict__) for record in errors)

    assert (200, {}) == await served.put(body)
    assert await conn.fetchval("SELECT count(*) FROM observation") == 3


async def test_inside_a_transaction_of_the_caller(leaky: TransactionIntake, events: Events, conn: Connection) -> None:
    """What the caller wrote before stays, and is committed with the parts that could be stored."""
    now = events._clock.now
    whole = leaky._read(transaction(events.join(), state(events, "m.#bad")), now, None)

    async with conn.transaction():
        await conn.execute("UPDATE stream SET watermark_at = NULL, last_heartbeat_at = $1", now)
        recorded = await record_what_can_be(conn, leaky.homeserver_id, whole, RoomCache())

    assert (2, 0) == (recorded.new, recorded.duplicates)
    assert ["membership", "rejected"] == [
        row["kind"] for row in await conn.fetch("SELECT kind FROM observation ORDER BY kind")
    ]


async def test_a_stopped_database_is_given_up_on_in_time(database: str, conn: Connection, events: Events) -> None:
    """It holds its connections open and answers nothing: the transaction fails, and the next one may succeed."""
    reader = TransactionReader(HOMESERVER, b"a secret of the test")
    async with await open_pool(database, 1) as pool:
        intake = TransactionIntake(pool, HOMESERVER, reader, store_seconds=0.5)
        await intake.open()
        stopped = await pool.fetchval("SELECT pg_backend_pid()")
        os.kill(stopped, signal.SIGSTOP)
        try:
            async with asyncio.timeout(10):
                started = time.monotonic()
                with pytest.raises(StoreUnavailable):
                    await intake.take(body_of(transaction(events.join())))
                took = time.monotonic() - started
                await intake.beat()
                await intake.take(body_of(transaction(events.join())))
        finally:
            os.kill(stopped, signal.SIGCONT)

    assert 0.4 < took < 5
    assert await conn.fetchval("SELECT count(*) FROM observation") == 1
    assert {GapReason.DATABASE_DOWN, GapReason.TO_DEVICE_LOST} == {
        gap.reason for gap in await load_gaps(conn, None, None)
    }


def body_of(body: dict[str, Any]) -> Read:
    """Give what reads a transaction."""

    async def read() -> bytes:
        return orjson.dumps(body)

    return read


class RefusedDevice(SealedIntake):
    """A device whose keys the database refuses for what they hold."""

    def concerns(self, body: dict[str, Any]) -> bool:
        """Claim every transaction."""
        return True

    async def open(
        self, conn: Connection, body: dict[str, Any], identities: Mapping[UserId, Identity]
    ) -> tuple[Keyring, Reading]:
        """Write what is refused."""
        await conn.execute("SELECT 'not a number'::int")
        raise AssertionError("it was not refused")


async def test_what_is_refused_of_the_device_does_not_stop_the_rest(
    intake: TransactionIntake, served: Served, events: Events, conn: Connection
) -> None:
    """Its messages of that transaction are lost, which is on record; the transaction is acknowledged."""
    own = OwnDevice(HOMESERVER, intake.homeserver_id, OURS, b"a secret of the test")
    intake.sealed = RefusedDevice(intake.homeserver_id, own, Invitations([]), nothing_known)

    assert (200, {}) == await served.put(transaction(events.join()))
    await intake.beat()

    assert ["membership"] == [row["kind"] for row in await conn.fetch("SELECT kind FROM observation")]
    assert {GapReason.TO_DEVICE_LOST} == {gap.reason for gap in await load_gaps(conn, None, None)}

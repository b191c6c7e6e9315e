import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from rtc_appservice.core.observed import Gap
from rtc_appservice.core.wire import Intake
from rtc_appservice.core.words import GapReason
from rtc_appservice.errors import StoreUnavailable
from rtc_appservice.intake.transaction import BadBody, TransactionIntake
from rtc_appservice.store.gaps import load_gaps
from rtc_appservice.store.pool import Connection, Pool

from .serving import START, Clock, Events, transaction

Make = Callable[[], TransactionIntake]


async def send(intake: TransactionIntake, *events: Any, to_device: Any = ()) -> Intake:
    """Hand a transaction to the intake as bytes."""

    async def read() -> bytes:
        return json.dumps(transaction(*events, to_device=to_device)).encode()

    return await intake.take(read)


async def gaps(conn: Connection) -> dict[GapReason, Gap]:
    """Give the recorded gaps, one of each reason expected."""
    found = await load_gaps(conn, None, None)
    assert len(found) == len({gap.reason for gap in found})
    return {gap.reason: gap for gap in found}


def span(gap: Gap) -> tuple[datetime | None, datetime | None]:
    """Give when a gap began and ended."""
    return gap.started_at, gap.ended_at


async def break_store(conn: Connection) -> None:
    """Make every write of an observation fail, as an operator's mistake or a full disk would."""
    await conn.execute("ALTER TABLE observation RENAME TO observation_away")


async def mend_store(conn: Connection) -> None:
    """Undo `break_store`."""
    await conn.execute("ALTER TABLE observation_away RENAME TO observation")


async def test_first_start_has_no_gap(intake: TransactionIntake, events: Events, conn: Connection) -> None:
    """Where nothing was seen before, nothing was missed."""
    await send(intake, events.join())

    assert {} == await gaps(conn)


async def test_every_restart_is_a_gap(make_intake: Make, clock: Clock, events: Events, conn: Connection) -> None:
    """From the last sign of life to the start, and for to-device to the first transaction that is up to date."""
    first = make_intake()
    await first.open()
    last_seen = clock.advance(4)
    await send(first, events.join())
    clock.advance(1)
    lost_event = events.key()

    started = clock.advance(2)
    second = make_intake()
    await second.open()
    found = await gaps(conn)
    assert {GapReason.SERVICE_DOWN, GapReason.TO_DEVICE_LOST} == set(found)
    assert (last_seen, started) == span(found[GapReason.SERVICE_DOWN])
    assert (last_seen, None) == span(found[GapReason.TO_DEVICE_LOST])

    received = clock.advance(3)
    await send(second, lost_event)
    clock.advance(1)
    await second.beat()
    assert (last_seen, received) == span((await gaps(conn))[GapReason.TO_DEVICE_LOST])


async def test_an_idle_service_is_last_seen_at_its_heartbeat(make_intake: Make, clock: Clock, conn: Connection) -> None:
    """Without transactions the heartbeat says how long the service lived."""
    first = make_intake()
    await first.open()
    last_seen = clock.advance(100)
    await first.beat()

    started = clock.advance(1)
    await make_intake().open()

    assert (last_seen, started) == span((await gaps(conn))[GapReason.SERVICE_DOWN])


async def test_a_backlog_keeps_the_gap_open(make_intake: Make, clock: Clock, events: Events, conn: Connection) -> None:
    """While old events are delivered, to-device messages still are not."""
    first = make_intake()
    await first.open()
    await send(first, events.join())
    backlog = [events.key(), events.key()]
    clock.advance(600)
    second = make_intake()
    await second.open()

    await send(second, backlog[0])
    await second.beat()
    assert (START, None) == span((await gaps(conn))[GapReason.TO_DEVICE_LOST])

    await send(second, backlog[1])
    received = clock.advance(1)
    await send(second, to_device=[events.olm()])
    await second.beat()
    assert (START, received) == span((await gaps(conn))[GapReason.TO_DEVICE_LOST])


async def test_a_gap_left_open_by_a_crash_is_ended_by_the_next_life(
    make_intake: Make, clock: Clock, events: Events, conn: Connection
) -> None:
    """Two crashes before anything came in are one loss of to-device messages."""
    first = make_intake()
    await first.open()
    clock.advance(60)
    await make_intake().open()
    clock.advance(60)
    third = make_intake()
    await third.open()
    received = clock.advance(1)
    await send(third, events.message())
    await third.beat()

    lost = [gap for gap in await load_gaps(conn, None, None) if gap.reason is GapReason.TO_DEVICE_LOST]
    assert [(START, received)] == [span(gap) for gap in lost]


async def test_a_backlog_is_a_gap_until_it_is_through(
    intake: TransactionIntake, clock: Clock, events: Events, conn: Connection
) -> None:
    """From when the late ones were sent, to the first that came in time."""
    await send(intake, events.join())
    sent_at = clock.advance(1)
    held = events.key()
    clock.advance(300)
    await send(intake, held)
    await intake.beat()
    assert {GapReason.BACKLOG: (sent_at, None)} == {reason: span(gap) for reason, gap in (await gaps(conn)).items()}

    received = clock.advance(1)
    await send(intake, events.key())
    clock.advance(10)
    await intake.beat()
    assert {GapReason.BACKLOG: (sent_at, received)} == {reason: span(gap) for reason, gap in (await gaps(conn)).items()}


async def test_another_instance_that_lived_takes_the_gap_of_the_service_back(
    make_intake: Make, clock: Clock, events: Events, conn: Connection
) -> None:
    """The one that is up to date ends the loss of to-device messages too, once it has seen that none are held back."""
    first, second = make_intake(), make_intake()
    await first.open()
    await send(first, events.join())
    last_seen = clock.now
    clock.advance(8)
    await second.open()
    assert {GapReason.SERVICE_DOWN, GapReason.TO_DEVICE_LOST} == set(await gaps(conn))

    clock.advance(2)
    await first.beat()
    await second.beat()
    assert {GapReason.TO_DEVICE_LOST: (last_seen, None)} == {
        reason: span(gap) for reason, gap in (await gaps(conn)).items()
    }

    received = clock.advance(1)
    await send(first, events.message())
    clock.advance(9)
    await first.beat()
    clock.advance(9)
    await second.beat()
    assert {GapReason.TO_DEVICE_LOST: (last_seen, received)} == {
        reason: span(gap) for reason, gap in (await gaps(conn)).items()
    }


async def test_a_loss_of_the_other_instance_is_a_gap_of_its_own(
    make_intake: Make, clock: Clock, events: Events, conn: Connection
) -> None:
    """What the first has ended meanwhile is not opened again, and the new loss is not taken for the old."""
    first, second = make_intake(), make_intake()
    await first.open()
    clock.advance(1)
    await second.open()
    ended = clock.advance(1)
    await send(first, events.message())
    await first.beat()
    failed_at = clock.advance(1)

    async def cut_off() -> bytes:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await second.take(cut_off)
    await second.beat()
    back_at = clock.advance(1)
    await send(first, events.message())
    await first.beat()
    await second.beat()

    assert [(START, ended), (failed_at, back_at)] == [span(gap) for gap in await load_gaps(conn, None, None)]


async def test_instances_that_start_together_leave_the_gap_before_them(
    make_intake: Make, clock: Clock, events: Events, conn: Connection
) -> None:
    """The one that started last found the other just started, and that nobody had lived before it."""
    gone, first, second = make_intake(), make_intake(), make_intake()
    await gone.open()
    started = clock.advance(600)
    await first.open()
    clock.advance(2)
    await second.open()
    clock.advance(8)
    await first.beat()
    clock.advance(2)
    await second.beat()

    assert (START, started) == span((await gaps(conn))[GapReason.SERVICE_DOWN])


async def test_an_instance_that_hung_takes_nothing_back(make_intake: Make, clock: Clock, conn: Connection) -> None:
    """Its heartbeats had stopped, so whether the service was down in between is not known."""
    first = make_intake()
    await first.open()
    started = clock.advance(31)
    await make_intake().open()
    clock.advance(1)
    await first.beat()

    assert (START, started) == span((await gaps(conn))[GapReason.SERVICE_DOWN])


async def test_starts_that_come_to_nothing_are_one_gap(
    make_intake: Make, clock: Clock, events: Events, conn: Connection
) -> None:
    """A supervisor that starts it again and again adds nothing but time; once it has lived, the next is another."""
    first = make_intake()
    await first.open()
    for _ in range(4):
        started = clock.advance(5)
        last = make_intake()
        await last.open()
    assert (START, started) == span((await gaps(conn))[GapReason.SERVICE_DOWN])

    lived = clock.advance(10)
    await last.beat()
    again = clock.advance(5)
    await make_intake().open()

    down = [gap for gap in await load_gaps(conn, None, None) if gap.reason is GapReason.SERVICE_DOWN]
    assert [(START, started), (lived, again)] == [span(gap) for gap in down]


async def test_a_store_that_fails_is_a_gap_once_it_is_back(
    intake: TransactionIntake, clock: Clock, events: Events, conn: Connection
) -> None:
    """The refused transaction's to-device messages do not come again: that is on record before its events are."""
    join = events.join()
    await break_store(conn)
    failed_at = clock.advance(1)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await send(intake, join, to_device=[events.olm()])
        clock.advance(2)
    await mend_store(conn)

    back_at = clock.now
    await send(intake, join)

    assert await conn.fetchval("SELECT count(*) FROM observation") == 1
    assert (failed_at, None) == span((await gaps(conn))[GapReason.TO_DEVICE_LOST])
    assert (failed_at, None) == span((await gaps(conn))[GapReason.DATABASE_DOWN])
    clock.advance(5)
    await intake.beat()
    assert (failed_at, back_at) == span((await gaps(conn))[GapReason.TO_DEVICE_LOST])
    assert (failed_at, back_at) == span((await gaps(conn))[GapReason.DATABASE_DOWN])


async def test_a_failed_transaction_leaves_nothing(intake: TransactionIntake, events: Events, conn: Connection) -> None:
    """Neither half of its rows nor the belief that its room is known."""
    join, key = events.join(), events.key(room_id="!other")
    await break_store(conn)
    with pytest.raises(StoreUnavailable):
        await send(intake, join, key, to_device=[events.olm()])
    for table in ("observation_away", "observation_identity", "held_envelope", "room", "dirty_room"):
        assert await conn.fetchval(f"SELECT count(*) FROM {table}") == 0  # noqa: S608
    await mend_store(conn)

    await send(intake, join, key)

    assert await conn.fetchval("SELECT count(*) FROM observation") == 2


@pytest.mark.parametrize("fault", [b"{", ConnectionResetError()])
async def test_a_body_that_cannot_be_read_is_a_gap(
    intake: TransactionIntake, clock: Clock, events: Events, conn: Connection, fault: bytes | Exception
) -> None:
    """Whatever the reason a transaction is refused for, the homeserver repeats it without its to-device messages."""

    async def read() -> bytes:
        if isinstance(fault, Exception):
            raise fault
        return fault

    failed_at = clock.advance(1)
    with pytest.raises((BadBody, ConnectionResetError)):
        await intake.take(read)
    back_at = clock.advance(2)
    await send(intake, events.message())
    await intake.beat()

    assert {GapReason.TO_DEVICE_LOST: (failed_at, back_at)} == {
        reason: span(gap) for reason, gap in (await gaps(conn)).items()
    }


async def test_what_is_sent_again_though_committed_is_a_gap(
    intake: TransactionIntake, clock: Clock, events: Events, conn: Connection
) -> None:
    """The homeserver did not get our answer in time, and sent no to-device messages until it did."""
    join = events.join()
    first_at = clock.advance(1)
    await send(intake, join)
    again_at = clock.advance(4)
    await send(intake, join)
    await intake.beat()

    assert await conn.fetchval("SELECT count(*) FROM observation") == 1
    assert {GapReason.TO_DEVICE_LOST: (first_at, again_at)} == {
        reason: span(gap) for reason, gap in (await gaps(conn)).items()
    }


async def test_a_closed_pool_is_a_store_that_fails(intake: TransactionIntake, events: Events, pool: Pool) -> None:
    """Whatever way the database is away, it is one error."""
    await pool.close()

    with pytest.raises(StoreUnavailable):
        await send(intake, events.join())
    with pytest.raises(StoreUnavailable):
        await intake.beat()


async def test_room_members_are_watched_once_a_call_was_seen(
    intake: TransactionIntake, make_intake: Make, clock: Clock, events: Events, conn: Connection
) -> None:
    """From the RTC event on, and by the next life of the service too."""

    def leave(room_id: str) -> dict[str, Any]:
        return events.message(
            type="m.room.member", state_key="@alice:lab.test", content={"membership": "leave"}, room_id=room_id
        )

    await send(intake, leave("!room"))
    assert await conn.fetchval("SELECT count(*) FROM observation") == 0

    await send(intake, events.join())
    await send(intake, leave("!room"), leave("!elsewhere"))
    assert await conn.fetchval("SELECT count(*) FROM observation") == 2

    second = make_intake()
    await second.open()
    await send(second, leave("!room"))
    assert await conn.fetchval("SELECT count(*) FROM observation") == 3


async def test_a_failed_transaction_watches_no_room(
    intake: TransactionIntake, events: Events, conn: Connection
) -> None:
    """What is not committed has not been seen."""
    await break_store(conn)
    with pytest.raises(StoreUnavailable):
        await send(intake, events.join())
    await mend_store(conn)

    taken = await send(intake, events.message(type="m.room.member", state_key="x", content={"membership": "leave"}))

    assert [] == taken.observations


async def test_watermark_is_written_with_events_and_heartbeats(
    intake: TransactionIntake, make_intake: Make, clock: Clock, events: Events, conn: Connection
) -> None:
    """It is that of the newest event, follows the idle clock, and a new life starts from it."""
    watermark = "SELECT watermark_at FROM stream"
    at = clock.advance(100)
    await send(intake, events.join())
    assert at == await conn.fetchval(watermark)

    clock.advance(60)
    await intake.beat()
    assert at + timedelta(seconds=30) == await conn.fetchval(watermark)

    late = events.key(origin_server_ts=int((at - timedelta(seconds=45)).timestamp() * 1000))
    second = make_intake()
    await second.open()
    taken = await send(second, late)
    assert [True] == [observation.late for observation in taken.observations]
    assert at + timedelta(seconds=30) == await conn.fetchval(watermark)

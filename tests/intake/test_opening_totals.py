"""What the service's device opened and what it could not is counted once, in the commit that records it."""

from datetime import timedelta
from typing import Any

import pytest

from rtc_appservice.store import crypto
from rtc_appservice.store.pool import Connection, Pool

from .olm_peer import OURS, ROOM, Peer, body
from .reading_device import ReadingDevice
from .serving import Clock


@pytest.fixture
async def device(pool: Pool, clock: Clock) -> ReadingDevice:
    """Give a device that takes transactions."""
    device = ReadingDevice(pool, clock)
    await device.start()
    return device


def withheld(alice: Peer, code: str, session_id: str | None = None) -> dict[str, Any]:
    """Give the message that keeps a Megolm session from the device."""
    content = {"algorithm": "m.megolm.v1.aes-sha2", "room_id": ROOM, "session_id": session_id or alice.megolm.id}
    addresses = {"sender": alice.user, "to_user_id": OURS[0], "to_device_id": OURS[1]}
    return {"type": "m.room_key.withheld", **addresses, "content": {**content, "code": code}}


async def test_read_at_once(device: ReadingDevice) -> None:
    """An event and a message that are opened count once, also when the transaction comes again after a restart."""
    sent = body(device.alice.megolm_key(), device.alice.media_key(), events=(device.alice.room_key(0),))

    await device.take(sent)
    await device.start()
    await device.take(sent)

    assert {"events_decrypted at_once": 1, "to_device_decrypted": 2} == await device.totals()
    assert {} == await device.waiting()


async def test_read_later(device: ReadingDevice) -> None:
    """An event whose session comes later counts as not opened, then as opened later; however often it is read."""
    session, event, other = device.alice.megolm_key(), device.alice.room_key(0), device.alice.room_key(1)
    await device.take(body(events=(event, other)))
    before = await device.totals()
    waiting = await device.waiting()

    await device.take(body(session))
    await device.read_again(event)
    await device.read_again(event)
    await device.take(body(events=(event,)))

    assert {"events_undecryptable missing_session": 2} == before
    assert {"missing_session": 2} == waiting
    assert {
        "events_undecryptable missing_session": 2,
        "events_decrypted later": 1,
        "to_device_decrypted": 1,
    } == await device.totals()
    assert {"missing_session": 1} == await device.waiting()


async def test_a_session_from_an_earlier_index(device: ReadingDevice, conn: Connection) -> None:
    """An event from before its session waits until the session comes from before it; until then it is not tried."""
    whole, event, rest = device.alice.megolm_key(), device.alice.room_key(0), device.alice.megolm_key()
    number = device.intake.homeserver_id
    await device.take(body(rest))
    device.clock.advance(1)
    await device.take(body(events=(event,)))
    before = await crypto.readable_now(conn, number, 10)
    device.clock.advance(1)
    await device.take(body(whole))
    after = await crypto.readable_now(conn, number, 10)
    await device.read_again(event)

    assert [] == before
    assert [event["event_id"]] == [one.event_id for one in after]
    assert [] == await crypto.readable_now(conn, number, 10)
    assert {
        "events_undecryptable before_session": 1,
        "events_decrypted later": 1,
        "to_device_decrypted": 2,
    } == await device.totals()


async def test_a_session_that_still_begins_too_late(device: ReadingDevice, conn: Connection) -> None:
    """An event that it does not open either is tried once, and waits for the next."""
    event, earlier = device.alice.room_key(0), device.alice.megolm_key()
    device.alice.room_key(1)
    number = device.intake.homeserver_id
    await device.take(body(device.alice.megolm_key()))
    await device.take(body(events=(event,)))
    device.clock.advance(1)
    await device.take(body(earlier))
    found = await crypto.readable_now(conn, number, 10)
    await device.read_again(event)

    assert [event["event_id"]] == [one.event_id for one in found]
    assert [] == await crypto.readable_now(conn, number, 10)
    assert {"before_session": 1} == await device.waiting()


async def test_read_again_in_vain(device: ReadingDevice) -> None:
    """An event that cannot be opened the second time either waits on, and is no second one."""
    event = device.alice.room_key(0)
    await device.take(body(events=(event,)))
    await device.read_again(event)

    assert {"events_undecryptable missing_session": 1} == await device.totals()
    assert {"missing_session": 1} == await device.waiting()


@pytest.mark.parametrize(("code", "counted"), [("m.unverified", "m.unverified"), ("org.example.mine", "other")])
async def test_withheld(device: ReadingDevice, code: str, counted: str) -> None:
    """Why a session does not come is known before the event and after it, and its sessions count once."""
    message, first, second = withheld(device.alice, code), device.alice.room_key(0), device.alice.room_key(1)
    await device.take(body(message))
    await device.start()
    await device.take(body(events=(first,)))
    await device.take(body(message, events=(second,)))

    assert {
        "events_undecryptable withheld": 2,
        f"megolm_sessions_withheld {counted}": 1,
    } == await device.totals()
    assert {counted: 2} == await device.waiting()


async def test_withheld_after_the_event(device: ReadingDevice) -> None:
    """The total keeps what was known when the event came; what waits is told with the code."""
    await device.take(body(events=(device.alice.room_key(0),)))
    await device.take(body(withheld(device.alice, "m.blacklisted")))

    assert {
        "events_undecryptable missing_session": 1,
        "megolm_sessions_withheld m.blacklisted": 1,
    } == await device.totals()
    assert {"m.blacklisted": 1} == await device.waiting()


async def test_a_session_somebody_else_withholds(device: ReadingDevice) -> None:
    """Only who seals in a session says why it does not come."""
    mallory = Peer(device.keys, "@mallory:lab.test", "MALLORY1")
    first, second = device.alice.room_key(0), device.alice.room_key(1)
    planted = withheld(device.alice, "m.blacklisted") | {"sender": mallory.user}
    await device.take(body(planted, events=(first,)))

    assert {"missing_session": 1} == await device.waiting()
    await device.take(body(withheld(device.alice, "m.unverified"), events=(second,)))
    assert {"m.unverified": 2} == await device.waiting()


async def test_a_session_claimed_before_its_owner(device: ReadingDevice) -> None:
    """What was sealed in a session that another claimed first waits for its sender's own, and is read again with it."""
    mallory = Peer(device.keys, "@mallory:lab.test", "MALLORY1")
    session_key, number = device.alice.megolm.session_key, device.intake.homeserver_id
    claimed = mallory.megolm_key(session_id=device.alice.megolm.id, session_key=session_key)
    key, event = device.alice.megolm_key(), device.alice.room_key(0)
    await device.take(body(claimed, events=(event,)))
    async with device.pool.acquire() as conn:
        assert [] == await crypto.readable_now(conn, number, 10)
    device.clock.advance(1)
    await device.take(body(key))
    async with device.pool.acquire() as conn:
        assert [event["event_id"]] == [one.event_id for one in await crypto.readable_now(conn, number, 10)]
    await device.read_again(event)
    await device.take(body(events=({**event, "event_id": "$again"},)))

    assert {
        "events_undecryptable wrong_sender": 1,
        "events_undecryptable replayed": 1,
        "events_decrypted later": 1,
        "to_device_decrypted": 2,
    } == await device.totals()


async def test_only_rooms_it_is_in(device: ReadingDevice) -> None:
    """What is sealed elsewhere is none of the device's business."""
    session = device.alice.megolm_key()
    elsewhere = {**device.alice.room_key(0), "room_id": "!elsewhere:lab.test"}
    here = device.alice.event(1, "m.room.message", {})
    await device.take(body(session, events=(elsewhere, here)))

    assert {"events_decrypted at_once": 1, "to_device_decrypted": 1} == await device.totals()


async def test_messages_that_cannot_be_opened(device: ReadingDevice) -> None:
    """A message counts once by its reason, also one that opens and then is not for the device."""
    broken = device.alice.media_key()
    sealed = next(iter(broken["content"]["ciphertext"].values()))
    sealed["body"] = sealed["body"][:-4] + "AAAA"
    await device.take(body(broken))
    await device.take(body(device.alice.media_key(recipient="@other:lab.test")))
    await device.take(body(device.alice.media_key()))

    assert {
        "to_device_undecryptable olm_failed": 1,
        "to_device_undecryptable wrong_recipient": 1,
        "to_device_decrypted": 1,
    } == await device.totals()


async def test_what_is_noted_goes_and_the_totals_stay(device: ReadingDevice, conn: Connection) -> None:
    """Retention takes what was noted; no total falls by it."""
    await device.take(body(withheld(device.alice, "m.unverified"), events=(device.alice.room_key(0),)))
    before = await device.totals()

    await crypto.prune(conn, device.intake.homeserver_id, device.clock() + timedelta(days=31))

    assert before == await device.totals()
    for table in ("unread_event", "unread_message", "withheld_session"):
        assert 0 == await conn.fetchval(f"SELECT count(*) FROM crypto.{table}")  # noqa: S608 - names of our own

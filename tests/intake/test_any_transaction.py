"""What a transaction may hold: whatever it is, the rest of it is stored."""

import json
from typing import Any

import pytest

from rtc_appservice.core.wire import Intake, TransactionReader
from rtc_appservice.intake.transaction import BadBody, TransactionIntake, parse_body
from rtc_appservice.store.pool import Connection

from .serving import START, Events
from .test_transaction import send


async def test_one_bad_event_harms_nothing_else(intake: TransactionIntake, events: Events, conn: Connection) -> None:
    """It is a rejected row that names the field; the others of its transaction are stored."""
    bad = events.key(content={"call_id": "", "device_id": "ALICE1", "keys": [{"index": "0", "key": "x"}]})

    await send(intake, events.join(), bad, events.key())

    rows = await conn.fetch("SELECT kind, body ->> 'field' AS field FROM observation ORDER BY kind")
    assert [("membership", None), ("rejected", "content.keys[].index"), ("room_key", None)] == [
        tuple(row.values()) for row in rows
    ]


class Fragile(TransactionReader):
    """A reader with a fault: it fails on what one sender sends."""

    def read(self, body: dict[str, Any], **options: Any) -> Intake:
        """Read, unless Mallory is in it."""
        if "@mallory:lab.test" in str(body):
            raise RecursionError
        return super().read(body, **options)


async def test_what_the_reader_fails_on_is_rejected_alone(
    intake: TransactionIntake, events: Events, conn: Connection
) -> None:
    """A fault of ours must not stop the homeserver's queue at one event for ever."""
    intake._reader = Fragile(intake._homeserver, b"a secret of the test")
    poison = events.key(sender="@mallory:lab.test")
    olm = events.olm()

    taken = await send(
        intake, events.join(), poison, 7, events.key(), to_device=[{**olm, "sender": "@mallory:lab.test"}, olm]
    )

    assert ["membership", "rejected", "room_key"] == sorted(
        row["kind"] for row in await conn.fetch("SELECT kind FROM observation")
    )
    assert await conn.fetchval("SELECT count(*) FROM held_envelope") == 1
    assert (START, {"!room"}) == (taken.newest_at, taken.rtc_rooms)


async def test_content_of_any_shape_is_taken(intake: TransactionIntake, events: Events, conn: Connection) -> None:
    """Wrong types, NUL characters, huge numbers and deep nesting in every field: nothing of it is refused."""
    deep: Any = []
    for _ in range(900):
        deep = [deep]
    odd = [None, True, -1, 1.5, 2**63, "", "a\0b", "x" * 300, [], {}, [[]], {"index": 0, "key": deep}, deep]
    bodies: list[dict[str, Any]] = []
    for template in (events.join(), events.key(), events.message(type="m.room.redaction")):
        for name in template:
            bodies += [{**template, name: value, "event_id": f"${len(bodies)}{i}"} for i, value in enumerate(odd)]
        for name in template["content"]:
            bodies += [
                {**template, "content": {**template["content"], name: value}, "event_id": f"${len(bodies)}c{i}"}
                for i, value in enumerate(odd)
            ]
    bodies += [{**events.key(), "event_id": value} for value in odd]
    messages = [{**events.olm(), name: value} for name in events.olm() for value in odd]
    messages += [{**events.olm(), "type": "io.element.call.encryption_keys", "content": value} for value in odd]

    for start in range(0, len(bodies), 50):
        await send(intake, *bodies[start : start + 50])
    await send(intake, to_device=messages)
    await send(intake, events.join())

    assert await conn.fetchval("SELECT count(*) FROM observation WHERE kind = 'rejected'") > 0


async def test_numbers_of_any_size_are_taken(intake: TransactionIntake, events: Events, conn: Connection) -> None:
    """Synapse passes on integers that fit no machine number; their event is rejected or read, the others are stored."""
    huge = int("9" * 400)
    keys = [{"index": huge, "key": "bm90IGEga2V5IGF0IGE"}]

    await send(
        intake,
        events.join(content={**events.join()["content"], "expires": huge, "created_ts": huge}),
        events.join(origin_server_ts=huge),
        events.key(content={"call_id": "", "device_id": "A", "keys": keys, "sent_ts": -huge}),
        events.message(content={"body": "x", "n": huge}),
        events.key(),
        to_device=[{**events.olm(), "content": {"n": huge}}],
    )

    kinds = [row["kind"] for row in await conn.fetch("SELECT kind FROM observation ORDER BY kind")]
    assert kinds.count("room_key") == 1
    assert len(kinds) == 4


@pytest.mark.parametrize("depth", [190, 1_023, 1_100, 30_000])
async def test_nesting_of_any_depth_is_taken(
    intake: TransactionIntake, events: Events, conn: Connection, depth: int
) -> None:
    """Newer homeservers take what our Python cannot nest; what stands around it is read."""
    deep = '[{"[": "\\"]}"}, ' + '{"[": [' * depth + "]}" * depth + ', "end"]'
    join = json.dumps({**events.join(), "unsigned": {"deep": "DEEP"}}).replace('"DEEP"', deep)
    message = json.dumps(events.message()).replace('"hello"', deep)
    body = f'{{"events": [{join}, {message}, {json.dumps(events.key())}]}}'.encode()

    async def read() -> bytes:
        return body

    await intake.take(read)

    assert ["membership", "room_key"] == [
        row["kind"] for row in await conn.fetch("SELECT kind FROM observation ORDER BY kind")
    ]


@pytest.mark.parametrize("tail", ["", "]", "}" * 1_500, "]" * 1_499, "]" * 1_500 + "}]", '"'])
def test_broken_nesting_is_not_json(tail: str) -> None:
    """What is cut must at least end."""
    with pytest.raises(BadBody):
        parse_body(b'{"events": [' + b"[" * 1_500 + tail.encode())

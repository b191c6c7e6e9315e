"""Whatever the reader makes of odd events, the store takes it: content must never stop a homeserver's queue."""

import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rtc_appservice.core.wire import TransactionReader
from rtc_appservice.core.words import RoomId, ServerName
from rtc_appservice.store.observations import load_room, record
from rtc_appservice.store.pool import Pool
from rtc_appservice.store.rooms import RoomCache
from rtc_appservice.store.streams import open_stream

HOMESERVER = ServerName("lab.test")
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
NOON_MS = int(NOON.timestamp() * 1000)

TYPES = (
    "m.call.member",
    "org.matrix.msc3401.call.member",
    "m.rtc.member",
    "org.matrix.msc4143.rtc.member",
    "io.element.call.encryption_keys",
    "m.room.encrypted",
    "m.room.redaction",
    "m.room.member",
    "m.room.create",
    "m.room.encryption",
)
FIELDS = (
    "application",
    "call_id",
    "device_id",
    "expires",
    "created_ts",
    "focus_active",
    "keys",
    "algorithm",
    "redacts",
)
texts = st.one_of(
    st.text(max_size=8), st.sampled_from(["\0", "a\0b", "\U0010ffff" * 255, "'; --", "{1,2}", "\\u0000", ""])
)
values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([2**63, 2**64, 10**300]),
        st.floats(allow_nan=False, allow_infinity=False),
        texts,
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.sampled_from(FIELDS), texts), inner, max_size=4)
    ),
    max_leaves=8,
)
events = st.fixed_dictionaries(
    {
        "type": st.sampled_from(TYPES),
        "event_id": texts.map(lambda text: "$" + text),
        "room_id": st.sampled_from(["!a:lab.test", "!b"]),
        "sender": st.one_of(st.just("@a:lab.test"), texts),
        "origin_server_ts": st.one_of(st.just(NOON_MS), values),
        "content": st.one_of(st.dictionaries(st.sampled_from(FIELDS), values, max_size=6), values),
    },
    optional={"state_key": texts, "redacts": values, "unsigned": values},
)
messages = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["m.room.encrypted", "io.element.call.encryption_keys"]),
        "sender": texts,
        "to_user_id": texts,
        "to_device_id": texts,
        "content": values,
    }
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(events, max_size=5), st.lists(messages, max_size=2))
async def test_the_store_takes_what_the_reader_gives(
    pool: Pool, some_events: list[dict[str, Any]], some_messages: list[dict[str, Any]]
) -> None:
    """No event or message, however odd, makes a transaction fail; what was stored is read back as it was."""
    body = json.loads(json.dumps({"events": some_events, "to_device": some_messages}))
    reader = TransactionReader(HOMESERVER, b"a secret of the tests")
    intake = reader.read(body, received_at=NOON, watched={RoomId("!a:lab.test")}, watermark_at=None)
    rooms = RoomCache()
    async with pool.acquire() as conn:
        await conn.execute("TRUNCATE observation, observation_identity, held_envelope")
        homeserver_id = (await open_stream(conn, HOMESERVER)).homeserver_id

        recorded = await record(conn, homeserver_id, intake, rooms)

        last = {observation.identity: observation for observation in intake.observations}
        assert recorded.new == len(last) + len({envelope.identity for envelope in intake.envelopes} - last.keys())
        stored = {}
        for room_id in {observation.room_id for observation in intake.observations}:
            room = rooms.get(room_id)
            assert room is not None
            for observation in await load_room(conn, HOMESERVER, room_id, room.room_key, NOON.replace(year=2020)):
                stored[observation.identity] = observation
        assert stored == last

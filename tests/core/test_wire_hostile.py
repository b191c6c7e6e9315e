"""Whatever a transaction holds, and all that was recorded of real calls, is read without an error."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtc_appservice.core.observed import Observation, Rejected
from rtc_appservice.core.strip import KEY_EVENT_TYPES
from rtc_appservice.core.words import RoomId

from .build import ROOM, SCENARIOS, transactions_of, truth_of
from .test_strip import json_values
from .wire_events import (
    READER,
    STATE_TYPE,
    WATCHED,
    clear_key,
    event,
    member,
    olm,
    read,
    room_key,
)

kinds = st.sampled_from(
    [
        *sorted(KEY_EVENT_TYPES),
        STATE_TYPE,
        "m.rtc.member",
        "m.room.encrypted",
        "m.room.member",
        "m.room.redaction",
        "m.room.create",
        "m.room.encryption",
    ]
)
fields = st.sampled_from(
    [
        "sender",
        "room_id",
        "event_id",
        "origin_server_ts",
        "state_key",
        "content",
        "redacts",
        "sticky",
        "msc4354_sticky",
        "to_user_id",
        "to_device_id",
        "type",
    ]
)
odd = st.builds(
    lambda base, kind, changes: base | {"type": kind} | changes,
    st.sampled_from([room_key(), member(), olm(), clear_key(), {}]),
    kinds,
    st.dictionaries(fields, json_values, max_size=4),
)
lists = st.lists(odd | json_values, max_size=5) | json_values
bodies = st.fixed_dictionaries(
    {},
    optional={
        "events": lists,
        "to_device": lists,
        "de.sorunome.msc2409.to_device": lists,
        "ephemeral": json_values,
        "device_one_time_keys_count": json_values,
        "org.matrix.msc3202.device_one_time_keys_count": json_values,
    },
)


@settings(max_examples=400)
@given(bodies, st.booleans())
def test_no_transaction_raises(body: dict[str, Any], is_watched: bool) -> None:
    """Whatever JSON a transaction holds, reading it gives an intake whose values can be stored as JSON."""
    intake = read(body, watched=WATCHED if is_watched else frozenset())
    stored = msgspec.json.encode(intake.observations)

    assert intake.observations == msgspec.json.decode(stored, type=list[Observation])


@pytest.mark.parametrize(
    "body",
    [
        {"events": [{"type": ["x"]}]},
        {"events": [{"type": {"x": 1}, "room_id": ROOM}]},
        {"events": [{"type": "m.room.member", "room_id": ["x"]}]},
        {"to_device": [{"type": {}}]},
        {"to_device": [{"type": []}]},
        {"events": [room_key() | {"origin_server_ts": 10**400}]},
        {"events": [room_key(sent_ts=10**400)]},
        {"events": [event("m.rtc.member", {"sticky_key": "x"}, sticky={"duration_ms": 10**400})]},
        {"events": [event("m.room.message", {}, origin_server_ts=10**400)]},
    ],
    ids=lambda body: json.dumps(body)[:60],
)
def test_hostile_shapes_do_not_raise(body: dict[str, Any]) -> None:
    """Types that cannot be looked up and numbers no float can hold are wire data like any other."""
    assert len(body.get("events", ())) == read(body).event_count


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_recordings_are_read_whole(scenario: str) -> None:
    """Every room key and membership of a recorded call is observed once, and nothing in it is rejected."""
    truth = truth_of(scenario)
    watched: set[RoomId] = set()
    found: dict[str, Observation] = {}
    for transaction in transactions_of(scenario):
        intake = READER.read(transaction.body, received_at=transaction.received_at, watched=watched, watermark_at=None)
        watched |= intake.rtc_rooms
        assert not set(found) & {observation.identity for observation in intake.observations}
        found |= {observation.identity: observation for observation in intake.observations}
    sent = {request["event_id"] for request in truth["membership_requests"] if request["event_id"]}

    assert set() == (set(truth["room_key_events"]) | sent) - set(found)
    assert [] == [observation for observation in found.values() if isinstance(observation.body, Rejected)]

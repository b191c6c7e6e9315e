"""
Projects a long call of many devices after every join and leave: what an event costs must not grow with the call's age.

Devices join one by one, stay, and half of them leave and come back again and again, so that as many are there at the
end as at the beginning; every join and leave makes all present hand out a key. Ratios are to the first quarter.
"""

import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from rtc_appservice.core.lengths import to_device_lengths
from rtc_appservice.core.model import RoomHistory
from rtc_appservice.core.observed import Body, KeyMark, Membership, Observation, OlmEnvelope, RoomKey, RoomState
from rtc_appservice.core.session import RoomProjection
from rtc_appservice.core.words import Device, DeviceId, EventId, RoomId, ServerName, UserId

HOMESERVER, ROOM, SLOT = ServerName("bench.test"), RoomId("!" + "b" * 43), "m.call#ROOM"
START = datetime(2026, 1, 1, tzinfo=UTC)
EVENT_EVERY = timedelta(seconds=12)
KEY_AFTER = timedelta(seconds=0.2)
EVENTS = 400
#: (key transport, devices): every pair of devices has an envelope at every event, so those calls are smaller.
CALLS = (("room_event", 200), ("to_device", 40))


def events(key_transport: str, devices: int) -> Iterator[list[Observation]]:
    """Give the observations of each join or leave, once all devices are there, after those of their coming."""
    number = 0

    def observed(body: Body, at: datetime) -> Observation:
        nonlocal number
        number += 1
        identity = EventId(f"${number:08}")
        return Observation(
            homeserver=HOMESERVER, room_id=ROOM, identity=identity, event_at=at, received_at=at, body=body
        )

    def handed_out(live: list[Device], index: int, at: datetime) -> Iterator[Observation]:
        for sender in live:
            if key_transport == "room_event":
                mark = KeyMark(index=index % 256, length=16, padded=False, tag=f"{index} {sender[1]}")
                user, device = sender
                key = RoomKey(sender=user, device_id=device, slot_id=SLOT, keys=(mark,), event_type="key")
                yield observed(key, at + KEY_AFTER)
            else:
                yield from (observed(envelope(sender, to), at + KEY_AFTER) for to in live if to != sender)

    everybody = [(UserId(f"@user{n:03}:{HOMESERVER}"), DeviceId(f"DEVICE{n:03}")) for n in range(devices)]
    at = START
    coming = [observed(RoomState(sender=UserId("@a:b"), event_type="m.room.create", state_key="", value=""), at)]
    live: list[Device] = []
    for device in everybody:
        at += timedelta(seconds=1)
        live.append(device)
        coming.append(observed(membership(device, live=True), at))
    coming += handed_out(live, 0, at)
    yield coming
    for index in range(1, EVENTS + 1):
        at += EVENT_EVERY
        device = everybody[(index - 1) // 2 % (devices // 2)]
        joins = device not in live
        found = [observed(membership(device, live=joins), at)]
        if joins:
            live.append(device)
        else:
            live.remove(device)
        yield [*found, *handed_out(live, index, at)]


def membership(device: Device, *, live: bool) -> Membership:
    """Give a join or a leave of a device."""
    user_id, device_id = device
    key = f"_{user_id}_{device_id}_m.call"
    if not live:
        return Membership(sender=user_id, form="session_v2", key=key, live=False)
    return Membership(
        sender=user_id,
        form="session_v2",
        key=key,
        live=True,
        slot_id=SLOT,
        device_id=device_id,
        expires_seconds=14400.0,
    )


def envelope(sender: Device, recipient: Device) -> OlmEnvelope:
    """Give an envelope as long as a key message."""
    lengths = to_device_lengths(ROOM, *sender, recipient[0], 1)
    return OlmEnvelope(
        sender=sender[0],
        recipient=recipient[0],
        recipient_device=recipient[1],
        olm_type=1,
        body_length=lengths["to_device_40"][0],
        sender_key_id=f"key of {sender[1]}",
    )


def measure(key_transport: str, devices: int) -> None:
    """Project a call after each event and print what that cost by the call's age."""
    projection = RoomProjection()
    seconds: list[float] = []
    total = 0
    for number, observations in enumerate(events(key_transport, devices)):
        total += len(observations)
        history = RoomHistory(
            homeserver=HOMESERVER,
            room_id=ROOM,
            observations=tuple(observations),
            watermark_at=observations[-1].event_at,
            envelopes=True,
        )
        started = time.perf_counter()
        projection.project(history)
        if number:
            seconds.append(time.perf_counter() - started)
    quarters = [seconds[part * EVENTS // 4 : (part + 1) * EVENTS // 4] for part in range(4)]
    first = statistics.median(quarters[0])
    print(f"\nprojection: {devices} devices, {EVENTS} joins and leaves, keys by {key_transport}: {total} observations")
    for part, quarter in enumerate(quarters, start=1):
        median = statistics.median(quarter)
        print(
            f"  to {part * 25:3} % of its age {median * 1e3:8.1f} ms an event   ratio to the first quarter "
            f"{median / first:5.2f}   slowest {max(quarter) * 1e3:8.1f} ms",
            flush=True,
        )


def run() -> None:
    """Measure all calls."""
    for key_transport, devices in CALLS:
        measure(key_transport, devices)


if __name__ == "__main__":
    run()

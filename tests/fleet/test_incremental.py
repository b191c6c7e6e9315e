"""A room projected again and again as its observations come is the room projected at once, byte for byte."""

import random
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from rtc_appservice.core.envelope import place, placed_observation
from rtc_appservice.core.model import RoomHistory
from rtc_appservice.core.observed import Body, HeldEnvelope, Membership, Observation, Rejected, RoomKey
from rtc_appservice.core.session import RoomProjection
from rtc_appservice.core.wire import TransactionReader
from rtc_appservice.core.words import DeviceId, RoomId, ServerName, UserId

from ..core.build import KEY_TYPE, SCENARIOS, SLOT, WITNESSED, history_of, membership, project_room
from .plans import play

SMOOTH, ROUGH = range(6), range(1000, 1010)


def played(seed: int, *, rough: bool) -> RoomHistory:
    """Give a played room's history, its envelopes placed."""
    room = play(seed, rough=rough)
    server = ServerName(room.simulator.truth.server)
    reader = TransactionReader(server, b"the secret of the fleet's tests!")
    observations: list[Observation] = []
    held: list[HeldEnvelope] = []
    watched: set[RoomId] = set()
    watermark_at: datetime | None = None
    for transaction in room.transactions:
        received_at = datetime.fromtimestamp(transaction.received_at / 1000, UTC)
        intake = reader.read(transaction.body, received_at=received_at, watched=watched, watermark_at=watermark_at)
        observations += [found for found in intake.observations if found.room_id == room.simulator.truth.room_id]
        held += intake.envelopes
        watched |= intake.rtc_rooms
        if intake.newest_at is not None:
            watermark_at = max(intake.newest_at, watermark_at or intake.newest_at)
    assert watermark_at is not None
    history = RoomHistory(
        homeserver=server,
        room_id=RoomId(room.simulator.truth.room_id),
        observations=tuple(observations),
        watermark_at=watermark_at,
        envelopes=True,
    )
    spans = [span for session in project_room(history) for span in session.stints]
    placed = [placed_observation(one, found) for one in held if (found := place(one, spans)) is not None]
    return msgspec.structs.replace(history, observations=(*observations, *placed))


def with_strangers(history: RoomHistory, rng: random.Random) -> RoomHistory:
    """Add what belongs to no call, and may yet be given to one: keys, malformed events, a membership that came late."""
    known = sorted(history.observations, key=lambda one: one.event_at)
    begin, end = known[0].event_at, known[-1].event_at + timedelta(minutes=3)
    sender = UserId("@stranger:far.test")
    join: Membership = msgspec.structs.replace(
        membership("mallory"), sender=sender, claimed_user_id=UserId("@alice:lab.test")
    )
    strange = []
    for number in range(60):
        key = RoomKey(
            sender=sender,
            device_id=DeviceId(rng.choice("AB")),
            slot_id=rng.choice([SLOT, "m.call#other"]),
            keys=(),
            event_type=KEY_TYPE,
            encrypted=rng.random() < 0.3,
        )
        bodies: list[Body] = [key, Rejected(sender=sender, event_type=KEY_TYPE, reason="malformed"), join]
        body = rng.choice(bodies)
        at = begin + rng.random() * (end - begin)
        strange.append(
            Observation(
                homeserver=history.homeserver,
                room_id=history.room_id,
                identity=f"$strange{number}",
                event_at=at,
                received_at=at + timedelta(seconds=rng.choice([0, 0, 70])),
                body=body,
                late=body is join,
            )
        )
    return msgspec.structs.replace(history, observations=(*history.observations, *strange))


def assert_same_as_at_once(history: RoomHistory, rng: random.Random) -> None:
    """Feed a room piece by piece, in some order; look at some times; hold each look against the room begun anew."""
    order = rng.choice(["as received", "as received", "a little late", "any"])
    slack = {"as received": 0.0, "a little late": 8.0, "any": 1e6}[order]
    coming = sorted(
        history.observations,
        key=lambda one: (one.received_at + timedelta(seconds=rng.uniform(0, slack)), one.identity),
    )
    projection = RoomProjection()
    fed = 0
    while fed < len(coming):
        taken = fed + rng.choice([1, 5, 20, 100])
        newest_at = max(one.received_at for one in coming[:taken])
        now = msgspec.structs.replace(
            history,
            observations=tuple(coming[:taken]),
            watermark_at=newest_at + timedelta(seconds=rng.choice([0, 0, -3, 5, 130])),
        )
        again = msgspec.structs.replace(now, observations=tuple(coming[rng.choice([0, fed]) : taken]))
        fed = taken
        live = projection.project(again)

        assert msgspec.json.encode(RoomProjection().project(now)) == msgspec.json.encode(live)


@pytest.mark.parametrize("scenario", SCENARIOS + WITNESSED)
def test_recordings(scenario: str) -> None:
    """A recorded call, followed as it goes, in two ways."""
    history = history_of(scenario)
    for seed in range(2):
        assert_same_as_at_once(history, random.Random(seed))  # noqa: S311 - no secrets here


@pytest.mark.parametrize("rough", [False, True], ids=["smooth", "rough"])
def test_played_rooms(*, rough: bool) -> None:
    """Played rooms of all generations, followed as they go."""
    for seed in ROUGH if rough else SMOOTH:
        assert_same_as_at_once(played(seed, rough=rough), random.Random(seed))  # noqa: S311 - no secrets here


@pytest.mark.parametrize("scenario", ["smart-switch", "crash", "leave-rejoin"])
def test_what_belongs_to_no_call(scenario: str) -> None:
    """Keys and events outside the calls of a room are the same findings, however they come."""
    for seed in range(8):
        rng = random.Random(seed)  # noqa: S311 - no secrets here
        history = with_strangers(history_of(scenario), rng)
        assert_same_as_at_once(history, rng)
        kinds = {found.kind for found in RoomProjection().project(history).findings}
        assert {"key_readable_in_history", "malformed", "forged_membership"} <= kinds

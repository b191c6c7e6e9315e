"""
Writes the observations of a call tersely, and reads recordings.

Times are seconds after noon. `alice` is the device ALICE1 of @alice:lab.test, `alice/2` her second one, and
`alice@far.test` a user of another homeserver.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from rtc_appservice.core.audit import RecordedTransaction
from rtc_appservice.core.envelope import place, placed_observation
from rtc_appservice.core.lengths import room_key_lengths, to_device_lengths
from rtc_appservice.core.model import CallReport, CallSession, Finding, Projected, RoomHistory, Settings
from rtc_appservice.core.observed import (
    Body,
    HeldEnvelope,
    KeyMark,
    MegolmEnvelope,
    Membership,
    Observation,
    OlmEnvelope,
    Redaction,
    RoomKey,
    RoomState,
    ToDeviceKey,
)
from rtc_appservice.core.session import RoomProjection
from rtc_appservice.core.wire import TransactionReader
from rtc_appservice.core.words import Device, DeviceId, EventId, FindingKind, RoomId, ServerName, UserId

HOMESERVER = ServerName("lab.test")
ROOM = RoomId("!" + "r" * 43)  # room version 12: no server part
OTHER_ROOM = RoomId("!" + "o" * 43)
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
SECRET = b"the secret of a made-up deployment"
SLOT = "m.call#ROOM"
KEY_TYPE = "io.element.call.encryption_keys"

RECORDINGS = Path(__file__).parent.parent / "data" / "recordings"
SCENARIOS = sorted(path.parent.name for path in RECORDINGS.glob("*/transactions.jsonl"))
WITNESSED = sorted(f"witness/{path.parent.name}" for path in RECORDINGS.glob("witness/*/transactions.jsonl"))


def project_room(history: RoomHistory, settings: Settings | None = None) -> list[CallSession]:
    """Project all call sessions of a room, in order of start."""
    return list(RoomProjection(settings).project(history).calls)


def at(seconds: float) -> datetime:
    """Give a time after noon."""
    return NOON + timedelta(seconds=seconds)


def ms(seconds: float) -> int:
    """Give a time after noon as Matrix milliseconds."""
    return round(at(seconds).timestamp() * 1000)


def who(name: str) -> Device:
    """Give the device a name stands for."""
    rest, _, server = name.partition("@")
    local, _, number = rest.partition("/")
    return UserId(f"@{local}:{server or HOMESERVER}"), DeviceId(f"{local.upper()}{number or 1}")


def membership(name: str, **changes: Any) -> Membership:
    """Give a live membership as js-sdk 36 to 37 writes it, with changes."""
    user_id, device_id = who(name)
    join = Membership(
        sender=user_id,
        form="session_v1",
        key=f"_{user_id}_{device_id}",
        live=True,
        slot_id=SLOT,
        device_id=device_id,
        expires_seconds=14400.0,
        focus_selection="oldest_membership",
    )
    return msgspec.structs.replace(join, **changes)


def modern(name: str, **changes: Any) -> Membership:
    """Give a live membership as js-sdk 40 to 43 writes it, with changes."""
    user_id, device_id = who(name)
    return membership(
        name,
        **{
            "form": "session_v2",
            "key": f"_{user_id}_{device_id}_m.call",
            "membership_id": f"{user_id}:{device_id}",
            "focus_selection": "multi_sfu",
        }
        | changes,
    )


def sticky(name: str, dialect: str = "js_43", **changes: Any) -> Membership:
    """Give a live sticky membership, with changes."""
    return membership(
        name,
        **{
            "form": "sticky",
            "key": f"{name}-uuid",
            "membership_id": f"{name}-uuid",
            "dialect": dialect,
            "expires_seconds": 3600.0,
            "focus_selection": None,
        }
        | changes,
    )


def left(joined: Membership) -> Membership:
    """Give the event that ends a membership."""
    return Membership(sender=joined.sender, form=joined.form, key=joined.key, live=False)


class Scene:
    """A room, to which each method adds one observation and gives its identity."""

    def __init__(self, *, created: bool = True, encrypted: bool = False, room_id: RoomId = ROOM) -> None:
        """Begin with the room's creation an hour before noon, if it was seen."""
        self.room_id = room_id
        self.observations: list[Observation] = []
        if created:
            self.state("m.room.create", -3600, value="")
        if encrypted:
            self.state("m.room.encryption", -3599, value="m.megolm.v1.aes-sha2")

    def __repr__(self) -> str:
        """Tell the observations, so that a failing example can be read."""
        lines = [f"{(one.event_at - NOON).total_seconds():g} {one.identity} {one.body}" for one in self.observations]
        return "\n".join(["Scene:", *lines])

    def add(self, seconds: float, body: Body, **changes: Any) -> str:
        """Add an observation received as it happened, with changes."""
        number = len(self.observations)
        observation = Observation(
            homeserver=HOMESERVER,
            room_id=self.room_id,
            identity=f"${self.room_id[1]}{number:04}",
            event_at=at(seconds),
            received_at=at(seconds),
            body=body,
        )
        self.observations.append(msgspec.structs.replace(observation, **changes))
        return self.observations[-1].identity

    def state(self, event_type: str, seconds: float, *, value: str, state_key: str = "", sender: str = "alice") -> str:
        """Add room state."""
        body = RoomState(sender=who(sender)[0], event_type=event_type, state_key=state_key, value=value)
        return self.add(seconds, body)

    def join(self, name: str, seconds: float, body: Membership | None = None, **changes: Any) -> str:
        """Add a live membership, of js-sdk 37 unless given, with changes."""
        return self.add(seconds, msgspec.structs.replace(body or membership(name), **changes))

    def leave(self, name: str, seconds: float, body: Membership | None = None, **changes: Any) -> str:
        """Add the end of a membership, of js-sdk 37 unless given, with changes."""
        return self.add(seconds, msgspec.structs.replace(left(body or membership(name)), **changes))

    def room_key(
        self,
        name: str,
        seconds: float,
        *indexes: int,
        padded: bool = False,
        sent_ts: bool = True,
        tags: tuple[str | None, ...] | None = None,
        slot_id: str = SLOT,
        encrypted: bool = False,
        **changes: Any,
    ) -> str:
        """Add a readable room key of one index (0) or several; each index is another key unless tags say otherwise."""
        user_id, device_id = who(name)
        numbers = indexes or (0,)
        marks = tags or tuple(f"{name} key {index}" for index in numbers)
        body = RoomKey(
            sender=user_id,
            device_id=device_id,
            slot_id=slot_id,
            keys=tuple(
                KeyMark(index=index, length=16, padded=padded, tag=tag)
                for index, tag in zip(numbers, marks, strict=True)
            ),
            event_type=KEY_TYPE,
            encrypted=encrypted,
            claimed_sent_at=at(seconds) if sent_ts else None,
        )
        return self.add(seconds, body, **changes)

    def sealed_room_key(self, name: str, seconds: float, *, variant: str = "room_34_6", extra: int = 0) -> str:
        """Add an unreadable event that is as long as a room key, or longer by `extra` characters."""
        user_id, device_id = who(name)
        length = min(room_key_lengths(self.room_id, device_id)[variant]) + extra
        return self.add(seconds, MegolmEnvelope(sender=user_id, length=length, device_id=device_id))

    def to_device(
        self,
        sender: str,
        recipient: str,
        seconds: float,
        *,
        variant: str = "to_device_37_11",
        olm_type: int = 1,
        extra: int = 0,
    ) -> str:
        """Add an Olm envelope as long as a key message of a variant, or longer by `extra` characters."""
        body = olm_envelope(sender, recipient, variant=variant, olm_type=olm_type, extra=extra, room_id=self.room_id)
        return self.add(seconds, body)

    def hand_out(self, sender: str, *recipients: str, seconds: float, variant: str = "to_device_37_11") -> None:
        """Add one envelope to each recipient."""
        for recipient in recipients:
            self.to_device(sender, recipient, seconds, variant=variant)

    def read_key(
        self, sender: str, recipient: str, seconds: float, index: int = 0, *, encrypted: bool = True, **changes: Any
    ) -> str:
        """Add a to-device key read by a device of ours, or sent without Olm."""
        user_id, device_id = who(sender)
        body = ToDeviceKey(
            sender=user_id,
            recipient=who(recipient)[0],
            recipient_device=who(recipient)[1],
            claimed_device_id=device_id,
            slot_id=SLOT,
            keys=(KeyMark(index=index, length=16, padded=True, tag=f"{sender} key {index}"),),
            event_type=KEY_TYPE,
            encrypted=encrypted,
        )
        return self.add(seconds, msgspec.structs.replace(body, **changes))

    def redact(self, name: str, seconds: float, event_id: str) -> str:
        """Add a redaction."""
        return self.add(seconds, Redaction(sender=who(name)[0], redacts=EventId(event_id)))

    def history(self, until: float, **changes: Any) -> RoomHistory:
        """Give the room's history as of a time, with sight of envelopes unless changed."""
        history = RoomHistory(
            homeserver=HOMESERVER,
            room_id=self.room_id,
            observations=tuple(self.observations),
            watermark_at=at(until),
            envelopes=True,
        )
        return msgspec.structs.replace(history, **changes)

    def sessions(self, until: float, settings: Settings | None = None, **changes: Any) -> list[CallSession]:
        """Project all calls of the room as of a time."""
        return project_room(self.history(until, **changes), settings or Settings())

    def projected(self, until: float = 1000, **changes: Any) -> Projected:
        """Project the room as of a time."""
        return RoomProjection().project(self.history(until, **changes))

    def session(self, until: float = 1000, settings: Settings | None = None, **changes: Any) -> CallSession:
        """Project the room's only call as of a time."""
        (session,) = self.sessions(until, settings, **changes)
        return session

    def call(self, until: float = 1000, settings: Settings | None = None, **changes: Any) -> CallReport:
        """Report the room's only call as of a time."""
        return self.session(until, settings, **changes).report


def olm_envelope(
    sender: str,
    recipient: str,
    *,
    variant: str = "to_device_37_11",
    olm_type: int = 1,
    extra: int = 0,
    room_id: RoomId = ROOM,
) -> OlmEnvelope:
    """Give an envelope as long as a key message of a variant, or longer by `extra` characters."""
    user_id, device_id = who(sender)
    lengths = to_device_lengths(room_id, user_id, device_id, who(recipient)[0], olm_type)
    return OlmEnvelope(
        sender=user_id,
        recipient=who(recipient)[0],
        recipient_device=who(recipient)[1],
        olm_type=olm_type,
        body_length=lengths[variant][0] + extra,
        sender_key_id=f"olm key of {device_id}",
    )


def findings_of(call: CallReport, kind: FindingKind) -> list[Finding]:
    """Give a call's findings of one kind."""
    return [finding for finding in call.findings if finding.kind is kind]


def device_of(finding: Finding) -> str | None:
    """Give the device id a finding is about."""
    return None if finding.subject is None else finding.subject.device_id


# --- recordings ----------------------------------------------------------------------------------


def truth_of(scenario: str) -> dict[str, Any]:
    """Give what really happened in a recording."""
    found: dict[str, Any] = json.loads((RECORDINGS / scenario / "truth.json").read_text())
    return found


def transactions_of(scenario: str) -> Iterator[RecordedTransaction]:
    """Give a recording's transactions."""
    with (RECORDINGS / scenario / "transactions.jsonl").open() as lines:
        for line in map(json.loads, lines):
            yield RecordedTransaction(datetime.fromtimestamp(line["recv_ts"] / 1000, UTC), line["body"])


def history_of(scenario: str) -> RoomHistory:
    """Give a recording as the history of the room its call took place in, its envelopes placed."""
    truth = truth_of(scenario)
    reader = TransactionReader(HOMESERVER, SECRET)
    observations: list[Observation] = []
    held: list[HeldEnvelope] = []
    watched: set[RoomId] = set()
    watermark_at = NOON - timedelta(days=10000)
    for transaction in transactions_of(scenario):
        intake = reader.read(transaction.body, received_at=transaction.received_at, watched=watched, watermark_at=None)
        observations += [found for found in intake.observations if found.room_id == truth["room_id"]]
        held += intake.envelopes
        watched |= intake.rtc_rooms
        watermark_at = max(watermark_at, intake.newest_at or watermark_at)
    history = RoomHistory(
        homeserver=HOMESERVER,
        room_id=truth["room_id"],
        observations=tuple(observations),
        watermark_at=watermark_at,
        envelopes=truth["appservice_scope"] == "users",
    )
    spans = [span for session in project_room(history) for span in session.stints]
    placed = [placed_observation(one, room) for one in held if (room := place(one, spans)) is not None]
    return msgspec.structs.replace(history, observations=(*observations, *placed))

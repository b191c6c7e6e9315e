"""
The whole pure pipeline over recorded transactions: read, place envelopes, project, report.

What `run` does through the database, `audit` does in memory, by the same functions.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct

from rtc_appservice.core.envelope import place, placed_observation
from rtc_appservice.core.ledger import history_ledger
from rtc_appservice.core.model import Report, RoomHistory, Settings, StintSpan
from rtc_appservice.core.observed import Gap, HeldEnvelope, Observation
from rtc_appservice.core.opened import Opened
from rtc_appservice.core.report import build_report, room_finding
from rtc_appservice.core.session import RoomProjection
from rtc_appservice.core.stints import build_spans, build_stints, in_order
from rtc_appservice.core.wire import TransactionReader
from rtc_appservice.core.words import Device, RoomId, ServerName, UserId

#: As of when nothing at all was seen.
_LONG_AGO = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


class RecordedTransaction(Struct, frozen=True):
    """A transaction as it was received: the body as parsed JSON."""

    received_at: datetime
    body: dict[str, Any]
    opened: Opened | None = None  #: what a device of ours decrypted of it


def audit(
    transactions: Iterable[RecordedTransaction],
    *,
    homeserver: str | None,
    scope: str,
    secret: bytes,
    settings: Settings | None = None,
    witness: Device | None = None,
    gaps: Sequence[Gap] = (),
) -> Report:
    """
    Audit recorded transactions; the report is made as of the last one, and what is not due then stays `pending`.

    `scope` is `auto`, `rooms` or `users` (envelopes of all local users were shown). With `auto` they count as shown
    where transactions carried to-device messages or one-time-key counts of two users: one alone may be our own.
    `witness` is the device that opened them: a member of the calls, whose messages came in transactions, which may have
    lost some. `gaps` are what it could not open. `homeserver` None: the server name most users of the recording have.
    """
    settings = settings or Settings()
    recorded = sorted(transactions, key=lambda transaction: transaction.received_at)
    name = ServerName(homeserver or next(iter(servers_of(recorded)), "unknown"))
    seen = _read(recorded, TransactionReader(name, secret))
    for observation in _placed(seen.held, seen.observations, seen.watermark_at):
        seen.observations[observation.room_id].append(observation)
    histories = [
        RoomHistory(
            homeserver=name,
            room_id=room_id,
            observations=tuple(found),
            watermark_at=seen.watermark_at,
            envelopes=len(seen.served) > 1 if scope == "auto" else scope == "users",
            gaps=tuple(gaps),
            witnesses=frozenset(() if witness is None else (witness,)),
        )
        for room_id, found in seen.observations.items()
        if room_id in seen.watched
    ]
    projected = [(history, RoomProjection(settings).project(history)) for history in histories]
    in_history = sum(
        entry.redacted_at is None for history in histories for entry in history_ledger(history.observations)
    )
    return build_report(
        [session.report for _, room in projected for session in room.calls],
        gaps=gaps,
        room_keys_in_history=in_history,
        now=seen.watermark_at,
        findings=[
            room_finding(found, history.homeserver, history.room_id)
            for history, room in projected
            for found in room.findings
        ],
        target=settings.readiness_target,
    )


class _Seen(Struct, frozen=True, kw_only=True):
    """What recorded transactions brought."""

    observations: dict[RoomId, list[Observation]]
    held: list[HeldEnvelope]
    watched: set[RoomId]  #: rooms with calls
    served: set[UserId]  #: whose to-device messages or key counts were shown
    watermark_at: datetime


def _read(recorded: Sequence[RecordedTransaction], reader: TransactionReader) -> _Seen:
    """Read transactions in order of arrival."""
    observations: dict[RoomId, list[Observation]] = defaultdict(list)
    held: list[HeldEnvelope] = []
    watched: set[RoomId] = set()
    served: set[UserId] = set()
    watermark_at: datetime | None = None
    for transaction in recorded:
        intake = reader.read(
            transaction.body,
            received_at=transaction.received_at,
            watched=watched,
            watermark_at=watermark_at,
            opened=transaction.opened,
        )
        for observation in intake.observations:
            observations[observation.room_id].append(observation)
        held += intake.envelopes
        watched |= intake.rtc_rooms
        served |= intake.served_users
        if intake.newest_at is not None:
            watermark_at = max(intake.newest_at, watermark_at or intake.newest_at)
    if watermark_at is None:
        watermark_at = recorded[-1].received_at if recorded else _LONG_AGO
    return _Seen(observations=observations, held=held, watched=watched, served=served, watermark_at=watermark_at)


def _placed(
    held: Iterable[HeldEnvelope], observations: dict[RoomId, list[Observation]], watermark_at: datetime
) -> list[Observation]:
    spans_of: dict[UserId, list[StintSpan]] = defaultdict(list)
    for room_id, found in observations.items():
        for span in build_spans(build_stints(in_order(found), watermark_at)):
            for (user_id, device_id), stints in span.devices().items():
                spans_of[user_id] += [
                    StintSpan(
                        room_id=room_id,
                        slot_id=span.slot_id,
                        user_id=user_id,
                        device_id=device_id,
                        joined_at=stint.joined_at,
                        left_at=stint.left_at,
                    )
                    for stint in stints
                ]
    placed = []
    for envelope in held:
        sender, recipient = envelope.body.sender, envelope.body.recipient
        spans = spans_of[sender] + (spans_of[recipient] if recipient != sender else [])
        room = place(envelope, spans)
        if room is not None:
            placed.append(placed_observation(envelope, room))
    return placed


def servers_of(recorded: Iterable[RecordedTransaction]) -> list[str]:
    """
    Give the server names in a recording, the one whose it probably is first.

    Recipients of to-device messages are local; of senders in rooms, most are.
    """
    seen: Counter[str] = Counter()
    for transaction in recorded:
        messages = transaction.body.get("de.sorunome.msc2409.to_device") or transaction.body.get("to_device")
        for message in messages if isinstance(messages, list) else ():
            if isinstance(message, dict) and isinstance(message.get("to_user_id"), str):
                seen[message["to_user_id"].partition(":")[2]] += 1000
        events = transaction.body.get("events")
        for event in events if isinstance(events, list) else ():
            if isinstance(event, dict) and isinstance(event.get("sender"), str):
                seen[event["sender"].partition(":")[2]] += 1
    return [name for name, _ in seen.most_common()]

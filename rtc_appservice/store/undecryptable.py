"""
Stage 3: what the service's own device could not open when it came, each noted once, and what was opened after all.

What a function tells to be new was not noted before, whichever way and however often it came: totals add that.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

from msgspec import Struct

from rtc_appservice.core.undecryptable import UndecryptableReason, WithheldCode, withheld_code
from rtc_appservice.core.words import EventId, RoomId, UserId
from rtc_appservice.store.pool import Connection


class UnreadRow(Struct, frozen=True, kw_only=True):
    """A room event that could not be opened."""

    event_id: EventId
    room_id: RoomId
    session_id: str
    sender: UserId  #: empty: noted before it was kept
    event_at: datetime | None
    reason: UndecryptableReason


class Undecryptable(Struct, frozen=True, kw_only=True):
    """What is noted of an event or a message that could not be opened when it came."""

    reason: UndecryptableReason
    withheld_code: WithheldCode | None
    opened_at: datetime | None  #: None: never


async def note_withheld(
    conn: Connection, homeserver_id: int, withheld: Mapping[tuple[RoomId, str, UserId], WithheldCode], at: datetime
) -> list[WithheldCode]:
    """Note why Megolm sessions, as (room, session id, sender), do not come; give the codes of those that are new."""
    ordered = sorted(withheld)
    rows = await conn.fetch(
        """
        INSERT INTO crypto.withheld_session (homeserver_id, room_id, session_id, sender, code, noted_at)
        SELECT $1, *, $2 FROM unnest($3::text[], $4::text[], $5::text[], $6::text[])
        ON CONFLICT DO NOTHING RETURNING code
        """,
        homeserver_id,
        at,
        [room_id for room_id, _, _ in ordered],
        [session_id for _, session_id, _ in ordered],
        [sender for _, _, sender in ordered],
        [withheld[key] for key in ordered],
    )
    return [withheld_code(row["code"]) for row in rows]


async def note_unread(
    conn: Connection, homeserver_id: int, events: Iterable[UnreadRow], at: datetime
) -> list[UndecryptableReason]:
    """Note events that could not be opened, or why they still cannot; give the reasons of those that are new."""
    unique = {event.event_id: event for event in events}
    ordered = [unique[event_id] for event_id in sorted(unique)]
    rows = await conn.fetch(
        """
        WITH noted AS (
            INSERT INTO crypto.unread_event
                (homeserver_id, noted_at, event_id, room_id, session_id, sender, event_at, reason)
            SELECT $1, $2, * FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[], $8::text[])
            ON CONFLICT (homeserver_id, event_id)
            DO UPDATE
            SET reason = excluded.reason, sender = excluded.sender, noted_at = excluded.noted_at, waiting = true
            RETURNING homeserver_id, room_id, session_id, sender, reason, xmax = 0 AS is_new
        )
        SELECT reason, code
        FROM noted LEFT JOIN crypto.withheld_session USING (homeserver_id, room_id, session_id, sender)
        WHERE is_new
        """,
        homeserver_id,
        at,
        [event.event_id for event in ordered],
        [event.room_id for event in ordered],
        [event.session_id for event in ordered],
        [event.sender for event in ordered],
        [event.event_at for event in ordered],
        [str(event.reason) for event in ordered],
    )
    return [_reason(row["reason"], row["code"]) for row in rows]


async def note_opened(
    conn: Connection, homeserver_id: int, event_ids: Collection[str], at: datetime
) -> frozenset[EventId]:
    """Note events that were opened, and give those of them that could not be before."""
    rows = await conn.fetch(
        """
        UPDATE crypto.unread_event SET waiting = false, opened_at = $2
        WHERE homeserver_id = $1 AND event_id = ANY($3::text[]) AND opened_at IS NULL RETURNING event_id
        """,
        homeserver_id,
        at,
        list(event_ids),
    )
    return frozenset(EventId(row["event_id"]) for row in rows)


async def note_unread_messages(
    conn: Connection, homeserver_id: int, messages: Mapping[str, UndecryptableReason], at: datetime
) -> list[UndecryptableReason]:
    """Note to-device messages that could not be opened, by identity; give the reasons of those that are new."""
    ordered = sorted(messages)
    rows = await conn.fetch(
        """
        INSERT INTO crypto.unread_message (homeserver_id, identity, reason, noted_at)
        SELECT $1, *, $2 FROM unnest($3::text[], $4::text[]) ON CONFLICT DO NOTHING RETURNING reason
        """,
        homeserver_id,
        at,
        ordered,
        [str(messages[identity]) for identity in ordered],
    )
    return [UndecryptableReason(row["reason"]) for row in rows]


async def load_undecryptable(
    conn: Connection, homeserver_id: int, identities: Collection[str]
) -> dict[str, Undecryptable]:
    """Give what is noted of events and messages, by the identities of their observations."""
    if not identities:
        return {}
    rows = await conn.fetch(
        """
        SELECT event_id AS identity, reason, code, opened_at
        FROM crypto.unread_event LEFT JOIN crypto.withheld_session USING (homeserver_id, room_id, session_id, sender)
        WHERE homeserver_id = $1 AND event_id = ANY($2::text[])
        UNION ALL
        SELECT identity, reason, NULL, NULL FROM crypto.unread_message
        WHERE homeserver_id = $1 AND identity = ANY($2::text[])
        """,
        homeserver_id,
        list(identities),
    )
    return {
        row["identity"]: Undecryptable(
            reason=_reason(row["reason"], row["code"]),
            withheld_code=None if row["code"] is None else withheld_code(row["code"]),
            opened_at=row["opened_at"],
        )
        for row in rows
    }


def _reason(reason: str, code: str | None) -> UndecryptableReason:
    found = UndecryptableReason(reason)
    # Of a session that another claimed, its sender may have said why it does not come.
    is_missing = found in (UndecryptableReason.MISSING_SESSION, UndecryptableReason.WRONG_SENDER)
    is_withheld = is_missing and code is not None
    return UndecryptableReason.WITHHELD if is_withheld else found

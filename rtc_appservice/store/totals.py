"""Stages 5 and 6: totals that only grow, and the ledger of room key events that stand in room history."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import msgspec
from msgspec import Struct

from rtc_appservice.core.model import LedgerEntry
from rtc_appservice.core.words import EventId, ServerName
from rtc_appservice.store.pool import Connection


class Rollup(Struct, frozen=True, kw_only=True):
    """One total of one homeserver."""

    homeserver: ServerName
    name: str
    labels: Mapping[str, str]
    value: int


async def add(conn: Connection, homeserver_id: int, increments: Iterable[tuple[str, Mapping[str, str], int]]) -> None:
    """Add to totals; the same name and labels may come more than once."""
    amounts: dict[tuple[str, str], int] = {}
    for name, labels, amount in increments:
        key = (name, msgspec.json.encode(dict(labels), order="sorted").decode())
        amounts[key] = amounts.get(key, 0) + amount
    if not amounts:
        return
    ordered = sorted(amounts)  # two projectors that meet lock the rows in one order
    await conn.execute(
        """
        INSERT INTO rollup (homeserver_id, name, labels, value)
        SELECT $1, * FROM unnest($2::text[], $3::jsonb[], $4::bigint[])
        ON CONFLICT (homeserver_id, name, labels) DO UPDATE SET value = rollup.value + excluded.value
        """,
        homeserver_id,
        [name for name, _ in ordered],
        [labels for _, labels in ordered],
        [amounts[key] for key in ordered],
    )


async def load(conn: Connection) -> list[Rollup]:
    """Give every total there is."""
    rows = await conn.fetch(
        """
        SELECT homeserver.name AS homeserver, rollup.name, labels, value
        FROM rollup JOIN homeserver USING (homeserver_id) ORDER BY 1, 2, labels
        """
    )
    return [
        Rollup(
            homeserver=ServerName(row["homeserver"]),
            name=row["name"],
            labels=msgspec.json.decode(row["labels"], type=dict[str, str]),
            value=row["value"],
        )
        for row in rows
    ]


async def write_ledger(
    conn: Connection,
    homeserver_id: int,
    room_key: int,
    entries: Sequence[LedgerEntry],
    redactions: Mapping[EventId, datetime],
) -> None:
    """Enter room key events that stand in history, and close those that were redacted, however old they are."""
    if entries:
        await conn.execute(
            """
            INSERT INTO history_ledger AS known (room_key, homeserver_id, event_id, at, sender, device_id, keys,
                                                 redacted_at)
            SELECT $1, $2, * FROM unnest($3::text[], $4::timestamptz[], $5::text[], $6::text[], $7::integer[],
                                         $8::timestamptz[])
            ON CONFLICT (room_key, event_id) DO UPDATE SET redacted_at = excluded.redacted_at
            WHERE known.redacted_at IS NULL AND excluded.redacted_at IS NOT NULL
            """,
            room_key,
            homeserver_id,
            [entry.event_id for entry in entries],
            [entry.at for entry in entries],
            [entry.sender for entry in entries],
            [entry.device_id for entry in entries],
            [entry.keys for entry in entries],
            [entry.redacted_at for entry in entries],
        )
    if redactions:
        await conn.execute(
            """
            UPDATE history_ledger AS known SET redacted_at = redaction.at
            FROM unnest($2::text[], $3::timestamptz[]) AS redaction (event_id, at)
            WHERE known.room_key = $1 AND known.event_id = redaction.event_id AND known.redacted_at IS NULL
            """,
            room_key,
            list(redactions),
            list(redactions.values()),
        )


async def room_keys_in_history(conn: Connection, homeserver_id: int | None = None) -> int:
    """Count the room key events that stand in room history, of one homeserver or of all."""
    count: int = await conn.fetchval(
        """
        SELECT count(*) FROM history_ledger
        WHERE redacted_at IS NULL AND ($1::smallint IS NULL OR homeserver_id = $1)
        """,
        homeserver_id,
    )
    return count

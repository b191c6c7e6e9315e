"""
Stage 3: Olm state of the service's own device, in a schema of its own.

Pickles come and go as text that libolm has encrypted. Whoever changes Olm state holds the device's row, and writes the
change in the transaction that holds what came of it.
"""

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta

from msgspec import Struct

from rtc_appservice.core.undecryptable import UndecryptableReason
from rtc_appservice.core.words import Device, DeviceId, DeviceTrust, EventId, RoomId, UserId
from rtc_appservice.errors import RtcAppserviceError
from rtc_appservice.store.pool import Connection
from rtc_appservice.store.undecryptable import UnreadRow

#: The homeserver keeps a to-device message until `/sync` has taken it: longer ago none comes again. And no Megolm
#: session is used for longer.
TAKEN_RETENTION = timedelta(days=30)
#: Devices change their Megolm sessions after a week, unless a room has them keep one for longer.
UNUSED_RETENTION = timedelta(days=90)
#: Observations older than this are dropped, so an event read by then would say nothing.
UNREAD_RETENTION = timedelta(days=7)


class DeviceReplaced(RtcAppserviceError):
    """The keys of the service's device are not in the database any more, as after `rtc-appservice new-device`."""

    def __str__(self) -> str:
        """Say what to do, too."""
        return f"{self.__doc__} Start the service again: it makes another device, or takes the one that is there now."


class DeviceRow(Struct, frozen=True, kw_only=True):
    """The device of the service."""

    user_id: UserId
    device_id: DeviceId
    account: str
    sync_token: str | None
    synced_at: datetime | None
    published_at: datetime | None
    signed_at: datetime | None


class MegolmRow(Struct, frozen=True, kw_only=True):
    """A Megolm session that was handed to the device."""

    room_id: RoomId
    session_id: str
    owner: UserId
    sender_key: str
    device_id: DeviceId | None
    trust: DeviceTrust
    first_index: int
    pickle: str


class IndexRow(Struct, frozen=True):
    """The event of a sender that used an index of a Megolm session first."""

    session_id: str
    owner: UserId
    index: int
    event_id: str
    event_at: datetime | None


_DEVICE = """
SELECT user_id, device_id, account, sync_token, synced_at, published_at, signed_at
FROM crypto.device WHERE homeserver_id = $1
"""


async def load_device(conn: Connection, homeserver_id: int) -> DeviceRow | None:
    """Give the device of a homeserver, if there is one."""
    row = await conn.fetchrow(_DEVICE, homeserver_id)
    return None if row is None else DeviceRow(**dict(row))


async def own_devices(conn: Connection, homeserver_id: int) -> frozenset[Device]:
    """Give the device of a homeserver as a set: it is read by `/sync`, which loses nothing."""
    rows = await conn.fetch("SELECT user_id, device_id FROM crypto.device WHERE homeserver_id = $1", homeserver_id)
    return frozenset((UserId(row["user_id"]), DeviceId(row["device_id"])) for row in rows)


async def forget_device(conn: Connection, homeserver_id: int) -> None:
    """Forget the device of a homeserver with all its keys; the rooms it is in stay."""
    async with conn.transaction():
        # Whoever holds it is about to write what is to be forgotten.
        await conn.execute("SELECT FROM crypto.device WHERE homeserver_id = $1 FOR UPDATE", homeserver_id)
        for table in ("olm_session", "megolm_session", "megolm_index", "taken_message", "device"):
            await conn.execute(f"DELETE FROM crypto.{table} WHERE homeserver_id = $1", homeserver_id)  # noqa: S608


async def require_device(conn: Connection, homeserver_id: int, device: Device) -> DeviceRow:
    """Give a device; raises DeviceReplaced if there is another or none."""
    return _required(await load_device(conn, homeserver_id), device)


async def lock_device(conn: Connection, homeserver_id: int, device: Device) -> DeviceRow:
    """Give a device and hold it until the transaction ends; raises DeviceReplaced if there is another or none."""
    row = await conn.fetchrow(_DEVICE + " FOR UPDATE", homeserver_id)
    return _required(None if row is None else DeviceRow(**dict(row)), device)


def _required(row: DeviceRow | None, device: Device) -> DeviceRow:
    if row is None or (row.user_id, row.device_id) != device:
        raise DeviceReplaced
    return row


async def add_device(
    conn: Connection, homeserver_id: int, user_id: UserId, device_id: DeviceId, account: str
) -> DeviceRow:
    """Add the device unless there is one, and give the one there is."""
    await conn.execute(
        """
        INSERT INTO crypto.device (homeserver_id, user_id, device_id, account) VALUES ($1, $2, $3, $4)
        ON CONFLICT DO NOTHING
        """,
        homeserver_id,
        user_id,
        device_id,
        account,
    )
    row = await conn.fetchrow(_DEVICE + " FOR UPDATE", homeserver_id)
    return DeviceRow(**dict(row or {}))


async def save_account(conn: Connection, homeserver_id: int, account: str) -> None:
    """Write the account of a device that is held."""
    await conn.execute("UPDATE crypto.device SET account = $2 WHERE homeserver_id = $1", homeserver_id, account)


async def save_sync_token(conn: Connection, homeserver_id: int, token: str, at: datetime) -> None:
    """Write how far `/sync` has been taken."""
    await conn.execute(
        "UPDATE crypto.device SET sync_token = $2, synced_at = $3 WHERE homeserver_id = $1", homeserver_id, token, at
    )


async def mark_published(conn: Connection, homeserver_id: int, at: datetime) -> None:
    """Note that the device keys are on the homeserver."""
    await conn.execute("UPDATE crypto.device SET published_at = $2 WHERE homeserver_id = $1", homeserver_id, at)


async def mark_signed(conn: Connection, homeserver_id: int, at: datetime) -> None:
    """Note that the device is cross-signed."""
    await conn.execute("UPDATE crypto.device SET signed_at = $2 WHERE homeserver_id = $1", homeserver_id, at)


# --- sessions -----------------------------------------------------------------------------------


async def load_olm_sessions(
    conn: Connection, homeserver_id: int, sender_keys: Collection[str]
) -> list[tuple[str, str]]:
    """Give (sender key, pickle) of the sessions with some devices, those used last first."""
    if not sender_keys:
        return []
    rows = await conn.fetch(
        """
        SELECT sender_key, pickle FROM crypto.olm_session
        WHERE homeserver_id = $1 AND sender_key = ANY($2::text[]) ORDER BY used_at DESC
        """,
        homeserver_id,
        list(sender_keys),
    )
    return [(row["sender_key"], row["pickle"]) for row in rows]


async def save_olm_sessions(
    conn: Connection,
    homeserver_id: int,
    sessions: Iterable[tuple[UserId, str, str, str]],
    at: datetime,
    keep: int,
    keep_of_user: int,
) -> None:
    """
    Write sessions, given as (sender, sender key, session id, pickle).

    All but the last are dropped: the last `keep` of each sender key, and `keep_of_user` of each sender.
    """
    rows = list(sessions)
    await conn.executemany(
        """
        INSERT INTO crypto.olm_session (homeserver_id, sender, sender_key, session_id, pickle, used_at)
        VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (homeserver_id, sender_key, session_id)
        DO UPDATE SET pickle = excluded.pickle, sender = excluded.sender, used_at = $6
        """,
        [(homeserver_id, *row, at) for row in rows],
    )
    await conn.execute(
        """
        DELETE FROM crypto.olm_session WHERE homeserver_id = $1 AND (sender_key, session_id) IN (
            SELECT sender_key, session_id FROM (
                SELECT sender_key, session_id,
                       row_number() OVER (PARTITION BY sender_key ORDER BY used_at DESC) AS place
                FROM crypto.olm_session WHERE homeserver_id = $1 AND sender_key = ANY($2::text[])
            ) AS ranked WHERE place > $3
        )
        """,
        homeserver_id,
        sorted({sender_key for _, sender_key, _, _ in rows}),
        keep,
    )
    await conn.execute(
        """
        DELETE FROM crypto.olm_session WHERE homeserver_id = $1 AND (sender_key, session_id) IN (
            SELECT sender_key, session_id FROM unnest($2::text[]) AS writer (sender) CROSS JOIN LATERAL (
                SELECT sender_key, session_id FROM crypto.olm_session AS known
                WHERE homeserver_id = $1 AND known.sender = writer.sender ORDER BY used_at DESC OFFSET $3
            ) AS older
        )
        """,
        homeserver_id,
        sorted({sender for sender, _, _, _ in rows}),
        keep_of_user,
    )


async def load_megolm_sessions(
    conn: Connection, homeserver_id: int, wanted: Collection[tuple[RoomId, str, UserId]]
) -> list[MegolmRow]:
    """
    Give those of the wanted sessions, (room, session id, sender), that are known.

    In place of one that the sender did not hand over, the same of whoever handed it over first.
    """
    if not wanted:
        return []
    rows = await conn.fetch(
        """
        SELECT room_id, session_id, owner, sender_key, device_id, trust, first_index, pickle
        FROM unnest($2::text[], $3::text[], $4::text[]) AS wanted (room_id, session_id, sender)
        CROSS JOIN LATERAL (
            SELECT owner, sender_key, device_id, trust, first_index, pickle FROM crypto.megolm_session AS known
            WHERE homeserver_id = $1 AND known.room_id = wanted.room_id AND known.session_id = wanted.session_id
            ORDER BY owner = sender DESC, received_at, owner LIMIT 1
        ) AS found
        """,
        homeserver_id,
        [room_id for room_id, _, _ in wanted],
        [session_id for _, session_id, _ in wanted],
        [sender for _, _, sender in wanted],
    )
    return [MegolmRow(**{**dict(row), "trust": DeviceTrust(row["trust"])}) for row in rows]


async def save_megolm_sessions(
    conn: Connection, homeserver_id: int, sessions: Iterable[MegolmRow], at: datetime
) -> None:
    """Write sessions; one that is known is replaced if the same device gave it from an earlier index."""
    await conn.executemany(
        """
        INSERT INTO crypto.megolm_session
            (homeserver_id, room_id, session_id, owner, sender_key, device_id, trust, first_index, pickle, received_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
        ON CONFLICT (homeserver_id, room_id, session_id, owner)
        DO UPDATE SET pickle = excluded.pickle, first_index = excluded.first_index,
                      device_id = excluded.device_id, trust = excluded.trust, received_at = excluded.received_at
        WHERE megolm_session.sender_key = excluded.sender_key AND megolm_session.first_index > excluded.first_index
        """,
        [
            (
                homeserver_id,
                s.room_id,
                s.session_id,
                s.owner,
                s.sender_key,
                s.device_id,
                s.trust,
                s.first_index,
                s.pickle,
                at,
            )
            for s in sessions
        ],
    )


async def load_indices(conn: Connection, homeserver_id: int, session_ids: Collection[str]) -> list[IndexRow]:
    """Give which event of whom used which index of some Megolm sessions."""
    if not session_ids:
        return []
    rows = await conn.fetch(
        """
        SELECT session_id, owner, index, event_id, event_at FROM crypto.megolm_index
        WHERE homeserver_id = $1 AND session_id = ANY($2::text[])
        """,
        homeserver_id,
        list(session_ids),
    )
    return [IndexRow(**dict(row)) for row in rows]


async def save_indices(conn: Connection, homeserver_id: int, indices: Iterable[IndexRow], at: datetime) -> None:
    """Write which event of whom used which index."""
    await conn.executemany(
        """
        INSERT INTO crypto.megolm_index (homeserver_id, session_id, owner, index, event_id, event_at, noted_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING
        """,
        [(homeserver_id, row.session_id, row.owner, row.index, row.event_id, row.event_at, at) for row in indices],
    )


# --- what was taken and what was not ------------------------------------------------------------


async def load_taken(conn: Connection, homeserver_id: int, message_ids: Collection[str]) -> set[str]:
    """Give those of the messages that were taken before."""
    if not message_ids:
        return set()
    rows = await conn.fetch(
        "SELECT message_id FROM crypto.taken_message WHERE homeserver_id = $1 AND message_id = ANY($2::text[])",
        homeserver_id,
        list(message_ids),
    )
    return {row["message_id"] for row in rows}


async def save_taken(conn: Connection, homeserver_id: int, message_ids: Collection[str], at: datetime) -> None:
    """Write which messages were taken."""
    await conn.execute(
        """
        INSERT INTO crypto.taken_message (homeserver_id, message_id, taken_at)
        SELECT $1, message_id, $3 FROM unnest($2::text[]) AS taken (message_id) ON CONFLICT DO NOTHING
        """,
        homeserver_id,
        list(message_ids),
        at,
    )


async def readable_now(conn: Connection, homeserver_id: int, limit: int) -> list[UnreadRow]:
    """Give unread events whose session has come since from their sender, or has come again from an earlier index."""
    rows = await conn.fetch(
        """
        SELECT event_id, room_id, session_id, sender, event_at, reason FROM crypto.unread_event
        JOIN crypto.megolm_session USING (homeserver_id, room_id, session_id)
        WHERE homeserver_id = $1 AND waiting AND sender IN (owner, '')
          AND (reason = 'missing_session' OR (reason = 'wrong_sender' AND sender = owner)
               OR (reason = 'before_session' AND received_at > noted_at))
        ORDER BY noted_at, event_id LIMIT $2
        """,
        homeserver_id,
        limit,
    )
    return [UnreadRow(**{**dict(row), "reason": UndecryptableReason(row["reason"])}) for row in rows]


async def drop_unread(conn: Connection, homeserver_id: int, event_id: EventId) -> None:
    """Wait no longer for an unread event: it is read now, or is gone from the homeserver."""
    await conn.execute(
        "UPDATE crypto.unread_event SET waiting = false WHERE homeserver_id = $1 AND event_id = $2",
        homeserver_id,
        event_id,
    )


async def count_unread(conn: Connection, homeserver_id: int) -> dict[str, int]:
    """Give how many events wait unread, by the withheld code or else the reason."""
    rows = await conn.fetch(
        """
        SELECT coalesce(code, reason) AS why, count(*) AS events
        FROM crypto.unread_event LEFT JOIN crypto.withheld_session USING (homeserver_id, room_id, session_id, sender)
        WHERE homeserver_id = $1 AND waiting GROUP BY why
        """,
        homeserver_id,
    )
    return {row["why"]: row["events"] for row in rows}


async def prune(conn: Connection, homeserver_id: int, now: datetime) -> None:
    """Drop what can no longer matter."""
    for statement in (
        "DELETE FROM crypto.taken_message WHERE homeserver_id = $1 AND taken_at < $2",
        "DELETE FROM crypto.unread_message WHERE homeserver_id = $1 AND noted_at < $2",
        "DELETE FROM crypto.withheld_session WHERE homeserver_id = $1 AND noted_at < $2",
    ):
        await conn.execute(statement, homeserver_id, now - TAKEN_RETENTION)
    await conn.execute(
        "DELETE FROM crypto.unread_event WHERE homeserver_id = $1 AND noted_at < $2",
        homeserver_id,
        now - UNREAD_RETENTION,
    )
    await _prune_sessions(conn, homeserver_id, now)


async def _prune_sessions(conn: Connection, homeserver_id: int, now: datetime) -> None:
    """
    Drop Megolm sessions that nothing was opened with for long, and those of rooms the device is not in.

    Anybody can hand over sessions for any room; after a day the device is in it, or not.
    """
    await conn.execute(
        """
        DELETE FROM crypto.megolm_session AS known
        WHERE homeserver_id = $1 AND (received_at < $2 AND NOT EXISTS (
            SELECT FROM crypto.megolm_index
            WHERE homeserver_id = $1 AND session_id = known.session_id AND noted_at >= $2
        ) OR received_at < $3 AND NOT EXISTS (
            SELECT FROM crypto.room WHERE homeserver_id = $1 AND room_id = known.room_id
        ))
        """,
        homeserver_id,
        now - UNUSED_RETENTION,
        now - timedelta(days=1),
    )
    await conn.execute(
        """
        DELETE FROM crypto.megolm_index AS place
        WHERE homeserver_id = $1 AND noted_at < $2 AND NOT EXISTS (
            SELECT FROM crypto.megolm_session WHERE homeserver_id = $1 AND session_id = place.session_id
        )
        """,
        homeserver_id,
        now - timedelta(days=1),
    )


async def drop_sealed_observation(conn: Connection, homeserver_id: int, event_id: EventId) -> None:
    """Remove what was recorded of an event while it was sealed, so that what is in it can be recorded."""
    await conn.execute(
        """
        WITH dropped AS (
            DELETE FROM observation USING observation_identity AS known
            WHERE known.homeserver_id = $1 AND known.identity = $2
              AND observation.event_at = known.event_at AND observation.identity = $2
              AND observation.homeserver_id = $1 AND observation.kind = 'megolm_envelope'
            RETURNING observation.room_key, observation.event_at
        ), marked AS (
            INSERT INTO dirty_room (room_key, homeserver_id, event_at) SELECT room_key, $1, event_at FROM dropped
        )
        DELETE FROM observation_identity
        WHERE homeserver_id = $1 AND identity = $2 AND EXISTS (SELECT FROM dropped)
        """,
        homeserver_id,
        event_id,
    )

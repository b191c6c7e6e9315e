"""
What is held of one user, told to whoever asks, and replaced by a tombstone where it is to be forgotten.

Beside the stages: it changes what several of them wrote, in one commit, and asks the projector which findings come out
under another id. It may run while the service does: the rooms are held meanwhile, and every replica reads them anew.
"""

import logging
import secrets
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from msgspec.structs import replace

from rtc_appservice.core.keyed import Keyed
from rtc_appservice.core.live_rooms import LiveRoom
from rtc_appservice.core.person import Tombstones, mentions
from rtc_appservice.core.session import RoomProjection
from rtc_appservice.core.words import FindingKind, ServerName, UserId
from rtc_appservice.errors import InputError
from rtc_appservice.export.pseudonym import Pseudonyms, period
from rtc_appservice.projector import LONG_AGO, Projector, whole_room
from rtc_appservice.store import crypto, person
from rtc_appservice.store.homeservers import load_homeservers
from rtc_appservice.store.pool import Connection

_log = logging.getLogger(__name__)

_ALPHABET = string.ascii_uppercase + string.digits
#: A tombstone no longer than this could be the id of another forgotten user.
_SHORT = 12
_ATTEMPTS = 100


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What keyed hashes of a user are made with."""

    secret: bytes
    pseudonym_rotation_days: int | None


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Under which pseudonyms events about a user were sent to PostHog, if any were."""

    users: Sequence[str] = ()
    devices: Sequence[str] = ()
    distinct_ids: Sequence[str] = ()  #: of the user's calls


@dataclass(frozen=True, kw_only=True)
class Held:
    """What is held of a user at one homeserver."""

    homeserver: ServerName
    homeserver_id: int
    tables: Mapping[str, Sequence[Mapping[str, Any]]]  #: rows that name the user, as JSON
    room_ids: Mapping[int, str]
    olm_sessions: int  #: by which the service's own device reads the user's
    megolm_sessions: int
    unread_events: Mapping[str, str]  #: that the device could not open, each with its session
    outbox: int  #: events about the user that wait to be sent
    exported: Exported
    devices: frozenset[str] = field(default_factory=frozenset)

    @property
    def records(self) -> int:
        """Count the rows."""
        rows = sum(len(rows) for rows in self.tables.values())
        return rows + self.olm_sessions + self.megolm_sessions + self.outbox

    @property
    def calls_going_on(self) -> int:
        """Count the calls that go on and that the user is or was in."""
        return sum(row["ended_at"] is None for row in self.tables["call_session"])


async def find(conn: Connection, user_id: UserId, homeserver: str | None, terms: Terms) -> list[Held]:
    """
    Give what is held of a user, for each homeserver where there is anything; `homeserver` None asks for all.

    Raises:
        InputError: if nothing ever came from that homeserver.
    """
    known = await load_homeservers(conn)
    if homeserver is not None and homeserver not in known:
        names = ", ".join(known) or "none yet"
        raise InputError(f"There is nothing from {homeserver} in the database; homeservers seen: {names}")
    asked = {name: number for name, number in known.items() if homeserver in (None, name)}
    found = [await _find(conn, user_id, name, number, terms) for name, number in asked.items()]
    return [held for held in found if held.records]


async def _find(conn: Connection, user_id: UserId, homeserver: ServerName, homeserver_id: int, terms: Terms) -> Held:
    tables = {}
    for table in person.TABLES:
        rows = await person.held_rows(conn, table, homeserver_id, user_id)
        tables[table] = [row for row in rows if mentions(row, user_id)]
    devices = person.devices_of(tables) | _devices(user_id, tables)
    bodies = [row["body"] for table in ("observation", "held_envelope") for row in tables[table]]
    olm, megolm = await _sessions(conn, homeserver_id, user_id, _own_keys(user_id, bodies), terms)
    pseudonyms = _pseudonyms(user_id, devices, tables["call_session"], terms)
    own = [row["identity"] for row in tables["observation"] if row["body"].get("sender") == user_id]
    return Held(
        homeserver=homeserver,
        homeserver_id=homeserver_id,
        tables=tables,
        room_ids=await person.room_ids(
            conn, {row["room_key"] for each in tables.values() for row in each if "room_key" in row}
        ),
        olm_sessions=len(olm),
        megolm_sessions=len(megolm),
        unread_events=await person.unread_events(conn, homeserver_id, own),
        outbox=len(await person.queued_events(conn, [*pseudonyms.users, *pseudonyms.devices])),
        exported=pseudonyms,
        devices=frozenset(devices),
    )


def _devices(user_id: UserId, value: Any) -> set[str]:
    """Give the devices that JSON names beside a user: participants, fallbacks, what findings are about."""
    if isinstance(value, list | tuple):
        return {device for item in value for device in _devices(user_id, item)}
    if not isinstance(value, dict):
        return set()
    found = {device for item in value.values() for device in _devices(user_id, item)}
    for user, device in (("user_id", "device_id"), ("sender", "device_id"), ("recipient", "recipient_device")):
        if value.get(user) == user_id and isinstance(value.get(device), str):
            found.add(value[device])
    return found - {""}


def _own_keys(user_id: UserId, bodies: Iterable[Mapping[str, Any]]) -> set[str]:
    """Give the keyed hashes of the Olm keys that a user's devices sent under."""
    return {body["sender_key_id"] for body in bodies if body.get("sender") == user_id and body.get("sender_key_id")}


async def _sessions(
    conn: Connection, homeserver_id: int, user_id: UserId, own_keys: set[str], terms: Terms
) -> tuple[list[str], list[str]]:
    """Give the devices' public keys of Olm sessions, and the ids of Megolm sessions, that are of a user's devices."""
    megolm = await person.megolm_sessions(conn, homeserver_id, user_id)
    handed_out = {sender_key for _, sender_key in megolm}
    identify = Keyed(terms.secret).identity
    senders = await person.olm_senders(conn, homeserver_id)
    olm = [key for key, sender in senders if sender == user_id or key in handed_out or identify(key) in own_keys]
    return olm, [session_id for session_id, _ in megolm]


def _pseudonyms(user_id: UserId, devices: Iterable[str], calls: Sequence[Mapping[str, Any]], terms: Terms) -> Exported:
    hashes = [Pseudonyms(terms.secret, each) for each in _periods(calls, terms)]
    return Exported(
        users=[each.user(user_id) for each in hashes],
        devices=[each.device(user_id, device) for each in hashes for device in sorted(devices)],
        distinct_ids=[f"call:{hashes[0].call(row['call_id'])}" for row in calls] if hashes else [],
    )


def _periods(calls: Sequence[Mapping[str, Any]], terms: Terms) -> list[str]:
    """Give the periods in which pseudonyms held that calls were sent under."""
    started = [datetime.fromisoformat(row["started_at"]) for row in calls]
    return sorted({period(at, terms.pseudonym_rotation_days) for at in started})


# --- forgetting ------------------------------------------------------------------------------------


def random_text(length: int) -> str:
    """Give so many capitals and digits that nobody can guess."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


async def forget(
    conn: Connection,
    user_id: UserId,
    homeservers: Sequence[str],
    projector: Callable[[ServerName, int], Projector],
    terms: Terms,
) -> int:
    """
    Replace a user by a tombstone in all that is held at some homeservers, in one commit; give how many records.

    Args:
        projector: gives how a homeserver's rooms are projected.

    Raises:
        InputError: if it is the user of the service's own device, or no tombstone is left for an id that short.
    """
    async with conn.transaction():
        known = await load_homeservers(conn)
        asked = {name: number for name, number in known.items() if name in homeservers}
        for number in asked.values():
            own = await crypto.own_devices(conn, number)
            if user_id in {owner for owner, _ in own}:
                raise InputError(f"{user_id} is the service's own device's user; it cannot be forgotten")
        tombstones = await _choose(conn, user_id, known)
        changed = 0
        for name, number in asked.items():
            changed += await _forget(conn, tombstones, projector(name, number), terms)
    _log.warning("a user was forgotten", extra={"records": changed})
    return changed


async def _choose(conn: Connection, user_id: UserId, homeservers: Mapping[ServerName, int]) -> Tombstones:
    """Choose a tombstone that is no other's: those of short ids are few."""
    for _ in range(_ATTEMPTS):
        chosen = Tombstones(user_id, random_text, frozenset(homeservers))
        if len(chosen.tombstone) > _SHORT:
            return chosen
        held = [
            await person.held_rows(conn, table, number, chosen.tombstone)
            for number in homeservers.values()
            for table in person.TABLES
        ]
        if not any(held):
            return chosen
    raise InputError("There is no tombstone left for a user id that short.")


async def _forget(conn: Connection, tombstones: Tombstones, projector: Projector, terms: Terms) -> int:
    user_id, number = tombstones.user_id, projector.homeserver_id
    waiting = await person.hold_envelopes(conn, number, user_id)
    room_keys = await person.hold_rooms(conn, number, user_id)
    held = await _find(conn, user_id, projector.homeserver, number, terms)
    await person.hold_device(conn, number)
    tombstones.learn(held.devices)
    await person.write_envelopes(conn, number, {name: tombstones.body(body) for name, body in waiting.items()})
    finding_ids: dict[str, str] = {}
    for room_key in room_keys:
        finding_ids |= await _forget_in_room(conn, tombstones, projector, room_key)
    reports, before = held.tables["call_session"], held.tables["finding"]
    told = [row["body"] for row in before] + [found for row in reports for found in row["report"]["findings"]]
    finding_ids |= {each["finding_id"]: str(uuid4()) for each in told if _is_told_by(user_id, each, finding_ids)}
    await person.write_reports(
        conn, [{**row, "report": tombstones.report(row["report"], finding_ids)} for row in reports]
    )
    await person.write_findings(conn, before, [_finding(tombstones, row, finding_ids) for row in before])
    devices = {(user_id, device): tombstones.device(user_id, device) for device in person.devices_of(held.tables)}
    await person.write_devices(conn, number, devices)
    await _forget_queued(conn, tombstones, held, terms)
    bodies = [row["body"] for row in held.tables["observation"]]
    olm, _ = await _sessions(conn, number, user_id, _own_keys(user_id, bodies), terms)
    await person.drop_sessions(conn, number, user_id, olm)
    sessions = {event_id: (old, tombstones.alias(old)) for event_id, old in held.unread_events.items()}
    await person.write_unread(conn, number, user_id, tombstones.tombstone, sessions)
    await person.release_rooms(conn, room_keys)
    return held.records


async def _forget_in_room(
    conn: Connection, tombstones: Tombstones, projector: Projector, room_key: int
) -> dict[str, str]:
    """Put tombstones into a room's observations; give the finding ids that change by it, if it is projected anew."""
    room, before = await whole_room(conn, projector, room_key)
    known = room.projection.known_since(LONG_AGO)
    for observation in known:
        tombstones.learn(tombstones.devices_in(observation.body))
    now = [replace(observation, body=tombstones.body(observation.body)) for observation in known]
    changed = {
        (new.event_at, new.identity): new.body for old, new in zip(known, now, strict=True) if old.body != new.body
    }
    await person.write_bodies(conn, room_key, changed)
    after = LiveRoom(room.basis, RoomProjection(projector.settings))
    after.take(now)
    after.to_device_history_of = {
        call_id: {tombstones.device(*device): at for device, at in seen.items()}
        for call_id, seen in room.to_device_history_of.items()
    }
    return tombstones.renamed(before, after.look())


def _is_told_by(user_id: UserId, finding: Mapping[str, Any], finding_ids: Mapping[str, str]) -> bool:
    """Tell whether a finding's id is made of the user's, though no projection of today finds it any more."""
    other = (finding.get("details") or {}).get("other") or {}
    by = [(finding.get("subject") or {}).get("user_id")]
    if finding["kind"] == FindingKind.SPLIT_CALL:
        by.append(other.get("user_id"))
    return user_id in by and finding["finding_id"] not in finding_ids


def _finding(tombstones: Tombstones, row: Mapping[str, Any], finding_ids: Mapping[str, str]) -> dict[str, Any]:
    body = tombstones.finding(row["body"], finding_ids)
    revision = None if row["revision"] is None else tombstones.finding(row["revision"], finding_ids)
    return {**row, "body": body, "revision": revision, "finding_id": body["finding_id"]}


async def _forget_queued(conn: Connection, tombstones: Tombstones, held: Held, terms: Terms) -> None:
    """Let events that wait to be sent name the tombstone as all later ones do."""
    user_id, renamed = tombstones.user_id, {}
    for each in _periods(held.tables["call_session"], terms):
        hashes = Pseudonyms(terms.secret, each)
        renamed[hashes.user(user_id)] = hashes.user(tombstones.tombstone)
        for device in held.devices:
            renamed[hashes.device(user_id, device)] = hashes.device(*tombstones.device(user_id, device))
    queued = await person.queued_events(conn, list(renamed))
    changed: dict[UUID, dict[str, Any]] = {
        uuid: {name: renamed.get(value, value) if isinstance(value, str) else value for name, value in found.items()}
        for uuid, found in queued.items()
    }
    await person.write_queued(conn, changed)
